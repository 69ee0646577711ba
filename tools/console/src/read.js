// Reading what devices send. Every value of a message may be of any type and any size: what is not of the expected type
// becomes null or "", what is larger than its bound is cut. Nothing here is trusted to be a tag, a key or a topic level.

// One topic level that needs no quoting anywhere (edge_agent/protocol/topics.py).
const NAME = /^[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}$/;
// Levels beside a device that mean something else (edge_agent/protocol/topics.py).
const RESERVED = new Set(["client", "pool", "group"]);
// Controls, direction overrides, other format characters, private and lone surrogate code points. The two joiners are
// needed by Persian, Indic scripts and emoji (edge_agent/base/shown_text.py).
const HIDDEN = /(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;
const HIDDEN_BUT_LINES = /(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;
export const LARGEST_MESSAGE = 512 * 1024;

export const isName = (value) => typeof value === "string" && NAME.test(value);
export const isDevice = (value) => isName(value) && !RESERVED.has(value);

const cut = (value, most) => (value.length > most ? value.slice(0, most) + "…" : value);

/** A name, a label or a sentence as one line; "" for what is no text, number or truth value. */
export function line(value, most = 400) {
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  return typeof value === "string" ? cut(value, most).replace(/\s+/g, " ").replace(HIDDEN, "\ufffd") : "";
}

/** Generated text, which may have several lines. */
export function lines(value, most = 200_000) {
  return typeof value === "string" ? cut(value, most).replace(HIDDEN_BUT_LINES, "\ufffd") : "";
}

export const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
export const count = (value) => number(value) ?? 0;
export const list = (value, most = 1000) => (Array.isArray(value) ? value.slice(0, most) : []);
export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
/** An object, or an empty one. Read its fields by their fixed names only. */
export const object = (value) => (isObject(value) ? value : Object.create(null));
/** [key, value] of an object whose keys are data. */
export const entries = (value, most = 200) => (isObject(value) ? Object.entries(value).slice(0, most) : []);

const decoder = new TextDecoder("utf-8", { fatal: true });

/** The object in a payload, or null where there is none. */
export function decode(payload) {
  if (payload.length === 0 || payload.length > LARGEST_MESSAGE) return null;
  try {
    const value = JSON.parse(decoder.decode(payload));
    return isObject(value) ? value : null;
  } catch {
    return null;
  }
}

const quantiles = (value) =>
  isObject(value) ? { p50: number(value.p50), p95: number(value.p95), p99: number(value.p99) } : null;

export function readStatus(body) {
  return {
    state: line(body.state, 20) || "unknown",
    reason: line(body.reason),
    ts: number(body.ts),
    heartbeatS: Math.max(1, number(body.heartbeat_s) ?? 60),
  };
}

export function readInfo(body) {
  return {
    agent: line(body.agent, 60),
    board: line(body.board, 100),
    python: line(body.python, 40),
    runtimes: list(body.runtimes, 20).map(object).map((one) => ({
      name: line(one.name, 60),
      version: line(one.version, 60),
      devices: list(one.devices, 10).map((name) => line(name, 60)).join(", "),
      reason: line(one.reason),
    })),
  };
}

export function readModels(body) {
  return list(body.models, 200).map(object).map((one) => {
    const variant = list(one.variants, 50).map(object).find((other) => other.digest === one.variant);
    return {
      // As it is written in a topic; null where it could not be a level of one.
      topic: isName(one.name) ? one.name : null,
      name: line(one.name, 80),
      version: number(one.version),
      task: line(one.task, 30),
      labels: list(one.labels, 1000).map((label) => line(label, 200)),
      resident: one.resident === true,
      pairs: one.pairs === true,
      variant: variant === undefined ? "" : `${line(variant.runtime, 30)} ${line(variant.dtype, 30)}`,
      accuracy: variant === undefined ? null : number(variant.accuracy),
      footprint: number(one.footprint_bytes),
      reason: line(one.reason),
      context: number(one.context),
      building: isObject(one.building) ? line(one.building.stage, 60) : "",
      adapters: list(one.adapters, 200).map(object).map((adapter) => ({
        value: isName(adapter.name) ? adapter.name : null,
        name: line(adapter.name, 80),
        version: number(adapter.version),
        resident: adapter.resident === true,
        pairs: adapter.pairs === true,
        labels: list(adapter.labels, 1000).map((label) => line(label, 200)),
      })),
    };
  });
}

function readModelTelemetry([name, value]) {
  const body = object(value);
  const psi = entries(body.drift).map(([, drift]) => object(drift));
  const indices = psi.flatMap((one) => [number(one.confidence_psi), number(one.fragmentation_psi)]);
  return {
    name: line(name, 80),
    requests: count(body.requests),
    failed: count(body.failed),
    total: quantiles(body.total_ms),
    compute: quantiles(body.compute_ms),
    batch: number(body.batch_mean),
    joules: number(body.joules),
    drift: indices.reduce((most, one) => (one === null ? most : Math.max(most ?? one, one)), null),
    adapters: entries(body.adapters, 32).map(([adapter, one]) => ({
      name: line(adapter, 80),
      requests: count(object(one).requests),
      total: quantiles(object(one).total_ms),
    })),
  };
}

function readCanary([name, value]) {
  const body = object(value);
  const adapters = entries(body.adapters).map(([adapter, one]) => [line(adapter, 80), object(one)]);
  const failed = adapters.filter(([, one]) => one.ok === false);
  const bad = body.ok === false || failed.length > 0;
  const reason = body.ok === false ? line(body.reason) : failed.map(([who, one]) => `${who}: ${line(one.reason)}`)[0];
  return { name: line(name, 80), ok: bad ? false : body.ok === true ? true : null, reason: reason ?? line(body.reason) };
}

const counts = (value) => entries(value, 60).map(([word, times]) => [line(word, 60), count(times)]);

export function readTelemetry(body) {
  const governor = object(body.governor);
  const memory = object(body.memory);
  const energy = object(body.energy);
  const sensors = entries(body.sensors, 100).map(([key, value]) => ({
    key: line(key, 60),
    value: number(object(value).value),
    unit: line(object(value).unit, 30),
    source: line(object(value).source, 100),
    reason: line(object(value).reason),
  }));
  return {
    ts: number(body.ts),
    intervalS: Math.max(0.1, number(body.interval_s) ?? 10),
    uptimeS: number(body.uptime_s),
    queue: count(body.queue_jobs),
    models: entries(body.models, 100).map(readModelTelemetry),
    refusals: counts(body.refusals),
    reasons: counts(body.refusal_reasons),
    dropped: counts(body.dropped),
    expired: count(body.expired),
    duplicates: count(body.duplicates),
    eventsLost: count(body.events_lost),
    rss: number(body.rss_bytes),
    joules: number(energy.joules),
    energyMethod: line(energy.method),
    canaries: entries(body.canaries, 100).map(readCanary),
    sensors,
    governor: {
      level: line(governor.level, 20),
      rows: number(governor.max_rows),
      threads: number(governor.threads),
      busy: number(governor.busy_share),
      clock: number(governor.clock),
      forecast: number(governor.forecast_c),
      headroom: number(governor.headroom_c),
      why: line(governor.derated) || line(governor.disagree) || line(governor.why),
    },
    memory: {
      stage: line(memory.stage, 20),
      available: number(memory.available_bytes),
      reserve: number(memory.reserve_bytes),
      budget: number(memory.budget_bytes),
      outstanding: number(memory.outstanding_bytes),
      models: entries(memory.models, 100).map(([name, value]) => ({
        name: line(name, 80),
        promised: count(object(value).promised_bytes),
        held: count(object(value).held_bytes),
        mapped: count(object(value).mapped_bytes),
      })),
    },
  };
}

/** A digest of a package's index. */
export const isDigest = (value) => typeof value === "string" && /^sha256:[0-9a-f]{64}$/.test(value);
const fitting = (one) => isName(one.model) && (one.adapter === null || isName(one.adapter)) && isDigest(one.package);

/** How far a device is with its desired state: docs/desired.md. */
export function readReported(body) {
  const item = (one) => [line(one.model, 80), line(one.adapter, 80)].filter(Boolean).join(" + ");
  return {
    version: number(body.version),
    state: line(body.state, 20),
    notTaken: isObject(body.not_taken) ? line(body.not_taken.reason) || "no reason was given" : "",
    notTakenVersion: isObject(body.not_taken) ? number(body.not_taken.version) : null,
    installed: list(body.installed, 256).map(object).filter(fitting)
      .map((one) => ({ model: one.model, adapter: one.adapter ?? null, package: one.package })),
    items: list(body.items, 128).map(object).map((one) => ({
      name: item(one),
      model: line(one.model, 80),
      adapter: typeof one.adapter === "string" ? line(one.adapter, 80) : null,
      package: line(one.package, 80),
      state: line(one.state, 20),
      since: number(one.since),
      attempts: count(one.attempts),
      reason: line(one.reason),
      next: line(one.next),
      until: number(one.until),
      fetched: number(object(one.progress).fetched_bytes),
      whole: number(object(one.progress).total_bytes),
    })),
    trials: list(body.trials, 128).map(object).map((one) => ({
      model: line(one.model, 80),
      version: number(one.version),
      package: line(one.package, 80),
      state: line(one.state, 20),
      since: number(one.since),
      reason: line(one.reason),
      figures: entries(one.figures, 20).map(([word, value]) => [line(word, 40), number(value)]).filter(([, value]) => value !== null),
    })),
  };
}

const TRIAL_WORDS = ["mode", "otherwise"];
const TRIAL_NUMBERS = ["least", "most", "within_s", "agreement", "failures", "slower", "confidence_drop", "joules"];
const fetched = (one) => isDigest(one.package) && typeof one.url === "string" && one.url.length <= 2000;

/** What was declared of a device, whoever did it: docs/desired.md. `package` null: it is to go. */
export function readDesired(body) {
  const named = (model, adapter, found) => ({ model, adapter, package: found === null ? null : isDigest(found) ? found : undefined });
  const wanted = list(body.models, 128).map(object).filter((one) => isName(one.model)).flatMap((one) => [
    named(one.model, null, one.package),
    ...list(one.adapters, 128).map(object).filter((two) => isName(two.adapter)).map((two) => named(one.model, two.adapter, two.package)),
  ]);
  const policy = object(body.policy);
  const terms = Object.entries(object(policy.trial)).filter(([key, value]) =>
    (TRIAL_WORDS.includes(key) && typeof value === "string") || (TRIAL_NUMBERS.includes(key) && number(value) !== null));
  return {
    version: number(body.version),
    wanted: wanted.filter((one) => one.package !== undefined),
    sources: list(body.sources, 256).map(object).filter(fetched).map((one) => ({ package: one.package, url: one.url })),
    withinS: number(policy.within_s),
    others: policy.others === "remove" ? "remove" : "keep",
    trial: isObject(policy.trial) ? Object.fromEntries(terms) : null,
  };
}

/** A rollout that `edge-agent fleet rollout` carries out: docs/fleet.md. */
export function readRollout(body) {
  const plan = object(body.plan);
  const wanted = list(plan.models, 128).map(object).filter((one) => isName(one.model)).flatMap((one) => [
    ...(one.package === undefined ? [] : [{ model: one.model, adapter: null, package: one.package }]),
    ...list(one.adapters, 128).map(object).filter((two) => isName(two.adapter))
      .map((two) => ({ model: one.model, adapter: two.adapter, package: two.package })),
  ]);
  return {
    name: line(body.rollout, 80),
    id: typeof body.rollout === "string" && body.rollout.length <= 80 ? body.rollout : null,
    phase: ["rolling", "returning", "done", "returned"].includes(body.phase) ? body.phase : "unknown",
    wave: count(body.wave),
    waves: list(body.waves, 64).map((one) => list(one, 5000).filter(isDevice)),
    leftOut: list(body.left_out, 5000).filter(isDevice),
    reason: line(body.reason),
    who: line(object(body.claim).who, 120),
    wanted: wanted.map((one) => ({ ...one, package: isDigest(one.package) ? one.package : null })),
  };
}

export function readEvent(body) {
  return {
    id: `${line(body.boot_id, 64)}/${number(body.seq)}`,
    ts: number(body.ts),
    kind: line(body.kind, 60),
    severity: ["info", "warning", "error"].includes(body.severity) ? body.severity : "info",
    message: line(body.message, 1000),
  };
}

/** The value of a sensor, or null. */
export const sensor = (report, key) => report.sensors.find((one) => one.key === key)?.value ?? null;

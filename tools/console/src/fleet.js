// What is known of all devices: the last message of each kind, the events and the reports of the last hour. No clock and
// no connection: the time (milliseconds of the browser) is an argument.

import { decode, isDevice, readDesired, readEvent, readInfo, readModels, readReported, readRollout, readStatus, readTelemetry, sensor } from "./read.js";

export const DEVICES = 5000;
export const EVENTS = 200;
const WORDS = 200;
const HOUR_MS = 3_600_000;
const POINTS = 3700;
// Above so many devices the points of the plots stand further apart, so that a thousand devices fit into a phone.
const MANY = 50;
const VERY_MANY = 200;
const REFUSING_MS = 60_000;
const THROTTLE = ["under-voltage", "clock capped", "throttled", "soft temperature limit"];
export const KINDS = ["status", "info", "models", "reported", "telemetry", "event"];
// What only who declares may read; without it the form begins empty.
export const DECLARED = "desired";

// From the worst: what makes a device stand in front.
export const RANKS = ["offline", "lost", "quarantined", "hot", "memory", "degraded", "failing", "behind", "throttled", "refusing",
  "stale", "warm", "starting", "fine"];
const BAD = new Set(["offline", "lost", "quarantined", "hot", "memory", "degraded", "failing"]);

class Device {
  constructor(name) {
    this.name = name;
    this.status = this.info = this.models = this.reported = this.report = null;
    this.heardMs = null;
    this.reportMs = null;
    this.refusedMs = -Infinity;
    this.refusedCount = 0;
    this.points = [];
    this.events = [];
    // Since the page was opened: [kind, word, times] by both, and the last figures of each model, with their time.
    this.refusals = new Map();
    this.figures = new Map();
  }
}

export class Fleet {
  constructor(prefix) {
    this.prefix = prefix;
    this.devices = new Map();
    this.turnedAway = 0;
    this.unread = 0;
    this.rollout = null;
    // By name, what the broker holds for it: it is no sign of the device itself.
    this.desired = new Map();
  }

  /** A message as it came. `retained`: the broker kept it, so its age is told by the device's own clock. */
  take(topic, payload, retained, nowMs) {
    if (!topic.startsWith(this.prefix + "/")) return;
    const [name, kind, ...rest] = topic.slice(this.prefix.length + 1).split("/");
    if (name === "group" && kind === "rollout" && rest.length === 1 && rest[0] === "state") {
      const state = payload.length === 0 ? null : decode(payload);
      this.rollout = state === null ? null : { ...readRollout(state), heardMs: retained ? 0 : nowMs, keptMs: nowMs };
      return;
    }
    if (rest.length > 0 || !isDevice(name)) return;
    if (kind === DECLARED) {
      const declared = decode(payload);
      if (declared === null) this.desired.delete(name);
      else if (this.desired.has(name) || this.desired.size < DEVICES) this.desired.set(name, readDesired(declared));
      return;
    }
    if (!KINDS.includes(kind)) return;
    if (payload.length === 0) {
      // The device has another name now, or somebody removed it from the broker.
      if (kind === "status") this.devices.delete(name);
      return;
    }
    const body = decode(payload);
    if (body === null) {
      this.unread += 1;
      return;
    }
    let device = this.devices.get(name);
    if (device === undefined) {
      if (this.devices.size >= DEVICES) {
        this.turnedAway += 1;
        return;
      }
      device = new Device(name);
      this.devices.set(name, device);
    }
    this._take(device, kind, body, retained, nowMs);
  }

  _take(device, kind, body, retained, nowMs) {
    if (kind === "info") device.info = readInfo(body);
    else if (kind === "models") device.models = readModels(body);
    else if (kind === "reported") device.reported = readReported(body);
    else if (kind === "event") this._event(device, readEvent(body), nowMs);
    else if (kind === "status") {
      device.status = readStatus(body);
      const saidMs = device.status.ts === null ? nowMs : device.status.ts * 1000;
      device.heardMs = retained ? Math.min(saidMs, nowMs) : nowMs;
    } else this._report(device, readTelemetry(body), nowMs);
  }

  _event(device, event, nowMs) {
    if (device.events.some((one) => one.id === event.id)) return;
    device.events.push({ ...event, ms: event.ts === null ? nowMs : event.ts * 1000 });
    device.events.sort((one, other) => other.ms - one.ms);
    device.events.length = Math.min(device.events.length, EVENTS);
  }

  _report(device, report, nowMs) {
    device.report = report;
    device.reportMs = nowMs;
    const refused = report.refusals.reduce((sum, [, times]) => sum + times, 0);
    if (refused > 0) {
      device.refusedMs = nowMs;
      device.refusedCount = refused;
    }
    this._remember(device, report, nowMs);
    const apartMs = this.devices.size > VERY_MANY ? 10_000 : this.devices.size > MANY ? 5_000 : 900;
    const last = device.points.at(-1);
    if (last !== undefined && nowMs - last.ms < apartMs) return;
    if (last !== undefined && nowMs - last.ms > Math.max(3 * apartMs, 3000 * report.intervalS)) {
      device.points.push({ ...SILENCE, ms: last.ms + 1 });
    }
    device.points.push(point(report, refused, nowMs));
    while (device.points.length > POINTS || nowMs - device.points[0].ms > HOUR_MS) device.points.shift();
  }

  /** What an interval without it would take from the screen. */
  _remember(device, report, nowMs) {
    const told = [
      ...report.reasons.map(([word, times]) => ["refused", word, times]),
      ...report.dropped.map(([word, times]) => ["dropped", word, times]),
      ["expired", "no answer in time", report.expired],
    ];
    for (const [kind, word, times] of told) {
      const key = `${kind} ${word}`;
      const before = device.refusals.get(key)?.[2] ?? 0;
      if (times > 0 && (before > 0 || device.refusals.size < WORDS)) device.refusals.set(key, [kind, word, before + times]);
    }
    for (const one of report.models) {
      if (one.total !== null && (device.figures.has(one.name) || device.figures.size < WORDS)) {
        device.figures.set(one.name, { ...one, ms: nowMs });
      }
    }
  }

  /** Devices, trouble first, each with the words for it. */
  ranked(nowMs) {
    const found = [...this.devices.values()].map((device) => ({ device, troubles: troubles(device, nowMs) }));
    const rank = (one) => RANKS.indexOf(one.troubles[0].word);
    return found.sort((one, other) => rank(one) - rank(other) || (one.device.name < other.device.name ? -1 : 1));
  }
}

// Ends the line of a plot, where nothing came for some intervals.
const SILENCE = {
  temperature: null, forecast: null, soft: null, rate: null, refused: null, available: null, power: null, models: new Map(),
};

function point(report, refused, ms) {
  const temperature = sensor(report, "temperature");
  return {
    ms,
    temperature,
    forecast: report.governor.forecast,
    soft: softLimit(report),
    rate: report.models.reduce((sum, one) => sum + one.requests, 0) / report.intervalS,
    refused: refused / report.intervalS,
    available: report.memory.available,
    power: sensor(report, "power"),
    models: new Map(report.models.filter((one) => one.total !== null).map((one) => [one.name, one.total])),
  };
}

/** The soft limit follows from the forecast and what it leaves to the limit; null where the device does not tell. */
export function softLimit(report) {
  const { forecast, headroom } = report.governor;
  return forecast === null || headroom === null ? null : Math.round((forecast + headroom) * 10) / 10;
}

/** The names of the flags that the firmware has set now. */
export function throttleFlags(report) {
  const word = sensor(report, "throttle");
  return word === null ? [] : THROTTLE.filter((_, bit) => (word >> bit) & 1);
}

/** What is wrong with a device: [{word, why, bad}], the worst first; one `fine` where nothing is. */
export function troubles(device, nowMs) {
  const found = [...presence(device, nowMs), ...ofModels(device), ...ofReported(device), ...ofReport(device, nowMs)];
  if (found.length === 0) found.push({ word: "fine", why: "" });
  found.sort((one, other) => RANKS.indexOf(one.word) - RANKS.indexOf(other.word));
  return found.map((one) => ({ ...one, bad: BAD.has(one.word), gone: one.word === "offline" || one.word === "lost" }));
}

function presence(device, nowMs) {
  const { status, heardMs } = device;
  if (status === null) return [{ word: "starting", why: "it has told no status yet" }];
  if (status.state === "offline") return [{ word: "offline", why: status.reason }];
  const silentS = (nowMs - heardMs) / 1000;
  if (silentS > 2 * status.heartbeatS + 2) {
    return [{ word: "lost", why: `its status is older than two of its heartbeats (${status.heartbeatS} s)` }];
  }
  if (status.state === "degraded") return [{ word: "degraded", why: status.reason }];
  return status.state === "online" ? [] : [{ word: "starting", why: status.reason }];
}

function ofModels(device) {
  const held = (device.models ?? []).filter((one) => one.reason.startsWith("quarantined"));
  return held.map((one) => ({ word: "quarantined", why: `${one.name}: load it to try again` }));
}

function ofReported({ reported }) {
  if (reported === null || reported.state === "" || reported.state === "applied") {
    return reported?.notTaken ? [{ word: "behind", why: `a desired state was not taken: ${reported.notTaken}` }] : [];
  }
  const first = reported.items.find((one) => one.state === reported.state);
  const what = first === undefined ? "" : `: ${first.name}${first.reason || first.next ? `, ${first.reason || first.next}` : ""}`;
  return [{ word: "behind", why: `desired state ${reported.version ?? "?"} is ${reported.state}${what}` }];
}

function ofReport(device, nowMs) {
  const { report } = device;
  if (report === null || device.status?.state === "offline") return [];
  const found = [];
  const { level, why } = report.governor;
  if (level === "closed" || level === "emergency") found.push({ word: "hot", why: `${level}: ${why}` });
  if (level === "reduced") found.push({ word: "warm", why });
  if (report.memory.stage === "short" || report.memory.stage === "critical") {
    found.push({ word: "memory", why: `${report.memory.stage} of memory` });
  }
  for (const one of report.canaries.filter((canary) => canary.ok === false)) {
    found.push({ word: "failing", why: `golden probes of ${one.name}: ${one.reason}` });
  }
  const flags = throttleFlags(report);
  if (flags.length > 0) found.push({ word: "throttled", why: flags.join(", ") });
  if (nowMs - device.refusedMs < REFUSING_MS) {
    const words = report.reasons.map(([word]) => word).join(", ");
    found.push({ word: "refusing", why: `${device.refusedCount} in one interval${words ? ": " + words : ""}` });
  }
  if (nowMs - device.reportMs > 3000 * report.intervalS + 2000) found.push({ word: "stale", why: "no report came" });
  return found;
}

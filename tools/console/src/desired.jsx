// A device's desired state: how far it is (`reported`), and a form that publishes another one (docs/desired.md).

import { useEffect, useRef, useState } from "preact/hooks";

import { isDigest, isName } from "./read.js";
import { age, bytes, clock } from "./units.js";

const NOTHING = { model: "", adapter: "", package: "", url: "" };
const ADDED = 16;
const DAY_H = 24;
// What the form begins with where nothing was declared, or this user may not read it.
const NONE = { version: null, wanted: [], sources: [], withinS: null, others: "keep", trial: null };

export function Desired({ device, declared, broker }) {
  const { reported } = device;
  const told = reported !== null && (reported.version !== null || reported.notTaken);
  return (
    <section class="panel wide" data-panel="Desired state">
      <h2>Desired state</h2>
      {told ? <Reported reported={reported} /> : <p class="none">none was declared</p>}
      {reported?.trials.length > 0 && <Trials trials={reported.trials} />}
      <details>
        <summary>Declare another one</summary>
        <Declare key={device.name} device={device} declared={declared} broker={broker} />
      </details>
    </section>
  );
}

function Reported({ reported }) {
  const nowMs = Date.now();
  return (
    <>
      <p>version {reported.version ?? "–"}: {reported.state || "none was taken"}</p>
      {reported.notTaken && <p class="bad">the last one was not taken: {reported.notTaken}</p>}
      <div class="scroll"><table><tbody>
        {reported.items.map((one) => (
          <tr key={one.name}>
            <th scope="row">{one.name}</th>
            <td class={one.state === "refused" || one.state === "rolled-back" ? "bad" : ""}>{one.state}</td>
            <td>{one.package ? one.package.slice(0, 19) : "to be removed"}</td>
            <td>{one.since !== null && `for ${age(Math.max(0, nowMs - one.since * 1000))}`}</td>
            <td>{one.attempts > 0 && `${one.attempts} attempts`}</td>
            <td>{one.fetched !== null && (one.whole ? <progress value={one.fetched} max={one.whole} title={`${bytes(one.fetched)} of ${bytes(one.whole)}`} /> : bytes(one.fetched))}</td>
            <td class="said">{[one.reason, one.next, one.state === "pending" && one.until !== null && `ends by ${clock(one.until * 1000)}`].filter(Boolean).join("; ")}</td>
          </tr>
        ))}
      </tbody></table></div>
    </>
  );
}

/** The last trial of each model on requests: a version that runs beside the one that answers. */
function Trials({ trials }) {
  const nowMs = Date.now();
  return (
    <div class="scroll"><table>
      <thead><tr><th>trial</th><th>state</th><th>since</th><th>compared so far</th><th /></tr></thead>
      <tbody>
        {trials.map((one) => (
          <tr key={one.model} data-trial={one.model}>
            <th scope="row">{one.model} <small>v{one.version ?? "?"}</small></th>
            <td class={one.state === "returned" ? "bad" : ""}>{one.state}</td>
            <td>{one.since !== null && `${age(Math.max(0, nowMs - one.since * 1000))} ago`}</td>
            <td>{one.figures.map(([word, value]) => `${word.replaceAll("_", " ")} ${Number(value.toPrecision(3))}`).join(", ") || "–"}</td>
            <td class="said">{one.reason}</td>
          </tr>
        ))}
      </tbody>
    </table></div>
  );
}

/** What the device holds and what was declared of it: {key, model, adapter, held, declared, choice}. `held` and `declared` are
 * digests; `declared` is null where it is to go and undefined where it is not named. `choice`: what the form begins with. */
function rowsOf(installed, wanted) {
  const rows = new Map(installed.map((one) => [keyOf(one), { ...one, held: one.package, declared: undefined }]));
  for (const one of wanted) {
    rows.set(keyOf(one), { held: null, ...rows.get(keyOf(one)), model: one.model, adapter: one.adapter, declared: one.package });
  }
  return [...rows.entries()].map(([key, one]) => ({ ...one, key, choice: choiceOf(one) }));
}

const choiceOf = ({ held, declared }) =>
  declared === undefined ? "" : declared === null ? "remove" : declared === held ? "stay" : "declared";

/** A form over what was declared: what is not changed in it is declared again, with its sources and the terms of its trial.
 * What is null was not touched. `choices`: by the key of a row, what is wanted of it. */
function Declare({ device, declared, broker }) {
  const reported = device.reported;
  const before = declared ?? NONE;
  const rows = rowsOf(reported?.installed ?? [], before.wanted);
  const [choices, choose] = useState({});
  const [added, add] = useState([]);
  const [typedHours, within] = useState(null);
  const [typedOthers, leave] = useState(null);
  const [typedTrial, test] = useState(null);
  const [typed, count] = useState("");
  const [asked, ask] = useState(null);
  const [said, tell] = useState(null);
  const live = useRef(true);
  useEffect(() => () => { live.current = false; }, []);
  const next = Math.max(reported?.version ?? 0, reported?.notTakenVersion ?? 0, before.version ?? 0) + 1;
  const version = typed === "" ? next : Number(typed);
  const hours = typedHours ?? String(before.withinS === null ? DAY_H : Math.round(before.withinS / 0.36) / 1e4);
  const others = typedOthers ?? before.others;
  const trial = typedTrial ?? (before.trial === null ? "at once" : "trial");
  const change = (at, key) => (event) => add(added.map((one, place) => (place === at ? { ...one, [key]: event.currentTarget.value.trim() } : one)));
  const look = (event) => {
    event.preventDefault();
    const terms = trial === "trial" ? before.trial ?? {} : null;
    const found = state({ rows, choices, added, hours: Number(hours), others, version, sources: before.sources, trial: terms });
    tell(found.problem ? { bad: true, text: found.problem } : null);
    ask(found.problem ? null : { body: found.body, words: `declare version ${version}` });
  };
  const send = () => {
    const { body, words } = asked;
    ask(null);
    tell({ bad: false, text: `${words}: under way …` });
    broker.declare(device.name, body, ({ failed, unheard }) => {
      if (!live.current) return;
      if (!failed) for (const [set, value] of [[count, ""], [choose, {}], [add, []], [within, null], [leave, null], [test, null]]) set(value);
      const taken = unheard ? "the broker keeps it; the device is not there now" : "the broker keeps it; what the device makes of it is shown above";
      tell({ bad: Boolean(failed), text: `${words}: ${failed || taken}` });
    });
  };
  return (
    <form class="declare" onSubmit={look}>
      <p class="none">What the device is to hold, until another version replaces it. It fetches, verifies and tries each package by itself; what is
        not named stays, unless others are to be removed. Who may declare is for the broker's access list to say (<code>desired</code>).</p>
      {declared && <p class="none" data-begins>This begins with what is declared{before.version !== null && ` as version ${before.version}`}.</p>}
      {!declared && reported?.version > 0 && (
        <p class="sentence">What is declared now was withdrawn, or this user may not read it. The next version replaces all of it.</p>
      )}
      {reported === null || reported.installed.length === 0 ? <p class="none">The device has not said which packages it holds.</p> : null}
      {rows.length > 0 && (
        <div class="scroll"><table><tbody>
          {rows.map((one) => (
            <tr key={one.key} data-installed={one.key}>
              <th scope="row">{[one.model, one.adapter].filter(Boolean).join(" + ")}</th>
              <td><code>{one.held === null ? "not there" : one.held.slice(0, 19)}</code></td>
              <td>
                <select aria-label={one.key} value={choices[one.key] ?? one.choice} onChange={(event) => choose({ ...choices, [one.key]: event.currentTarget.value })}>
                  <option value="">not named</option>
                  {one.held !== null && <option value="stay">this package</option>}
                  {one.declared && one.declared !== one.held && <option value="declared">as declared: {one.declared.slice(0, 19)}</option>}
                  <option value="remove">to be removed</option>
                </select>
              </td>
            </tr>
          ))}
        </tbody></table></div>
      )}
      {added.map((one, at) => (
        <fieldset key={at} class="row" data-added={at}>
          <label>Model <input name="model" required value={one.model} onInput={change(at, "model")} /></label>
          <label>Adapter <input name="adapter" placeholder="the model itself" value={one.adapter} onInput={change(at, "adapter")} /></label>
          <label>Package <input name="package" required spellcheck={false} placeholder="sha256:…" value={one.package} onInput={change(at, "package")} /></label>
          <label>Fetched from <input name="url" spellcheck={false} placeholder="its incoming folder" value={one.url} onInput={change(at, "url")} /></label>
          <button type="button" class="quiet" onClick={() => add(added.filter((_, place) => place !== at))}>Leave out</button>
        </fieldset>
      ))}
      <p><button type="button" disabled={added.length >= ADDED} onClick={() => add([...added, NOTHING])}>Name a package</button></p>
      <div class="row">
        <label>Version <input name="version" inputmode="numeric" value={typed === "" ? String(next) : typed} onInput={(event) => count(event.currentTarget.value.trim())} /></label>
        <label>Within hours <input name="hours" inputmode="decimal" value={hours} onInput={(event) => within(event.currentTarget.value.trim())} /></label>
        <label>Others <select name="others" value={others} onChange={(event) => leave(event.currentTarget.value)}>
          <option value="keep">stay</option><option value="remove">are removed</option>
        </select></label>
        <label>New versions <select name="trial" value={trial} onChange={(event) => test(event.currentTarget.value)}>
          <option value="at once">answer at once</option><option value="trial">get a trial first</option>
        </select></label>
      </div>
      <div class="row">
        <button type="submit" class="go" disabled={asked !== null}>Look at it</button>
        <button type="button" disabled={asked !== null} onClick={() => ask({ body: null, words: "withdraw the desired state" })}>Withdraw</button>
      </div>
      {asked && (
        <div class="confirm" role="alertdialog" aria-label="confirm the desired state">
          {asked.body && <pre>{JSON.stringify(asked.body, null, 1)}</pre>}
          <p><strong>{asked.words}</strong> on <strong>{device.name}</strong>?</p>
          <button type="button" class="go" onClick={send}>Yes, {asked.words}</button>
          <button type="button" onClick={() => ask(null)}>No</button>
        </div>
      )}
      {said && <p class={`sentence ${said.bad ? "bad" : ""}`} role="status">{said.text}</p>}
    </form>
  );
}

const keyOf = ({ model, adapter }) => (adapter === null ? model : `${model}/${adapter}`);

/** The digest that a choice names, null where it is to go, undefined where it is not named (or is there no more). */
const packageOf = ({ held, declared }, chosen) =>
  chosen === "remove" ? null : (chosen === "stay" ? held : chosen === "declared" ? declared : undefined) ?? undefined;

/** The message, or why there is none. `sources`: those of before; of a package that is still wanted they are kept. */
function state({ rows, choices, added, hours, others, version, sources: before, trial }) {
  if (!Number.isSafeInteger(version) || version < 1) return { problem: "The version is a whole number from 1." };
  if (!(hours >= 1 / 60 && hours <= 720)) return { problem: "The time is a minute (0.017 hours) to 720 hours." };
  const wanted = rows.map((one) => ({ model: one.model, adapter: one.adapter, package: packageOf(one, choices[one.key] ?? one.choice) }))
    .filter((one) => one.package !== undefined);
  const fresh = [];
  for (const one of added) {
    if (!isName(one.model) || (one.adapter && !isName(one.adapter))) return { problem: `${one.model || "The model"} ${one.adapter} is no name that a package can have.` };
    if (!isDigest(one.package)) return { problem: "A package is named by sha256: and 64 digits, as edge-forge inspect prints it." };
    if (one.url && !/^(https?:\/\/[^/@\s]+(\/[!-~]*)?|oci:\/\/[^/@\s]+\/[!-~]+)$/.test(one.url)) return { problem: "Packages are fetched from http://HOST/PATH, https://HOST/PATH or oci://HOST/REPOSITORY:TAG, without a password." };
    const at = wanted.findIndex((other) => keyOf(other) === keyOf({ ...one, adapter: one.adapter || null }));
    if (at >= 0) wanted.splice(at, 1);
    wanted.push({ model: one.model, adapter: one.adapter || null, package: one.package });
    if (one.url) fresh.push({ package: one.package, url: one.url });
  }
  if (wanted.length === 0 && others === "keep") return { problem: "Nothing is named, and others stay: there is nothing to declare." };
  const sources = [...fresh, ...before.filter((one) => wanted.some((other) => other.package === one.package)
    && !fresh.some((other) => other.package === one.package && other.url === one.url))];
  const models = new Map();
  for (const one of wanted) {
    const model = models.get(one.model) ?? { model: one.model };
    if (one.adapter === null) model.package = one.package;
    else model.adapters = [...(model.adapters ?? []), { adapter: one.adapter, package: one.package }];
    models.set(one.model, model);
  }
  for (const model of models.values()) {
    // With its model an adapter goes by itself.
    if (model.package === null && model.adapters?.every((one) => one.package === null)) delete model.adapters;
    if (model.package === null && model.adapters) return { problem: `${model.model} is to be removed, so it can have no adapters.` };
  }
  const policy = { within_s: Math.round(hours * 3600), others, ...(trial === null ? {} : { trial }) };
  return { body: { version, models: [...models.values()], ...(sources.length > 0 ? { sources } : {}), policy } };
}

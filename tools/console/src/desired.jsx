// A device's desired state: how far it is (`reported`), and a form that publishes another one (docs/desired.md).

import { useEffect, useRef, useState } from "preact/hooks";

import { isDigest, isName } from "./read.js";
import { age, bytes, clock } from "./units.js";

const NOTHING = { model: "", adapter: "", package: "", url: "" };
const ADDED = 16;
const DAY_H = 24;

export function Desired({ device, broker }) {
  const { reported } = device;
  const told = reported !== null && (reported.version !== null || reported.notTaken);
  return (
    <section class="panel wide" data-panel="Desired state">
      <h2>Desired state</h2>
      {told ? <Reported reported={reported} /> : <p class="none">none was declared</p>}
      <details>
        <summary>Declare another one</summary>
        <Declare key={device.name} device={device} broker={broker} />
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
            <td>{[one.reason, one.next, one.state === "pending" && one.until !== null && `ends by ${clock(one.until * 1000)}`].filter(Boolean).join("; ")}</td>
          </tr>
        ))}
      </tbody></table></div>
    </>
  );
}

/** `choices`: by the key of what is installed, what is wanted of it; absent: it is not named. */
function Declare({ device, broker }) {
  const reported = device.reported;
  const installed = reported?.installed ?? [];
  const [choices, choose] = useState({});
  const [added, add] = useState([]);
  const [hours, within] = useState(String(DAY_H));
  const [others, leave] = useState("keep");
  const [typed, count] = useState("");
  const [asked, ask] = useState(null);
  const [said, tell] = useState(null);
  const live = useRef(true);
  useEffect(() => () => { live.current = false; }, []);
  const next = Math.max(reported?.version ?? 0, reported?.notTakenVersion ?? 0) + 1;
  const version = typed === "" ? next : Number(typed);
  const change = (at, key) => (event) => add(added.map((one, place) => (place === at ? { ...one, [key]: event.currentTarget.value.trim() } : one)));
  const look = (event) => {
    event.preventDefault();
    const found = state({ installed, choices, added, hours: Number(hours), others, version });
    tell(found.problem ? { bad: true, text: found.problem } : null);
    ask(found.problem ? null : { body: found.body, words: `declare version ${version}` });
  };
  const send = () => {
    const { body, words } = asked;
    ask(null);
    tell({ bad: false, text: `${words}: under way …` });
    broker.declare(device.name, body, ({ failed, unheard }) => {
      if (!live.current) return;
      if (!failed) count("");
      const taken = unheard ? "the broker keeps it; the device is not there now" : "the broker keeps it; what the device makes of it is shown above";
      tell({ bad: Boolean(failed), text: `${words}: ${failed || taken}` });
    });
  };
  return (
    <form class="declare" onSubmit={look}>
      <p class="none">What the device is to hold, until another version replaces it. It fetches, verifies and tries each package by itself; what is
        not named stays, unless others are to be removed. Who may declare is for the broker's access list to say (<code>desired</code>).</p>
      {installed.length === 0 && <p class="none">The device has not said which packages it holds.</p>}
      <table><tbody>
        {installed.map((one) => {
          const key = keyOf(one);
          return (
            <tr key={key} data-installed={key}>
              <th scope="row">{[one.model, one.adapter].filter(Boolean).join(" + ")}</th>
              <td><code>{one.package.slice(0, 19)}</code></td>
              <td>
                <select aria-label={key} value={choices[key] ?? ""} onChange={(event) => choose({ ...choices, [key]: event.currentTarget.value })}>
                  <option value="">not named</option>
                  <option value="stay">this package</option>
                  <option value="remove">to be removed</option>
                </select>
              </td>
            </tr>
          );
        })}
      </tbody></table>
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
        <button type="submit" disabled={asked !== null}>Look at it</button>
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

/** The message, or why there is none. */
function state({ installed, choices, added, hours, others, version }) {
  if (!Number.isSafeInteger(version) || version < 1) return { problem: "The version is a whole number from 1." };
  if (!(hours >= 1 / 60 && hours <= 720)) return { problem: "The time is a minute (0.017 hours) to 720 hours." };
  const wanted = installed.filter((one) => choices[keyOf(one)])
    .map((one) => ({ ...one, package: choices[keyOf(one)] === "remove" ? null : one.package }));
  const sources = [];
  for (const one of added) {
    if (!isName(one.model) || (one.adapter && !isName(one.adapter))) return { problem: `${one.model || "The model"} ${one.adapter} is no name that a package can have.` };
    if (!isDigest(one.package)) return { problem: "A package is named by sha256: and 64 digits, as edge-forge inspect prints it." };
    if (one.url && !/^(https?:\/\/[^/@\s]+(\/[!-~]*)?|oci:\/\/[^/@\s]+\/[!-~]+)$/.test(one.url)) return { problem: "Packages are fetched from http://HOST/PATH, https://HOST/PATH or oci://HOST/REPOSITORY:TAG, without a password." };
    const at = wanted.findIndex((other) => keyOf(other) === keyOf({ ...one, adapter: one.adapter || null }));
    if (at >= 0) wanted.splice(at, 1);
    wanted.push({ model: one.model, adapter: one.adapter || null, package: one.package });
    if (one.url) sources.push({ package: one.package, url: one.url });
  }
  if (wanted.length === 0 && others === "keep") return { problem: "Nothing is named, and others stay: there is nothing to declare." };
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
  const policy = { within_s: Math.round(hours * 3600), others };
  return { body: { version, models: [...models.values()], ...(sources.length > 0 ? { sources } : {}), policy } };
}

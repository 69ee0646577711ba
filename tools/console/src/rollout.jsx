// What `edge-agent fleet rollout` does now (docs/fleet.md), above all devices; who carries it out can be asked to return.

import { useState } from "preact/hooks";

import { age } from "./units.js";

const CLAIM_MS = 30_000;
const TRIAL_BEGINS_S = 60;
const SENTENCES = { rolling: "is being rolled out", returning: "is being returned", done: "is done", returned: "was returned" };

export function Rollout({ fleet, broker }) {
  const [asked, ask] = useState(false);
  const [said, tell] = useState(null);
  const { rollout } = fleet;
  if (rollout === null) return null;
  const nowMs = Date.now();
  const under = rollout.phase === "rolling" || rollout.phase === "returning";
  const heard = rollout.heardMs > 0 && nowMs - rollout.heardMs < CLAIM_MS;
  // The state that the broker kept says nothing of who is at work now: a claim's time is waited for a word.
  const listening = rollout.heardMs === 0 && nowMs - rollout.keptMs < CLAIM_MS;
  const all = rollout.waves.flat();
  const given = rollout.waves.slice(0, rollout.wave + 1).flat();
  const found = { applied: 0, failed: 0, waiting: 0 };
  for (const name of given) found[progressOf(fleet.devices.get(name)?.reported ?? null, rollout.wanted)] += 1;
  const send = () => {
    ask(false);
    broker.returnAll(rollout.id, ({ failed }) => tell({ bad: Boolean(failed), text: failed || "whoever carries it out is asked to return all devices" }));
  };
  return (
    <section class="panel" data-panel="Rollout">
      <h2>Rollout {rollout.name} {SENTENCES[rollout.phase] ?? "is in a state that this page does not know"}</h2>
      <p>{rollout.wanted.map((one) => `${[one.model, one.adapter].filter(Boolean).join(" + ")} ${one.package ? `→ ${one.package.slice(0, 19)}` : "goes"}`).join(", ")}</p>
      <p>wave {Math.min(rollout.wave + 1, rollout.waves.length)} of {rollout.waves.length}: {given.length} of {all.length} devices
        were to get it, <b>{found.applied} have applied it</b>, {found.waiting} have not yet, <span class={found.failed > 0 ? "bad" : ""}>{found.failed} refused it</span>
        {rollout.leftOut.length > 0 && `, ${rollout.leftOut.length} were left out`}</p>
      {all.length > 0 && <progress value={found.applied} max={all.length} />}
      {rollout.reason && <p class="bad">{rollout.reason}</p>}
      {under && (heard ? <p class="none">carried out by {rollout.who || "somebody"}, heard {age(nowMs - rollout.heardMs)} ago</p>
        : listening ? <p class="none">listening for whoever carries it out</p>
        : <p class="bad">nobody was heard to carry it out; edge-agent fleet rollout --resume takes it up</p>)}
      {rollout.phase === "rolling" && heard && rollout.id !== null && !asked && <button onClick={() => ask(true)}>Return all devices</button>}
      {asked && (
        <div class="confirm" role="alertdialog" aria-label="confirm the return">
          <p><strong>Return</strong> all devices that were given rollout <strong>{rollout.name}</strong>?</p>
          <button class="go" onClick={send}>Yes, return them</button>
          <button onClick={() => ask(false)}>No</button>
        </div>
      )}
      {said && <p class={`sentence ${said.bad ? "bad" : ""}`} role="status">{said.text}</p>}
    </section>
  );
}

/** How far a device is with what the plan names, by its own words; a package on trial on requests is not applied yet. */
function progressOf(reported, wanted) {
  const items = wanted.map((one) => reported?.items.find((item) =>
    item.model === one.model && item.adapter === one.adapter && (item.package || null) === one.package));
  // The trial of an earlier time says nothing of a package that was given again (fleet/rollout.py).
  const trials = (reported?.trials ?? []).filter((trial) => items.some((one) =>
    one?.package && one.package === trial.package && trial.since >= one.since - TRIAL_BEGINS_S));
  const failed = items.some((one) => one?.state === "refused" || one?.state === "rolled-back");
  if (failed || trials.some((trial) => trial.state === "returned")) return "failed";
  if (trials.some((trial) => trial.state === "running")) return "waiting";
  return items.length > 0 && items.every((one) => one?.state === "applied") ? "applied" : "waiting";
}

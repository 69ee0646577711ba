// All devices at a glance, trouble first.

import { useState } from "preact/hooks";

import { RANKS } from "./fleet.js";
import { sensor } from "./read.js";
import { Rollout } from "./rollout.jsx";
import { age, celsius, rate } from "./units.js";

const QUIET_MS = 5000;

export function Glance({ fleet, broker, open }) {
  const [wanted, filter] = useState("");
  const nowMs = Date.now();
  const all = fleet.ranked(nowMs);
  const words = RANKS.map((word) => [word, all.filter((one) => one.troubles[0].word === word).length]);
  const shown = all.filter(({ device, troubles }) => matches(device, troubles, wanted));
  return (
    <>
      <div class="bar">
        <strong>{all.length === 1 ? "1 device" : `${all.length} devices`}</strong>
        {words.filter(([, times]) => times > 0).map(([word, times]) => (
          <button key={word} class={`chip ${word}`} aria-pressed={wanted === word}
            onClick={() => filter(wanted === word ? "" : word)}>{times} {word}</button>
        ))}
        <input type="search" placeholder="name, board, model, state" aria-label="filter" value={wanted}
          onInput={(event) => filter(event.currentTarget.value)} />
      </div>
      <Rollout fleet={fleet} broker={broker} />
      {fleet.turnedAway > 0 && <p class="sentence bad">More devices than this page holds ({fleet.devices.size}).</p>}
      {fleet.unread > 0 && <p class="sentence">{fleet.unread} messages were no JSON objects and are not shown.</p>}
      {all.length === 0 && <Nothing broker={broker} nowMs={nowMs} prefix={fleet.prefix} />}
      <div class="cards">
        {shown.map(({ device, troubles }) => (
          <Card key={device.name} device={device} troubles={troubles} nowMs={nowMs} stale={broker.state !== "connected"}
            open={open} />
        ))}
      </div>
    </>
  );
}

function matches(device, troubles, wanted) {
  const words = [device.name, device.info?.board, ...(device.models ?? []).map((one) => one.name),
    ...troubles.map((one) => one.word)];
  return wanted.toLowerCase().split(/\s+/).every((part) => words.some((word) => word?.toLowerCase().includes(part)));
}

function Nothing({ broker, nowMs, prefix }) {
  if (broker.state !== "connected" || nowMs - broker.sinceMs < QUIET_MS) return <p class="sentence">Listening …</p>;
  return (
    <p class="sentence bad" role="alert">
      Connected, and no device has told anything under {prefix}. Is one connected to this broker, and may this user read{" "}
      <code>{prefix}/+/status</code>?
    </p>
  );
}

function Card({ device, troubles, nowMs, stale, open }) {
  const { report } = device;
  const worst = troubles[0];
  const told = Math.max(device.heardMs ?? 0, device.reportMs ?? 0);
  const requests = report === null ? null : report.models.reduce((sum, one) => sum + one.requests, 0) / report.intervalS;
  const grey = worst.gone || stale;
  return (
    <button class={`card ${grey ? "gone" : worst.word} ${worst.bad ? "bad" : ""}`} data-device={device.name}
      onClick={() => open(device.name)}>
      <span class="name">{device.name}</span>
      <span class={`word ${grey ? "gone" : worst.bad ? "bad" : worst.word}`}>{troubles.map((one) => one.word).join(", ")}</span>
      {worst.why && <span class="why">{worst.why}</span>}
      <span class="figures">
        <span>{report === null ? "no report yet" : celsius(sensor(report, "temperature"))}</span>
        {report !== null && <span>{rate(requests)}</span>}
        <span class="age">{told > 0 ? `${age(nowMs - told)} ago` : ""}</span>
      </span>
    </button>
  );
}

// One device: heat, memory, models, refusals, events, plots, and what can be asked and ordered.

import { useState } from "preact/hooks";

import { Act } from "./act.jsx";
import { Ask } from "./ask.jsx";
import { Desired } from "./desired.jsx";
import { softLimit, throttleFlags, troubles } from "./fleet.js";
import { Plots } from "./plots.jsx";
import { sensor } from "./read.js";
import { age, bytes, celsius, clock, milliseconds, rate, share } from "./units.js";

const COLDEST_C = 20;
const HOTTEST_C = 100;
const HOUR_MS = 3_600_000;
const EVENTS_SHOWN = 60;

export function DeviceView({ name, fleet, broker, back }) {
  const nowMs = Date.now();
  const device = fleet.devices.get(name);
  if (device === undefined) {
    return <p class="sentence">Nothing is known of {name} yet. <button class="quiet" onClick={back}>All devices</button></p>;
  }
  const found = troubles(device, nowMs);
  const gone = found[0].gone || broker.state !== "connected";
  return (
    <div class={`device ${gone ? "gone" : ""}`}>
      <Summary device={device} found={found} nowMs={nowMs} back={back} />
      <div class="zones">
        <div class="zone says">
          <Heat report={device.report} />
          <div class="pile">
            <Memory report={device.report} />
            <Refusals device={device} />
          </div>
          <Models device={device} nowMs={nowMs} />
          <Plots device={device} />
          <Desired device={device} declared={fleet.desired.get(name) ?? null} broker={broker} />
          <Events device={device} nowMs={nowMs} />
        </div>
        <div class="zone does">
          <Ask device={device} broker={broker} />
          <Act device={device} broker={broker} />
          <About device={device} />
        </div>
      </div>
    </div>
  );
}

function Panel({ name, children, wide }) {
  return (
    <section class={`panel ${wide ? "wide" : ""}`} data-panel={name}>
      <h2>{name}</h2>
      {children}
    </section>
  );
}

function Summary({ device, found, nowMs, back }) {
  const { status, report } = device;
  return (
    <div class="summary">
      <button class="quiet" onClick={back}>← All devices</button>
      <ul class="troubles">
        {found.map((one) => (
          <li key={one.word + one.why} class={`${one.word} ${one.bad ? "bad" : ""}`}>
            <strong>{one.word}</strong> {one.why}
          </li>
        ))}
      </ul>
      <span class="age" data-age>
        {status && `status ${age(nowMs - device.heardMs)} old`}
        {report && `, report ${age(nowMs - device.reportMs)} old`}
        {report && report.uptimeS !== null && `, up ${age(report.uptimeS * 1000)}`}
      </span>
    </div>
  );
}

function Heat({ report }) {
  if (report === null) return <Panel name="Heat"><p class="none">no report yet</p></Panel>;
  const temperature = sensor(report, "temperature");
  const soft = softLimit(report);
  const { governor } = report;
  const place = (value) => `${Math.min(100, Math.max(0, ((value - COLDEST_C) / (HOTTEST_C - COLDEST_C)) * 100))}%`;
  const why = report.sensors.find((one) => one.key === "temperature")?.reason;
  const flags = throttleFlags(report);
  return (
    <Panel name="Heat">
      <p class="large">{celsius(temperature)} <span class={`level ${governor.level}`}>governor {governor.level}</span></p>
      {temperature === null ? <p class="none">{why || "no temperature sensor"}</p> : (
        <div class="thermometer" role="img" aria-label={`${celsius(temperature)}, soft limit ${celsius(soft)}`}>
          <span class="mercury" style={{ width: place(temperature) }} />
          {soft !== null && <span class="mark soft" style={{ left: place(soft) }} title={`soft limit ${celsius(soft)}`} />}
          {governor.forecast !== null &&
            <span class="mark forecast" style={{ left: place(governor.forecast) }} title="in ten seconds" />}
        </div>
      )}
      <dl>
        <dt><span class="swatch forecast" />in ten seconds</dt><dd>{celsius(governor.forecast)}</dd>
        <dt><span class="swatch soft" />soft limit</dt><dd>{celsius(soft)}</dd>
        <dt>rows, threads</dt><dd>{governor.rows ?? "–"}, {governor.threads ?? "–"}</dd>
        <dt>busy at most</dt><dd>{share(governor.busy)}</dd>
        <dt>clock</dt><dd>{hertz(sensor(report, "cpu_clock"))}</dd>
        <dt>power</dt><dd>{sensor(report, "power") === null ? "–" : `${sensor(report, "power").toFixed(1)} W`}</dd>
        <dt>energy</dt>
        <dd>{report.joules !== null && `${report.joules.toPrecision(2)} J for the requests of ${report.intervalS} s: `}{report.energyMethod || "–"}</dd>
        {flags.length > 0 && <><dt>firmware</dt><dd class="bad">{flags.join(", ")}</dd></>}
      </dl>
      {governor.why && <p class="why">{governor.why}</p>}
    </Panel>
  );
}

const hertz = (value) => (value === null ? "–" : `${(value / 1e9).toFixed(2)} GHz`);

function Memory({ report }) {
  if (report === null || report.memory.available === null) {
    return <Panel name="Memory"><p class="none">{report === null ? "no report yet" : "not known"}</p></Panel>;
  }
  const { memory } = report;
  const total = sensor(report, "cgroup_limit") ?? sensor(report, "ram_total");
  const kept = Math.min(memory.reserve ?? 0, memory.available);
  const promised = Math.min(memory.outstanding ?? 0, memory.available - kept);
  const held = memory.models.filter((one) => one.held > 0);
  const heldBytes = held.reduce((sum, one) => sum + one.held, 0);
  const others = total === null ? 0 : Math.max(0, total - memory.available - heldBytes);
  const parts = [
    ...held.map((one, at) => ({ word: "held", name: one.name, value: one.held, shade: at % 4 })),
    { word: "others", name: "other programs", value: others },
    { word: "promised", name: "promised", value: promised },
    { word: "reserve", name: "stays free", value: kept },
    { word: "free", name: "free", value: memory.available - kept - promised },
  ].filter((one) => one.value > 0);
  return (
    <Panel name="Memory">
      <p class="large">{bytes(memory.available)} available <span class={`level ${memory.stage}`}>{memory.stage}</span></p>
      <div class="stack" role="img" aria-label={parts.map((one) => `${one.name} ${bytes(one.value)}`).join(", ")}>
        {parts.map((one) => (
          <span key={one.word + one.name} class={`part ${one.word} shade${one.shade ?? 0}`} style={{ flexGrow: one.value }}
            title={`${one.name}: ${bytes(one.value)}`} />
        ))}
      </div>
      <ul class="legend">
        {parts.map((one) => (
          <li key={one.word + one.name}>
            <span class={`swatch ${one.word} shade${one.shade ?? 0}`} />{one.name} <b>{bytes(one.value)}</b>
          </li>
        ))}
      </ul>
      <p class="why">the daemon itself {bytes(report.rss)}</p>
    </Panel>
  );
}

function Models({ device, nowMs }) {
  const { report, models } = device;
  const told = new Map((report?.models ?? []).map((one) => [one.name, one]));
  const probes = new Map((report?.canaries ?? []).map((one) => [one.name, one]));
  return (
    <Panel name="Models" wide>
      {models === null || models.length === 0 ? <p class="none">nothing is installed, or nothing was told</p> : (
        <div class="scroll"><table>
          <thead><tr>
            <th>model</th><th>state</th><th>req/s</th><th>p50</th><th>p95</th><th>p99</th><th>compute</th><th>batch</th>
            <th>drift</th><th>probes</th><th>memory</th>
          </tr></thead>
          <tbody>
            {models.map((model) => (
              <ModelRows key={model.name} model={model} figures={told.get(model.name)} last={device.figures.get(model.name)}
                probe={probes.get(model.name)} intervalS={report?.intervalS ?? 1} nowMs={nowMs} />
            ))}
          </tbody>
        </table></div>
      )}
    </Panel>
  );
}

/** `figures`: of the last interval; where it did nothing then, those of the interval before (`last`) are shown paler. */
function ModelRows({ model, figures, last, probe, intervalS, nowMs }) {
  const probed = probe === undefined || probe.ok === null ? "–" : probe.ok ? "hold" : "FAIL";
  const shown = figures?.total ? figures : last;
  const old = figures?.total || !last ? "" : `${age(nowMs - last.ms)} ago`;
  const adapters = new Map((shown?.adapters ?? []).map((one) => [one.name, one]));
  return (
    <>
      <tr data-model={model.name} class={old ? "old" : ""} title={old}>
        <th scope="row">
          {model.name} <small>v{model.version ?? "?"} {model.task}</small>
          {model.variant && <small class="variant">{model.variant}{model.accuracy !== null && ` (${(model.accuracy * 100).toFixed(1)} %)`}</small>}
        </th>
        <td class={`said ${model.reason.startsWith("quarantined") ? "bad" : ""}`}>{model.building || model.reason || (model.resident ? "ready" : "absent")}</td>
        <Latency figures={shown} intervalS={intervalS} old={old} />
        <td>{milliseconds(shown?.compute?.p50)}</td>
        <td>{shown?.batch?.toFixed(1) ?? "–"}</td>
        <td class={shown?.drift > 0.25 ? "bad" : ""}>{shown?.drift?.toFixed(2) ?? "–"}</td>
        <td class={probed === "FAIL" ? "bad" : ""} title={probe?.reason}>{probed}</td>
        <td>{bytes(model.footprint)}</td>
      </tr>
      {model.adapters.map((one) => (
        <tr key={one.name} class={`adapter ${old ? "old" : ""}`} title={old}>
          <th scope="row">+ {one.name} <small>v{one.version ?? "?"}</small></th>
          <td>{one.resident ? "attached" : "absent"}</td>
          <Latency figures={adapters.get(one.name)} intervalS={intervalS} old={old} />
          <td colspan="5" />
        </tr>
      ))}
    </>
  );
}

function Latency({ figures, intervalS, old }) {
  return (
    <>
      <td>{figures ? rate(old ? 0 : figures.requests / intervalS) : "–"}</td>
      {["p50", "p95", "p99"].map((one) => <td key={one} class={one}>{milliseconds(figures?.total?.[one])}</td>)}
    </>
  );
}

function Refusals({ device }) {
  const { report, refusals } = device;
  if (report === null) return <Panel name="Refusals"><p class="none">no report yet</p></Panel>;
  const now = new Map([...report.reasons, ...report.dropped, ["no answer in time", report.expired]]);
  return (
    <Panel name="Refusals">
      <p>{report.queue} open, {report.refusals.length === 0 ? "nothing refused" : report.refusals.map(([word, times]) => `${times} × ${word}`).join(", ")} in
        the last {report.intervalS} s</p>
      {report.eventsLost > 0 && <p class="bad">{report.eventsLost} events were lost</p>}
      {refusals.size > 0 && (
        <table>
          <thead><tr><th>what</th><th>cause</th><th>last {report.intervalS} s</th><th>since opened</th></tr></thead>
          <tbody>
            {[...refusals.values()].map(([kind, word, times]) => (
              <tr key={kind + word}><td>{kind}</td><th scope="row">{word}</th><td>{now.get(word) ?? 0}</td><td>{times}</td></tr>
            ))}
          </tbody>
        </table>
      )}
    </Panel>
  );
}

function Events({ device, nowMs }) {
  const [wanted, choose] = useState("");
  const shown = device.events.filter((one) => !wanted || one.severity === wanted).slice(0, EVENTS_SHOWN);
  const hour = device.events.filter((one) => nowMs - one.ms < HOUR_MS);
  return (
    <Panel name="Events" wide>
      <div class="timeline" role="img" aria-label={`${hour.length} events in the last hour`}>
        {hour.map((one) => (
          <span key={one.id} class={`dot ${one.severity}`} title={`${clock(one.ms)} ${one.kind}`}
            style={{ left: `${Math.min(100, Math.max(0, (1 - (nowMs - one.ms) / HOUR_MS) * 100))}%` }} />
        ))}
        <span class="from">an hour ago</span><span class="to">now</span>
      </div>
      <p class="filters">
        {["", "error", "warning", "info"].map((one) => (
          <button key={one} class={`chip ${one}`} aria-pressed={wanted === one} onClick={() => choose(one)}>{one || "all"}</button>
        ))}
        <span class="none">those that came since this page was opened</span>
      </p>
      <ol class="events">
        {shown.map((one) => (
          <li key={one.id} class={one.severity}>
            <time>{clock(one.ms)}</time> <b>{one.kind}</b> <span>{one.message}</span>
          </li>
        ))}
      </ol>
    </Panel>
  );
}

function About({ device }) {
  const { info, report } = device;
  return (
    <Panel name="About">
      {info === null ? <p class="none">it has told nothing of itself</p> : (
        <dl>
          <dt>board</dt><dd>{info.board}</dd>
          <dt>agent</dt><dd>{info.agent}</dd>
          <dt>Python</dt><dd>{info.python}</dd>
          {info.runtimes.map((one) => (
            <><dt key={one.name}>{one.name}</dt><dd>{[one.version, one.devices, one.reason].filter(Boolean).join("; ")}</dd></>
          ))}
        </dl>
      )}
      {report !== null && (
        <details>
          <summary>All sensors</summary>
          <table><tbody>
            {report.sensors.map((one) => (
              <tr key={one.key}>
                <th scope="row">{one.key}</th>
                <td>{one.value === null ? one.reason || "–" : one.unit === "bytes" ? bytes(one.value) : `${one.value} ${one.unit}`}</td>
                <td>{one.source}</td>
              </tr>
            ))}
          </tbody></table>
        </details>
      )}
    </Panel>
  );
}

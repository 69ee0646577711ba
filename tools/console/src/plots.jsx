// The last hour as plots, of what came since the page was opened. A gap is where the device said nothing.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";

import { age, bytes, clock } from "./units.js";

const HEIGHT = 150;
const STEPS_S = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800];
const QUANTILES = ["p50", "p95", "p99"];

export function Plots({ device }) {
  const { points } = device;
  const at = points.map((one) => one.ms / 1000);
  const columns = (...keys) => [at, ...keys.map((key) => points.map((one) => one[key]))];
  const names = [...new Set(points.flatMap((one) => [...one.models.keys()]))].sort().slice(0, 8);
  const has = (key) => points.some((one) => one[key] !== null);
  return (
    <section class="panel wide" data-panel="Last hour">
      <h2>Last hour</h2>
      {points.length < 2 ? <p class="none">waiting for reports</p> : (
        <>
          <p class="none">{points.length} reports in {age(points.at(-1).ms - points[0].ms)}: those that came since this page was opened</p>
          <div class="plots">
            {has("temperature")
              ? <Plot title="°C" data={columns("temperature", "forecast", "soft")} names={["now", "in ten seconds", "soft limit"]} />
              : <p class="none">no temperature sensor</p>}
            <Plot title="requests and refusals per second" data={columns("rate", "refused")} names={["answered", "refused"]} />
            {names.map((name) => (
              <Plot key={name} title={`${name}, ms`} names={QUANTILES}
                data={[at, ...QUANTILES.map((one) => points.map((each) => each.models.get(name)?.[one] ?? null))]} />
            ))}
            {has("available") && <Plot title="memory available" data={columns("available")} names={["available"]} text={bytes} />}
            {has("power") && <Plot title="power, W" data={columns("power")} names={["power"]} />}
          </div>
        </>
      )}
    </section>
  );
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(name).trim();
  return { ink: named("--soft-ink"), grid: named("--line"), series: [named("--series1"), named("--series2"), named("--series3")] };
}

function Plot({ title, data, names, text }) {
  const place = useRef(null);
  const plot = useRef(null);
  const shown = useRef(data);
  shown.current = data;
  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const at = place.current;
    const draw = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(at.clientWidth, names, text), shown.current, at);
    };
    draw();
    const sized = new ResizeObserver(() => plot.current?.setSize({ width: at.clientWidth, height: HEIGHT }));
    sized.observe(at);
    dark.addEventListener("change", draw);
    return () => {
      sized.disconnect();
      dark.removeEventListener("change", draw);
      plot.current?.destroy();
      plot.current = null;
    };
  }, []);
  useEffect(() => plot.current?.setData(data), [data]);
  return (
    <figure>
      <figcaption>{title} {names.map((name, at) => <span key={name} class={`key series${at + 1}`}>{name}</span>)}</figcaption>
      <div ref={place} class="plot" />
    </figure>
  );
}

function options(width, names, text) {
  const { ink, grid, series } = colours();
  const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_, low, high) => widened(low, high) } },
    axes: [{ ...axis, values: times, space: 84, incrs: STEPS_S }, { ...axis, size: 76, values: text && ((_, ticks) => ticks.map((one) => text(one))) }],
    series: [{}, ...names.map((label, at) => ({ label, stroke: series[at], width: 1.5, points: { size: 4 } }))],
  };
}

/** Hours and minutes, with seconds where lines stand closer than a minute. */
const times = (_, ticks, _axis, _space, step) =>
  ticks.map((one) => clock(one * 1000).slice(0, step < 60 ? 8 : 5));

/** A range that a flat line and no values at all have, too. */
function widened(low, high) {
  if (low === null || high === null) return [0, 1];
  const room = (high - low) * 0.1 || Math.abs(high) * 0.05 || 1;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

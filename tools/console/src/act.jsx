// Orders to a device. Each asks once, is sent once and shows its answer; the broker's access list decides who may.

import { useEffect, useRef, useState } from "preact/hooks";

import { refusal } from "./broker.js";
import { count, line, number, object } from "./read.js";
import { bytes, clock } from "./units.js";

const ORDER_S = 300;
const KEPT = 20;

export function Act({ device, broker }) {
  const [asked, ask] = useState(null);
  const [open, set] = useState(null);
  const [answers, tell] = useState([]);
  const [file, write] = useState("");
  const live = useRef(true);
  useEffect(() => () => { live.current = false; }, []);
  const models = (device.models ?? []).filter((one) => one.topic !== null);
  const send = () => {
    const { name, body, words } = asked;
    ask(null);
    set(words);
    broker.order(device.name, name, body, ORDER_S, (outcome) => {
      if (!live.current) return;
      set(null);
      tell((before) => [{ ms: Date.now(), words, ...spoken(outcome) }, ...before].slice(0, KEPT));
    });
  };
  const idle = asked === null && open === null;
  const order = (name, body, words) => ask({ name, body, words });
  return (
    <section class="panel" data-panel="Act">
      <h2>Act</h2>
      <p class="none">Who may order is for the broker's access list to say (<code>cmd/#</code>).</p>
      <form class="row" onSubmit={(event) => (event.preventDefault(), order("install", { package: file }, `install ${file}`))}>
        <label>Package in the device's incoming folder <input name="package" required spellcheck={false} placeholder="name.tar"
          value={file} onInput={(event) => write(event.currentTarget.value.trim())} /></label>
        <button type="submit" disabled={!idle}>Install</button>
      </form>
      <table class="orders"><tbody>
        {models.map((one) => (
          <tr key={one.topic} data-orders={one.name}>
            <th scope="row">{one.name} <small>v{one.version ?? "?"}</small></th>
            <td>
              {[["load", "Load"], ["unload", "Unload"], ["rollback", "Roll back"]].map(([name, word]) => (
                <button key={name} disabled={!idle} onClick={() => order(name, { model: one.topic }, `${word.toLowerCase()} ${one.name}`)}>{word}</button>
              ))}
            </td>
          </tr>
        ))}
      </tbody></table>
      {asked && (
        <div class="confirm" role="alertdialog" aria-label="confirm the order">
          <p><strong>{asked.words}</strong> on <strong>{device.name}</strong>?</p>
          <button class="go" onClick={send}>Yes, {asked.words}</button>
          <button onClick={() => ask(null)}>No</button>
        </div>
      )}
      {open && <p class="sentence">{open}: under way …</p>}
      <ol class="answers" aria-live="polite">
        {answers.map((one) => <li key={one.ms} class={one.bad ? "bad" : ""}><time>{clock(one.ms)}</time> <b>{one.words}</b>: {one.text}</li>)}
      </ol>
    </section>
  );
}

/** The answer to an order, as a sentence. */
function spoken({ reply, failed }) {
  if (failed) return { bad: true, text: failed };
  if (number(reply.status) !== 200) return { bad: true, text: refusal(reply) };
  const result = object(reply.result);
  const held = number(result.footprint_bytes);
  const words = [line(result.text, 1000), held !== null && `it holds ${bytes(held)}`,
    number(result.load_s) !== null && `loaded in ${count(result.load_s).toFixed(1)} s`].filter(Boolean);
  return { bad: false, text: ["done", ...words].join("; ") };
}

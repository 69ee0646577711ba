// Asking a model of a device: labels with their scores, an embedding, or a conversation that is streamed.

import { useEffect, useRef, useState } from "preact/hooks";

import { refusal } from "./broker.js";
import { count, line, lines, list as listOf, number, object } from "./read.js";
import { milliseconds } from "./units.js";

const DEADLINE_S = 20;
const STREAM_S = 120;
const TURNS = 40;
const LONGEST_ANSWER = 200_000;
const TOP = 5;
const SHOWN_OF_AN_EMBEDDING = 8;

export function Ask({ device, broker }) {
  const models = (device.models ?? []).filter((one) => one.topic !== null);
  const [chosen, choose] = useState("");
  const [adapter, pick] = useState("");
  const model = models.find((one) => one.topic === chosen) ?? models[0];
  const adapters = (model?.adapters ?? []).filter((one) => one.value !== null);
  const used = adapters.some((one) => one.value === adapter) ? adapter : "";
  if (model === undefined) {
    return <section class="panel" data-panel="Ask"><h2>Ask</h2><p class="none">no model is installed</p></section>;
  }
  const asked = adapters.find((one) => one.value === used) ?? model;
  const View = model.task === "generate" ? Chat : Question;
  return (
    <section class="panel" data-panel="Ask">
      <h2>Ask</h2>
      <div class="row">
        <label>Model <select name="model" value={model.topic} onChange={(event) => choose(event.currentTarget.value)}>
          {models.map((one) => <option key={one.topic} value={one.topic}>{one.name}</option>)}
        </select></label>
        <label>Adapter <select name="adapter" value={used} onChange={(event) => pick(event.currentTarget.value)}>
          <option value="">none</option>
          {adapters.map((one) => <option key={one.value} value={one.value}>{one.name}</option>)}
        </select></label>
      </div>
      <View key={`${model.topic}/${used}`} device={device.name} model={model} adapter={used} broker={broker}
        labels={asked.labels.length} pairs={asked.pairs || model.task === "answers"} />
    </section>
  );
}

/** One open request at a time: [state, send, cancel]. What a view shows of it is its own. */
function useRequest(device, broker) {
  const [open, set] = useState(null);
  const live = useRef(true);
  useEffect(() => () => { live.current = false; }, []);
  const send = (model, body, deadlineS, got) => {
    const startedMs = performance.now();
    const id = broker.ask(device, model, body, deadlineS, (outcome) => {
      if (!live.current) return;
      if (outcome.reply || outcome.failed || outcome.last) set(null);
      got({ ...outcome, roundMs: performance.now() - startedMs });
    });
    set(id);
  };
  return [open, send, () => open && broker.cancel(device, open)];
}

function Question({ device, model, adapter, broker, labels, pairs }) {
  const [text, write] = useState("");
  const [second, writeSecond] = useState("");
  const [answer, show] = useState(null);
  const answers = model.task === "answers";
  const [open, send, cancel] = useRequest(device, broker);
  const submit = (event) => {
    event.preventDefault();
    const params = model.task === "classify" ? { top_k: Math.min(TOP, Math.max(1, labels)) } : {};
    show(null);
    send(model.topic, { text, ...(pairs ? { text_pair: second } : {}), params, ...(adapter ? { adapter } : {}) }, DEADLINE_S, show);
  };
  return (
    <form onSubmit={submit}>
      <textarea name="text" rows="2" required placeholder={answers ? "a question" : pairs ? "the first text of a pair" : "a text"} aria-label="text" value={text}
        onInput={(event) => write(event.currentTarget.value)} />
      {pairs && <textarea name="text_pair" rows="2" required placeholder={answers ? "the context that it is answered from" : "the second text"} aria-label="second text" value={second}
        onInput={(event) => writeSecond(event.currentTarget.value)} />}
      <div class="row">
        <button class="go" type="submit" disabled={open !== null}>Ask</button>
        {open && <button type="button" onClick={cancel}>Cancel</button>}
        {open && <span class="none">asking …</span>}
      </div>
      {answer && <Answer outcome={answer} />}
    </form>
  );
}

function Answer({ outcome }) {
  if (outcome.failed) return <p class="sentence bad" role="alert">{outcome.failed}</p>;
  const { reply } = outcome;
  if (number(reply.status) !== 200) return <p class="sentence bad" role="alert">{refusal(reply)}</p>;
  const result = object(reply.result);
  const found = listOf(result.labels, 50).map(object);
  const embedding = listOf(result.embedding, 10_000);
  const spans = Array.isArray(result.spans) ? listOf(result.spans, 200).map(object) : null;
  return (
    <div class="answer">
      {found.length > 0 && (
        <>
          <p class="large" data-label>{line(result.label)} {result.out_of_scope === true && <span class="level">out of scope</span>}</p>
          <ul class="labels">
            {found.map((one, at) => (
              <li key={at}>
                <span class="name">{line(one.label)}</span>
                <span class="score"><span style={{ width: `${Math.min(100, Math.max(0, count(one.score) * 100))}%` }} /></span>
                <b>{count(one.score).toFixed(3)}</b>
              </li>
            ))}
          </ul>
        </>
      )}
      {embedding.length > 0 &&
        <p class="mono">{embedding.length} numbers: {embedding.slice(0, SHOWN_OF_AN_EMBEDDING).map((one) => count(one).toFixed(4)).join(", ")} …</p>}
      {"no_answer_score" in result && (
        <>
          <p class="large" data-answer>{typeof result.answer === "string" ? line(result.answer, 2000) : <span class="level">no answer in the context</span>}</p>
          <p class="why">score {count(result.score).toFixed(3)}, that there is none {count(result.no_answer_score).toFixed(3)}; {count(result.windows)} windows, {count(result.tokens)} tokens</p>
        </>
      )}
      {spans !== null && (
        <ul class="labels spans">
          {spans.length === 0 && <li class="none">no span was found</li>}
          {spans.map((one, at) => (
            <li key={at}>
              <span class="name">{line(one.label)}</span>
              <q title={`characters ${count(one.start)} to ${count(one.end)}`}>{line(one.text)}</q>
              <b>{count(one.score).toFixed(3)}</b>
            </li>
          ))}
        </ul>
      )}
      {result.truncated === true && <p class="sentence">The text was longer than the model reads; its end was cut.</p>}
      <Timing body={reply} roundMs={outcome.roundMs} />
    </div>
  );
}

function Chat({ device, model, adapter, broker }) {
  const [text, write] = useState("");
  const [turns, keep] = useState([]);
  const [last, tell] = useState(null);
  const list = useRef(null);
  useEffect(() => { list.current.scrollTop = list.current.scrollHeight; }, [turns]);
  const [open, send, cancel] = useRequest(device, broker);
  const submit = (event) => {
    event.preventDefault();
    const said = [...turns.slice(-TURNS), { role: "user", content: text }];
    const body = { messages: said, stream: true, ...(adapter ? { adapter } : {}) };
    let answer = "";
    keep([...said, { role: "assistant", content: "" }]);
    write("");
    tell(null);
    send(model.topic, body, STREAM_S, (outcome) => {
      if (outcome.begunAnew) answer = "";
      if (outcome.part && answer.length < LONGEST_ANSWER) answer += lines(outcome.part.text);
      keep([...said, ...(answer ? [{ role: "assistant", content: answer }] : [])]);
      if (outcome.reply || outcome.failed || outcome.last) tell(outcome);
    });
  };
  return (
    <form onSubmit={submit}>
      <ol class="chat" aria-live="polite" ref={list}>
        {turns.map((one, at) => <li key={at} class={one.role}>{one.content || "…"}</li>)}
      </ol>
      {last?.failed && <p class="sentence bad" role="alert">{last.failed}</p>}
      {last?.reply && <p class="sentence bad" role="alert">{refusal(last.reply)}</p>}
      {last?.part && <Timing body={last.part} roundMs={last.roundMs} />}
      <textarea name="text" rows="2" required placeholder="say something" aria-label="text" value={text} onInput={(event) => write(event.currentTarget.value)} />
      <div class="row">
        <button class="go" type="submit" disabled={open !== null}>Send</button>
        {open && <button type="button" onClick={cancel}>Cancel</button>}
        {!open && turns.length > 0 && <button type="button" class="quiet" onClick={() => (keep([]), tell(null))}>New conversation</button>}
      </div>
    </form>
  );
}

/** Where the time went, as bars and in words. */
function Timing({ body, roundMs }) {
  const timing = object(body.timing);
  const total = count(timing.total_ms);
  const known = [["queue", count(timing.queue_ms)], ["tokenise", count(timing.tokenize_ms)], ["compute", count(timing.compute_ms)]];
  const rest = Math.max(0, total - known.reduce((sum, [, value]) => sum + value, 0));
  const parts = [...known, ["rest of the device", rest], ["way", Math.max(0, roundMs - total)]];
  const energy = object(body.energy);
  const usage = object(body.usage);
  const words = [
    number(timing.first_token_ms) !== null && `first token after ${milliseconds(number(timing.first_token_ms))}`,
    number(timing.tokens_per_s) !== null && `${number(timing.tokens_per_s).toFixed(1)} tokens/s`,
    number(usage.completion_tokens) !== null && `${usage.completion_tokens} tokens for ${count(usage.prompt_tokens)}`,
    line(body.finish_reason) && `ended by ${line(body.finish_reason)}`,
    number(energy.joules) === null ? line(energy.method) && `energy not known: ${line(energy.method)}` : `${energy.joules.toFixed(3)} J (${line(energy.method)})`,
    line(body.variant) && `variant ${line(body.variant).slice(0, 19)}`,
    line(body.merged) && `merged model ${line(body.merged)}`,
    number(body.batch) !== null && `batch of ${body.batch}`,
  ].filter(Boolean);
  return (
    <div class="timing">
      <div class="stack thin" role="img" aria-label="where the time went">
        {parts.map(([name, value], at) => <span key={name} class={`part shade${at}`} style={{ flexGrow: value }} title={`${name}: ${milliseconds(value)}`} />)}
      </div>
      <ul class="legend">
        {parts.map(([name, value], at) => <li key={name}><span class={`swatch shade${at}`} />{name} <b>{milliseconds(value)}</b></li>)}
        <li>total here <b>{milliseconds(roundMs)}</b></li>
      </ul>
      <p class="why">{words.join("; ")}</p>
    </div>
  );
}

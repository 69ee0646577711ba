// The page: the form of the connection, all devices, or one of them. State lives in `session`; the views are drawn from
// it once a second, and at most four times a second while messages come.

import { render } from "preact";
import { useEffect, useReducer, useState } from "preact/hooks";

import { addressProblem, Broker } from "./broker.js";
import { DeviceView } from "./device.jsx";
import { Fleet } from "./fleet.js";
import { Glance } from "./glance.jsx";
import { isDevice } from "./read.js";
import { age } from "./units.js";

const REDRAW_MS = 250;
const REMEMBERED = "edge-agent-console";
const PREFIX = /^[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}(\/[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}){0,7}$/;

const session = { broker: null, fleet: null, redraw: () => {} };

let drawn = 0;
let waiting = false;
/** Draw soon; many messages are one drawing. */
function changed() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    drawn = Date.now();
    session.redraw();
  }, Math.max(0, REDRAW_MS - (Date.now() - drawn)));
}

/** `typed`: by the user in the form. What a link names is not remembered: the next password would go to its broker. */
function connect(settings, typed) {
  session.broker?.end();
  session.fleet = new Fleet(settings.prefix);
  const take = (topic, payload, retained) => {
    session.fleet.take(topic, payload, retained, Date.now());
    changed();
  };
  session.broker = new Broker(settings, take, changed);
  if (typed) remember(settings);
  changed();
}

/** What the address of the page says: #broker=ws://...&device=... Never a password. */
function fragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(["broker", "prefix", "protocol", "device"].map((key) => [key, given.get(key) ?? ""]));
}

function show(device) {
  const given = new URLSearchParams(location.hash.slice(1));
  if (device) given.set("device", device);
  else given.delete("device");
  location.hash = given.toString();
}

/** Address and user name of the last time; a browser may keep nothing for a page that is a file. */
function remembered() {
  try {
    return JSON.parse(localStorage.getItem(REMEMBERED) ?? "{}") ?? {};
  } catch {
    return {};
  }
}

function remember({ url, prefix, username, protocol }) {
  try {
    localStorage.setItem(REMEMBERED, JSON.stringify({ url, prefix, username, protocol }));
  } catch {
    // The form is empty the next time.
  }
}

function first() {
  const last = remembered();
  const given = fragment();
  const text = (value) => (typeof value === "string" ? value : "");
  const here = location.protocol.startsWith("http")
    ? `${location.protocol === "https:" ? "wss" : "ws"}://${location.hostname}:9001`
    : "ws://localhost:9001";
  return {
    url: given.broker || text(last.url) || here,
    prefix: given.prefix || text(last.prefix) || "edge/v1",
    username: text(last.username),
    protocol: (given.protocol || text(last.protocol)) === "3.1.1" ? "3.1.1" : "5",
  };
}

function ConnectForm({ settings, sentence }) {
  const [form, change] = useState({ ...settings, password: "" });
  const [problem, tell] = useState("");
  const field = (key) => ({ value: form[key], onInput: (event) => change({ ...form, [key]: event.currentTarget.value }) });
  const submit = (event) => {
    event.preventDefault();
    const wrong = addressProblem(form.url) || (PREFIX.test(form.prefix) ? "" : "The prefix is like edge/v1");
    tell(wrong);
    if (!wrong) connect(form, true);
  };
  return (
    <form class="connect panel" onSubmit={submit}>
      <h2>Broker</h2>
      <p>This page speaks MQTT over WebSockets to your broker, and to nobody else.</p>
      <label>Address <input name="url" required autocomplete="off" spellcheck={false} {...field("url")} /></label>
      <label>User name <input name="username" autocomplete="username" {...field("username")} /></label>
      <label>Password <input name="password" type="password" autocomplete="current-password" {...field("password")} /></label>
      <details>
        <summary>More</summary>
        <label>Topic prefix <input name="prefix" spellcheck={false} {...field("prefix")} /></label>
        <label>
          Version of MQTT <select name="protocol" {...field("protocol")}><option>5</option><option>3.1.1</option></select>
        </label>
      </details>
      <button type="submit" class="go">Connect</button>
      {(problem || sentence) && <p class="sentence bad" role="alert">{problem || sentence}</p>}
    </form>
  );
}

function Head({ broker, device }) {
  const state = broker?.state ?? "none";
  const since = broker && state === "lost" ? ` (for ${age(Date.now() - broker.sinceMs)})` : "";
  return (
    <header>
      <h1><a href="#" onClick={(event) => (event.preventDefault(), show(""))}>edge-agent</a></h1>
      {device && <span class="crumb">/ {device}</span>}
      <div class="connection">
        <span class={`link ${state}`} role="status">{broker ? broker.sentence + since : "not connected"}</span>
        {broker && <button class="quiet" onClick={() => (broker.end(), (session.broker = null), changed())}>Disconnect</button>}
      </div>
    </header>
  );
}

function Page() {
  const [, redraw] = useReducer((number) => number + 1, 0);
  useEffect(() => {
    session.redraw = redraw;
    const tick = setInterval(redraw, 1000);
    addEventListener("hashchange", redraw);
    const given = fragment();
    if (given.broker && !addressProblem(given.broker) && PREFIX.test(first().prefix)) {
      connect({ ...first(), username: "", password: "" }, false);
    }
    return () => clearInterval(tick);
  }, []);
  const { broker, fleet } = session;
  const name = fragment().device;
  const device = isDevice(name) ? name : "";
  const asks = broker === null || broker.state === "refused";
  return (
    <>
      <Head broker={broker} device={asks ? "" : device} />
      <main>
        {asks ? <ConnectForm settings={first()} sentence={broker?.sentence ?? ""} />
          : device ? <DeviceView key={device} name={device} fleet={fleet} broker={broker} back={() => show("")} />
          : <Glance fleet={fleet} broker={broker} open={show} />}
      </main>
    </>
  );
}

render(<Page />, document.getElementById("page"));

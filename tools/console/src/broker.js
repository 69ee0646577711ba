// The connection to the broker: what devices say, questions, streams and orders. MQTT over WebSockets; the body of a
// request names its id, reply topic and deadline, so that MQTT 5 and 3.1.1 are asked alike (docs/mqtt.md).

import mqtt from "mqtt";

import { DECLARED, KINDS } from "./fleet.js";
import { count, decode, isName, LARGEST_MESSAGE, line, number } from "./read.js";

const KEEPALIVE_S = 30;
const CONNECT_MS = 10_000;
const GRACE_MS = 3000;
const OPEN = 64;
const NOBODY = 16;
const DECLARE_S = 15;
const REFUSALS = {
  4: "The broker refused this user name or password.",
  5: "The broker does not let this user connect.",
  128: "The broker refused the connection.",
  132: "The broker does not speak this version of MQTT: choose the other one.",
  133: "The broker does not accept this client's name.",
  134: "The broker refused this user name or password.",
  135: "The broker does not let this user connect: it asks for a user name and a password.",
};
const FINAL = new Set([1, 2, 4, 5, 132, 133, 134, 135]);

const refusedThere = (error) =>
  line(error.code === 135 ? "The broker's access list does not let this user send there." : error.message);

const random = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (one) => one.toString(16).padStart(2, "0")).join("");

/** Why an address cannot be used, or "". */
export function addressProblem(url) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    return "The address of the broker is like ws://192.168.1.10:9001";
  }
  if (!["ws:", "wss:"].includes(parsed.protocol)) return "The address of the broker begins with ws:// or wss://";
  if (parsed.username || parsed.password) return "User name and password do not belong into the address";
  if (location.protocol === "https:" && parsed.protocol === "ws:" && parsed.hostname !== "localhost") {
    return "A page from https:// may only use wss://: the browser refuses ws://";
  }
  return "";
}

export class Broker {
  /** `heard(topic, payload, retained)` for what devices say; `changed()` when `state` or `sentence` is another. */
  constructor({ url, prefix, username, password, protocol }, heard, changed) {
    this.url = url;
    this.prefix = prefix;
    this.state = "connecting";
    this.sentence = `Connecting to ${url} …`;
    this.sinceMs = Date.now();
    this._heard = heard;
    this._changed = changed;
    this._open = new Map();
    this._sent = new Map();
    const me = isName(username) ? username : `console-${random()}`;
    this.replyTopic = `${prefix}/client/${me}/reply/console-${random()}`;
    this._client = mqtt.connect(url, {
      clientId: `console-${random()}`,
      username: username || undefined,
      password: username ? password : undefined,
      protocolVersion: protocol === "3.1.1" ? 4 : 5,
      clean: true,
      keepalive: KEEPALIVE_S,
      connectTimeout: CONNECT_MS,
      reconnectPeriod: 2000,
      queueQoSZero: false,
      // The other kind needs workers made of text, which the page's content security policy forbids.
      timerVariant: "native",
      properties: protocol === "3.1.1" ? undefined : { maximumPacketSize: LARGEST_MESSAGE + 1024 },
    });
    this._client.on("connect", () => this._connected());
    this._client.on("close", () => this._closed());
    this._client.on("error", (error) => this._failed(error));
    this._client.on("message", (topic, payload, packet) => this._message(topic, payload, packet));
    this._client.on("packetreceive", (packet) => this._acknowledged(packet));
  }

  end() {
    this._ended = true;
    this._client.end(true);
    for (const request of this._open.values()) clearTimeout(request.timer);
    this._open.clear();
  }

  get connected() {
    return this.state === "connected" && this._client.connected;
  }

  _say(state, sentence) {
    if (this._ended) return;
    if (state !== this.state) this.sinceMs = Date.now();
    this.state = state;
    this.sentence = sentence;
    this._changed();
  }

  _connected() {
    this._say("connected", `Connected to ${this.url}`);
    const topics = Object.fromEntries(
      KINDS.map((kind) => [`${this.prefix}/+/${kind}`, { qos: kind === "telemetry" ? 0 : 1 }]),
    );
    topics[`${this.replyTopic}/+`] = { qos: 1 };
    // Who may not see rollouts or what was declared sees none.
    for (const topic of ["group/rollout/state", `+/${DECLARED}`]) {
      this._client.subscribe(`${this.prefix}/${topic}`, { qos: 1 }, () => {});
    }
    this._client.subscribe(topics, (error, granted) => {
      const refused = (granted ?? []).filter((one) => one.qos >= 128);
      if (error || refused.length > 0) {
        const what = refused.map((one) => one.topic).join(", ") || error?.message;
        this._say("connected", `Connected, but the broker refused to tell: ${what}`);
      }
    });
  }

  _closed() {
    if (this._refused || this._ended) return;
    const was = this.state === "connecting" ? "Nobody answers at" : "The connection is lost to";
    this._say("lost", this.state === "lost" ? this.sentence : `${was} ${this.url}; trying again. ${this.hint}`);
    this._failAll("the connection to the broker was lost");
  }

  get hint() {
    return this.state === "connecting" ? "Is it running, and has it a listener with `protocol websockets`?" : "";
  }

  _failed(error) {
    const code = error?.code;
    if (typeof code === "number" && FINAL.has(code)) {
      this._refused = true;
      this._say("refused", REFUSALS[code] ?? `The broker refused the connection (code ${code}).`);
      this._client.end(true);
    }
  }

  _message(topic, payload, packet) {
    if (topic.startsWith(this.replyTopic + "/")) this._reply(topic.slice(this.replyTopic.length + 1), payload);
    else this._heard(topic, payload, packet.retain === true);
  }

  _acknowledged(packet) {
    if (packet.cmd !== "puback") return;
    const id = this._sent.get(packet.messageId);
    this._sent.delete(packet.messageId);
    if (id === undefined || packet.reasonCode !== NOBODY) return;
    if (this._open.get(id)?.kept) this._finish(id, { sent: true, unheard: true });
    else this._finish(id, { failed: "Nobody listens there: who is asked is not connected to the broker." });
  }

  /** Ask; `got` is called with {part} for each part of a stream and once with {reply} or {failed}. Returns the id. */
  ask(device, model, body, deadlineS, got) {
    return this._send(`${device}/infer/${model}`, body, deadlineS, got);
  }

  /** An order to a device; as `ask`. */
  order(device, name, body, deadlineS, got) {
    return this._send(`${device}/cmd/${name}`, body, deadlineS, got);
  }

  /** Publish a device's desired state, or withdraw it (null); `got` is called once with {sent} or {failed}. */
  declare(device, body, got) {
    this._publish(`${device}/desired`, body === null ? "" : JSON.stringify(body), true, got);
  }

  /** Ask whoever carries a rollout out to return all devices; `got` as in `declare`. */
  returnAll(rollout, got) {
    this._publish("group/rollout/abort", JSON.stringify({ rollout }), false, got);
  }

  _publish(place, payload, retain, got) {
    if (!this.connected) {
      queueMicrotask(() => got({ failed: "There is no connection to the broker." }));
      return;
    }
    const id = random();
    const timer = setTimeout(() => this._finish(id, { failed: `The broker has not taken it within ${DECLARE_S} s.` }), DECLARE_S * 1000);
    this._open.set(id, { got, next: 0, timer, kept: retain });
    this._client.publish(`${this.prefix}/${place}`, payload, { qos: 1, retain }, (error) => {
      this._finish(id, error ? { failed: refusedThere(error) } : { sent: true });
    });
    this._sent.set(this._client.getLastMessageId(), id);
  }

  cancel(device, id) {
    const body = { id, reply_to: `${this.replyTopic}/${id}` };
    if (this.connected) this._client.publish(`${this.prefix}/${device}/cancel`, JSON.stringify(body), { qos: 1 });
  }

  _send(place, body, deadlineS, got) {
    const id = random();
    if (!this.connected || this._open.size >= OPEN) {
      const why = this.connected ? `${OPEN} questions are open already.` : "There is no connection to the broker.";
      queueMicrotask(() => got({ failed: why }));
      return id;
    }
    const whole = { ...body, id, reply_to: `${this.replyTopic}/${id}`, deadline_s: deadlineS };
    const expired = () => this._finish(id, { failed: `No answer within ${deadlineS} s.` });
    const request = { got, next: 0, timer: setTimeout(expired, deadlineS * 1000 + GRACE_MS) };
    this._open.set(id, request);
    const properties = { messageExpiryInterval: Math.ceil(deadlineS) };
    const options = { qos: 1, ...(this._client.options.protocolVersion === 5 ? { properties } : {}) };
    this._client.publish(`${this.prefix}/${place}`, JSON.stringify(whole), options, (error) => {
      if (error) this._finish(id, { failed: refusedThere(error) });
    });
    this._sent.set(this._client.getLastMessageId(), id);
    return id;
  }

  _reply(id, payload) {
    const request = this._open.get(id);
    const body = decode(payload);
    if (request === undefined || body === null || body.id !== id) return;
    if (number(body.status) !== null) {
      this._finish(id, { reply: body });
      return;
    }
    const seq = number(body.seq);
    if (seq === null) return;
    // A device that was killed begins its stream anew.
    if (seq === 0 && request.next > 1) request.got({ begunAnew: true });
    request.next = seq + 1;
    if (body.done === true) this._finish(id, { part: body, last: true });
    else request.got({ part: body });
  }

  _finish(id, outcome) {
    const request = this._open.get(id);
    if (request === undefined) return;
    clearTimeout(request.timer);
    this._open.delete(id);
    for (const [messageId, sent] of this._sent) {
      if (sent !== id) continue;
      this._sent.delete(messageId);
      // mqtt.js would send it again at the next connection, an order perhaps hours after the page has said that it failed.
      if (outcome.failed !== undefined) this._client.removeOutgoingMessage(messageId);
    }
    request.got(outcome);
  }

  _failAll(why) {
    for (const id of [...this._open.keys()]) this._finish(id, { failed: `No answer: ${why}.` });
  }
}

/** What a reply that is no answer says, as a sentence. */
export function refusal(reply) {
  const again = count(reply.retry_after_s);
  const wait = again > 0 ? ` Try again after ${again} s.` : "";
  const reason = line(reply.reason, 2000) || line(reply.cause) || "no reason was given";
  return `${count(reply.status)}: ${reason.replace(/\.$/, "")}.${wait}`;
}

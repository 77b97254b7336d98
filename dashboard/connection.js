// One connection to the gateway that comes back by itself.
//
// Promises: frames are handed on in order; a subscription is resumed from the last position seen; a ping is answered
// only after everything before it was handled; an answer whose fate is unknown is sent again under its own key.
// Knows nothing of the page.

const SUBPROTOCOL = "onlooker.v1";
const LONGEST_DELAY = 30_000;
/** A page that shares a busy machine may be late itself: a shorter silence says nothing about the connection. */
const SHORTEST_SILENCE = 5_000;
/** A connection that lived this long was a good one: the next loss is retried at once again. */
const SETTLED_AFTER = 10_000;

/** What to do after a code, by its range alone. */
export function comeBack(code) {
  if ((code >= 1000 && code < 2000) || (code >= 4000 && code < 4100)) return "now";
  if ((code >= 2000 && code < 3000) || (code >= 4100 && code < 4500)) return "later";
  return "never";
}

/** A refusal as one sentence, with what to do next. */
export function explain(refusal) {
  const words = refusal.message || refusal.error || "The gateway refused this";
  const message = `${words[0].toUpperCase()}${words.slice(1).replace(/\.$/, "")}.`;
  if (refusal.code === 3010) return `${message} Enter a valid token.`;
  if (refusal.code === 3011) return `${message} Use a token with more rights.`;
  switch (comeBack(refusal.code)) {
    case "now": return `${message} Look at what is shown now, then try again.`;
    case "later": return refusal.retryAfter
      ? `${message} Try again in ${Math.ceil(refusal.retryAfter / 1000)} s.`
      : `${message} Try again in a moment.`;
    default: return message;
  }
}

export class Connection {
  #url; #handlers; #token = null; #socket = null;
  #ready = false; #readyAt = 0; #attempt = 0; #delay = null; #timer = null; #silence = null; #quiet = 25_000;
  #nextRef = 1; #requests = new Map(); #project = false; #sessions = new Map();

  /** `handlers`: `frame(frame)`, `picture(header, blob)`, `status({state, text, canRetry})`, `ready(frame)`, and
   *  `attention()`, which says what a new subscription tells of its person. */
  constructor(url, handlers) {
    this.#url = url;
    this.#handlers = handlers;
  }

  start(token) {
    this.#token = token ?? this.#token;
    this.#attempt = 0;
    this.#open();
  }

  /** Comes back now, if it waits. */
  hurry() {
    if (this.#timer !== null) this.#open();
  }

  get isReady() {
    return this.#ready;
  }

  followProject() {
    this.#project = true;
    if (this.#ready) this.#subscribeProject();
  }

  follow(session, since) {
    this.#sessions.set(session, since);
    if (this.#ready) this.#subscribe(session);
  }

  unfollow(session) {
    if (this.#sessions.delete(session) && this.#ready) this.#send({ type: "unsubscribe", session });
  }

  /** Sends what has no reply; false when there is no connection to send it on. */
  tell(frame) {
    return this.#ready && this.#send(frame);
  }

  /** Sends a request; resolves with `ok.result`, rejects with a refusal. `again`: survives a lost connection. */
  request(frame, { again = false } = {}) {
    if (!this.#ready && !again) {
      return Promise.reject({ code: 2001, message: "There is no connection to the gateway at the moment" });
    }
    const ref = String(this.#nextRef++);
    return new Promise((resolve, reject) => {
      this.#requests.set(ref, { frame: { ...frame, ref }, again, resolve, reject });
      if (this.#ready) this.#send({ ...frame, ref });
    });
  }

  #open() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#socket?.close();
    this.#delay = null;
    this.#status("connecting", this.#attempt ? "Reconnecting …" : "Connecting …");
    const socket = new WebSocket(this.#url, SUBPROTOCOL);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(data);
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#closed(code, reason);
    this.#socket = socket;
    this.#heard();
  }

  /** A connection that says nothing for longer than two pings is dead, whatever the network stack believes. */
  #heard() {
    clearTimeout(this.#silence);
    const socket = this.#socket;
    this.#silence = setTimeout(() => {
      if (socket !== this.#socket) return;
      this.#socket = null;
      socket.close();
      this.#closed(1006, "nothing was heard");
    }, this.#quiet);
  }

  #send(frame) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  #receive(data) {
    this.#heard();
    if (typeof data !== "string") return this.#receivePicture(data);
    const frame = JSON.parse(data);
    this.#remember(frame);
    switch (frame.type) {
      case "hello": return this.#greet(frame);
      case "ready": return this.#becomeReady(frame);
      case "ok": return this.#settle(frame, (request) => request.resolve(frame.result ?? {}));
      case "error": return this.#refused(frame);
      case "goaway":
        this.#delay = frame.after;
        return this.#status("reconnecting", "The gateway is about to restart");
      case "unsubscribed": this.#unsubscribed(frame); break;
    }
    this.#handlers.frame(frame);
    if (frame.type === "ping") this.#send({ type: "pong", id: frame.id });
  }

  #receivePicture(buffer) {
    const length = new DataView(buffer).getUint32(0);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    this.#handlers.picture(header, new Blob([new Uint8Array(buffer, 4 + length)], { type: header.media }));
  }

  /** Keeps the place from which each session is resumed. */
  #remember(frame) {
    const keep = (session, position) => {
      if (position && this.#sessions.has(session)) this.#sessions.set(session, position);
    };
    switch (frame.type) {
      case "event": case "live": return keep(frame.session, frame.position);
      case "replay": return frame.events.length && keep(frame.session, frame.events.at(-1).position);
      case "ping":
        for (const [session, position] of Object.entries(frame.positions ?? {})) keep(session, position);
    }
  }

  #greet(hello) {
    this.#quiet = Math.max(SHORTEST_SILENCE, hello.pingEvery * 2.5);
    if (hello.auth !== "required") return;
    if (this.#token) this.#send({ type: "auth", token: this.#token });
    else this.#stop("token", "A token is needed");
  }

  #becomeReady(frame) {
    this.#ready = true;
    this.#readyAt = Date.now();
    this.#status("live", "Live");
    this.#handlers.ready(frame);
    if (this.#project) this.#subscribeProject();
    for (const session of this.#sessions.keys()) this.#subscribe(session);
    for (const { frame: unsettled } of this.#requests.values()) this.#send(unsettled);
  }

  #subscribeProject() {
    this.#send({ type: "subscribe", ref: "project", project: true });
  }

  #subscribe(session) {
    this.#send({
      type: "subscribe", ref: `session ${session}`, session, since: this.#sessions.get(session),
      pictures: "full", role: "watcher", attention: this.#handlers.attention(),
    });
  }

  #unsubscribed({ session, code }) {
    if (session === undefined) {
      if (comeBack(code) !== "never") setTimeout(() => this.#ready && this.#subscribeProject(), 1000);
    } else if (comeBack(code) === "never") {
      this.#sessions.delete(session);
    } else {
      setTimeout(() => this.#ready && this.#sessions.has(session) && this.#subscribe(session), 1000);
    }
  }

  #settle(frame, how) {
    const request = this.#requests.get(frame.ref);
    this.#requests.delete(frame.ref);
    if (request) how(request);
  }

  #refused(frame) {
    if (this.#requests.has(frame.ref)) return this.#settle(frame, (request) => request.reject(frame));
    if (!this.#ready && frame.code === 3010) return this.#stop("token", explain(frame));
    if (frame.ref?.startsWith("session ")) this.#sessions.delete(frame.ref.slice("session ".length));
    this.#handlers.frame(frame);
  }

  #closed(code, reason) {
    clearTimeout(this.#silence);
    if (this.#ready && Date.now() - this.#readyAt > SETTLED_AFTER) this.#attempt = 0;
    this.#ready = false;
    this.#forgetRequests();
    if (code === 4500 || code === 4502) return this.#stop("token", "The token was refused. Enter a valid one.");
    if (code >= 4500 && code < 5000) return this.#stop("refused", reason || `Closed by the gateway (${code})`);
    const delay = this.#delay ?? this.#backoff(code);
    this.#attempt += 1;
    const seconds = Math.ceil(delay / 1000);
    this.#status("reconnecting", seconds > 1 ? `Connection lost. Next try in ${seconds} s` : "Connection lost. Reconnecting …",
      seconds > 1);
    this.#timer = setTimeout(() => this.#open(), delay);
  }

  /** The first retry at once, unless the code says later; then full jitter. */
  #backoff(code) {
    const step = comeBack(code) === "later" ? this.#attempt + 1 : this.#attempt;
    return step === 0 ? 0 : Math.random() * Math.min(LONGEST_DELAY, 1000 * 2 ** step);
  }

  #forgetRequests() {
    for (const [ref, request] of this.#requests) {
      if (request.again) continue;
      this.#requests.delete(ref);
      request.reject({ code: 2001, message: "The connection was lost before the gateway replied" });
    }
  }

  #stop(state, text) {
    clearTimeout(this.#silence);
    const socket = this.#socket;
    this.#socket = null;
    this.#ready = false;
    this.#forgetRequests();
    this.#token = state === "token" ? null : this.#token;
    socket?.close();
    this.#status(state, text, state === "refused");
  }

  #status(state, text, canRetry = false) {
    this.#handlers.status({ state, text, canRetry });
  }
}

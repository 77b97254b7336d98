// Engine.IO by hand: polling requests and websockets as the protocol's documents describe them, nothing of a library
// that could put right what a server does wrong.

import WebSocket from "ws";
import { base } from "../report.mjs";

const within = (promise, what, ms = 10_000) => {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
};

export const SEPARATOR = "\x1e";

export function address(query) {
  return `${base}/socket.io/?${new URLSearchParams(query)}`;
}

let requests = 0;
export async function request(query, options = {}) {
  // As clients do: no two requests have the same address, so that no cache answers one.
  const response = await within(fetch(address({ ...query, t: `r${(requests += 1)}` }), options), "a response");
  return { status: response.status, text: await within(response.text(), "a body") };
}

export class Polling {
  static async open() {
    const { status, text } = await request({ EIO: "4", transport: "polling" });
    if (status !== 200) throw new Error(`opening: HTTP ${status} ${text}`);
    return new Polling(JSON.parse(text.slice(1)));
  }

  constructor(handshake) {
    this.handshake = handshake;
    this.query = { EIO: "4", transport: "polling", sid: handshake.sid };
  }

  get(options) {
    return request(this.query, options);
  }

  post(...packets) {
    return request(this.query, { method: "POST", body: packets.join(SEPARATOR) });
  }

  // Packets up to as many as are expected; heartbeats are answered and left out.
  async packets(count) {
    const found = [];
    while (found.length < count) {
      const { status, text } = await this.get();
      if (status !== 200) throw new Error(`HTTP ${status} after ${JSON.stringify(found)}`);
      for (const packet of text.split(SEPARATOR)) {
        if (packet === "2") await this.post("3");
        else found.push(packet);
      }
    }
    return found;
  }
}

export class Socket {
  #socket;
  #came = [];
  #waiting = [];

  constructor(query = { EIO: "4", transport: "websocket" }) {
    const socket = new WebSocket(address(query).replace(/^http/, "ws"));
    this.#socket = socket;
    this.isOpen = new Promise((resolve) => socket.once("open", resolve));
    this.isClosed = new Promise((resolve) => socket.once("close", resolve));
    socket.on("error", () => {});
    socket.on("message", (data, isBinary) => {
      const item = isBinary ? data : data.toString();
      const waiting = this.#waiting.shift();
      if (waiting) waiting(item);
      else this.#came.push(item);
    });
  }

  static async open() {
    const socket = new Socket();
    socket.handshake = JSON.parse((await socket.next()).slice(1));
    return socket;
  }

  // The next message, heartbeats included.
  next() {
    if (this.#came.length) return Promise.resolve(this.#came.shift());
    const message = new Promise((resolve) => this.#waiting.push(resolve));
    const closed = this.isClosed.then((code) => Promise.reject(new Error(`closed (${code}) instead of a message`)));
    return within(Promise.race([message, closed]), "a message");
  }

  // The next message that is no heartbeat; those are answered.
  async packet() {
    for (;;) {
      const message = await this.next();
      if (message !== "2") return message;
      this.send("3");
    }
  }

  async packets(count) {
    const found = [];
    while (found.length < count) found.push(await this.packet());
    return found;
  }

  send(...messages) {
    for (const message of messages) this.#socket.send(message);
  }

  opened() {
    return within(this.isOpen, "an open websocket");
  }

  closed(ms) {
    return within(this.isClosed, "the close", ms);
  }

  close() {
    this.#socket.close();
  }
}

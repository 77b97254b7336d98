// A socket as the samples make it, by the version and the transports that the test names.

import { base } from "../report.mjs";

const { io } = await import(process.env.CLIENT);

export const transports = {
  websocket: ["websocket"],
  upgrade: ["polling", "websocket"],
  polling: ["polling"],
}[process.env.MODE];

export const sessionId = process.env.SESSION_ID;

export function connect(auth = { sessionId }, more = {}) {
  return io(base, { auth, transports, reconnectionDelay: 50, reconnectionDelayMax: 200, ...more });
}

// The transport that is meant to carry everything in the end.
export function settled(socket) {
  const { engine } = socket.io;
  const last = transports[transports.length - 1];
  if (engine.transport.name === last) return Promise.resolve(last);
  return new Promise((resolve) => engine.once("upgrade", () => resolve(engine.transport.name)));
}

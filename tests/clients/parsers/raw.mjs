// A client made of npm's parsers and bare transports: what it decodes is what any client would, and what it encodes is
// what any client would send.

import * as engine from "engine.io-parser";
import * as packets from "socket.io-parser";
import WebSocket from "ws";
import { base } from "../report.mjs";

const address = (query) => `${base}/socket.io/?${new URLSearchParams({ EIO: "4", ...query })}`;

// Joins a session; `heard` gets the arguments of every event. Returns what sends many packets at once.
export async function join(sessionId, transport, heard) {
  const encoder = new packets.Encoder();
  const decoder = new packets.Decoder();
  let joined;
  const isJoined = new Promise((resolve) => (joined = resolve));
  decoder.on("decoded", (packet) => {
    if (packet.type === packets.PacketType.CONNECT) joined();
    else if (packet.type === packets.PacketType.EVENT) heard(packet.data);
    else throw new Error(`a packet of type ${packet.type}: ${JSON.stringify(packet.data)}`);
  });
  const send = await { websocket, polling }[transport]((packet) => {
    if (packet.type === "ping") send([{ type: "pong" }]);
    else if (packet.type === "message") decoder.add(packet.data);
    else if (packet.type !== "open" && packet.type !== "noop") throw new Error(`an engine packet: ${packet.type}`);
  });
  const encoded = (packet) => encoder.encode(packet).map((data) => ({ type: "message", data }));
  await send(encoded({ type: packets.PacketType.CONNECT, nsp: "/", data: { sessionId } }));
  await isJoined;
  return (...events) => send(events.flatMap((data) => encoded({ type: packets.PacketType.EVENT, nsp: "/", data })));
}

async function websocket(came) {
  const socket = new WebSocket(address({ transport: "websocket" }).replace(/^http/, "ws"));
  socket.on("message", (data, isBinary) => came(engine.decodePacket(isBinary ? data : data.toString(), "nodebuffer")));
  await new Promise((resolve, reject) => socket.once("open", resolve).once("error", reject));
  return async (all) => {
    for (const packet of all) engine.encodePacket(packet, true, (encoded) => socket.send(encoded));
  };
}

async function polling(came) {
  let requests = 0;
  let sid;
  const request = async (options) => {
    const query = { transport: "polling", t: String((requests += 1)), ...(sid && { sid }) };
    const response = await fetch(address(query), options);
    const text = await response.text();
    if (!response.ok) throw new Error(`HTTP ${response.status}: ${text}`);
    return text;
  };
  sid = JSON.parse((await request()).slice(1)).sid;
  const poll = async () => {
    for (;;) engine.decodePayload(await request(), "nodebuffer").forEach(came);
  };
  poll().catch((error) => {
    console.error(error);
    process.exit(1);
  });
  // Posts of one client come one after the other.
  let last = Promise.resolve();
  return (all) => {
    const body = new Promise((resolve) => engine.encodePayload(all, resolve));
    last = Promise.all([body, last]).then(([body]) => request({ method: "POST", body }));
    return last;
  };
}

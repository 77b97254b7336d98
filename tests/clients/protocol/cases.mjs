// What the documents of Engine.IO 4 and Socket.IO 5 ask of a server, one check each, after the list of cases in their
// test suites. Sixteen cases are in both of these: they are marked `both`.

import assert from "node:assert/strict";
import { sleep } from "../report.mjs";
import { Polling, SEPARATOR, Socket, address, request } from "./wire.mjs";
import { join, refused, target, unknown } from "./target.mjs";

export const cases = [];
const engine = (name, run) => cases.push({ name: `engine.io: ${name}`, suites: 1, run });
const both = (name, run) => cases.push({ name: `both: ${name}`, suites: 2, run });
const socket = (name, run) => cases.push({ name: `socket.io: ${name}`, suites: 1, run });

const binary = (bytes) => `b${Buffer.from(bytes).toString("base64")}`;
const placeholder = (num) => ({ _placeholder: true, num });

function isHandshake(text, upgrades) {
  assert.equal(text[0], "0");
  const handshake = JSON.parse(text.slice(1));
  assert.deepEqual(Object.keys(handshake).sort(), ["maxPayload", "pingInterval", "pingTimeout", "sid", "upgrades"]);
  assert.equal(typeof handshake.sid, "string");
  assert.deepEqual(handshake.upgrades, upgrades);
  for (const name of ["pingInterval", "pingTimeout", "maxPayload"]) assert.ok(handshake[name] > 0, name);
}

async function isRefused(query, options) {
  const { status, text } = await request(query, options);
  assert.equal(status, 400, text);
  const problem = JSON.parse(text);
  assert.equal(typeof problem.code, "number");
  assert.equal(typeof problem.message, "string");
}

// The time after which a client that never answers is given up, with room for a busy machine.
const silence = ({ pingInterval, pingTimeout }) => pingInterval + pingTimeout + 250;

// After this time a request that was sent waits at the server; well before the first heartbeat.
const WAITS = 150;

// --- The handshake

both("a polling request opens a session and names the upgrade", async () => {
  const { status, text } = await request({ EIO: "4", transport: "polling" });
  assert.equal(status, 200);
  isHandshake(text, ["websocket"]);
});

both("polling without version 4 of the protocol is refused", async () => {
  await isRefused({ transport: "polling" });
  await isRefused({ EIO: "abc", transport: "polling" });
});

both("a request for no transport, or for one that there is not, is refused", async () => {
  await isRefused({ EIO: "4" });
  await isRefused({ EIO: "4", transport: "abc" });
});

both("only GET opens a session", async () => {
  for (const method of ["POST", "PUT"]) await isRefused({ EIO: "4", transport: "polling" }, { method });
});

both("a websocket opens a session that has nothing to upgrade to", async () => {
  const connection = new Socket();
  isHandshake(await connection.next(), []);
  connection.close();
});

both("a websocket without version 4 of the protocol is refused", async () => {
  for (const query of [{ transport: "websocket" }, { EIO: "abc", transport: "websocket" }]) {
    await new Socket(query).closed();
  }
});

both("a websocket for no transport, or for one that there is not, is refused", async () => {
  for (const query of [{ EIO: "4" }, { EIO: "4", transport: "abc" }]) await new Socket(query).closed();
});

// --- Packets

engine("one packet over polling", async () => {
  const polling = await Polling.open();
  assert.deepEqual(await polling.post(unknown("hello")), { status: 200, text: "ok" });
  assert.deepEqual(await polling.get(), { status: 200, text: refused("hello") });
});

engine("several packets in one body, in order", async () => {
  const polling = await Polling.open();
  assert.deepEqual(await polling.post(unknown("a"), unknown("b"), unknown("c")), { status: 200, text: "ok" });
  assert.deepEqual(await polling.packets(3), [refused("a"), refused("b"), refused("c")]);
});

engine("a text and a binary packet in one body", async () => {
  const polling = await Polling.open();
  await join(polling);
  const header = (event) => `451-${JSON.stringify([event, placeholder(0)])}`;
  assert.deepEqual(await polling.post(header("message"), binary([1, 2, 3, 4])), { status: 200, text: "ok" });
  assert.deepEqual(await polling.packets(2), [header("message-back"), binary([1, 2, 3, 4])]);
});

engine("a body that is no packet ends the session", async () => {
  const polling = await Polling.open();
  // The answer to the body itself is left open: servers refuse it, cut the connection, or say `ok` to it.
  await polling.post("abc").catch(() => {});
  assert.equal((await polling.get()).status, 400);
});

engine("a second waiting poll ends the session", async () => {
  const polling = await Polling.open();
  const first = polling.get();
  await sleep(WAITS);
  const second = await polling.get();
  assert.deepEqual(await first, { status: 200, text: "1" });
  assert.ok([400, 500].includes(second.status), `HTTP ${second.status}`);
  assert.equal((await polling.get()).status, 400);
});

engine("a poll that is given up ends the session", async () => {
  const polling = await Polling.open();
  const giveUp = new AbortController();
  const given = fetch(address({ ...polling.query, t: "given-up" }), { signal: giveUp.signal }).catch(() => {});
  await sleep(WAITS);
  giveUp.abort();
  await given;
  await sleep(WAITS);
  assert.equal((await polling.get()).status, 400);
});

engine("one packet over a websocket", async () => {
  const connection = await Socket.open();
  connection.send(unknown("hello"));
  assert.equal(await connection.packet(), refused("hello"));
  connection.close();
});

engine("a binary packet over a websocket", async () => {
  const connection = await Socket.open();
  await join(connection);
  const header = (event) => `451-${JSON.stringify([event, placeholder(0)])}`;
  connection.send(header("message"), Buffer.from([1, 2, 3, 4]));
  assert.deepEqual(await connection.packets(2), [header("message-back"), Buffer.from([1, 2, 3, 4])]);
  connection.close();
});

engine("a message that is no packet closes the websocket", async () => {
  const connection = await Socket.open();
  connection.send("abc");
  await connection.closed();
});

// --- Heartbeats

both("pings over polling, answered by pongs, keep the session", async () => {
  const polling = await Polling.open();
  await join(polling);
  for (let beat = 0; beat < 3; beat++) {
    assert.deepEqual(await polling.get(), { status: 200, text: "2" });
    assert.equal((await polling.post("3")).status, 200);
  }
});

both("a polling client that is silent is given up", async () => {
  const polling = await Polling.open();
  await sleep(silence(polling.handshake));
  assert.equal((await polling.get()).status, 400);
});

both("pings over a websocket, answered by pongs, keep the session", async () => {
  const connection = await Socket.open();
  await join(connection);
  for (let beat = 0; beat < 3; beat++) {
    assert.equal(await connection.next(), "2");
    connection.send("3");
  }
  connection.close();
});

both("a websocket client that is silent is closed", async () => {
  const connection = await Socket.open();
  await join(connection);
  await connection.closed(silence(connection.handshake) + 2000);
});

// --- The end

both("a client ends its polling session, and its waiting poll is let go", async () => {
  const polling = await Polling.open();
  const waiting = polling.get();
  await sleep(WAITS);
  await polling.post("1");
  assert.deepEqual(await waiting, { status: 200, text: "6" });
  assert.equal((await polling.get()).status, 400);
});

both("a client ends its session over a websocket", async () => {
  const connection = await Socket.open();
  connection.send("1");
  await connection.closed();
});

// --- The upgrade

async function probed(polling) {
  const connection = new Socket({ EIO: "4", transport: "websocket", sid: polling.handshake.sid });
  await connection.opened();
  connection.send("2probe");
  assert.equal(await connection.next(), "3probe");
  return connection;
}

async function upgraded() {
  const polling = await Polling.open();
  const connection = await probed(polling);
  connection.send("5");
  return { polling, connection };
}

both("a session goes over from polling to a websocket", async () => {
  const polling = await Polling.open();
  const connection = await probed(polling);
  assert.deepEqual(await polling.get(), { status: 200, text: "6" });
  connection.send("5", unknown("hello"));
  assert.equal(await connection.packet(), refused("hello"));
  connection.close();
});

both("polls of an upgraded session are refused", async () => {
  const { polling, connection } = await upgraded();
  // That the upgrade is through shows in an answer.
  connection.send(unknown("a"));
  assert.equal(await connection.packet(), refused("a"));
  assert.equal((await polling.get()).status, 400);
  connection.send(unknown("b"));
  assert.equal(await connection.packet(), refused("b"));
  connection.close();
});

both("a second websocket of an upgraded session is closed", async () => {
  const { polling, connection } = await upgraded();
  connection.send(unknown("a"));
  assert.equal(await connection.packet(), refused("a"));
  await new Socket({ EIO: "4", transport: "websocket", sid: polling.handshake.sid }).closed();
  connection.send(unknown("b"));
  assert.equal(await connection.packet(), refused("b"));
  connection.close();
});

// --- Namespaces

socket("the main namespace is joined", async () => {
  const connection = await Socket.open();
  const joined = await join(connection);
  assert.equal(typeof joined.sid, "string");
  assert.notEqual(joined.sid, connection.handshake.sid);
  connection.close();
});

socket("the main namespace is given what comes with the joining", async () => {
  const connection = await Socket.open();
  connection.send('40{"token":"123"}');
  const [joined, auth] = await connection.packets(2);
  assert.ok(joined.startsWith('40{"sid":'), joined);
  assert.equal(auth, '42["auth",{"token":"123"}]');
  connection.close();
});

socket("another namespace is joined", async () => {
  const connection = await Socket.open();
  connection.send("40/custom,");
  const joined = await connection.packet();
  assert.ok(joined.startsWith('40/custom,{"sid":'), joined);
  connection.close();
});

socket("another namespace is given what comes with the joining", async () => {
  const connection = await Socket.open();
  connection.send('40/custom,{"token":"abc"}');
  const [joined, auth] = await connection.packets(2);
  assert.ok(joined.startsWith('40/custom,{"sid":'), joined);
  assert.equal(auth, '42/custom,["auth",{"token":"abc"}]');
  connection.close();
});

socket("a namespace that there is not is refused", async () => {
  const connection = await Socket.open();
  connection.send("40/random");
  assert.equal(await connection.packet(), '44/random,{"message":"Invalid namespace"}');
  connection.close();
});

socket("whoever begins with anything but a joining is closed", async () => {
  const connection = await Socket.open();
  connection.send("4abc");
  await connection.closed();
});

socket("whoever joins nothing is closed", async () => {
  const connection = await Socket.open();
  // Alive, and still closed.
  const closed = connection.closed();
  const beats = (async () => {
    for (;;) {
      if ((await connection.next()) === "2") connection.send("3");
    }
  })().catch(() => {});
  await closed;
  await beats;
});

socket("after leaving the main namespace the connection is still there", async () => {
  const connection = await Socket.open();
  await join(connection);
  connection.send("41");
  assert.equal(await connection.next(), "2");
  connection.close();
});

socket("leaving one namespace leaves another as it is", async () => {
  const connection = await Socket.open();
  await join(connection);
  connection.send("40/custom");
  assert.ok((await connection.packet()).startsWith("40/custom,"));
  connection.send("41/custom", target.message("still here"));
  assert.ok((await connection.packet()).startsWith(target.answer("still here")));
  connection.close();
});

// --- Events

async function joined() {
  const connection = await Socket.open();
  await join(connection);
  return connection;
}

socket("an event with text", async () => {
  const connection = await joined();
  connection.send('42["message",1,"2",{"3":[true]}]');
  assert.equal(await connection.packet(), '42["message-back",1,"2",{"3":[true]}]');
  connection.close();
});

const attachments = [Buffer.from([1, 2, 3]), Buffer.from([4, 5, 6])];

socket("an event with attachments", async () => {
  const connection = await joined();
  const header = (event) => `452-${JSON.stringify([event, placeholder(0), placeholder(1)])}`;
  connection.send(header("message"), ...attachments);
  assert.deepEqual(await connection.packets(3), [header("message-back"), ...attachments]);
  connection.close();
});

socket("an event with text that is acknowledged", async () => {
  const connection = await joined();
  connection.send('42456["message-with-ack",1,"2",{"3":[false]}]');
  assert.equal(await connection.packet(), '43456[1,"2",{"3":[false]}]');
  connection.close();
});

socket("an event with attachments that is acknowledged", async () => {
  const connection = await joined();
  connection.send(`452-789${JSON.stringify(["message-with-ack", placeholder(0), placeholder(1)])}`, ...attachments);
  const header = `462-789${JSON.stringify([placeholder(0), placeholder(1)])}`;
  assert.deepEqual(await connection.packets(3), [header, ...attachments]);
  connection.close();
});

for (const [what, packet] of [
  ["of an unknown type", "4abc"],
  ["whose payload is no array", "42{}"],
  ["whose id is no number", '42abc["message-with-ack",1,"2",{"3":[false]}]'],
]) {
  socket(`a packet ${what} closes the connection`, async () => {
    const connection = await joined();
    connection.send(packet);
    await connection.closed();
  });
}

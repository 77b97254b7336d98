// Where the gateway is meant to differ from npm's server, why, and what holds instead. What is not listed here is the
// same for both.

import assert from "node:assert/strict";
import { Polling, Socket } from "./wire.mjs";
import { join, refused, target } from "./target.mjs";

const placeholder = (num) => ({ _placeholder: true, num });

async function joined() {
  const connection = await Socket.open();
  await join(connection);
  return connection;
}

// It is read whole and refused as a message, and the next one is read again.
async function refusedAndStillThere(...packets) {
  const connection = await joined();
  connection.send(...packets);
  assert.ok((await connection.packet()).startsWith(target.answer()));
  connection.send(target.message("still here"));
  assert.ok((await connection.packet()).startsWith(target.answer("still here")));
  connection.close();
}

const oneNamespace = "there is the main namespace only";
const noMessage = "messages to a session are objects; what is none is refused on the event `error`, and nobody is dropped for it";
const acknowledged = "what is acknowledged is what a message came to, beside the event `error`";

async function refusedAndAcknowledged(...packets) {
  const begin = packets.pop();
  const connection = await joined();
  connection.send(...packets);
  assert.ok((await connection.packet()).startsWith(target.answer()));
  const acknowledgement = await connection.packet();
  assert.ok(acknowledgement.startsWith(begin), acknowledgement);
  assert.equal(JSON.parse(acknowledgement.slice(begin.length - 1))[0].success, false);
  connection.close();
}

async function noSuchNamespace(packet) {
  const connection = await Socket.open();
  connection.send(packet);
  assert.equal(await connection.packet(), refused("custom"));
  connection.close();
}

export const differences = {
  "engine.io: a text and a binary packet in one body": {
    why: noMessage,
    async run() {
      const polling = await Polling.open();
      await join(polling);
      const header = `451-${JSON.stringify(["message", placeholder(0)])}`;
      assert.deepEqual(await polling.post(header, "bAQIDBA=="), { status: 200, text: "ok" });
      assert.ok((await polling.packets(1))[0].startsWith(target.answer()));
    },
  },
  "engine.io: a binary packet over a websocket": {
    why: noMessage,
    run: () => refusedAndStillThere(`451-${JSON.stringify(["message", placeholder(0)])}`, Buffer.from([1, 2, 3, 4])),
  },
  "socket.io: the main namespace is given what comes with the joining": {
    why: "what comes with it is the session's id, which opens that session or nothing",
    async run() {
      const stranger = await Socket.open();
      stranger.send('40{"sessionId":"a1b2c3d4e5f6"}');
      const refusal = await stranger.packet();
      assert.ok(refusal.startsWith("44{"), refusal);
      assert.equal(typeof JSON.parse(refusal.slice(2)).message, "string");
      stranger.close();
      (await joined()).close();
    },
  },
  "socket.io: another namespace is joined": { why: oneNamespace, run: () => noSuchNamespace("40/custom,") },
  "socket.io: another namespace is given what comes with the joining": {
    why: oneNamespace,
    run: () => noSuchNamespace('40/custom,{"token":"abc"}'),
  },
  "socket.io: leaving one namespace leaves another as it is": {
    why: oneNamespace,
    async run() {
      const connection = await joined();
      connection.send("40/custom");
      assert.equal(await connection.packet(), refused("custom"));
      connection.send(target.message("still here"));
      assert.ok((await connection.packet()).startsWith(target.answer("still here")));
      connection.close();
    },
  },
  "socket.io: an event with text": {
    why: noMessage,
    run: () => refusedAndStillThere('42["message",1,"2",{"3":[true]}]'),
  },
  "socket.io: an event with attachments": {
    why: noMessage,
    run: () =>
      refusedAndStillThere(
        `452-${JSON.stringify(["message", placeholder(0), placeholder(1)])}`,
        Buffer.from([1, 2, 3]),
        Buffer.from([4, 5, 6]),
      ),
  },
  "socket.io: an event with text that is acknowledged": {
    why: acknowledged,
    run: () => refusedAndAcknowledged('42456["message",1,"2",{"3":[false]}]', "43456["),
  },
  "socket.io: an event with attachments that is acknowledged": {
    why: acknowledged,
    run: () =>
      refusedAndAcknowledged(
        `452-789${JSON.stringify(["message", placeholder(0), placeholder(1)])}`,
        Buffer.from([1, 2, 3]),
        Buffer.from([4, 5, 6]),
        "43789[",
      ),
  },
};

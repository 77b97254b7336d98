// Loses its transport and comes back. HOW says what the client does about what it missed: `built_in` nothing, because
// it sends `pid` and `offset` by itself; `by_hand` gives the last offset in `auth`; `anew` just joins again.

import { say } from "../report.mjs";
import { connect, sessionId, settled } from "./connect.mjs";

let offset;
const auth = {
  built_in: { sessionId },
  anew: { sessionId },
  by_hand: (send) => send({ sessionId, offset }),
}[process.env.HOW];
const socket = connect(auth);
const numbers = [];
const ids = [];
socket.on("connect", async () => {
  ids.push(socket.id);
  // A listener that waits for the upgrade would miss none of it; the test does, so that it cuts what it means to cut.
  say("connected", { recovered: socket.recovered ?? null, transport: await settled(socket) });
});
socket.on("disconnect", (reason) => say("disconnected", { reason }));
socket.on("error", (error) => say("error", { error }));
socket.on("message", (data, last) => {
  if (typeof last === "string") offset = last;
  if (data.type === "action") {
    numbers.push(data.data.n);
    say("action", { n: data.data.n });
  }
  if (data.type === "task_completed") {
    say("end", { numbers, sameId: new Set(ids).size === 1 });
    socket.disconnect();
  }
});

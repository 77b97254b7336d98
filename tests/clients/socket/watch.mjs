// Somebody who looks, for as long as it is let: nothing but a connected client. Told to go on, it disconnects.

import { say } from "../report.mjs";
import { connect } from "./connect.mjs";

const socket = connect();
socket.on("connect", () => say("connected"));
socket.on("disconnect", (reason) => say("disconnected", { reason }));
socket.on("message", (data) => {
  if (data.type === "guardrail_trigger") say("asked", { value: data.data.value });
});
process.stdin.once("data", () => {
  socket.disconnect();
  say("left");
});

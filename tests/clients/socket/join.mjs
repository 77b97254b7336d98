// Joins at some moment and says what it hears until it is told to stop.

import { say } from "../report.mjs";
import { connect } from "./connect.mjs";

const socket = connect();
socket.on("connect", () => say("connected"));
for (const event of ["message", "end_session", "instance:disconnected", "instance:reconnected", "error"]) {
  socket.on(event, (data) => say("heard", { event, data }));
}
socket.on("disconnect", (reason) => say("disconnected", { reason }));
socket.on("connect_error", (error) => say("connect_error", { message: error.message, data: error.data ?? null }));
process.stdin.once("data", () => socket.disconnect());
process.stdin.once("data", () => process.stdin.pause());

// Follows a task to its end: what the agent thinks and does, a question that is answered here, the result, the end.

import { say } from "../report.mjs";
import { connect, settled } from "./connect.mjs";

const socket = connect();
const heard = [];
let transport;
socket.on("connect", async () => {
  say("connected", { id: socket.id });
  transport = await settled(socket);
  say("settled", { transport });
});
socket.on("connect_error", (error) => say("connect_error", { message: error.message }));
socket.on("error", (error) => say("error", { error }));
socket.on("message", async (data) => {
  heard.push(data);
  if (data.type === "guardrail_trigger") {
    say("asked", { value: data.data.value });
    await settled(socket);
    socket.emit("message", { actionType: "guardrail", prompt: "secret answer 1", newState: "resume" });
  }
});
socket.on("end_session", (data) => {
  say("end", { heard, transport: socket.io.engine.transport.name, ended: data });
  socket.disconnect();
});

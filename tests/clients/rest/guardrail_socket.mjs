// A guardrail heard on the socket and answered there.

import { base, need, say } from "../report.mjs";
import { post } from "./http.mjs";

const { io } = await import(process.env.CLIENT);
const session = await post("/start/start-session", { task: { prompt: "Log in to the bank", startingUrl: "https://bank.example" } });
const { sessionId } = session;
const socket = io(session.socketURL, {
  auth: { sessionId }, transports: ["websocket"], reconnection: true, reconnectionDelay: 1000, reconnectionAttempts: 5,
});
const heard = [];
socket.on("connect_error", (error) => need(false, `connect_error: ${error.message}`));
socket.on("error", (error) => need(false, `error: ${JSON.stringify(error)}`));
socket.on("message", (data) => {
  heard.push(data.type);
  switch (data.type) {
    case "guardrail_trigger":
      say("asked", { value: data.data.value });
      socket.emit("message", { actionType: "guardrail", taskDetails: "secret answer 1", newState: "resume" });
      break;
    case "task_completed":
      say("completed", { heard, message: data.data.message, cost: data.usage.cost });
      socket.emit("message", { actionType: "state", newState: "terminate" });
      break;
  }
});
socket.on("end_session", (data) => {
  say("end", { reason: data.reason, message: data.message, type: data.type });
  socket.disconnect();
});

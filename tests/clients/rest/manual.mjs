// A person takes the wheel at a captcha, over REST or over a socket, and hands it back.

import { io } from "socket.io-client";
import { base, need, say } from "../report.mjs";
import { post, send } from "./http.mjs";

const session = await post("/start/start-session", { task: { prompt: "Open the report", startingUrl: "https://example.com" } });
const { sessionId, socketURL, streaming } = session;
const socket = io(socketURL, { auth: { sessionId }, transports: ["websocket"] });
const over = {
  socket: async (message) => void socket.emit("message", message),
  rest: async (message) => need((await send(sessionId, message)).message === "Message sent successfully", "not sent"),
}[process.env.OVER];
socket.on("connect_error", (error) => need(false, `connect_error: ${error.message}`));
socket.on("error", (error) => need(false, `error: ${JSON.stringify(error)}`));

const interact = (action) => over({ actionType: "interaction", action });
// As the sample maps a click in the picture to the window: the page lies below 155 pixels of the browser's own.
const click = (x, y, shown) => ({
  type: "CLICK",
  x: Math.round((x / shown.width) * streaming.dimensions.width),
  y: Math.round((y / shown.height) * streaming.dimensions.height) + 155,
});

socket.on("message", async (data) => {
  if (data.type === "guardrail_trigger") {
    need(data.data.type === "human_input_needed", JSON.stringify(data));
    await interact({ type: "takeOverControl" });
    await interact({ type: "CLICK", x: 500, y: 300 });
    await interact(click(512, 300, { width: 512, height: 300 }));
    await interact({ type: "DOUBLE_CLICK", x: 0, y: 155 });
    await interact({ type: "TYPE", text: "hello wörld 👋", humanLike: true });
    await interact({ type: "KEY_PRESS", key: "Enter" });
    await interact({ type: "KEY_PRESS", key: "a" });
    await interact({ type: "releaseControl" });
    await over({ actionType: "guardrail", prompt: "The captcha is solved", newState: "resume" });
  }
  if (data.type === "task_completed") {
    say("end", { message: data.data.message });
    socket.disconnect();
  }
});

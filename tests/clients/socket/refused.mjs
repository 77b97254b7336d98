// A session that does not exist.

import { say } from "../report.mjs";
import { connect } from "./connect.mjs";

const socket = connect({ sessionId: "a1b2c3d4e5f6" });
socket.on("connect", () => say("connected"));
socket.on("connect_error", (error) => {
  say("end", { message: error.message, data: error.data ?? null, active: socket.active ?? null });
  socket.disconnect();
});

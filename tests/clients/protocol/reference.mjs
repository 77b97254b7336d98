// npm's own server with an application that sends everything back: what the gateway is compared with.

import { createServer } from "node:http";
import { Server } from "socket.io";
import { say } from "../report.mjs";

const http = createServer();
const io = new Server(http, { pingInterval: 600, pingTimeout: 400, connectTimeout: 2500, maxHttpBufferSize: 1_000_000 });

function echo(socket) {
  if (Object.keys(socket.handshake.auth).length) socket.emit("auth", socket.handshake.auth);
  socket.on("message", (...said) => socket.emit("message-back", ...said));
  socket.on("message-with-ack", (...said) => said.pop()(...said));
}

io.on("connection", echo);
io.of("/custom").on("connection", echo);
http.listen(0, "127.0.0.1", () => say("listening", { url: `http://127.0.0.1:${http.address().port}` }));
// Until the test is gone.
process.stdin.resume().once("end", () => process.exit(0));

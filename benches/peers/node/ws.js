// `ws` as its documentation broadcasts: whoever connects to /CHANNEL gets what the publisher says to that channel.
import { WebSocketServer } from "ws";

const channels = new Map();
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096, perMessageDeflate: false });

server.on("connection", (socket, request) => {
  const name = request.url.slice(1);
  if (name === "publish") {
    // Six digits of the channel, then the payload.
    socket.on("message", (message) => {
      const payload = message.subarray(6);
      for (const subscriber of channels.get(Number(message.subarray(0, 6))) ?? []) {
        subscriber.send(payload, { binary: false });
      }
    });
    return;
  }
  const channel = Number(name);
  if (!channels.has(channel)) channels.set(channel, new Set());
  channels.get(channel).add(socket);
  socket.on("close", () => channels.get(channel).delete(socket));
  socket.on("error", () => {});
});

server.on("listening", () => console.log(`listening on 127.0.0.1:${server.address().port}`));

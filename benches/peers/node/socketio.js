// `socket.io` with one room a channel.
import { createServer } from "node:http";
import { Server } from "socket.io";

const http = createServer();
const io = new Server(http, { transports: ["websocket"], maxHttpBufferSize: 1 << 20, perMessageDeflate: false });

io.on("connection", (socket) => {
  const { channel } = socket.handshake.query;
  if (channel !== undefined) socket.join(channel);
  else socket.on("publish", (to, payload) => io.to(to).emit("message", payload));
});

http.listen(0, "127.0.0.1", 4096, () => console.log(`listening on 127.0.0.1:${http.address().port}`));

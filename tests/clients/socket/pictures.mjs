// Pictures come as a binary attachment of an event of their own, to those who ask for them.

import { say } from "../report.mjs";
import { connect, sessionId } from "./connect.mjs";

const socket = connect(process.env.PICTURES ? { sessionId, pictures: true } : { sessionId });
const pictures = [];
const described = (argument) =>
  Buffer.isBuffer(argument) || argument instanceof Uint8Array || argument instanceof ArrayBuffer
    ? { binary: Buffer.from(argument).toString("base64") }
    : argument;
socket.on("connect", () => say("connected"));
socket.on("error", (error) => say("error", { error }));
socket.onAny((event, ...rest) => {
  // Whole arguments, and members of an object argument.
  const flat = rest.flatMap((one) => (one && typeof one === "object" && !ArrayBuffer.isView(one) ? Object.values(one) : [one]));
  const binary = flat.map(described).find((one) => one?.binary !== undefined);
  if (binary) {
    pictures.push({ event, ...binary });
    say("picture");
  }
  if (rest[0]?.type === "task_completed") {
    say("end", { pictures });
    socket.disconnect();
  }
});

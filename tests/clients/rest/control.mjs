// The course of a session over REST: pause, resume, stop, terminate, and what a poll says of each.

import { POLL_MS, base, need, say, sleep } from "../report.mjs";
import { get, post, send } from "./http.mjs";

const { sessionId } = await post("/start/start-session", {});
const state = async (newState) => {
  const sent = await send(sessionId, { actionType: "state", newState });
  need(sent.success && sent.message === "Message sent successfully", JSON.stringify(sent));
};
const { taskId, pending } = await send(sessionId, { actionType: "newTask", newState: "start", prompt: "Watch the price" });
need(pending, "the task is under way");
const status = async () => (await get(`${base}/task/${sessionId}/${taskId}`)).status;

await state("pause");
need(["running", "pending", "paused"].includes(await status()), await status());
await state("resume");
await state("stop");
let last;
do {
  await sleep(POLL_MS);
  last = await get(`${base}/task/${sessionId}/${taskId}`);
} while (last.pending);

const after = await send(sessionId, { actionType: "newTask", newState: "start", prompt: "Say that it works" });
need(after.pending || after.type === "task_completed", JSON.stringify(after));
await state("terminate");
// A session that has ended takes nothing any more.
let refused;
try {
  await send(sessionId, { actionType: "newTask", newState: "start", prompt: "Too late" });
} catch (error) {
  refused = error.message;
}
say("end", { last, refused });

// "No" to a guardrail, in both documented ways: `stop` as the answer, and the task stopped.

import { POLL_MS, base, need, say, sleep } from "../report.mjs";
import { get, post, send } from "./http.mjs";

const { sessionId } = await post("/start/start-session", {});

async function asked() {
  let data = await send(sessionId, { actionType: "newTask", newState: "start", prompt: "Buy the lamp" });
  const { taskId } = data;
  while (data.type !== "guardrail_trigger") {
    need(data.pending, JSON.stringify(data));
    await sleep(POLL_MS);
    data = await get(`${base}/task/${sessionId}/${taskId}`);
  }
  return taskId;
}

async function ended(taskId) {
  for (;;) {
    const data = await get(`${base}/task/${sessionId}/${taskId}`);
    if (!data.pending && data.type !== "guardrail_trigger") return data;
    await sleep(POLL_MS);
  }
}

const declined = await asked();
await send(sessionId, { actionType: "guardrail", prompt: "", newState: "stop" });
const one = await ended(declined);

const stopped = await asked();
await send(sessionId, { actionType: "state", newState: "stop" });
const other = await ended(stopped);
need(other.type !== "task_completed", JSON.stringify(other));

// The session is still usable.
let late;
try {
  late = await send(sessionId, { actionType: "guardrail", prompt: "yes", newState: "resume" });
} catch (error) {
  late = { error: error.message };
}
say("end", { declined: one, stopped: other, late });

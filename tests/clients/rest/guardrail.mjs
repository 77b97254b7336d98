// A guardrail found by polling, or in the inline answer, and answered over REST.

import { POLL_MS, base, need, say, sleep } from "../report.mjs";
import { get, post, send } from "./http.mjs";

const { sessionId } = await post("/start/start-session", { reachOutMode: "guardrail_only" });
const first = await send(sessionId, { actionType: "newTask", newState: "start", prompt: "Log in to the bank" });
need(first.success && first.taskId, JSON.stringify(first));
const { taskId } = first;
const inline = first.type === "guardrail_trigger";
if (inline) need(first.sessionId === sessionId, "the inline body says in which session");

let data = first;
let asked = 0;
for (;;) {
  if (data.type === "guardrail_trigger") {
    need(data.success && data.data.type === "human_input_needed", JSON.stringify(data));
    // It stays until it is answered.
    const again = await get(`${base}/task/${sessionId}/${taskId}`);
    need(again.type === "guardrail_trigger" && again.data.value === data.data.value, JSON.stringify(again));
    asked += 1;
    say("asked", { value: data.data.value });
    const reply = { actionType: "guardrail", prompt: `secret answer ${asked}`, newState: "resume" };
    const sent = await send(sessionId, reply);
    need(sent.success && sent.message === "Message sent successfully", JSON.stringify(sent));
  } else if (data.type === "task_completed") {
    break;
  } else {
    need(data.pending, `neither a question nor a result nor pending: ${JSON.stringify(data)}`);
  }
  await sleep(POLL_MS);
  data = await get(`${base}/task/${sessionId}/${taskId}`);
}
need(data.taskId === taskId, "the answered task keeps its id");
say("end", { inline, asked, message: data.data.message });

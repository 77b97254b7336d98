// The quickstart: one task, its result inline or by polling the address that the answer names.

import { POLL_MS, base, need, say, sleep } from "../report.mjs";
import { get, post } from "./http.mjs";

const health = await get(`${base}/start/health`);
need(health.success && health.status === "healthy" && health.instancesAvailable, JSON.stringify(health));

let data = await post("/start/run-task", {
  task: { prompt: "Go to example.com and tell me its heading", startingUrl: "https://example.com", maxDuration: 60000 },
  mode: "default",
});
const inline = !data.pending;
need(data.success, JSON.stringify(data));
if (data.pending) {
  need(data.status === "pending" && data.message.startsWith("Task still running"), JSON.stringify(data));
  need(data.pollUrl === `${base}/task/${data.sessionId}/${data.taskId}`, data.pollUrl);
  say("pending");
  const { pollUrl } = data;
  do {
    await sleep(POLL_MS);
    data = await get(pollUrl);
  } while (data.pending);
  need(!Number.isNaN(Date.parse(data.completedAt)), data.completedAt);
}
need(data.type === "task_completed", JSON.stringify(data));
say("end", { inline, message: data.data.message, files: data.data.files, usage: data.usage });

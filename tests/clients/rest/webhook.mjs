// A task that reports to the client's own server.

import { base, need, say } from "../report.mjs";
import { post } from "./http.mjs";

const done = await post("/start/run-task", {
  task: {
    prompt: "Get the headlines",
    webhook: { name: "headlines", url: process.env.WEBHOOK_URL, auth: "Bearer canary-of-the-hook", submittedData: process.env.SUBMITTED },
  },
});
need(done.type === "task_completed", JSON.stringify(done));
say("end", { sessionId: done.sessionId, taskId: done.taskId });

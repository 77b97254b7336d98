// Several tasks in one session: the second one is sent while the first one runs, and is queued.

import { POLL_MS, base, need, say, sleep } from "../report.mjs";
import { get, post, send } from "./http.mjs";

const session = await post("/start/start-session", { mode: "default" });
need(session.success && session.socketURL === base, JSON.stringify(session));
need(session.expiresIn === 300000 && session.message === "Connect to instance using sessionId in auth", session.message);
need(session.streaming.webViewURL.startsWith(base), JSON.stringify(session.streaming));
need(session.streaming.dimensions.width === 1024 && session.streaming.dimensions.height === 600, "dimensions");
const { sessionId } = session;

async function finished(data) {
  while (data.pending) {
    await sleep(POLL_MS);
    data = await get(`${base}/task/${sessionId}/${data.taskId}`);
  }
  need(data.type === "task_completed", JSON.stringify(data));
  return data;
}

const first = send(sessionId, { actionType: "newTask", newState: "start", prompt: "Find the cheapest lamp" });
await say("first sent");
// The second is sent when the first one is running, which the program's user sees in the browser.
await new Promise((resolve) => process.stdin.once("data", resolve));
const second = send(sessionId, {
  actionType: "newTask", newState: "start", taskDetails: "Now find a bulb for it", startingPoint: "https://bulbs.example",
});
say("second sent");
const results = await Promise.all([first.then(finished), second.then(finished)]);
need(results[0].taskId !== results[1].taskId, "two tasks have two ids");

// A third one in the oldest form: no `newState`.
const third = await finished(await send(sessionId, { actionType: "newTask", taskDetails: "Sum up" }));
const stopped = await send(sessionId, { actionType: "state", newState: "terminate" });
need(stopped.success && stopped.message === "Message sent successfully", JSON.stringify(stopped));
// Results outlive their session.
const again = await get(`${base}/task/${sessionId}/${third.taskId}`);
need(again.data.message === third.data.message, JSON.stringify(again));
say("end", { messages: [...results, third].map((result) => result.data.message) });
process.exit(0);

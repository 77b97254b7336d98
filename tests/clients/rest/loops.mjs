// How the samples of each generation wait for a result. Each is given the first answer and an address to poll, and
// returns what its author would show.

import { POLL_MS, base, need, say, sleep } from "../report.mjs";
import { get, post } from "./http.mjs";

const address = (data) => data.pollUrl ?? `${base}/task/${data.sessionId}/${data.taskId}`;

// The oldest: a flat body; a result is what says `complete`, and lies in `result`.
async function complete(first) {
  let data = first;
  while (data.status !== "complete") {
    if (!data.success) throw new Error(data.error || data.message);
    await sleep(POLL_MS);
    data = await get(address(first));
  }
  const { type, data: result, usage } = data.result;
  need(type === "task_completed", JSON.stringify(data));
  return { message: result.message, tokens: result.total_tokens, cost: usage.cost };
}

// Whatever is not pending is the result.
async function pending(first) {
  let data = first;
  while (data.pending) {
    await sleep(POLL_MS);
    data = await get(address(first));
  }
  if (data.success === false) throw new Error(data.error);
  return { message: data.data.message, tokens: data.usage.inputTokens + data.usage.outputTokens, cost: data.usage.cost };
}

// Goes on while it reads `active` or `pending`.
async function active(first) {
  let data = first;
  while (data.status === "active" || data.pending) {
    await sleep(POLL_MS);
    data = await get(address(first));
  }
  if (data.status === "failed") throw new Error(data.error);
  const result = data.result ?? data;
  return { message: result.data.message, tokens: result.data.total_tokens, cost: result.usage.cost };
}

// Looks at the type.
async function typed(first) {
  let data = first;
  for (let attempt = 0; attempt < 600; attempt++) {
    if (data.type === "task_completed") {
      return { message: data.data.message, tokens: data.usage.total_tokens, cost: data.usage.cost };
    }
    need(data.type !== "guardrail_trigger", "nobody was to be asked");
    if (data.status === "failed") throw new Error(data.error);
    await sleep(POLL_MS);
    data = await get(address(first));
  }
  throw new Error("Task timed out");
}

// The newest: a switch over the status; an inline result without one is a result too.
async function status(first) {
  let data = first;
  for (let attempt = 0; attempt < 600; attempt++) {
    switch (data.status) {
      case "complete": {
        const { result } = data;
        return { message: result.data.message, tokens: result.usage.total_tokens, cost: result.usage.cost };
      }
      case "failed":
        throw new Error(`${data.error} (${data.code})`);
      case "terminated":
        throw new Error("Task was terminated");
      case "pending":
      case "running":
        break;
      default:
        throw new Error(`what is ${JSON.stringify(data)}?`);
    }
    await sleep(POLL_MS);
    data = await get(address(first));
  }
  throw new Error("Task timed out");
}

// A recipe of a workflow tool: no loop for an inline answer, members of `result` in expressions.
async function recipe(first) {
  let data = first;
  while (data.pending && !data.result) {
    await sleep(POLL_MS);
    data = await get(address(first));
  }
  if (!data.result) throw new Error(data.error);
  return { message: data.result.data.message, tokens: data.result.data.total_tokens, cost: data.result.usage.cost };
}

const prompt = "Compare the prices of three desk lamps";
const startingUrl = "https://shop.example";
const generations = {
  complete: [complete, "/start/run-task", { taskDetails: prompt, startingUrl, avoidDomains: ["ads.example"], mode: "default" }],
  pending: [pending, "/start/run-task", { taskDetails: prompt, startingPoint: startingUrl, profileId: undefined }],
  active: [active, "/start/run-task", { prompt, startingUrl }],
  typed: [typed, "/start/run-task", { task: { prompt, startingUrl }, reachOutMode: "off" }],
  status: [status, "/start/run-task", { task: { prompt, startingUrl, outputType: "text" }, mode: "default" }],
  recipe: [recipe, "/start/run-task", { prompt, startingUrl, maxDuration: 600000 }],
};

const [loop, path, body] = generations[process.env.LOOP];
const first = await post(path, body);
say("answered", { pending: Boolean(first.pending) });
try {
  say("end", await loop(first));
} catch (error) {
  say("end", { failed: error.message });
}

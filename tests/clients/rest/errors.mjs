// What samples do about errors: they read the status, then `message`, `error` and `code`, and wait after a 429.

import { base, need, say } from "../report.mjs";

async function attempt(method, path, { body, key = process.env.API_KEY, text, type = "application/json" } = {}) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...((body || text !== undefined) && { "Content-Type": type }) };
  const response = await fetch(`${base}${path}`, { method, headers, body: text ?? (body && JSON.stringify(body)) });
  const said = await response.json();
  need(said.success === false, `${method} ${path}: ${JSON.stringify(said)}`);
  need(said.message === said.error && typeof said.code === "string", JSON.stringify(said));
  return { status: response.status, message: said.message, code: said.code, details: said.details ?? null, retryAfter: response.headers.get("retry-after") };
}

const found = {
  noKey: await attempt("POST", "/start/start-session", { body: {}, key: "" }),
  wrongKey: await attempt("POST", "/start/start-session", { body: {}, key: "wr_wrong" }),
  noPrompt: await attempt("POST", "/start/run-task", { body: { task: { startingUrl: "https://example.com" } } }),
  reachOutMode: await attempt("POST", "/start/start-session", { body: { reachOutMode: "loud" } }),
  misplaced: await attempt("POST", "/start/start-session", { body: { task: { prompt: "x", reachOutMode: "off" } } }),
  noMessage: await attempt("POST", "/start/send-message", { body: {} }),
  unknownSession: await attempt("POST", "/start/send-message", { body: { sessionId: "a1b2c3d4e5f6", message: { actionType: "state", newState: "stop" } } }),
  unknownTask: await attempt("GET", "/task/a1b2c3d4e5f6/x9y8z7w6v5u4"),
  notJson: await attempt("POST", "/start/run-task", { text: '{"prompt": "x",}' }),
  contentType: await attempt("POST", "/start/run-task", { text: "prompt=x", type: "application/x-www-form-urlencoded" }),
};

// Ten a minute, then 429 with the time to wait.
const limited = [];
for (let n = 0; n < 12; n++) {
  const headers = { Authorization: `Bearer ${process.env.HASTY_KEY}`, "Content-Type": "application/json" };
  const response = await fetch(`${base}/start/start-session`, { method: "POST", headers, body: "{}" });
  limited.push({
    status: response.status,
    limit: response.headers.get("x-ratelimit-limit"),
    remaining: response.headers.get("x-ratelimit-remaining"),
    reset: response.headers.get("x-ratelimit-reset"),
    retryAfter: response.headers.get("retry-after"),
    message: (await response.json()).message,
  });
}
say("end", { found, limited });

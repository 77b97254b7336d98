// What every documented sample has on top: the headers, and a look at the status.

import { base, key } from "../report.mjs";

const headers = { Authorization: `Bearer ${key}`, "Content-Type": "application/json" };

export async function post(path, body) {
  const response = await fetch(`${base}${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  const data = await response.json();
  if (!response.ok) throw new Error(`HTTP ${response.status}: ${data.message}`);
  return data;
}

export async function get(address) {
  const response = await fetch(address, { headers });
  if (!response.ok) throw new Error(`HTTP ${response.status}: ${await response.text()}`);
  return response.json();
}

// Messages to a session: everything but `newTask` is answered at once.
export function send(sessionId, message) {
  return post("/start/send-message", { sessionId, message });
}

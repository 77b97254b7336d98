// Sends random messages and says what they were. SEED repeats a run.

import { say } from "../report.mjs";
import { join } from "./raw.mjs";

let state = Number(process.env.SEED) >>> 0;
// mulberry32
function random() {
  state = (state + 0x6d2b79f5) >>> 0;
  let t = state;
  t = Math.imul(t ^ (t >>> 15), t | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
}
const below = (n) => Math.floor(random() * n);
const pick = (all) => all[below(all.length)];

const pieces = [
  "plain", " ", "ä", "日本語", "👩‍👩‍👧", "\u0000", "\u001e", "\u2028", "\u2029", "\ufeff", "\uffff", "\"", "\\", "\\u0041", "\n", "\r\n", "\t",
  "42[\"message\"]", "b64", "_placeholder", "</script>", "𝒳", "e\u0301",
];
const text = () => Array.from({ length: 1 + below(12) }, () => pick(pieces)).join("");
const number = () => pick([0, -1, 1.5, 1e21, 1e-7, 0.1 + 0.2, 2 ** 53 - 1, -(2 ** 53) + 1, 5e-324, 1.7976931348623157e308, below(1e9)]);

function value(depth) {
  const kind = below(depth > 0 ? 7 : 5);
  if (kind === 0) return number();
  if (kind === 1) return pick([true, false, null]);
  if (kind === 2) return { _placeholder: true, num: 0 };
  if (kind < 5) return text();
  if (kind === 5) return Array.from({ length: below(4) }, () => value(depth - 1));
  return Object.fromEntries(Array.from({ length: below(4) }, (_, n) => [`${n}${text()}`, value(depth - 1)]));
}

const typing = () => ({ actionType: "interaction", action: { type: "TYPE", text: text(), humanLike: random() < 0.5 } });
const task = () => ({
  actionType: "newTask",
  newState: "start",
  prompt: `Do this: ${text()}.`,
  outputType: "structured_json",
  outputSchema: { type: "object", default: value(5), description: text() },
});

const send = await join(process.env.SESSION_ID, process.env.MODE, ([event, data]) => {
  if (event === "error") {
    console.error(JSON.stringify(data));
    process.exit(1);
  }
});
// The agent counts inputs while it works; tasks come to it one after the other.
const typed = Array.from({ length: 60 }, typing);
const tasks = Array.from({ length: 20 }, task);
for (let at = 0; at < typed.length; ) {
  const some = typed.slice(at, (at += 1 + below(6)));
  await send(...some.map((message) => ["message", message]));
}
await send(...tasks.map((message) => ["message", message]));
say("end", { typed: typed.map((message) => message.action), tasks });
process.stdin.once("data", () => process.exit(0));

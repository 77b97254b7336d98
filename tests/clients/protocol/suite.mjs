// Asks a server everything in `cases.mjs`, each on a connection of its own, some beside each other.

import { need, say } from "../report.mjs";
import { cases } from "./cases.mjs";
import { differences } from "./differences.mjs";
import { target } from "./target.mjs";

for (const name of Object.keys(differences)) need(cases.some((one) => one.name === name), `there is no case “${name}”`);

async function judge({ name, run }) {
  const own = target.name === "gateway" ? differences[name] : undefined;
  try {
    await (own?.run ?? run)();
    return { name, passed: true };
  } catch (error) {
    return { name, passed: false, error: error.message };
  }
}

// More at once would measure how busy the machine is.
const waiting = [...cases];
const judged = [];
const workers = Array.from({ length: 8 }, async () => {
  while (waiting.length) judged.push(await judge(waiting.shift()));
});
await Promise.all(workers);
const failed = judged.filter((one) => !one.passed);
say("end", { asked: cases.reduce((sum, one) => sum + one.suites, 0), differences: Object.keys(differences).length, failed });
process.exit(0);

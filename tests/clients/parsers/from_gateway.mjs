// Decodes raw frames of the gateway and says what was in them.

import { say } from "../report.mjs";
import { join } from "./raw.mjs";

const heard = [];
await join(process.env.SESSION_ID, process.env.MODE, ([event, data]) => {
  if (event !== "message") throw new Error(`${event}: ${JSON.stringify(data)}`);
  if (data.type === "action") heard.push(data.data);
  if (data.type === "task_completed") {
    say("end", { heard });
    process.exit(0);
  }
});
say("connected");

// Structured output: a string in `data.message`, to be parsed. With the id that the sample chooses itself.

import { randomBytes } from "node:crypto";
import { POLL_MS, base, need, say, sleep } from "../report.mjs";
import { get, post } from "./http.mjs";

const taskId = randomBytes(16).toString("hex");
const outputSchema = {
  type: "object",
  properties: { name: { type: "string" }, price: { type: "number" }, tags: { type: "array", items: { type: "string" } } },
  required: ["name", "price"],
};
const nested = { taskId, taskDetails: "Get the product", outputType: "structured_json", outputSchema, terminateOnCompletion: true };
const { sessionId } = await post("/start/start-session", { initialTask: nested });
let data;
do {
  await sleep(POLL_MS);
  data = await get(`${base}/task/${sessionId}/${taskId}`);
} while (data.pending);
const product = JSON.parse(data.data.message);
need(typeof product.price === "number", data.data.message);

const csv = await post("/start/run-task", {
  task: { prompt: "List the products", outputType: "structured_csv", outputSchema: ["name", "price"] },
});
need(csv.type === "task_completed", JSON.stringify(csv));
const [header, ...rows] = csv.data.message.trim().split("\n").map((line) => line.split(","));
say("end", { product, header, rows });

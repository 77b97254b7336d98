// Files uploaded first, then named by a task.

import { base, key, need, say } from "../report.mjs";
import { post } from "./http.mjs";

const contents = { "résumé.pdf": "%PDF-1.4 not really", "empty.txt": "", "binary.bin": Buffer.from([0, 255, 13, 10, 45, 45]) };
const form = new FormData();
for (const [name, content] of Object.entries(contents)) form.append("files", new Blob([content]), name);
const response = await fetch(`${base}/files/upload`, { method: "POST", headers: { Authorization: `Bearer ${key}` }, body: form });
need(response.ok, `HTTP ${response.status}`);
const uploaded = await response.json();
need(uploaded.success && uploaded.files.length === 3, JSON.stringify(uploaded));
for (const { fileId, originalName, size } of uploaded.files) {
  need(typeof fileId === "string" && size === Buffer.byteLength(contents[originalName]), JSON.stringify(uploaded));
}
const files = uploaded.files.map((file) => file.fileId);
const done = await post("/start/run-task", { prompt: "Upload this document to the form", startingUrl: "https://example.com/upload", files });
need(done.type === "task_completed", JSON.stringify(done));

// A file that does not exist is found out before anything runs.
let refused;
try {
  await post("/start/run-task", { prompt: "Upload it", files: ["0123456789abcdef"] });
} catch (error) {
  refused = error.message;
}
say("end", { files, message: done.data.message, refused });

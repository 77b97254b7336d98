// What a program and the test that runs it say to each other: one line of JSON for each thing that the test waits for,
// the exit status, and on stderr what went wrong.

export const base = process.env.BASE_URL;
export const key = process.env.API_KEY ?? "wr_0123456789abcdef";

export function say(at, more = {}) {
  console.log(JSON.stringify({ at, ...more }));
}

export function need(condition, what) {
  if (!condition) throw new Error(what);
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Clients poll every 2 to 3 seconds. Only this differs here, beside the address.
export const POLL_MS = 50;

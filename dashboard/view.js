// Small pieces of page. Everything that comes from the gateway enters the page as text, never as HTML.

/** Makes an element. `props` are properties or, with a dash, attributes; children are elements or text. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role" || name === "for") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An id that no other element has. `crypto.randomUUID` is missing in frames of pages without TLS. */
export const uniqueId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export const $ = (id) => document.getElementById(id);

/** Sets a text only when it changes, so that screen readers and selections are left alone. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function clock(at) {
  const time = new Date(at);
  return Number.isNaN(time.getTime()) ? "" : time.toLocaleTimeString([], { hour12: false });
}

/** "4:09", "3 h", "2 days": as exact as somebody needs it. */
export function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 3600) return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  const hours = Math.floor(seconds / 3600);
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} days`;
}

export const words = (name) => String(name ?? "").replaceAll("_", " ");

export const nameOf = (summary) => summary.externalId || `Session ${summary.session.slice(0, 8)}`;

/** The one line under a session's name, and its colour. */
export function statusOf({ status, reason, taskStatus, guardrails }) {
  if (status === "ended") return { text: reason ? `ended: ${words(reason)}` : "ended", tone: "quiet" };
  if (status === "orphaned") return { text: "runtime away", tone: "warn" };
  if (status === "pending") return { text: "waiting for a runtime", tone: "quiet" };
  if (guardrails?.length) return { text: "waiting for a person", tone: "alert" };
  if (taskStatus === "failed") return { text: "task failed", tone: "bad" };
  if (taskStatus === "waiting") return { text: "waiting for a person", tone: "alert" };
  return { text: taskStatus ? words(taskStatus) : "idle", tone: taskStatus === "running" ? "good" : "quiet" };
}

export function kindName(kind) {
  const names = { two_factor: "second factor", other: "question", ambiguous: "choice", login: "sign-in" };
  return names[kind] ?? words(kind);
}

/** How a guardrail was closed, in a sentence. Drawn from the outcome only. */
export function closing({ state, resolution }) {
  const by = resolution?.by ? ` by ${resolution.by}` : "";
  const via = resolution?.via ? ` (${words(resolution.via)})` : "";
  const taken = state === "taken" ? "; the agent has it" : state === "accepted" ? "; on its way to the agent" : "";
  switch (resolution?.outcome ?? state) {
    case "answered": {
      const what = resolution.choice ? `: ${resolution.choice}` : resolution.fields?.length ? `: ${resolution.fields.join(", ")}` : "";
      return `Answered${by}${via}${what}${taken}`;
    }
    case "declined": return `Declined${by}${via}${taken}`;
    case "timed_out": case "expired": return "Nobody answered in time";
    case "superseded": return "Asked anew with a later question";
    case "cancelled": return `Cancelled${by}${via}`;
    case "lost": return "The answer was lost before the agent had it; it is asked anew";
    default: return `Closed${by}${via}${taken}`;
  }
}

const AT = (data) => (Number.isFinite(data.x) && Number.isFinite(data.y) ? ` at ${data.x}, ${data.y}` : "");

const LINES = {
  session_started: () => "Session started",
  session_ended: (d) => `Session ended: ${words(d.reason)}`,
  task_queued: (d) => `Task queued${d.prompt ? `: ${d.prompt}` : ""}`,
  task_started: () => "Task started",
  task_paused: (d) => `Paused${d.by ? ` by ${d.by}` : ""}`,
  task_resumed: (d) => `Resumed${d.by ? ` by ${d.by}` : ""}`,
  task_stopped: (d) => `Stopped${d.by ? ` by ${d.by}` : ""}`,
  task_completed: (d) => `Completed${d.message ? `: ${asText(d.message)}` : ""}`,
  error: (d) => `Failed: ${asText(d.error ?? d.code ?? "no reason given")}`,
  agent: (d) => asText(d.content),
  action: (d) => [words(d.name), d.target && `“${d.target}”`, d.url, d.text && `“${d.text}”`].filter(Boolean).join(" ") + AT(d),
  screenshot: (d) => `Picture${d.size ? `, ${Math.max(1, Math.round(d.size / 1024))} KiB` : ""}`,
  response_update: (d) => asText(d.message),
  guardrail_trigger: (d) => `${d.reason === "answer_lost" ? "Asks again, because the answer was lost" : "Asks"}: ${asText(d.value)}`,
  guardrail_resolved: (d) => closing({ resolution: d }),
  guardrail_withdrawn: () => "The question was withdrawn",
  guardrail_taken: () => "The agent has the answer",
  sensitive: (d) => (d.on ? "Pictures are withheld: something secret is on the screen" : "Pictures are shown again"),
  control_taken: (d) => `${d.holder ?? d.by ?? "Somebody"} took control`,
  control_released: (d) => `Control is free again${d.reason ? `: ${words(d.reason)}` : ""}`,
  runtime_connected: (d) => `${d.runtime ?? "A runtime"} has taken the session`,
  epoch_changed: (d) => d.reason === "restart"
    ? "The machine stopped before everything was on its disk; the log begins anew"
    : "The runtime lost events; the log begins anew",
  runtime_disconnected: (d) => d.reason === "restart" ? "The gateway was restarted; the runtime is away" : "The runtime is away",
  runtime_reconnected: () => "The runtime is back",
  usage: (d) => `Has worked for ${Math.round(d.computeTime ?? d.completion_time ?? 0)} s`,
};

/** The types of events that have words here. */
export const EVENT_TYPES = Object.keys(LINES);

const TONES = {
  guardrail_trigger: "alert", error: "bad", task_completed: "good", guardrail_resolved: "good", guardrail_taken: "good",
  runtime_disconnected: "warn", epoch_changed: "warn", task_stopped: "warn", agent: "said", response_update: "said",
};

function asText(value) {
  return typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value);
}

/** An event as one readable line. */
export function lineOf({ type, data }) {
  const line = LINES[type]?.(data ?? {}) ?? (data === undefined ? "" : JSON.stringify(data));
  return { text: line.length > 600 ? `${line.slice(0, 600)} …` : line, tone: TONES[type] ?? "plain" };
}

/** The list of events: newest at the bottom, at most `most` rows, its place kept while somebody reads further up. */
export class EventList {
  #list; #newest; #most; #following = true; #height = 0;

  constructor(list, newest, most = 500) {
    this.#list = list;
    this.#newest = newest;
    this.#most = most;
    list.addEventListener("scroll", () => {
      if (list.clientHeight !== this.#height) return;
      this.#following = list.scrollHeight - list.scrollTop - list.clientHeight < 48;
      if (this.#following) newest.hidden = true;
    }, { passive: true });
    newest.addEventListener("click", () => this.#toEnd());
    // A guardrail that opens beside the list changes its height: that is nobody's scrolling.
    new ResizeObserver(() => {
      this.#height = list.clientHeight;
      if (this.#following) this.#toEnd();
    }).observe(list);
  }

  clear() {
    this.#list.replaceChildren();
    this.#newest.hidden = true;
    this.#following = true;
  }

  events(frames) {
    this.#append(frames.slice(-this.#most).map(eventRow));
  }

  /** A line of the page's own, such as a gap. */
  note(text, tone) {
    this.#append([el("li", { className: `note ${tone}` }, text)]);
  }

  #append(rows) {
    this.#list.append(...rows);
    let above = 0;
    while (this.#list.childElementCount > this.#most) {
      above += this.#list.firstElementChild.offsetHeight;
      this.#list.firstElementChild.remove();
    }
    if (this.#following) return this.#toEnd();
    this.#list.scrollTop -= above;
    this.#newest.hidden = false;
  }

  #toEnd() {
    this.#list.scrollTop = this.#list.scrollHeight;
    this.#newest.hidden = true;
    this.#following = true;
  }
}

function eventRow(frame) {
  const { text, tone } = lineOf(frame.event);
  const raw = el("pre", { hidden: true });
  const button = el("button", { type: "button", className: "event-line", "aria-expanded": "false" },
    el("time", { dateTime: frame.at }, clock(frame.at)),
    el("span", { className: "event-type" }, words(frame.event.type)),
    el("span", { className: "event-text" }, text));
  button.addEventListener("click", () => {
    raw.hidden = !raw.hidden;
    button.setAttribute("aria-expanded", String(!raw.hidden));
    if (!raw.hidden) setText(raw, JSON.stringify(frame, null, 2));
  });
  return el("li", { className: tone }, button, raw);
}

/** The list of sessions. Its rows are kept and changed in place, so that focus and touch stay where they are. */
export class SessionList {
  #list; #choose; #rows = new Map();

  constructor(list, choose) {
    this.#list = list;
    this.#choose = choose;
  }

  draw(summaries, chosen) {
    const seen = new Set();
    summaries.forEach((summary, index) => {
      seen.add(summary.session);
      const row = this.#rows.get(summary.session) ?? this.#row(summary.session);
      this.#fill(row, summary, summary.session === chosen);
      if (this.#list.children[index] !== row.item) this.#moveTo(row, index);
    });
    for (const [session, row] of this.#rows) {
      if (seen.has(session)) continue;
      row.item.remove();
      this.#rows.delete(session);
    }
  }

  focus(session) {
    this.#rows.get(session)?.button.focus();
  }

  #row(session) {
    const name = el("span", { className: "session-title" });
    const status = el("span", { className: "session-state" });
    const questions = el("span", { className: "questions" });
    const button = el("button", { type: "button", className: "session-row" }, name, status, questions);
    button.addEventListener("click", () => this.#choose(session));
    const row = { item: el("li", {}, button), button, name, status, questions };
    this.#rows.set(session, row);
    return row;
  }

  #moveTo(row, index) {
    const focused = document.activeElement === row.button;
    this.#list.insertBefore(row.item, this.#list.children[index] ?? null);
    if (focused) row.button.focus({ preventScroll: true });
  }

  #fill(row, summary, chosen) {
    const { text, tone } = statusOf(summary);
    setText(row.name, nameOf(summary));
    setText(row.status, text);
    row.status.dataset.tone = tone;
    row.button.classList.toggle("needs-person", summary.guardrails.length > 0);
    row.button.setAttribute("aria-current", chosen ? "true" : "false");
    const [first, ...more] = summary.guardrails;
    setText(row.questions, first ? `${first.value}${more.length ? ` (and ${more.length} more)` : ""}` : "");
    row.questions.hidden = !first;
  }
}

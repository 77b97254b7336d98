// One session: its picture, its events, and the open question with its form. The session's id in the address is all
// that opens it; everything is asked for below that address.

import { Attention } from "../attention.js";
import { GuardrailCards } from "../cards.js";
import { comeBack, explain } from "../connection.js";
import { FollowedSession } from "../state.js";
import { $, EVENT_TYPES, EventList, nameOf, setText, statusOf, words } from "../view.js";

const GAPS = {
  trimmed: "the log no longer reaches back that far",
  epoch: "the log was begun anew",
  ahead: "the log is shorter than what was seen before",
};
/** Between two tries to come back, in milliseconds; each waits twice as long as the one before. */
const FIRST_DELAY = 1_000;
const LONGEST_DELAY = 30_000;
/** An answer whose fate is unknown is sent again under its own key, this often. */
const ANSWER_TRIES = 3;

const id = location.pathname.split("/").filter(Boolean).at(-1);
const session = new FollowedSession(id);
let source = null;
let subscriber = null;
let position = null;
/** Whether events change the state: those before `live` are in the snapshot already. */
let isLive = false;
let able = true;
let shownPicture = null;
let delay = FIRST_DELAY;
let saying = null;
let sayAgain = false;
let aliveTimer = null;

const events = new EventList($("events"), $("newest"));
const cards = new GuardrailCards($("guardrail-cards"), { answer });
const attention = new Attention(() => {
  say();
  drawAttention();
});

// ---- HTTP

async function request(method, path, body) {
  const options = { method, cache: "no-store", referrerPolicy: "no-referrer" };
  if (body) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
    // The last word of a page that goes.
    options.keepalive = true;
  }
  let response;
  try {
    response = await fetch(`${id}/${path}`, options);
  } catch {
    throw { code: 2001, isLost: true, message: "The gateway cannot be reached" };
  }
  if (response.ok) return response.json();
  throw await response.json().catch(() => ({ code: 2008, message: `The gateway answered with status ${response.status}` }));
}

async function answer({ guardrailId, revision }, said) {
  for (let tries = 1; ; tries += 1) {
    try {
      const { guardrail } = await request("POST", "answer", { guardrail: guardrailId, revision, ...said });
      session.guardrail(guardrail);
      return draw();
    } catch (refusal) {
      if (!refusal.isLost || tries === ANSWER_TRIES) throw refusal;
      await new Promise((done) => setTimeout(done, FIRST_DELAY));
    }
  }
}

/** Its pong, its ack and its word that somebody is looking, one at a time and always the latest. */
function say() {
  if (!subscriber) return;
  if (saying) {
    sayAgain = true;
    return;
  }
  const words = { subscriber, attention: attention.state };
  if (position) words.position = position;
  saying = request("POST", "alive", words).catch(() => null).finally(() => {
    saying = null;
    if (sayAgain) {
      sayAgain = false;
      say();
    }
  });
}

// ---- following

async function begin() {
  try {
    const found = await request("GET", "state");
    able = found.able;
    events.clear();
    takeSnapshot(found);
    events.events(found.events);
    aliveTimer ??= setInterval(say, found.aliveEvery);
    follow(found.since);
  } catch (refusal) {
    if (comeBack(refusal.code) === "never") return status("refused", explain(refusal));
    comeBackLater();
  }
}

function comeBackLater() {
  status("reconnecting", "Coming back …");
  setTimeout(begin, delay * (0.5 + Math.random() / 2));
  delay = Math.min(2 * delay, LONGEST_DELAY);
}

function follow(since) {
  isLive = false;
  source = new EventSource(since ? `${id}/events?since=${encodeURIComponent(since)}` : `${id}/events`);
  const on = (type, take) => source.addEventListener(type, (event) => take(JSON.parse(event.data), event.lastEventId));
  on("hello", (hello) => {
    subscriber = hello.subscriber;
    say();
  });
  on("snapshot", (frame) => {
    isLive = false;
    takeSnapshot(frame);
    reached(frame.position);
  });
  on("gap", ({ reason }) => events.note(`Events are missing here: ${GAPS[reason] ?? words(reason)}.`, "warn"));
  on("live", (_, at) => {
    isLive = true;
    delay = FIRST_DELAY;
    reached(at);
    status("live", "Live");
  });
  on("unsubscribed", (refusal) => unsubscribed(refusal));
  for (const type of EVENT_TYPES.filter((type) => type !== "error")) on(type, takeEvent);
  // The failure of a task and the stream's own trouble have the same name; only the former has data.
  source.addEventListener("error", (event) => {
    if (event.data !== undefined) return takeEvent(JSON.parse(event.data), event.lastEventId);
    lost();
  });
}

function takeEvent(frame, at) {
  events.events([frame]);
  if (isLive) {
    const raised = session.apply(frame);
    if (raised) {
      setText($("announce"), `The agent needs a person: ${session.guardrails.get(raised).value}`);
      refresh();
    }
    draw();
    showPicture();
  }
  reached(at);
}

function takeSnapshot(frame) {
  for (const unseen of session.snapshot(frame)) session.guardrails.delete(unseen);
  draw();
  showPicture();
}

/** The gateway's own view of what is open: revisions and deadlines. */
async function refresh() {
  try {
    const { state } = await request("GET", "state");
    for (const guardrail of state.guardrails) session.guardrail(guardrail);
    draw();
  } catch {
    // What the event said stays on the page.
  }
}

function reached(at) {
  if (!at) return;
  position = at;
  say();
}

/** The browser comes back by itself, except where the gateway's answer was no stream. */
function lost() {
  subscriber = null;
  isLive = false;
  status("reconnecting", "Coming back …");
  if (source.readyState !== EventSource.CLOSED) return;
  source.close();
  comeBackLater();
}

function unsubscribed(refusal) {
  subscriber = null;
  if (refusal.error !== "session_ended" && comeBack(refusal.code) !== "never") return;
  source.close();
  status("over", session.view?.status === "ended" ? "Ended" : explain(refusal));
}

// ---- drawing

function status(state, text) {
  $("connection").dataset.state = state;
  setText($("connection-text"), text);
  document.body.classList.toggle("offline", state !== "live" && state !== "over");
  drawAttention();
}

function draw() {
  const view = session.view;
  if (!view) return;
  const task = session.currentTask();
  const open = session.open();
  const closed = session.closed().filter((guardrail) => guardrail.resolution);
  const { text, tone } = statusOf({ ...view, guardrails: open, taskStatus: task?.status ?? view.taskStatus });
  setText($("session-name"), view.externalId || "Session");
  document.title = `${open.length ? `(${open.length}) ` : ""}${view.externalId || "Session"}`;
  setText($("session-status"), text);
  $("session-status").dataset.tone = tone;
  const result = task?.result?.message ?? task?.result?.error;
  const parts = task ? [task.prompt, result].filter(Boolean) : [];
  setText($("task"), parts.map((part) => (typeof part === "string" ? part : JSON.stringify(part))).join(" — "));
  $("guardrails").hidden = !open.length && !closed.length;
  $("guardrails").classList.toggle("open", open.length > 0);
  setText($("guardrails-title"), open.length ? "Needs a person" : "Answered before");
  cards.draw(open, closed);
  drawPictureNote();
}

function showPicture() {
  const wanted = session.picture?.id;
  if (!wanted || wanted === shownPicture) return;
  const next = new Image();
  next.onload = () => {
    // One that was overtaken while it came is not shown.
    if (session.picture?.id !== wanted && shownPicture !== null) return;
    shownPicture = wanted;
    $("picture").src = next.src;
    $("picture").alt = `The browser of ${nameOf(session.view)}`;
    $("picture").hidden = false;
    drawPictureNote();
  };
  next.src = `${id}/picture/${encodeURIComponent(wanted)}`;
}

function drawPictureNote() {
  const { control, sensitive } = session.view ?? {};
  const note = control ? `${control.holder} has control. Pictures go to them alone.`
    : sensitive ? "Something secret is on the screen. Pictures are withheld."
    : $("picture").hidden ? "No picture yet." : "";
  setText($("picture-note"), note);
  $("picture-note").hidden = !note;
}

function drawAttention() {
  const looking = subscriber && isLive && attention.state === "active";
  $("attention").dataset.counts = String(Boolean(looking && able));
  setText($("attention"), !subscriber ? "" : !looking ? "Not counted as looking. Tap or move."
    : able ? "You count as looking" : "You are looking, and cannot answer");
}

attention.watch(document, window);
setInterval(() => cards.tick(), 1000);
begin();

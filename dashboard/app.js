// The live page: puts the connection, the state and the page together.

import { Attention } from "./attention.js";
import { GuardrailCards } from "./cards.js";
import { Connection, explain } from "./connection.js";
import { FollowedSession, Summaries } from "./state.js";
import { $, EventList, SessionList, clock, el, nameOf, setText, statusOf, words } from "./view.js";

/** How far back the events of a newly chosen session go. */
const HISTORY = 300;
const GAPS = {
  trimmed: "the log no longer reaches back that far",
  epoch: "the log was begun anew",
  ahead: "the log is shorter than what was seen before",
};

const summaries = new Summaries();
let chosen = null;
let controlToken = null;
let token = null;
let scopes = [];
let pictureUrl = null;
let shownPicture = null;

const connection = new Connection(
  `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/ws`,
  { frame: onFrame, picture: onPicture, status: onStatus, ready: onReady, attention: () => attention.state },
);
const attention = new Attention((state) => {
  connection.tell({ type: "attention", state });
  drawAttention();
});
const events = new EventList($("events"), $("newest"));
const list = new SessionList($("sessions"), (session) => choose(session, { remember: true }));
const cards = new GuardrailCards($("guardrail-cards"), {
  answer: (guardrail, answer) => ask({ type: "answer", ...named(guardrail), ...answer }, { again: true }),
  claim: (guardrail, ms) => ask({ type: "claim", ...named(guardrail), for: ms }),
  release: (guardrail) => ask({ type: "release", ...named(guardrail) }),
});

function named({ session, guardrailId, revision }) {
  return { session, guardrailId, revision };
}

async function ask(frame, options) {
  const result = await connection.request(frame, options);
  takeGuardrail(result.guardrail);
  return result;
}

// ---- what the gateway says

function onReady(frame) {
  scopes = frame.scopes ?? [];
  $("token-form").hidden = true;
  $("columns").hidden = false;
  drawAttention();
}

function onStatus({ state, text, canRetry }) {
  $("connection").dataset.state = state;
  setText($("connection-text"), text);
  $("retry").hidden = !canRetry;
  document.body.classList.toggle("offline", state !== "live");
  if (state === "token") askForToken(text);
  drawAttention();
}

function onFrame(frame) {
  switch (frame.type) {
    case "summaries":
      if (summaries.chunk(frame)) drawList();
      return;
    case "summary":
      summaries.update(frame);
      return drawList();
    case "error":
      return setText($("command-status"), explain(frame));
    case "unsubscribed":
      if (frame.session === chosen?.id && chosen?.view?.status !== "ended") {
        events.note(`The gateway ended this subscription: ${frame.reason}`, "warn");
      }
      return;
  }
  if (chosen && frame.session === chosen.id) onSessionFrame(frame);
}

function onSessionFrame(frame) {
  switch (frame.type) {
    case "snapshot":
      for (const id of chosen.snapshot(frame)) refreshGuardrail(id);
      if (!chosen.view.control) controlToken = null;
      showLatestPicture();
      return drawSession();
    case "gap":
      return events.note(`Events are missing here: ${GAPS[frame.reason] ?? words(frame.reason)}.`, "warn");
    case "replay":
      return events.events(frame.events);
    case "event":
      if (chosen.view) applyLive(frame);
      return;
    case "watchers":
      chosen.watchers = frame;
      return drawWatchers();
    case "claims":
      chosen.claims(frame.claims);
      return drawGuardrails();
  }
}

function applyLive(frame) {
  events.events([frame]);
  const raised = chosen.apply(frame);
  if (raised) {
    const question = chosen.guardrails.get(raised);
    setText($("announce"), `${nameOf(chosen.view)} needs a person: ${question.value}`);
    refreshGuardrail(raised);
  }
  if (frame.event.type === "control_released") controlToken = null;
  drawSession();
}

/** The gateway's own view of a guardrail: its revision and deadline, or how it closed while nobody listened here. */
async function refreshGuardrail(id) {
  const session = chosen.id;
  try {
    const reply = await rest("GET", `/v1/guardrails/${encodeURIComponent(id)}?session=${encodeURIComponent(session)}`);
    // Claims come as frames, which this reply may be older than.
    takeGuardrail({ ...reply.guardrail, claim: chosen?.guardrails.get(id)?.claim });
  } catch {
    // What the event or the snapshot said stays on the page.
  }
}

function takeGuardrail(guardrail) {
  if (!guardrail?.guardrailId || guardrail.session !== chosen?.id) return;
  chosen.guardrail(guardrail);
  drawSession();
}

// ---- pictures

function onPicture(header, blob) {
  if (header.session === chosen?.id) showPicture(header.id, blob);
}

async function showLatestPicture() {
  const picture = chosen.picture;
  if (!picture?.id || picture.id === shownPicture) return;
  const session = chosen.id;
  try {
    const response = await request("GET", `/v1/sessions/${encodeURIComponent(session)}/pictures/${encodeURIComponent(picture.id)}`);
    const blob = await response.blob();
    if (chosen?.id === session && (!shownPicture || chosen.picture.id === picture.id)) showPicture(picture.id, blob);
  } catch {
    // It may be withheld; the next one comes by itself.
  }
}

function showPicture(id, blob) {
  shownPicture = id;
  const old = pictureUrl;
  pictureUrl = URL.createObjectURL(blob);
  const image = $("picture");
  image.onload = image.onerror = () => old && URL.revokeObjectURL(old);
  image.src = pictureUrl;
  image.alt = `The browser of ${nameOf(chosen.view ?? { session: chosen.id })}`;
  image.hidden = false;
  drawPictureNote();
}

function forgetPicture() {
  if (pictureUrl) URL.revokeObjectURL(pictureUrl);
  pictureUrl = shownPicture = null;
  $("picture").hidden = true;
  $("picture").removeAttribute("src");
}

// ---- choosing a session

function choose(session, { remember = false } = {}) {
  if (chosen?.id === session) return;
  if (chosen) connection.unfollow(chosen.id);
  chosen = session ? new FollowedSession(session) : null;
  controlToken = null;
  events.clear();
  cards.clear();
  forgetPicture();
  for (const id of ["command-status", "announce"]) setText($(id), "");
  $("watchers").open = false;
  if (remember) history.pushState({ session }, "");
  if (session) connection.follow(session, historyFrom(summaries.get(session)?.position));
  document.body.classList.toggle("has-session", Boolean(session));
  $("session").hidden = !session;
  $("nothing").hidden = Boolean(session);
  drawList();
  drawSession();
  drawAttention();
  if (session && remember) $("main").focus({ preventScroll: true });
}

/** Offsets are dense within an epoch, so the place some events back can be named. */
function historyFrom(position) {
  const [epoch, offset] = (position ?? "").split(":");
  return Number(offset) > HISTORY ? `${epoch}:${Number(offset) - HISTORY}` : "start";
}

// ---- drawing

function drawList() {
  const sessions = summaries.inOrder();
  list.draw(sessions, chosen?.id);
  setText($("session-count"), sessions.length ? String(sessions.length) : "");
  $("no-sessions").hidden = sessions.length > 0;
  setText($("no-sessions"), "No sessions yet. Start a task, or connect a runtime.");
  const unreachable = summaries.unreachable();
  const questions = unreachable === 1 ? "A question waits" : `${unreachable} questions wait`;
  $("unreachable").hidden = !unreachable;
  setText($("unreachable"), unreachable ? `${questions} of which nobody could be told: no chat or webhook took it.` : "");
  const waiting = summaries.waiting();
  document.title = waiting ? `(${waiting}) Onlooker` : "Onlooker";
}

function drawSession() {
  if (!chosen) return;
  const view = chosen.view ?? { session: chosen.id, ...summaries.get(chosen.id) };
  const task = chosen.currentTask();
  const guardrails = chosen.view ? chosen.open() : view.guardrails;
  const status = statusOf({ ...view, guardrails, taskStatus: task?.status ?? view.taskStatus });
  setText($("session-name"), nameOf(view));
  setText($("session-line"), [view.runtime?.name, view.createdAt && `since ${clock(view.createdAt)}`].filter(Boolean).join(" · "));
  setText($("session-status"), status.text);
  $("session-status").dataset.tone = status.tone;
  drawTask(task);
  drawGuardrails();
  drawControls(view, task);
  drawPictureNote();
  drawWatchers();
}

function drawTask(task) {
  const result = task?.result?.message ?? task?.result?.error;
  const parts = task ? [task.prompt ?? `Task ${task.task}`, words(task.status), result] : ["No task yet"];
  setText($("task"), parts.filter(Boolean).map((part) => (typeof part === "string" ? part : JSON.stringify(part))).join(" — "));
  const waiting = chosen.view?.tasks.filter((other) => other.status === "queued" && other !== task).length;
  if (waiting) $("task").append(` (${waiting} more in the queue)`);
}

function drawGuardrails() {
  const open = chosen.open();
  const closed = chosen.closed().filter((guardrail) => guardrail.resolution);
  $("guardrails").hidden = !open.length && !closed.length;
  $("guardrails").classList.toggle("open", open.length > 0);
  setText($("guardrails-title"), open.length ? "Needs a person" : "Answered before");
  cards.draw(open, closed);
}

function drawControls(view, task) {
  const over = !chosen.view || view.status === "ended";
  const busy = ["running", "waiting", "paused"].includes(task?.status);
  $("pause").disabled = over || !["running", "waiting"].includes(task?.status);
  $("resume").disabled = over || task?.status !== "paused";
  $("stop").disabled = over || !busy;
  $("control").disabled = over || (Boolean(view.control) && controlToken === null);
  setText($("control"), controlToken === null ? "Take over" : "Hand back");
  $("control").classList.toggle("primary", controlToken !== null);
  $("type-form").hidden = controlToken === null;
  $("picture-box").classList.toggle("in-control", controlToken !== null);
}

function drawPictureNote() {
  const { control, sensitive } = chosen?.view ?? {};
  const note = control && controlToken === null ? `${control.holder} has control. Pictures go to them alone.`
    : sensitive && controlToken === null ? "Something secret is on the screen. Pictures are withheld."
    : $("picture").hidden ? "No picture yet." : "";
  setText($("picture-note"), note);
  $("picture-note").hidden = !note;
}

function drawWatchers() {
  const { watching = 0, able = 0, following = 0 } = chosen?.watchers ?? {};
  const looking = watching === 0 ? "Nobody is looking" : watching === 1 ? "1 is looking" : `${watching} are looking`;
  setText($("watchers-line"), `${looking} · ${able} can answer · ${following} ${following === 1 ? "follows" : "follow"}`);
}

function drawAttention() {
  const node = $("attention");
  const looking = connection.isReady && chosen && attention.state === "active";
  const able = !scopes.length || scopes.includes("answer") || scopes.includes("admin");
  node.dataset.counts = String(Boolean(looking));
  setText(node, !connection.isReady || !chosen ? ""
    : !looking ? "Not counted as looking. Tap or move."
    : able ? "You count as looking" : "You are looking; this token cannot answer");
}

// ---- what the person does

async function command(frame) {
  setText($("command-status"), "");
  try {
    return await connection.request({ type: "command", session: chosen.id, ...frame });
  } catch (refusal) {
    if (refusal.error === "not_in_control") controlToken = null;
    const holder = refusal.details?.holder;
    setText($("command-status"), holder ? `${holder} has control. Wait until they hand it back.` : explain(refusal));
    drawSession();
    return null;
  }
}

async function toggleControl() {
  const session = chosen.id;
  if (controlToken !== null) {
    const released = await command({ command: "release_control", token: controlToken });
    if (released) controlToken = null;
  } else {
    const taken = await command({ command: "take_control" });
    if (taken && chosen?.id === session) controlToken = taken.token ?? 0;
  }
  drawSession();
}

function interact(action) {
  return command({ command: "interaction", action, token: controlToken });
}

/** Where in the picture a click was: its pixels, whatever size it is shown at. */
function pointInPicture(event) {
  const image = $("picture");
  const box = image.getBoundingClientRect();
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
  const x = (event.clientX - box.left - (box.width - image.naturalWidth * scale) / 2) / scale;
  const y = (event.clientY - box.top - (box.height - image.naturalHeight * scale) / 2) / scale;
  const inside = x >= 0 && y >= 0 && x < image.naturalWidth && y < image.naturalHeight;
  return inside ? { x: Math.round(x), y: Math.round(y) } : null;
}

function clickPicture(event) {
  if (controlToken === null) return;
  const point = pointInPicture(event);
  if (point) interact({ type: "CLICK", ...point });
}

async function typeText(event) {
  event.preventDefault();
  const input = $("type-text");
  if (input.value && await interact({ type: "TYPE", text: input.value })) input.value = "";
}

async function startTask(event) {
  event.preventDefault();
  const status = $("start-status");
  const button = event.submitter;
  if (button) button.disabled = true;
  setText(status, "Starting …");
  try {
    const { session } = await rest("POST", "/v1/sessions", { task: { prompt: $("prompt").value } });
    $("prompt").value = "";
    setText(status, "Started.");
    choose(session, { remember: true });
  } catch (refusal) {
    setText(status, explain(refusal));
  }
  if (button) button.disabled = false;
}

async function listWatchers() {
  if (!$("watchers").open) return;
  try {
    const reply = await rest("GET", `/v1/sessions/${encodeURIComponent(chosen.id)}/watchers`);
    const each = Array.isArray(reply) ? reply : reply.watchers ?? [];
    $("watchers-list").replaceChildren(...each.map((watcher) => el("li", { className: watcher.counts ? "counts" : "" },
      `${watcher.who} (${words(watcher.via)}): ${watcher.why}`)));
  } catch (refusal) {
    $("watchers-list").replaceChildren(el("li", {}, explain(refusal)));
  }
}

// ---- HTTP

async function request(method, path, body) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
  } catch {
    throw { code: 2001, message: "The gateway cannot be reached" };
  }
  if (response.ok) return response;
  throw await response.json().catch(() => ({ code: 2008, message: `The gateway answered with status ${response.status}` }));
}

async function rest(method, path, body) {
  return (await request(method, path, body)).json();
}

// ---- start

function askForToken(reason) {
  $("token-form").hidden = false;
  $("columns").hidden = true;
  if (token) setText($("token-reason"), reason);
  token = null;
  $("token").focus();
}

function useToken(event) {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  connection.start(token);
}

/** Takes `#token=…` and removes it from the address bar and the history. */
function tokenFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found !== null) history.replaceState(history.state, "", location.pathname + location.search);
  return found;
}

function listen() {
  $("token-form").addEventListener("submit", useToken);
  $("retry").addEventListener("click", () => ($("connection").dataset.state === "refused" ? connection.start() : connection.hurry()));
  $("start").addEventListener("submit", startTask);
  $("back").addEventListener("click", () => {
    const session = chosen?.id;
    choose(null, { remember: true });
    list.focus(session);
  });
  $("pause").addEventListener("click", () => command({ command: "pause" }));
  $("resume").addEventListener("click", () => command({ command: "resume" }));
  $("stop").addEventListener("click", () => command({ command: "stop" }));
  $("control").addEventListener("click", toggleControl);
  $("picture").addEventListener("click", clickPicture);
  $("type-form").addEventListener("submit", typeText);
  $("press-enter").addEventListener("click", () => interact({ type: "KEY_PRESS", key: "Enter" }));
  $("watchers").addEventListener("toggle", listWatchers);
  addEventListener("popstate", ({ state }) => choose(state?.session ?? null));
  addEventListener("online", () => connection.hurry());
  addEventListener("pageshow", ({ persisted }) => persisted && connection.hurry());
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && connection.hurry());
}

listen();
attention.watch(document, window);
setInterval(() => cards.tick(), 1000);
token = tokenFromAddress();
connection.followProject();
connection.start(token);
if (history.state?.session) choose(history.state.session);

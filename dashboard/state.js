// What is known of sessions: a snapshot and the events after it give the state. No page, no network.

const CLOSED_KEPT = 6;
const CLOSED_BY_OUTCOME = { answered: "accepted", declined: "accepted", timed_out: "expired", superseded: "superseded", lost: "lost" };

/** The sessions of a project, by the summaries that the gateway sends. */
export class Summaries {
  #sessions = new Map();
  #fresh = null;

  /** Takes a chunk; the list is replaced as a whole by the last one. */
  chunk({ sessions, more }) {
    this.#fresh ??= new Map();
    for (const summary of sessions) this.#fresh.set(summary.session, summary);
    if (more) return false;
    this.#sessions = this.#fresh;
    this.#fresh = null;
    return true;
  }

  update(summary) {
    this.#fresh?.set(summary.session, summary);
    this.#sessions.set(summary.session, summary);
  }

  get(session) {
    return this.#sessions.get(session);
  }

  /** Those that need a person first, then the living, then the ended; each newest first. */
  inOrder() {
    const rank = (s) => (s.guardrails.length ? 0 : s.status === "ended" ? 2 : 1);
    return [...this.#sessions.values()]
      .sort((a, b) => rank(a) - rank(b) || b.createdAt.localeCompare(a.createdAt) || a.session.localeCompare(b.session));
  }

  /** Questions of which nobody could be told. */
  unreachable() {
    const isUnreachable = (guardrail) => guardrail.unreachable;
    return this.inOrder().reduce((sum, s) => sum + s.guardrails.filter(isUnreachable).length, 0);
  }

  waiting() {
    return this.inOrder().reduce((sum, s) => sum + s.guardrails.length, 0);
  }
}

/** One followed session. */
export class FollowedSession {
  constructor(id) {
    this.id = id;
    this.view = null;
    this.watchers = null;
    /** Guardrails by id: open ones, and the last few closed ones. */
    this.guardrails = new Map();
    this.picture = null;
  }

  /** Takes a snapshot; returns the ids of guardrails that were closed, or taken by the runtime, unseen. */
  snapshot({ state, watchers }) {
    this.view = state;
    this.watchers = watchers;
    this.picture = state.picture ?? null;
    const listed = new Map(state.guardrails.map((guardrail) => [guardrail.guardrailId, guardrail]));
    const unseen = [...this.guardrails.values()]
      .filter((known) => isUnfinished(known) && !listed.has(known.guardrailId)).map((known) => known.guardrailId);
    for (const guardrail of listed.values()) this.guardrails.set(guardrail.guardrailId, guardrail);
    return unseen;
  }

  /** Takes a guardrail as a reply shows it. It never revives a question that is known to be closed. */
  guardrail(guardrail) {
    const known = this.guardrails.get(guardrail.guardrailId);
    if (known && known.revision > guardrail.revision) return;
    if (known && known.revision === guardrail.revision && !isOpen(known) && isOpen(guardrail)) return;
    this.guardrails.set(guardrail.guardrailId, guardrail);
    this.#forgetOldest();
  }

  /** Takes the list of who has said "I have it", which is always whole. */
  claims(claims) {
    for (const guardrail of this.guardrails.values()) {
      const claim = claims.find((one) => one.guardrailId === guardrail.guardrailId && one.revision === guardrail.revision);
      if (claim) guardrail.claim = { by: claim.by, until: claim.until };
      else delete guardrail.claim;
    }
  }

  /** Applies a live event; returns the id of a guardrail that it raised, if it did. */
  apply({ at, id, task, position, event }) {
    const data = event.data ?? {};
    switch (event.type) {
      case "task_queued": this.#task(task, { status: "queued", prompt: data.prompt, queuedAt: at }); break;
      case "task_started": this.#task(task, { status: "running" }); break;
      case "task_paused": this.#task(task, { status: "paused" }); break;
      case "task_resumed": this.#task(task, { status: "running" }); break;
      case "task_stopped": this.#task(task, { status: "stopped", endedAt: at }); break;
      case "task_completed": this.#task(task, { status: "completed", endedAt: at, result: data }); break;
      case "error": this.#task(task, { status: "failed", endedAt: at, result: data }); break;
      case "sensitive": this.view.sensitive = Boolean(data.on); break;
      case "screenshot": this.picture = { ...data, at }; break;
      case "control_taken": this.view.control = { holder: data.holder ?? data.by ?? "somebody", since: at }; break;
      case "control_released": delete this.view.control; break;
      case "session_started": this.#runtime(data, true); break;
      case "runtime_connected": case "runtime_reconnected": this.view.status = "active"; this.#runtime(data, true); break;
      case "runtime_disconnected": this.view.status = "orphaned"; this.#runtime(data, false); break;
      case "session_ended": Object.assign(this.view, { status: "ended", reason: data.reason, endedAt: at }); break;
      case "guardrail_trigger": return this.#raised(data, { at, id, task, position });
      case "guardrail_resolved": this.#resolved(data, at); break;
      case "guardrail_taken": this.#taken(data); break;
    }
    return null;
  }

  open() {
    return [...this.guardrails.values()].filter(isOpen);
  }

  closed() {
    return [...this.guardrails.values()].filter((guardrail) => !isOpen(guardrail)).reverse();
  }

  /** The task that somebody would ask about: the one in work, else the next, else the last one. */
  currentTask() {
    const tasks = this.view?.tasks ?? [];
    const inWork = tasks.find((task) => ["running", "waiting", "paused"].includes(task.status));
    return inWork ?? tasks.find((task) => task.status === "queued") ?? tasks.at(-1);
  }

  #runtime({ runtime }, connected) {
    const name = runtime ?? this.view.runtime?.name;
    if (name) this.view.runtime = { name, connected };
  }

  #task(id, change) {
    const task = id ? this.view.tasks.find((known) => known.task === id) : this.currentTask();
    const known = Object.fromEntries(Object.entries(change).filter(([, value]) => value !== undefined));
    if (task) Object.assign(task, known);
    else if (id) this.view.tasks.push({ task: id, ...known });
  }

  #raised(data, { at, id, task, position }) {
    const guardrailId = data.guardrailId ?? id;
    const last = this.guardrails.get(guardrailId);
    const revision = data.revision ?? 1;
    if (last && last.revision >= revision && !isOpen(last)) return guardrailId;
    this.guardrails.delete(guardrailId);
    this.guardrails.set(guardrailId, {
      session: this.id, guardrailId, revision, asked: data.asked ?? revision, task, kind: data.kind ?? "other", value: data.value ?? "",
      domain: data.domain, fields: data.fields ?? [], choices: data.choices ?? [], websiteError: data.websiteError,
      state: "open", openedAt: at, onTimeout: data.onTimeout ?? "keep_waiting", position,
      expiresAt: data.expiresAt,
    });
    this.#task(task, { status: "waiting" });
    return guardrailId;
  }

  #resolved(data, at) {
    const guardrail = this.guardrails.get(data.guardrailId);
    if (!guardrail || (data.revision !== undefined && data.revision < guardrail.revision)) return;
    guardrail.state = CLOSED_BY_OUTCOME[data.outcome] ?? "cancelled";
    guardrail.resolution = { at, ...data };
    delete guardrail.claim;
    this.#forgetOldest();
    if (!this.open().length) {
      const waiting = this.view.tasks.find((task) => task.status === "waiting");
      if (waiting) waiting.status = this.view.control ? "paused" : "running";
    }
  }

  #taken({ guardrailId, revision }) {
    const guardrail = this.guardrails.get(guardrailId);
    if (guardrail?.state === "accepted" && (revision ?? guardrail.revision) === guardrail.revision) guardrail.state = "taken";
  }

  #forgetOldest() {
    const closed = [...this.guardrails.values()].filter((guardrail) => !isOpen(guardrail));
    for (const guardrail of closed.slice(0, -CLOSED_KEPT)) this.guardrails.delete(guardrail.guardrailId);
  }
}

export function isOpen(guardrail) {
  return guardrail.state === "open";
}

/** It still needs a person, or its answer is still on its way to the runtime. */
function isUnfinished(guardrail) {
  return isOpen(guardrail) || guardrail.state === "accepted";
}

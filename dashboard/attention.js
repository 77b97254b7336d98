// Whether a person is really there.
//
// `active` is said only while the page is visible and somebody did something in the last minute; it is a lease of 30 s
// at the gateway, renewed at most every 10 s. A hidden, closed or frozen page says `idle` at once: a forgotten tab must
// never silence somebody's phone.

const PRESENT_FOR = 60_000;
const RENEW_EVERY = 10_000;
// Not `scroll`: the list of events scrolls by itself.
const DEEDS = ["pointerdown", "pointermove", "keydown", "touchstart", "wheel"];

export class Attention {
  #say; #lastDeed = -Infinity; #lastSaid = -Infinity; #state = "idle";

  /** `say(state)` is called with `active` or `idle`, also to renew. */
  constructor(say) {
    this.#say = say;
  }

  /** As of now: a page that was stopped for minutes comes back before its timers say that nobody is there. */
  get state() {
    return this.#state === "active" && this.#isPresent() ? "active" : "idle";
  }

  watch(page, frame) {
    for (const deed of DEEDS) page.addEventListener(deed, () => this.#deed(), { passive: true, capture: true });
    frame.addEventListener("focus", () => this.#deed());
    page.addEventListener("visibilitychange", () => page.visibilityState === "visible" || this.#becomeIdle());
    page.addEventListener("freeze", () => this.#becomeIdle());
    frame.addEventListener("pagehide", () => this.#becomeIdle());
    setInterval(() => this.#look(), RENEW_EVERY);
  }

  #deed() {
    if (document.visibilityState !== "visible") return;
    this.#lastDeed = performance.now();
    if (this.#state === "idle" || this.#lastDeed - this.#lastSaid >= RENEW_EVERY) this.#set("active");
  }

  #look() {
    if (!this.#isPresent()) this.#becomeIdle();
    else if (performance.now() - this.#lastSaid >= RENEW_EVERY) this.#set("active");
  }

  #isPresent() {
    return document.visibilityState === "visible" && performance.now() - this.#lastDeed < PRESENT_FOR;
  }

  #becomeIdle() {
    if (this.#state !== "idle") this.#set("idle");
  }

  #set(state) {
    this.#state = state;
    this.#lastSaid = performance.now();
    this.#say(state);
  }
}

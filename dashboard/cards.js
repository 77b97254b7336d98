// Open guardrails as cards, and how the last ones were closed.
//
// A card is made once for each (guardrail, revision), so that what somebody types survives every update. What it says
// about the outcome comes from the gateway only, never from the click.

import { el, setText, clock, duration, kindName, closing, uniqueId, words } from "./view.js";
import { explain } from "./connection.js";

const CLAIM_FOR = 5 * 60_000;
const ON_TIMEOUT = {
  keep_waiting: "then it is given up", fail: "then the task fails", deny: "then it is denied",
  default_answer: "then the default answer is used",
};
const INPUT_TYPES = { email: "email", tel: "tel", number: "text", url: "url", code: "text", totp: "text" };

export class GuardrailCards {
  #parent; #cards = new Map(); #closedList = el("ul", { className: "closed plain" }); #requests;

  /** `requests`: `answer(guardrail, answer)`, `claim(guardrail, ms)`, `release(guardrail)`, each a promise.
   *  Without `claim` there is no button for it. */
  constructor(parent, requests) {
    this.#parent = parent;
    this.#requests = requests;
    parent.append(this.#closedList);
  }

  clear() {
    for (const card of this.#cards.values()) card.node.remove();
    this.#cards.clear();
    this.#closedList.replaceChildren();
  }

  draw(open, closed) {
    const wanted = new Map(open.map((guardrail) => [`${guardrail.guardrailId}/${guardrail.revision}`, guardrail]));
    for (const [key, card] of this.#cards) {
      if (wanted.has(key)) continue;
      card.node.remove();
      this.#cards.delete(key);
    }
    for (const [key, guardrail] of wanted) {
      const card = this.#cards.get(key) ?? this.#add(key, guardrail);
      card.update(guardrail);
    }
    this.#closedList.replaceChildren(...closed.map(closedLine));
  }

  tick() {
    for (const card of this.#cards.values()) card.tick();
  }

  #add(key, guardrail) {
    const card = new Card(guardrail, this.#requests);
    this.#cards.set(key, card);
    this.#closedList.before(card.node);
    return card;
  }
}

function closedLine(guardrail) {
  return el("li", {},
    el("span", { className: "closed-question" }, guardrail.value),
    el("span", { className: "closed-how" }, `${closing(guardrail)}${guardrail.resolution?.at ? ` · ${clock(guardrail.resolution.at)}` : ""}`));
}

class Card {
  #guardrail; #requests; #inputs = new Map(); #answerKey = null; #claimed = false;
  #countdown = el("span", { className: "countdown" });
  #claimLine = el("p", { className: "status", hidden: true });
  #status = el("p", { className: "status", role: "status" });
  #claimButton = el("button", { type: "button" }, "I have it");
  #buttons = [];

  constructor(guardrail, requests) {
    this.#guardrail = guardrail;
    this.#requests = requests;
    this.node = this.#build();
  }

  update(guardrail) {
    this.#guardrail = guardrail;
    const claim = guardrail.claim && Date.parse(guardrail.claim.until) > Date.now() ? guardrail.claim : null;
    this.#claimed = this.#claimed && Boolean(claim);
    this.#claimLine.hidden = !claim;
    if (claim) setText(this.#claimLine, `${this.#claimed ? "You have it" : `${claim.by} has it`} until ${clock(claim.until)}`);
    setText(this.#claimButton, this.#claimed ? "Give it back" : "I have it");
    this.tick();
  }

  tick() {
    const { expiresAt, onTimeout } = this.#guardrail;
    if (!expiresAt) return;
    const left = Date.parse(expiresAt) - Date.now();
    setText(this.#countdown, left > 0 ? `${duration(left)} left, ${ON_TIMEOUT[onTimeout] ?? words(onTimeout)}` : "time is up");
    this.#countdown.classList.toggle("soon", left < 60_000);
  }

  #build() {
    const { value, kind, domain, websiteError, choices = [], fields = [] } = this.#guardrail;
    const title = el("h4", { id: `q-${uniqueId()}` }, value || "The agent needs a person");
    const form = el("form", { className: "answer", autocomplete: "off", noValidate: false });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    if (choices.length) form.append(this.#choices(choices));
    if (fields.length) form.append(...fields.map((field) => this.#field(field)));
    if (!fields.length && !choices.length) form.append(this.#freeText());
    form.append(this.#actions(fields.length || !choices.length));
    return el("section", { className: "card", "aria-labelledby": title.id },
      el("p", { className: "card-head" }, el("span", { className: "kind" }, kindName(kind)),
        domain ? el("span", { className: "domain" }, domain) : null, this.#countdown),
      title,
      websiteError ? el("p", { className: "website-error" }, `The site said: ${websiteError}`) : null,
      this.#claimLine, form, this.#status);
  }

  #choices(choices) {
    return el("div", { className: "choices", role: "group", "aria-label": "Choices" }, ...choices.map((choice) => {
      const button = this.#button(choice.label || choice.id, "choice");
      button.addEventListener("click", () => this.#send({ action: "submit", choice: choice.id }));
      return button;
    }));
  }

  #field({ id, label, type, required = true, secret = true, hint }) {
    const input = el("input", {
      id: `f-${uniqueId()}`, type: secret ? "password" : INPUT_TYPES[type] ?? "text", required,
      autocomplete: secret ? "off" : "on", spellcheck: false, autocapitalize: "off",
      inputMode: ["code", "totp", "number"].includes(type) ? "numeric" : "",
    });
    this.#inputs.set(id, input);
    const hintNode = hint ? el("p", { className: "hint", id: `${input.id}-hint` }, hint) : null;
    if (hintNode) input.setAttribute("aria-describedby", hintNode.id);
    return el("div", { className: "field" },
      el("label", { for: input.id }, `${label || words(id)}${required ? "" : " (optional)"}`),
      el("div", { className: "row" }, input, secret ? revealButton(input) : null), hintNode);
  }

  #freeText() {
    const input = el("textarea", { id: `t-${uniqueId()}`, rows: 2, autocomplete: "off" });
    this.#inputs.set(null, input);
    return el("div", { className: "field" }, el("label", { for: input.id }, "Your answer"), input);
  }

  #actions(canSubmit) {
    const decline = this.#button("Decline", "danger");
    decline.addEventListener("click", () => this.#send({ action: "decline" }));
    this.#claimButton.addEventListener("click", () => this.#toggleClaim());
    let submit = null;
    if (canSubmit) {
      submit = this.#button("Send answer", "primary");
      submit.type = "submit";
    }
    return el("div", { className: "card-actions" }, submit, decline, this.#requests.claim ? this.#claimButton : null);
  }

  #button(text, className) {
    const button = el("button", { type: "button", className }, text);
    this.#buttons.push(button);
    return button;
  }

  #submit() {
    const answer = { action: "submit" };
    if (this.#inputs.has(null)) {
      answer.text = this.#inputs.get(null).value;
    } else {
      const filled = [...this.#inputs].filter(([, input]) => input.value !== "");
      answer.values = Object.fromEntries(filled.map(([id, input]) => [id, input.value]));
    }
    this.#send(answer);
  }

  /** One key for each attempt: the same answer sent again after a lost connection counts once. */
  async #send(answer) {
    this.#answerKey = uniqueId();
    this.#busy(true);
    setText(this.#status, "Sent. Waiting for the gateway's word …");
    try {
      await this.#requests.answer(this.#guardrail, { ...answer, idempotencyKey: this.#answerKey });
      for (const input of this.#inputs.values()) input.value = "";
    } catch (refusal) {
      setText(this.#status, explain(refusal));
      this.#busy(false);
    }
  }

  async #toggleClaim() {
    const releasing = this.#claimed;
    this.#claimButton.disabled = true;
    try {
      await (releasing ? this.#requests.release(this.#guardrail) : this.#requests.claim(this.#guardrail, CLAIM_FOR));
      this.#claimed = !releasing;
      setText(this.#status, releasing ? "Given back." : "Yours. Nobody's phone rings meanwhile.");
      this.update(this.#guardrail);
    } catch (refusal) {
      setText(this.#status, refusal.details?.by ? `${refusal.details.by} has it already. You may answer all the same.` : explain(refusal));
    }
    this.#claimButton.disabled = false;
  }

  #busy(busy) {
    for (const button of this.#buttons) button.disabled = busy;
  }
}

function revealButton(input) {
  const button = el("button", { type: "button", className: "reveal", "aria-pressed": "false" }, "Show");
  button.addEventListener("click", () => {
    const shown = input.type === "text";
    input.type = shown ? "password" : "text";
    setText(button, shown ? "Show" : "Hide");
    button.setAttribute("aria-pressed", String(!shown));
  });
  return button;
}

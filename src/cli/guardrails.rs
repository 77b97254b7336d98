//! `onlooker guardrails` and `onlooker why`.

use clap::Args;
use onlooker_protocol::view::{GuardrailView, GuardrailWhy, NoticeView, OnTimeout, WatcherView, WhyInputs, WhyView};
use serde::Deserialize;
use serde_json::Value;

use super::{
    failure::Failure,
    line::{self, plain, time, word},
    remote::{At, Remote},
    say,
};

const LIST_EXAMPLES: &str = "\
Examples:
  onlooker guardrails
  onlooker guardrails --all
  onlooker guardrails --json | jq -r .guardrailId

One line a guardrail, oldest first: id, session, state, since when, kind, question, what an answer holds.
--all also shows those whose answer waits for its runtime. A closed one: `onlooker why GUARDRAIL`.";

/// Lists what waits for a person
#[derive(Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct List {
    #[command(flatten)]
    at: At,
    /// Only of this session
    #[arg(long)]
    session: Option<String>,
    /// Also those that are answered but not yet taken by their runtime
    #[arg(long)]
    all: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Listed {
    guardrails: Vec<Value>,
}

impl List {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut query = vec![("limit", "1000")];
        query.extend((!self.all).then_some(("state", "open")));
        query.extend(self.session.as_deref().map(|session| ("session", session)));
        let listed: Listed = Remote::new(self.at)?.get(&["v1", "guardrails"], &query).await?;
        for guardrail in listed.guardrails {
            match serde_json::from_value::<GuardrailView>(guardrail.clone()) {
                Ok(view) if !self.json => say(line::of_guardrail(&view))?,
                _ => say(guardrail)?,
            }
        }
        Ok(())
    }
}

const WHY_EXAMPLES: &str = "\
Examples:
  onlooker why 4k2m9x0c7b1t8q3z5w6y
  onlooker why login-1 --session k3v9x0aab2c4d6e8f0g1
  onlooker why login-1 --json | jq .decisions

Says who looked, whom the gateway contacted or did not contact, and why.";

/// Says why somebody was or was not contacted for a guardrail
#[derive(Args)]
#[command(after_help = WHY_EXAMPLES)]
pub(crate) struct Why {
    #[command(flatten)]
    at: At,
    /// The guardrail's id
    guardrail: String,
    /// Its session, when several sessions use that id
    #[arg(long)]
    session: Option<String>,
    /// The gateway's answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Found {
    guardrail: GuardrailView,
}

impl Why {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let remote = Remote::new(self.at)?;
        let query: Vec<_> = self.session.as_deref().map(|session| ("session", session)).into_iter().collect();
        let why: Value = remote.get(&["v1", "guardrails", &self.guardrail, "why"], &query).await?;
        if self.json {
            return say(why);
        }
        let view = remote.get::<Found>(&["v1", "guardrails", &self.guardrail], &query).await?.guardrail;
        let why: GuardrailWhy = serde_json::from_value(why)
            .map_err(|error| Failure::failed(format!("the gateway's answer cannot be read: {error}; try --json")))?;
        explain(&view, &why).iter().try_for_each(say)
    }
}

/// What happens to a question that nobody has answered by its deadline.
fn at_deadline(on_timeout: OnTimeout) -> &'static str {
    match on_timeout {
        OnTimeout::KeepWaiting => "it is given up",
        OnTimeout::Fail => "the task fails",
        OnTimeout::Deny => "it is denied",
        OnTimeout::DefaultAnswer => "the default answer is used",
    }
}

/// The story of a guardrail, the most important line first.
fn explain(view: &GuardrailView, why: &GuardrailWhy) -> Vec<String> {
    let mut lines = vec![headline(view, why), String::new()];
    lines.push(format!("asked      {} in session {}", view.opened_at, view.session));
    lines.push(format!("question   [{}] {}", word(&view.kind), plain(&view.value)));
    if view.state == onlooker_protocol::view::GuardrailState::Open {
        lines.push(format!("deadline   {}, then {}", view.expires_at, at_deadline(view.on_timeout)));
    }
    if let Some(claim) = &view.claim {
        lines.push(format!("claimed    by {} until {}", plain(&claim.by), claim.until));
    }
    section(&mut lines, "decisions, newest last", why.decisions.iter().flat_map(of_decision), "none yet");
    section(&mut lines, "notices", why.notices.iter().map(of_notice), "none: nobody was contacted");
    section(&mut lines, "who follows now", why.watchers.iter().map(of_watcher), "nobody");
    lines
}

fn headline(view: &GuardrailView, why: &GuardrailWhy) -> String {
    let revision = if why.revision > 1 { format!(", revision {}", why.revision) } else { String::new() };
    let state = match &view.resolution {
        Some(resolution) => {
            let by = resolution.by.as_deref().map(|by| format!(" by {}", plain(by))).unwrap_or_default();
            let outcome = word(&resolution.outcome).replace('_', " ");
            format!("{}: {outcome}{by} via {} at {}", word(&view.state), resolution.via, time(&resolution.at))
        }
        None => word(&view.state),
    };
    let reached = if why.unreached { ". NOBODY HAS BEEN REACHED" } else { "" };
    format!("guardrail {}{revision} is {state}{reached}", plain(&view.guardrail_id))
}

fn section(lines: &mut Vec<String>, title: &str, items: impl Iterator<Item = String>, none: &str) {
    lines.push(String::new());
    lines.push(title.to_owned());
    let before = lines.len();
    lines.extend(items.map(|item| format!("  {item}")));
    if lines.len() == before {
        lines.push(format!("  {none}"));
    }
}

fn of_decision(decision: &WhyView) -> impl Iterator<Item = String> {
    let what = match (decision.decision.as_str(), decision.again_in_ms) {
        ("look_again", Some(ms)) => format!("look again in {:.1} s", ms as f64 / 1000.0),
        ("look_again", None) => "look again on a change".to_owned(),
        (other, _) => plain(other),
    };
    let line = format!("{}  {what:<24} {} (rule {})", time(&decision.at), plain(&decision.why), decision.rule);
    let inputs = decision.inputs.as_ref().map(|inputs| format!("              because {}", of_inputs(inputs)));
    std::iter::once(line).chain(inputs)
}

/// What the gateway knew then, in one line.
fn of_inputs(inputs: &WhyInputs) -> String {
    let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1000.0);
    let looking = match (inputs.watching, inputs.able) {
        (0, _) => "nobody was looking".to_owned(),
        (looking, 0) => format!("{looking} looked, and none of them may answer"),
        (looking, able) if inputs.covered => {
            format!("{looking} looked, {able} may answer, and the question had arrived")
        }
        (looking, able) => format!("{looking} looked, {able} may answer, and nothing proved that it had arrived"),
    };
    let ahead = [
        (inputs.held_for_ms, "control or a claim for"),
        (inputs.start_grace_for_ms, "time after the start for"),
        (inputs.next_step_in_ms, "the ladder's next step in"),
    ];
    let mut parts = vec![format!("asked {} before", seconds(inputs.raised_ms_ago)), looking];
    parts.extend(inputs.last_left_ms_ago.map(|ms| format!("the last one left {} before", seconds(ms))));
    parts.extend(ahead.into_iter().filter_map(|(ms, what)| Some(format!("{what} {}", seconds(ms?)))));
    parts.join("; ")
}

fn of_notice(notice: &NoticeView) -> String {
    let tries = if notice.attempts == 1 { "1 try".to_owned() } else { format!("{} tries", notice.attempts) };
    let error = notice.error.as_deref().map(|error| format!("; {}", plain(error))).unwrap_or_default();
    let next = notice.next_try_in_ms.map(|ms| format!("; again in {:.1} s", ms as f64 / 1000.0)).unwrap_or_default();
    let repeat = if notice.repetition > 0 { " (a repeat)" } else { "" };
    let step = notice.step.map(|step| format!(" (step {step} of the ladder)")).unwrap_or_default();
    format!(
        "{}  to {}{step}: {}{repeat}, {tries}{error}{next}",
        time(&notice.at),
        plain(&notice.target),
        plain(&notice.state)
    )
}

fn of_watcher(watcher: &WatcherView) -> String {
    let counts = if watcher.counts { "counts" } else { "does not count" };
    let able = if watcher.able { "" } else { ", may not answer" };
    format!("{} via {}: {counts}{able}; {}", plain(&watcher.who), plain(&watcher.via), plain(&watcher.why))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_why_of_a_guardrail_begins_with_what_matters_at_night() {
        let view: GuardrailView = serde_json::from_value(json!({
            "session": "s", "guardrailId": "g", "revision": 1, "asked": 1, "kind": "login", "value": "Which account?",
            "state": "open", "openedAt": "2026-03-01T03:00:00.000Z", "expiresAt": "2026-03-02T03:00:00.000Z",
            "onTimeout": "keep_waiting", "position": "aaaaaaaa:4",
        }))
        .unwrap();
        let why: GuardrailWhy = serde_json::from_value(json!({
            "session": "s", "guardrailId": "g", "revision": 1, "state": "open", "unreached": true,
            "decisions": [{"at": "2026-03-01T03:00:00.000Z", "decision": "look_again", "rule": 6,
                           "why": "ann has 10 s to see it", "againInMs": 9500,
                           "inputs": {"mode": "guardrail_only", "raisedMsAgo": 500, "watching": 2, "able": 1,
                                      "covered": false, "notified": false, "lastLeftMsAgo": 4000}}],
            "notices": [], "watchers": [],
        }))
        .unwrap();
        let lines = explain(&view, &why);
        assert_eq!(lines[0], "guardrail g is open. NOBODY HAS BEEN REACHED");
        let text = lines.join("\n");
        assert!(text.contains("03:00:00.000  look again in 9.5 s"), "{text}");
        let because = "because asked 0.5 s before; 2 looked, 1 may answer, and nothing proved that it had arrived; the last \
                       one left 4.0 s before";
        assert!(text.contains(because), "{text}");
        assert!(text.contains("none: nobody was contacted") && text.contains("then it is given up"), "{text}");
    }
}

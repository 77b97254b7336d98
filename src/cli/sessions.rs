//! `onlooker sessions` and `onlooker start`.

use clap::Args;
use onlooker_protocol::view::{ReachOutMode, SessionStatus, SessionSummary};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    failure::Failure,
    line::{plain, word},
    remote::{At, Remote},
    say,
};

/// The most that one page holds; more come page by page.
const PAGE: usize = 1000;

const LIST_EXAMPLES: &str = "\
Examples:
  onlooker sessions
  onlooker sessions --status active
  onlooker sessions --json | jq -r .session

One line a session, newest first: id, status, task, open guardrails, when it was created.";

/// Lists sessions
#[derive(Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct List {
    #[command(flatten)]
    at: At,
    /// Only sessions that are pending, active, orphaned or ended
    #[arg(long, value_name = "STATUS", value_parser = status)]
    status: Option<SessionStatus>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

fn status(text: &str) -> Result<SessionStatus, &'static str> {
    serde_json::from_value(Value::from(text)).map_err(|_| "one of: pending, active, orphaned, ended")
}

#[derive(Deserialize)]
struct Page {
    sessions: Vec<Value>,
}

impl List {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let remote = Remote::new(self.at)?;
        let (limit, wanted) = (PAGE.to_string(), self.status.map(|status| word(&status)));
        let mut after: Option<String> = None;
        loop {
            let mut query = vec![("limit", limit.as_str())];
            query.extend(wanted.as_deref().map(|status| ("status", status)));
            query.extend(after.as_deref().map(|after| ("after", after)));
            let page: Page = remote.get(&["v1", "sessions"], &query).await?;
            for session in &page.sessions {
                show(session, self.json)?;
            }
            let last = page.sessions.last().and_then(|session| session["session"].as_str());
            match last.filter(|_| page.sessions.len() == PAGE) {
                Some(last) => after = Some(last.to_owned()),
                None => return Ok(()),
            }
        }
    }
}

fn show(session: &Value, as_json: bool) -> Result<(), Failure> {
    match serde_json::from_value::<SessionSummary>(session.clone()) {
        Ok(summary) if !as_json => say(of_summary(&summary)),
        _ => say(session),
    }
}

/// One session in one line.
pub(crate) fn of_summary(summary: &SessionSummary) -> String {
    let mut parts = vec![format!("{} {:<8}", summary.session, word(&summary.status))];
    match &summary.reason {
        Some(reason) => parts.push(word(reason)),
        None => {
            parts.push(summary.task_status.map_or("no task".to_owned(), |status| format!("task {}", word(&status))))
        }
    }
    parts.extend(summary.guardrails.iter().map(|guardrail| {
        format!("waits: {} [{}] {}", plain(&guardrail.guardrail_id), word(&guardrail.kind), plain(&guardrail.value))
    }));
    parts.push(format!("created {}", summary.created_at));
    parts.extend(summary.external_id.as_deref().map(|name| format!("called {}", plain(name))));
    parts.join("  ")
}

const START_EXAMPLES: &str = "\
Examples:
  onlooker start --prompt \"Buy a reading lamp\"
  onlooker watch $(onlooker start --prompt \"Buy a reading lamp\")
  onlooker start --prompt \"Buy a reading lamp\" --reach-out full --json

Prints the session's id. A runtime must be connected: `onlooker replay` or onlooker-chromium.";

/// Creates a session with a task
#[derive(Args)]
#[command(after_help = START_EXAMPLES)]
pub(crate) struct Start {
    #[command(flatten)]
    at: At,
    /// What is to be done
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// When people are reached elsewhere: off, guardrail_only or full
    #[arg(long, value_name = "MODE", default_value = "guardrail_only")]
    reach_out: ReachOutMode,
    /// A name of your own for the session
    #[arg(long, value_name = "NAME")]
    external_id: Option<String>,
    /// End the session with the task
    #[arg(long)]
    once: bool,
    /// The gateway's answer as JSON
    #[arg(long)]
    json: bool,
}

impl Start {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let remote = Remote::new(self.at)?;
        let mut body = json!({
            "reachOutMode": self.reach_out,
            "task": { "prompt": self.prompt, "terminateOnCompletion": self.once },
        });
        if let Some(name) = self.external_id {
            body["externalId"] = name.into();
        }
        let created: Value = remote.post(&["v1", "sessions"], &body).await?;
        match created["session"].as_str() {
            Some(session) if !self.json => say(session),
            _ => say(created),
        }
    }
}

//! `onlooker notices`.

use clap::Args;
use onlooker_protocol::view::ListedNotice;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    failure::Failure,
    line::plain,
    remote::{At, Remote},
    say,
};

/// The most that one page holds; more come page by page.
const PAGE: usize = 1000;

const EXAMPLES: &str = "\
Examples:
  onlooker notices
  onlooker notices --state dead
  onlooker notices --session k3v9x0aab2c4d6e8f0g1 --json | jq .error
  onlooker notices --retry 01890a5d-ac96-774b-bcce-b302099a8057

One line a notice, newest first: id, state, when it was written, target, what it is about, tries, the last error.
`dead` are those that nobody has for certain and nobody should wait for: rejected (the other end takes nothing until
somebody changes something there) and given_up (the repeat is unknown too). Repair the other end, then --retry.";

/// Lists messages to people, and tries one again
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Notices {
    #[command(flatten)]
    at: At,
    /// Only: dead, queued, leased, confirmed, failed, rejected, given_up or dropped
    #[arg(long)]
    state: Option<String>,
    /// Only of this session
    #[arg(long)]
    session: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Tries this notice again now, by its id; needs the scope `admin`
    #[arg(long, value_name = "ID", conflicts_with_all = ["state", "session", "limit"])]
    retry: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Page {
    notices: Vec<Value>,
}

#[derive(Deserialize)]
struct Retried {
    notice: Value,
}

impl Notices {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let remote = Remote::new(self.at.clone())?;
        match &self.retry {
            Some(id) => {
                let retried: Retried = remote.post(&["v1", "notices", id, "retry"], &json!({})).await?;
                show(&retried.notice, self.json)
            }
            None => self.list(&remote).await,
        }
    }

    async fn list(&self, remote: &Remote) -> Result<(), Failure> {
        let mut left = self.limit.unwrap_or(usize::MAX);
        let mut after: Option<String> = None;
        while left > 0 {
            let limit = left.min(PAGE);
            let text = limit.to_string();
            let mut query = vec![("limit", text.as_str())];
            let named = [("state", &self.state), ("session", &self.session), ("after", &after)];
            query.extend(named.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))));
            let page: Page = remote.get(&["v1", "notices"], &query).await?;
            page.notices.iter().try_for_each(|notice| show(notice, self.json))?;
            left -= page.notices.len().min(left);
            let last = page.notices.last().and_then(|notice| notice["id"].as_str());
            match last.filter(|_| page.notices.len() >= limit) {
                Some(last) => after = Some(last.to_owned()),
                None => break,
            }
        }
        Ok(())
    }
}

fn show(notice: &Value, json: bool) -> Result<(), Failure> {
    match serde_json::from_value::<ListedNotice>(notice.clone()) {
        Ok(listed) if !json => say(line(&listed)),
        _ => say(notice),
    }
}

fn line(listed: &ListedNotice) -> String {
    let ListedNotice { notice, session, guardrail_id, revision, task, .. } = listed;
    let about = match (guardrail_id, task) {
        (Some(id), _) => format!("guardrail {} revision {}", plain(id), revision.unwrap_or(1)),
        (None, Some(task)) => format!("result of task {}", plain(task)),
        (None, None) => "nothing that is known here".to_owned(),
    };
    let step = notice.step.map(|step| format!(", step {step}")).unwrap_or_default();
    let tries = if notice.attempts == 1 { "1 try".to_owned() } else { format!("{} tries", notice.attempts) };
    let error = notice.error.as_deref().map(|error| format!("; {}", plain(error))).unwrap_or_default();
    let next = notice.next_try_in_ms.map(|ms| format!("; again in {:.1} s", ms as f64 / 1000.0)).unwrap_or_default();
    format!(
        "{}  {:<9}  {}  to {}  {about}{step}  session {session}  {tries}{error}{next}",
        notice.id,
        plain(&notice.state),
        notice.at,
        plain(&notice.target),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_notice_says_whom_it_was_for_and_what_is_wrong_there() {
        let listed = serde_json::from_value(json!({
            "id": "01890a5d-ac96-774b-bcce-b302099a8057", "target": "telegram:7", "notifier": "telegram",
            "state": "rejected", "attempts": 2, "repetition": 0, "at": "2026-03-01T03:00:00.000Z",
            "error": "the bot was blocked\u{1b}[2J", "nextTryInMs": 61_500, "session": "s", "guardrailId": "g",
            "revision": 1,
        }));
        assert_eq!(
            line(&listed.unwrap()),
            "01890a5d-ac96-774b-bcce-b302099a8057  rejected   2026-03-01T03:00:00.000Z  to telegram:7  guardrail g \
             revision 1  session s  2 tries; the bot was blocked [2J; again in 61.5 s"
        );
    }
}

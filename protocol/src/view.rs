//! State, as snapshots and REST answers show it. A view plus the events that follow its position gives the state.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::event::Position;

/// Under which conditions a session's guardrails and results are handed to a chat user. Fixed at creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReachOutMode {
    Off,
    #[default]
    GuardrailOnly,
    Full,
}

impl std::str::FromStr for ReachOutMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "guardrail_only" => Ok(Self::GuardrailOnly),
            "full" => Ok(Self::Full),
            _ => Err("reachOutMode must be one of: off, guardrail_only, full"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// No runtime has taken it yet.
    Pending,
    Active,
    /// Its runtime is away; it has 300 s to come back.
    Orphaned,
    Ended,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    Completed,
    Terminated,
    Expired,
    TerminateOnCompletion,
    InstanceLost,
    NoRuntime,
    SecretsLost,
    OverCapacity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    Queued,
    Running,
    Waiting,
    Paused,
    Completed,
    Failed,
    Stopped,
}

impl TaskStatus {
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Stopped)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardrailState {
    Open,
    /// An answer won; the runtime does not have it yet.
    Accepted,
    /// The runtime has the answer.
    Taken,
    Expired,
    Superseded,
    Cancelled,
    /// The accepted answer's payload died with the gateway's process; the question is asked anew.
    Lost,
}

impl GuardrailState {
    /// Whether an answer can no longer win.
    pub fn is_closed(self) -> bool {
        self != Self::Open
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardrailKind {
    Login,
    TwoFactor,
    Captcha,
    Purchase,
    Ambiguous,
    Security,
    Policy,
    #[default]
    #[serde(other)]
    Other,
}

/// What happens when a guardrail's deadline passes unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    #[default]
    KeepWaiting,
    Fail,
    Deny,
    DefaultAnswer,
}

/// One thing to be filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// `text`, `email`, `password`, `tel`, `number`, `url`, `code`, `totp`; other words are shown as `text`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default = "yes")]
    pub required: bool,
    /// Whether its value is a secret. It is, unless this says `false`.
    #[serde(default = "yes")]
    pub secret: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// An unfinished or finished question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardrailView {
    pub session: String,
    pub guardrail_id: String,
    /// The revision that everybody sees and answers.
    pub revision: u32,
    /// The runtime's own number for the same question.
    pub asked: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    pub kind: GuardrailKind,
    /// The question.
    pub value: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Field>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub website_error: Option<String>,
    pub state: GuardrailState,
    pub opened_at: String,
    pub expires_at: String,
    pub on_timeout: OnTimeout,
    /// Where in the log it was raised.
    pub position: Position,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimView {
    pub by: String,
    pub until: String,
}

/// How a guardrail was closed. Names of fields, never values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    pub outcome: Outcome,
    pub at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// `websocket`, `socketio`, `rest`, `view`, `webhook`, `secrets`, `deadline`, `runtime`, `task`, `session`, …
    pub via: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<String>,
}

/// What the runtime is told, and everybody sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Answered,
    Declined,
    TimedOut,
    Cancelled,
    /// A higher revision of the same question took its place.
    Superseded,
    /// The answer's payload died with the gateway's process.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskView {
    pub task: String,
    pub status: TaskStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// What it has used, as its runtime said last.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub usage: Map<String, Value>,
    /// The data of the event that ended it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub result: Value,
    /// Where in the log it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Position>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlView {
    pub holder: String,
    pub since: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PictureView {
    pub id: String,
    pub media: String,
    pub size: u64,
    pub at: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeView {
    pub name: String,
    pub connected: bool,
}

/// A session's state at one position of its log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    pub session: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    pub status: SessionStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
    pub reach_out_mode: ReachOutMode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_id: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub labels: Map<String, Value>,
    pub created_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeView>,
    /// The last finished task, the current one, and those that wait, in that order.
    pub tasks: Vec<TaskView>,
    /// Those that still need somebody or something: open and accepted.
    pub guardrails: Vec<GuardrailView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlView>,
    /// Whether pictures are withheld at this moment.
    pub sensitive: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<PictureView>,
}

/// What a grid or a queue needs to know of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionSummary {
    pub session: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    pub status: SessionStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_status: Option<TaskStatus>,
    pub created_at: String,
    /// Ids and revisions of the guardrails that are open.
    pub guardrails: Vec<OpenGuardrail>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
    /// The newest event; absent while the log is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenGuardrail {
    pub guardrail_id: String,
    pub revision: u32,
    pub kind: GuardrailKind,
    pub value: String,
    /// Nobody is looking, and there is nobody who could be told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unreachable: bool,
}

/// How many look at a session, as the `watchers` frame and REST show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WatcherCounts {
    /// Watchers: live, attentive and no observers.
    pub watching: u32,
    /// Those of them that may answer.
    pub able: u32,
    /// Everybody who follows, observers and idle ones too.
    pub following: u32,
}

/// One subscription, and whether it counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatcherView {
    pub subscriber: String,
    pub who: String,
    pub via: String,
    pub counts: bool,
    pub able: bool,
    /// Why it counts or does not, in words.
    pub why: String,
    /// Up to where it has proved to have everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proved: Option<Position>,
}

/// A reach-out decision with its inputs in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyView {
    pub at: String,
    /// `nothing`, `look_again` or `send`.
    pub decision: String,
    /// The number of the rule that fitted first, 1 to 7.
    pub rule: u8,
    /// A sentence for somebody at three in the morning.
    pub why: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_in_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<WhyInputs>,
}

/// What a decision was made from, in short. Times in milliseconds from the decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyInputs {
    pub mode: ReachOutMode,
    pub raised_ms_ago: u64,
    /// Who counted as looking.
    pub watching: u32,
    /// Of them, who may answer.
    pub able: u32,
    /// One of these had demonstrably got the question.
    pub covered: bool,
    /// Everybody who is told first had a notice.
    pub notified: bool,
    /// For how long control or a claim still ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_for_ms: Option<u64>,
    /// When the next step of the ladder was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_step_in_ms: Option<u64>,
    /// For how long the time after the gateway's start still ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_grace_for_ms: Option<u64>,
    /// When the last watcher had left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_left_ms_ago: Option<u64>,
}

/// One message to a person, as far as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoticeView {
    pub id: String,
    pub target: String,
    /// The step of the ladder; absent on the first notice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// `queued`, `leased`, `confirmed`, `failed`, `rejected` (refused until somebody changes something at the other end),
    /// `unknown`, `given_up` (also the repeat is unknown) or `dropped` (not wanted any more before it was sent).
    pub state: String,
    pub attempts: u32,
    /// 1 for the repeat after an unknown outcome.
    pub repetition: u8,
    pub at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_in_ms: Option<u64>,
}

/// One of a project's messages to people: what it is about, and how it stands. Never what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedNotice {
    #[serde(flatten)]
    pub notice: NoticeView,
    /// What carries it: the first part of its target.
    pub notifier: String,
    pub session: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guardrail_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u32>,
    /// Of a notice about a result, whose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
}

/// Everything about why somebody was or was not contacted for a guardrail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardrailWhy {
    pub session: String,
    pub guardrail_id: String,
    pub revision: u32,
    pub state: GuardrailState,
    /// Neither covered, claimed nor notified, though the mode reaches out.
    pub unreached: bool,
    /// Newest last; the last 16.
    pub decisions: Vec<WhyView>,
    pub notices: Vec<NoticeView>,
    pub watchers: Vec<WatcherView>,
}

//! `onlooker watch`: follows a session or a project on the native WebSocket.
//!
//! By default it follows as an observer: its output may go into a file, and then nobody is looking. `--attend` is the
//! word of a person who sits before it; only then does it hold back notices to other people.

use std::{fs, path::PathBuf, time::Duration};

use clap::Args;
use onlooker_protocol::{
    event::{EventFrame, Since, kind},
    picture::ShownPicture,
    subscriber::{Attention, GatewayToSubscriber, PictureLevel, Role, Subscribe, SubscriberToGateway},
    view::SessionView,
};
use onlooker_runtime::{Follow, Frame};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    failure::Failure,
    line,
    log::{self, Format},
    remote::At,
    say, sessions,
    signals::Signals,
};

/// Three times within the lease of 30 s.
pub(crate) const ATTENTION_EVERY: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  onlooker watch k3v9x0aab2c4d6e8f0g1
  onlooker watch k3v9x0aab2c4d6e8f0g1 --since start --json > events.jsonl
  onlooker watch k3v9x0aab2c4d6e8f0g1 --pictures shots
  onlooker watch --project

One line an event, from now on unless --since says otherwise; a lost connection is taken up where it was lost. It ends
with the session. It is an observer, who never keeps the gateway from reaching people, unless --attend says that a
person is looking.";

/// Follows a session, or all of the project
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Watch {
    #[command(flatten)]
    at: At,
    /// The session's id
    #[arg(required_unless_present = "project", conflicts_with = "project")]
    session: Option<String>,
    /// Follow summaries of every session
    #[arg(long)]
    project: bool,
    /// Where to begin: start, latest, or after a position epoch:offset
    #[arg(long, value_name = "POSITION", default_value = "latest")]
    since: Since,
    /// Frames as JSON, one a line, events as `{"type":"event",…}`
    #[arg(long)]
    json: bool,
    /// Write live pictures into this folder
    #[arg(long, value_name = "DIR", conflicts_with = "project")]
    pictures: Option<PathBuf>,
    /// Count as a person who looks
    #[arg(long, conflicts_with = "project")]
    attend: bool,
}

impl Watch {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        log::start(Format::Text, "warn")?;
        if let Some(folder) = &self.pictures {
            fs::create_dir_all(folder)
                .map_err(|error| Failure::failed(format!("cannot make {}: {error}", folder.display())))?;
        }
        let mut signals = Signals::listen()?;
        let mut follow = Follow::connect(&self.at.gateway, self.at.token.clone()).await?;
        follow.subscribe(self.subscription()).expect("nothing waits on a new connection");
        let watched = tokio::select! {
            watched = self.follow(&mut follow) => watched,
            () = signals.next() => Ok(()),
        };
        follow.close().await;
        watched
    }

    fn subscription(&self) -> Subscribe {
        Subscribe {
            session: self.session.clone(),
            project: self.project,
            since: self.since,
            pictures: if self.pictures.is_some() { PictureLevel::Full } else { PictureLevel::None },
            role: if self.attend { Role::Watcher } else { Role::Observer },
            attention: if self.attend { Attention::Active } else { Attention::Idle },
            ..Subscribe::default()
        }
    }

    async fn follow(&self, follow: &mut Follow) -> Result<(), Failure> {
        let mut attention = interval(ATTENTION_EVERY);
        attention.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                frame = follow.next() => match frame {
                    Some(frame) => if self.take(frame)? { return Ok(()) },
                    None => return Err(end_of(follow)),
                },
                _ = attention.tick(), if self.attend => {
                    // When it is not taken the connection is down, and the lease is asked for again with the next.
                    let _ = follow.send(SubscriberToGateway::Attention { session: None, state: Attention::Active });
                }
            }
        }
    }

    /// Shows a frame. `true` at the session's end.
    fn take(&self, frame: Frame) -> Result<bool, Failure> {
        match frame {
            Frame::Picture(header, bytes) => self.keep(&header, &bytes).map(|()| false),
            Frame::Text(GatewayToSubscriber::Replay { events, .. }) => {
                let mut over = false;
                for event in events {
                    over |= event["event"]["type"] == kind::SESSION_ENDED;
                    self.show_replayed(event)?;
                }
                Ok(over)
            }
            Frame::Text(GatewayToSubscriber::Error { refusal, .. }) => Err(refusal.into()),
            Frame::Text(GatewayToSubscriber::Unsubscribed { reason, .. }) => {
                eprintln!("the gateway ended the subscription: {reason}");
                Ok(true)
            }
            Frame::Text(frame) if self.json => {
                let over = matches!(&frame, GatewayToSubscriber::Event(event) if ended(event));
                say(serde_json::to_string(&frame).expect("a frame is plain data")).map(|()| over)
            }
            Frame::Text(frame) => show(&frame),
        }
    }

    fn show_replayed(&self, event: Value) -> Result<(), Failure> {
        match serde_json::from_value::<EventFrame>(event.clone()) {
            Ok(event) if !self.json => say(line::of_event(&event)),
            _ => say(event),
        }
    }

    fn keep(&self, header: &ShownPicture, bytes: &[u8]) -> Result<(), Failure> {
        let Some(folder) = &self.pictures else { return Ok(()) };
        let extension = match header.media.as_str() {
            "image/png" => "png",
            "image/webp" => "webp",
            _ => "jpg",
        };
        // An id is made of these; what else a gateway may send leads nowhere out of the folder.
        let name: String = header.id.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
        let path = folder.join(format!("{name}.{extension}"));
        fs::write(&path, bytes).map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
    }
}

fn ended(event: &EventFrame) -> bool {
    event.event.kind == kind::SESSION_ENDED
}

/// Shows a frame to a person. `true` at the session's end.
fn show(frame: &GatewayToSubscriber) -> Result<bool, Failure> {
    match frame {
        GatewayToSubscriber::Event(event) => return say(line::of_event(event)).map(|()| ended(event)),
        GatewayToSubscriber::Snapshot { state, .. } => say(of_state(state))?,
        GatewayToSubscriber::Gap { .. } => eprintln!("events are missing here: the log no longer has them"),
        GatewayToSubscriber::Summaries { sessions, .. } => {
            sessions.iter().try_for_each(|summary| say(sessions::of_summary(summary)))?;
        }
        GatewayToSubscriber::Summary(summary) => say(sessions::of_summary(summary))?,
        GatewayToSubscriber::Goaway { reason, .. } => eprintln!("the gateway goes away ({reason}); coming back"),
        _ => {}
    }
    Ok(false)
}

fn of_state(state: &SessionView) -> String {
    let task = state.tasks.iter().rfind(|task| !task.status.is_over()).or(state.tasks.last());
    let task = task.map_or("no task".to_owned(), |task| format!("task {}", line::word(&task.status)));
    let waits = state.guardrails.iter().map(|guardrail| format!("\n  waits: {}", line::of_guardrail(guardrail)));
    format!("session {} is {}, {task}{}", state.session, line::word(&state.status), waits.collect::<String>())
}

/// Why there is no further frame.
pub(crate) fn end_of(follow: &Follow) -> Failure {
    use super::failure::Status;
    match follow.error() {
        Some(error) => {
            let unavailable = Failure::new(Status::Unavailable, error.to_string());
            match error {
                onlooker_runtime::follow::FollowError::Refused { code, .. } => {
                    onlooker_protocol::code::Refusal::new(*code, error.to_string()).into()
                }
                _ => unavailable,
            }
        }
        None => Failure::new(Status::Unavailable, "the gateway ended the connection"),
    }
}

//! `onlooker inspect` and `onlooker export`: what a stopped gateway kept.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use clap::Args;
use onlooker::{
    config::DATA_DIR,
    engine::{
        ReadLimit, Record, RecordKind,
        disk::{Inspection, InspectionError, LogSummary, OpenError},
    },
    guardrail::StoredGuardrail,
    ids::SessionId,
    outbox::{self, NoticeSubject},
    session::{Kept, KeptSummary, picture_key},
};
use onlooker_protocol::{
    event::EventFrame,
    picture::{self, ShownPicture},
    view::{GuardrailState, GuardrailView, NoticeView},
};
use onlooker_runtime::record;
use serde_json::json;

use super::{
    failure::{Failure, chain},
    line::{of_guardrail, plain, word},
    say,
};

/// One page of a log.
const PAGE: ReadLimit = ReadLimit { records: 1_000, bytes: 4 << 20 };

const INSPECT_EXAMPLES: &str = "\
Examples:
  onlooker inspect
  onlooker inspect /var/lib/onlooker
  onlooker inspect /var/lib/onlooker --json | jq .sessions

The gateway must be stopped. Nothing is changed.";

/// Shows what a stopped gateway kept: sessions, sizes, open guardrails, notices
#[derive(Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub(crate) struct Inspect {
    /// The data directory
    #[arg(value_name = "DIR", default_value = DATA_DIR)]
    dir: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Everything that is shown of a directory.
struct Found {
    sessions: Vec<FoundSession>,
    open: Vec<GuardrailView>,
    notices: Vec<(SessionId, NoticeSubject, NoticeView)>,
    unreadable: Vec<String>,
}

struct FoundSession {
    log: LogSummary,
    kept: Option<KeptSummary>,
}

impl Inspect {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let inspection = Inspection::open(&self.dir)?;
        let found = Found::in_directory(&inspection)?;
        if self.json {
            return say(found.to_json(&inspection));
        }
        found.lines(&self.dir, &inspection).iter().try_for_each(say)
    }
}

impl Found {
    fn in_directory(inspection: &Inspection) -> Result<Self, Failure> {
        let mut unreadable = Vec::new();
        let mut note = |what: String, reason: &str| unreadable.push(format!("{what}: {reason}"));
        let mut kept = HashMap::new();
        for (key, _, value) in inspection.list(RecordKind::Session)? {
            match Kept::read(&value) {
                Ok(session) => drop(kept.insert(key.session, session)),
                Err(reason) => note(format!("the record of session {}", key.session), &reason),
            }
        }
        let mut open = Vec::new();
        for (key, _, value) in inspection.list(RecordKind::Guardrail)? {
            match StoredGuardrail::decode(&value) {
                Ok(stored) if stored.view.state == GuardrailState::Open => open.push(stored.view),
                Ok(_) => {}
                Err(reason) => note(format!("guardrail {} of session {}", key.name, key.session), &reason),
            }
        }
        let mut notices = Vec::new();
        for (key, _, value) in inspection.list(RecordKind::Notice)? {
            match outbox::read_kept(key.session, &value) {
                Ok((subject, view)) => notices.push((key.session, subject, view)),
                Err(reason) => note(format!("notice {} of session {}", key.name, key.session), &reason),
            }
        }
        let mut sessions = Vec::new();
        for log in inspection.logs() {
            let mut kept = kept.remove(&log.session);
            if let Some(kept) = &mut kept {
                let from = kept.next();
                each_record(inspection, &log, from, |record| kept.apply(record))?;
            }
            sessions.push(FoundSession { log, kept: kept.map(|kept| kept.summary()) });
        }
        Ok(Self { sessions, open, notices, unreadable })
    }

    fn to_json(&self, inspection: &Inspection) -> serde_json::Value {
        let session = |session: &FoundSession| {
            let LogSummary { session: id, head, bytes } = session.log;
            json!({
                "session": id.as_str(), "epoch": head.epoch.to_string(), "first": head.first, "next": head.next,
                "n": head.n, "bytes": bytes, "kept": session.kept,
            })
        };
        let notice = |(session, subject, view): &(SessionId, NoticeSubject, NoticeView)| json!({ "session": session.as_str(), "about": about(subject), "notice": view });
        let file = |(path, size): &(PathBuf, u64)| json!({ "path": path, "bytes": size });
        json!({
            "format": inspection.format(),
            "files": inspection.files().iter().map(file).collect::<Vec<_>>(),
            "sessions": self.sessions.iter().map(session).collect::<Vec<_>>(),
            "guardrails": self.open,
            "notices": self.notices.iter().map(notice).collect::<Vec<_>>(),
            "unreadable": self.unreadable,
        })
    }

    fn lines(&self, dir: &Path, inspection: &Inspection) -> Vec<String> {
        let on_disk: u64 = inspection.files().iter().map(|(_, size)| size).sum();
        let events: u64 = self.sessions.iter().map(|session| session.log.head.next - session.log.head.first).sum();
        let bytes: u64 = self.sessions.iter().map(|session| session.log.bytes).sum();
        let mut lines = vec![format!(
            "{}: format {}, {} on disk; {} sessions with {events} events, {}",
            dir.display(),
            inspection.format(),
            size(on_disk),
            self.sessions.len(),
            size(bytes),
        )];
        lines.extend(self.sessions.iter().map(of_session));
        lines.push(format!("{} open guardrails", self.open.len()));
        lines.extend(self.open.iter().map(|view| format!("  {}", of_guardrail(view))));
        lines.push(format!("{} notices", self.notices.len()));
        lines.extend(self.notices.iter().map(of_notice));
        lines.extend(self.unreadable.iter().map(|what| format!("cannot be read: {what}")));
        lines
    }
}

fn of_session(session: &FoundSession) -> String {
    let LogSummary { session: id, head, bytes } = session.log;
    let log =
        format!("{} events, {}, {}:{}..{}", head.next - head.first, size(bytes), head.epoch, head.first, head.next);
    let Some(kept) = &session.kept else { return format!("  {id} without a record  {log}") };
    let mut parts = vec![format!("  {id} {:<8}", word(&kept.status))];
    parts.extend(kept.reason.iter().map(word));
    parts.extend(kept.task_status.iter().filter(|_| kept.reason.is_none()).map(|task| format!("task {}", word(task))));
    parts.push(log);
    parts.push(format!("created {}", kept.created_at));
    parts.extend(kept.has_secrets.then(|| "with secrets".to_owned()));
    parts.extend(kept.external_id.as_deref().map(|name| format!("called {}", plain(name))));
    parts.join("  ")
}

fn of_notice((session, subject, view): &(SessionId, NoticeSubject, NoticeView)) -> String {
    let error = view.error.as_deref().map(|error| format!("  {}", plain(error))).unwrap_or_default();
    let repeat = if view.repetition > 0 { ", a repeat" } else { "" };
    let (target, state) = (plain(&view.target), &view.state);
    format!("  {session} {}  to {target}: {state}, {} attempts{repeat}{error}", about(subject), view.attempts)
}

fn about(subject: &NoticeSubject) -> String {
    match subject {
        NoticeSubject::Guardrail { id, revision } => format!("guardrail {} revision {revision}", plain(id)),
        NoticeSubject::Result { task } => format!("result of task {}", plain(task)),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

const EXPORT_EXAMPLES: &str = "\
Examples:
  onlooker export k3v9x0aab2c4d6e8f0g1
  onlooker export k3v9x0aab2c4d6e8f0g1 --data-dir /var/lib/onlooker --into recordings/lamp
  onlooker export k3v9x0aab2c4d6e8f0g1 --task t2

The gateway must be stopped; of a running one, `onlooker record` makes recordings. Only the last picture of a session is
kept, so that a recording made from a data directory has at most that one.";

/// Writes a task that a stopped gateway kept as a recording
#[derive(Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub(crate) struct Export {
    /// The session's id
    session: String,
    /// The task's id; the first one that the log has when none is named
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
    /// A folder that holds no recording yet; it is made when it is not there [default: the session's id]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

impl Export {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let unknown =
            || Failure::failed(format!("{} has no session {}", self.data_dir.display(), plain(&self.session)));
        let session: SessionId = self.session.parse().map_err(|()| unknown())?;
        let inspection = Inspection::open(&self.data_dir)?;
        let log = inspection.logs().into_iter().find(|log| log.session == session).ok_or_else(unknown)?;
        let events = events(&inspection, &log)?;
        let picture = inspection.get(&picture_key(session))?.and_then(|(_, frame)| {
            let (header, bytes) = picture::decode::<ShownPicture>(&frame).ok()?;
            Some((header, bytes.to_vec()))
        });
        let pictures: Vec<_> = picture.into_iter().collect();
        let into = self.into.unwrap_or_else(|| PathBuf::from(session.as_str()));
        let exported = record::export(events, &pictures, self.task.as_deref(), &into);
        let exported = exported.map_err(|error| Failure::failed(chain(&error)))?;
        let (path, lines) = (into.display(), exported.lines);
        say(format_args!("{path}: {lines} lines, {} screenshots without a picture", exported.without_picture))?;
        if log.head.first > 0 {
            eprintln!("the log begins at offset {}: what was before has been trimmed", log.head.first);
        }
        if exported.unfinished {
            eprintln!("the task had not ended; the recording ends with an error that says so");
        }
        Ok(())
    }
}

fn events(inspection: &Inspection, log: &LogSummary) -> Result<Vec<EventFrame>, Failure> {
    let (mut events, mut damaged) = (Vec::new(), None);
    each_record(inspection, log, log.head.first, |record| match serde_json::from_slice(&record.frame) {
        Ok(frame) => events.push(frame),
        Err(error) => damaged = Some(format!("the event at offset {} cannot be read: {error}", record.offset)),
    })?;
    damaged.map_or(Ok(events), |damaged| Err(Failure::failed(damaged)))
}

/// Every record of a log from an offset on, in order.
fn each_record(
    inspection: &Inspection,
    log: &LogSummary,
    from: u64,
    mut each: impl FnMut(&Record),
) -> Result<(), Failure> {
    let mut from = from.max(log.head.first);
    while from < log.head.next {
        let page = inspection.read(log.session, from, PAGE)?;
        let Some(last) = page.last() else { break };
        from = last.offset + 1;
        page.iter().for_each(&mut each);
    }
    Ok(())
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::failed(chain(&error))
    }
}

impl From<InspectionError> for Failure {
    fn from(error: InspectionError) -> Self {
        Self::failed(chain(&error))
    }
}

//! `POST /start/send-message`: anything that a client says to a session it has.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use onlooker_protocol::{
    code::{Code, Refusal},
    subscriber::SessionCommand,
};
use serde_json::{Value, json};

use super::{
    access::{Client, metered},
    attachments::attach_to,
    body::Sent,
    message::{self, Done, Message},
    problem::Problem,
    tasks::{self, Looking, ResponseEnd},
    urls::Base,
};
use crate::{
    config::key::Scope,
    http::App,
    session::{Session, unnamed::Heard},
};

pub async fn send_message(
    State(app): State<App>,
    client: Client,
    base: Base,
    response: ResponseEnd,
    sent: Sent,
) -> Result<Response, Problem> {
    let (session, said) = addressed(sent)?;
    let session = client.session(&app, &session)?;
    let message = Message::read(said)?;
    if let Message::NewTask(_) = message {
        let work = new_task(&app, &client, &session, message, &base, response);
        return Ok(metered(&app, &client, work).await);
    }
    client.may(if matches!(message, Message::Answer(_)) { Scope::Answer } else { Scope::Control })?;
    let wanted = Wanted::of(&message);
    match message.send(&session, client.actor(), None).await {
        Ok(done) => Ok(sent_successfully(&done)),
        Err(refusal) => wanted.without_effect(refusal),
    }
}

/// The session's id and the message.
fn addressed(sent: Sent) -> Result<(String, Value), Problem> {
    let incomplete = || {
        let message = "sessionId and message are required";
        Problem::new(StatusCode::BAD_REQUEST, "MISSING_REQUIRED_FIELD", message)
    };
    let mut members = sent.object()?;
    let Some(Value::String(session)) = members.remove("sessionId") else { return Err(incomplete()) };
    let Some(message @ Value::Object(_)) = members.remove("message") else { return Err(incomplete()) };
    if session.is_empty() {
        return Err(incomplete());
    }
    Ok((session, message))
}

async fn new_task(
    app: &App,
    client: &Client,
    session: &Session,
    message: Message,
    base: &Base,
    response: ResponseEnd,
) -> Result<Response, Problem> {
    if let Message::NewTask(task) = &message {
        attach_to(app, session, task).await?;
    }
    match message.send(session, client.actor(), None).await? {
        Done::Queued(task) => {
            let looking = Looking::begin(session, &client.0, response);
            Ok(tasks::inline(app, session, &task, base, looking).await)
        }
        done => Ok(sent_successfully(&done)),
    }
}

fn sent_successfully(done: &Done) -> Response {
    let mut body = json!({ "success": true, "message": "Message sent successfully" });
    if let Done::Answered(Heard::TooLate(view)) = done {
        body.as_object_mut().expect("an object").extend(message::too_late(view));
    }
    Json(body).into_response()
}

/// What a command was for, where nothing is left to be commanded.
#[derive(Clone, Copy)]
enum Wanted {
    /// No task runs: so it is.
    Stopped,
    /// The session is over: so it is.
    Terminated,
    /// A task that runs.
    Task,
    Other,
}

impl Wanted {
    fn of(message: &Message) -> Self {
        match message {
            Message::Command(SessionCommand::Stop) => Self::Stopped,
            Message::Command(SessionCommand::Terminate) => Self::Terminated,
            Message::Command(SessionCommand::Pause | SessionCommand::Resume) => Self::Task,
            _ => Self::Other,
        }
    }

    /// Clients stop and terminate to be sure: what is so already is no error. A pause that pauses nothing is one, for
    /// the next task would run.
    fn without_effect(self, refusal: Refusal) -> Result<Response, Problem> {
        match (self, refusal.code) {
            (Self::Stopped, Code::UnknownTask) | (Self::Terminated, Code::SessionEnded) => {
                let body = json!({ "success": true, "message": "Message sent successfully", "applied": false });
                Ok(Json(body).into_response())
            }
            (Self::Task, Code::UnknownTask) => {
                let message = "No task is running in this session";
                Err(Problem::new(StatusCode::CONFLICT, "NO_RUNNING_TASK", message))
            }
            _ => Err(refusal.into()),
        }
    }
}

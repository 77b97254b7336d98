//! `POST /start/start-session` and `POST /start/run-task`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use onlooker_protocol::{
    code::{Code, Refusal},
    runtime::OpenSession,
};
use serde_json::{Map, Value, json};

use super::{
    access::{Client, metered},
    attachments::attach,
    body::Sent,
    parameters,
    problem::Problem,
    tasks::{self, Looking, ResponseEnd},
    urls::Base,
};
use crate::{
    http::App,
    ids::SessionId,
    session::{Created, NewSession, Origin},
};

/// The page's size, in pixels, where a runtime announces none.
const DIMENSIONS: (u64, u64) = (1024, 600);

pub async fn start_session(State(app): State<App>, client: Client, base: Base, sent: Sent) -> Response {
    let work = async {
        let asked = parameters::start(sent.object()?)?;
        let prompt = asked.task.as_ref().and_then(|task| task.prompt.clone()).unwrap_or_default();
        let created = create(&app, &client, asked).await?;
        Ok(Json(started(&app, &client, &base, &created, &prompt)).into_response())
    };
    metered(&app, &client, work).await
}

pub async fn run_task(
    State(app): State<App>,
    client: Client,
    base: Base,
    response: ResponseEnd,
    sent: Sent,
) -> Response {
    let work = async {
        let asked = parameters::run(sent.object()?)?;
        let created = create(&app, &client, asked).await?;
        let looking = Looking::begin(&created.session, &client.0, response);
        let task = created.task.unwrap_or_default();
        Ok(tasks::inline(&app, &created.session, &task, &base, looking).await)
    };
    metered(&app, &client, work).await
}

async fn create(app: &App, client: &Client, asked: OpenSession) -> Result<Created, Problem> {
    if client.0.sessions.is_some() {
        return Err(Refusal::new(Code::Forbidden, "this token is limited to its sessions").into());
    }
    if let Some(task) = &asked.task {
        attach(app, &client.0.project, asked.environment_id.as_deref(), task).await?;
    }
    let (project, by) = (client.0.project.clone(), client.0.who.to_string());
    let new = NewSession { project, asked, origin: Origin::Client, by };
    app.directory.create(new).await.map_err(Problem::from)
}

fn started(app: &App, client: &Client, base: &Base, created: &Created, prompt: &str) -> Value {
    let id = created.session.id;
    let mut body = json!({
        "success": true,
        "sessionId": id.as_str(),
        "socketURL": base.as_str(),
        "streaming": streaming(&created.labels, base, id),
        "initialPrompt": prompt,
        "expiresIn": app.config.times.inactivity.as_millis() as u64,
        "message": "Connect to instance using sessionId in auth",
    });
    if let Some(task) = &created.task {
        body["taskId"] = json!(task);
    }
    if let Some(balance) = client.balance(app) {
        body["balance"] = json!(balance);
    }
    body
}

/// Where the session can be seen. `{session}` in what the runtime announces stands for the session's id.
fn streaming(labels: &Map<String, Value>, base: &Base, session: SessionId) -> Value {
    let side = |name: &str, default| {
        let announced = labels.get("dimensions").and_then(|dimensions| dimensions.get(name)).and_then(Value::as_u64);
        announced.filter(|side| *side > 0).unwrap_or(default)
    };
    let mut streaming = json!({
        "webViewURL": base.view(session),
        "dimensions": { "width": side("width", DIMENSIONS.0), "height": side("height", DIMENSIONS.1) },
    });
    if let Some(url) = labels.get("webRTCURL").and_then(Value::as_str) {
        streaming["webRTCURL"] = url.replace("{session}", session.as_str()).into();
    }
    streaming
}

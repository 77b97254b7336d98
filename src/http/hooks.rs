//! `POST /v1/hooks/{connector}`: what chats bring. Who it is from is the connector's to check, and no key of ours.

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use onlooker_protocol::code::{Code, Refusal};

use super::{App, Path, Refused};
use crate::chat::Hook;

pub async fn hear(
    State(app): State<App>,
    Path(connector): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    let unknown = || Refusal::new(Code::NotFound, "no chat of this name is configured");
    let connector = app.connectors.get(&connector).ok_or_else(unknown)?;
    let answer = connector.hook(Hook { headers, body }, &*app.desk).await;
    if let Some(why) = answer.refused {
        app.metrics.callback_refused(connector.name(), why);
    }
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = HeaderValue::from_static(answer.content_type);
    Ok((status, [(header::CONTENT_TYPE, kind)], answer.body).into_response())
}

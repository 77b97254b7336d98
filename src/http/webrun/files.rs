//! Uploads of WebRun clients, what runtimes download of them, and the files of environments (sections 1.6 and 1.9 of
//! the contract).

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::{
    access::{Client, metered},
    multipart::{Form, Part},
    problem::Problem,
};
use crate::{
    auth::{AuthError, Grant},
    clock,
    config::key::Scope,
    files::{FileInfo, NotStored, Uploaded},
    http::{App, Path, bearer},
    ids,
};

/// Files of one request.
const FILES: usize = 100;
/// Of a part that is not a file.
const TEXT_BYTES: usize = 4 * 1024;
/// What is read of a file at once.
const CHUNK: usize = 64 * 1024;
/// What an extended parameter may have as it is (RFC 8187, 3.2.1), less some that nobody needs.
const AS_IT_IS: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

type Answered = Result<Json<Value>, Problem>;

// --- uploads ---------------------------------------------------------------------------------------------------------

pub async fn upload(State(app): State<App>, request: Request) -> Response {
    match client(&app, request.headers(), KEY_REQUIRED) {
        Ok(grant) => {
            let client = Client(grant);
            let work = async { store(&app, &client.0, request).await.map(IntoResponse::into_response) };
            metered(&app, &client, work).await
        }
        Err(problem) => problem.into_response(),
    }
}

async fn store(app: &App, grant: &Grant, request: Request) -> Answered {
    if declared(request.headers()).is_some_and(|length| length > app.files.room().saturating_add(TEXT_BYTES as u64)) {
        return Err(not_stored(NotStored::Full));
    }
    let mut form = Form::new(request).await?;
    match take(app, grant, &mut form).await {
        Ok(files) => {
            let shown =
                |info: &FileInfo| json!({ "fileId": info.id.as_str(), "originalName": info.name, "size": info.size });
            Ok(Json(json!({ "success": true, "files": files.iter().map(shown).collect::<Vec<_>>() })))
        }
        Err(problem) => {
            let stopping = app.stopping.clone();
            app.tasks.spawn(async move { stopping.run_until_cancelled(form.linger()).await });
            Err(problem)
        }
    }
}

/// What the body's length is said to be.
fn declared(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn take(app: &App, grant: &Grant, form: &mut Form) -> Result<Vec<FileInfo>, Problem> {
    let (mut uploads, mut environment) = (Vec::new(), None);
    while let Some(part) = form.next().await? {
        match (part.name(), part.file_name()) {
            (Some("files"), Some(_)) if uploads.len() >= FILES => {
                let message = format!("At most {FILES} files can be uploaded at once");
                return Err(Problem::malformed(message).with("limit", FILES));
            }
            (Some("files"), Some(_)) => uploads.extend(take_file(app, part).await?),
            (Some("environmentId"), _) => environment = environment_of(&text_of(part).await?)?,
            _ => drop(text_of(part).await?),
        }
    }
    if uploads.is_empty() {
        return Err(Problem::malformed("No files provided"));
    }
    app.files.keep(&grant.project, environment.as_deref(), uploads).await.map_err(not_stored)
}

/// None for what browsers send when nothing was chosen: no name and no content.
async fn take_file(app: &App, mut part: Part<'_>) -> Result<Option<Uploaded>, Problem> {
    let named = part.file_name().is_some_and(|name| !name.is_empty());
    let mut next = part.chunk().await?;
    if !named && next.is_none() {
        return Ok(None);
    }
    let mut upload = app.files.begin(part.file_name().unwrap_or_default()).await.map_err(not_stored)?;
    while let Some(bytes) = next {
        upload.write(&bytes).await.map_err(not_stored)?;
        next = part.chunk().await?;
    }
    upload.finish().await.map(Some).map_err(not_stored)
}

async fn text_of(mut part: Part<'_>) -> Result<String, Problem> {
    let mut text = Vec::new();
    while let Some(bytes) = part.chunk().await? {
        if text.len() + bytes.len() > TEXT_BYTES {
            return Err(Problem::malformed("Files go into the field `files`, each with a file name"));
        }
        text.extend_from_slice(&bytes);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// An empty field is as none.
fn environment_of(text: &str) -> Result<Option<String>, Problem> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if ids::is_outside_id(text) {
        return Ok(Some(text.to_owned()));
    }
    Err(Problem::parameter("environmentId", "1 to 64 characters of A-Z a-z 0-9 _ -"))
}

fn not_stored(error: NotStored) -> Problem {
    match error {
        NotStored::TooLarge { limit } => {
            let message = format!("File too large: a file may have at most {limit} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", message).with("limit", limit)
        }
        NotStored::Full => {
            let message = "There is no room for more files; delete some, or try again later";
            Problem::new(StatusCode::INSUFFICIENT_STORAGE, "STORAGE_FULL", message)
        }
        NotStored::Disk(error) => disk(&error),
    }
}

/// What clients read says nothing of the disk.
pub(super) fn disk(error: &std::io::Error) -> Problem {
    tracing::warn!(%error, "the disk fails uploaded files");
    if matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
        return not_stored(NotStored::Full);
    }
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", "The file store does not work; try again later")
}

// --- downloads -------------------------------------------------------------------------------------------------------

/// For runtimes, and for clients of the project. A file of another project is none.
pub async fn download(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> Result<Response, Problem> {
    let grant = authenticate(&app, &headers, KEY_REQUIRED)?;
    if !grant.may(Scope::Publish) && !grant.may(Scope::Control) {
        return Err(lacks_permission());
    }
    let may_read = |project: &str| {
        let client = grant.may(Scope::Control) && grant.sessions.is_none() && *grant.project == *project;
        client || grant.may_serve(project)
    };
    let info = app.files.get(&id).filter(|info| may_read(&info.project)).ok_or_else(not_found)?;
    let content = app.files.read(&info.id).await.map_err(|error| disk(&error))?.ok_or_else(not_found)?;
    let fixed = HeaderValue::from_static;
    let headers: [(HeaderName, HeaderValue); 6] = [
        (header::CONTENT_TYPE, fixed("application/octet-stream")),
        (header::CONTENT_LENGTH, info.size.into()),
        (header::CONTENT_DISPOSITION, disposition(&info.name)),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::CONTENT_SECURITY_POLICY, fixed("default-src 'none'; sandbox")),
        (header::CACHE_CONTROL, fixed("no-store")),
    ];
    let body = Body::from_stream(ReaderStream::with_capacity(content.take(info.size), CHUNK));
    Ok((headers, body).into_response())
}

/// `attachment` with the name twice (RFC 6266): for old readers what ASCII has of it, for all others whole.
fn disposition(name: &str) -> HeaderValue {
    let plain = |c: char| if c.is_ascii_alphanumeric() || " -._()".contains(c) { c } else { '_' };
    let ascii: String = name.chars().map(plain).collect();
    let whole = utf8_percent_encode(name, AS_IT_IS);
    let text = format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{whole}");
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("attachment"))
}

// --- environments ----------------------------------------------------------------------------------------------------

pub async fn of_environment(State(app): State<App>, headers: HeaderMap, Path(environment): Path<String>) -> Answered {
    let grant = client(&app, &headers, KEY_REQUIRED_SHORT)?;
    let files = app.files.of_environment(&grant.project, &environment);
    let files: Vec<Value> = files.iter().map(shown_in_environment).collect();
    Ok(Json(json!({ "success": true, "files": files })))
}

fn shown_in_environment(info: &FileInfo) -> Value {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(info.created_at) * 1_000_000);
    let created_at = at.map(clock::text).unwrap_or_default();
    json!({ "fileId": info.id.as_str(), "originalName": info.name, "size": info.size, "createdAt": created_at })
}

pub async fn delete(
    State(app): State<App>,
    headers: HeaderMap,
    Path((environment, id)): Path<(String, String)>,
) -> Answered {
    let grant = client(&app, &headers, KEY_REQUIRED_SHORT)?;
    let deleted = app.files.delete(&grant.project, &environment, &id).await.map_err(|error| disk(&error))?;
    if deleted { Ok(Json(json!({ "success": true, "message": "File deleted" }))) } else { Err(not_found()) }
}

fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "FILE_NOT_FOUND", "File not found")
}

// --- who asks --------------------------------------------------------------------------------------------------------

const KEY_REQUIRED: &str = "API key required. Provide Authorization: Bearer <api_key>";
/// On environments and profiles.
const KEY_REQUIRED_SHORT: &str = "API key required";

/// Whoever may start tasks in its project may handle the files for them. A token for single sessions may not.
fn client(app: &App, headers: &HeaderMap, key_required: &str) -> Result<Grant, Problem> {
    let grant = authenticate(app, headers, key_required)?;
    if grant.may(Scope::Control) && grant.sessions.is_none() { Ok(grant) } else { Err(lacks_permission()) }
}

fn authenticate(app: &App, headers: &HeaderMap, key_required: &str) -> Result<Grant, Problem> {
    app.auth.authenticate(bearer(headers).unwrap_or_default()).map_err(|error| {
        let (code, message) = match error {
            AuthError::Missing => ("UNAUTHORIZED", key_required),
            AuthError::Unknown | AuthError::Expired => ("INVALID_API_KEY", "Invalid or revoked API key"),
        };
        Problem::new(StatusCode::UNAUTHORIZED, code, message)
    })
}

fn lacks_permission() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "FORBIDDEN", "API key missing required permission: task:create")
}

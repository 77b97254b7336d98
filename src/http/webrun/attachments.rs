//! Files that tasks name: they must be there, and stay with the environment that they were used in (sections 1.6 and
//! 4.2 of the contract).

use onlooker_protocol::subscriber::NewTask;
use serde_json::Value;

use super::{files::disk, problem::Problem};
use crate::{files::NotPromoted, http::App, session::Session};

/// Checks the files of a task that is about to begin. Orphans among them move into its session's environment.
///
/// # Errors
/// 400 for a file that the project has not; 500 and 507 for a disk that fails.
pub async fn attach(app: &App, project: &str, environment: Option<&str>, task: &NewTask) -> Result<(), Problem> {
    let named = task.parameters.get("files").and_then(Value::as_array).into_iter().flatten();
    let files: Vec<String> = named.filter_map(Value::as_str).map(str::to_owned).collect();
    if files.is_empty() {
        return Ok(());
    }
    let missing = |missing: String| {
        let index = files.iter().position(|file| *file == missing);
        Problem::parameter("files", "names a file that does not exist").with("index", index)
    };
    app.files.known(project, &files).map_err(missing)?;
    let Some(environment) = environment else { return Ok(()) };
    app.files.promote(project, &files, environment).await.map_err(|error| match error {
        NotPromoted::Missing(file) => missing(file),
        NotPromoted::Disk(error) => disk(&error),
    })
}

/// The same for a task of a session that has begun.
///
/// # Errors
/// As [`attach`].
pub async fn attach_to(app: &App, session: &Session, task: &NewTask) -> Result<(), Problem> {
    let environment = session.snapshot().await?.state.environment_id.clone();
    attach(app, &session.project, environment.as_deref(), task).await
}

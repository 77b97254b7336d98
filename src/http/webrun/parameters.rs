//! What a WebRun client may say of a session and of a task, in every documented generation, checked and brought into
//! the core's terms. What is valid reaches the runtime whole.

use onlooker_protocol::subscriber::NewTask;
use serde_json::{Map, Value};

use super::problem::Problem;

/// A task as a `newTask` message, a flat `run-task` body or a nested `task` has it.
///
/// # Errors
/// 400, naming the parameter.
pub fn task(members: Map<String, Value>) -> Result<NewTask, Problem> {
    let mut members = members;
    for (old, new) in [("taskDetails", "prompt"), ("startingPoint", "startingUrl")] {
        if let Some(value) = members.remove(old) {
            members.entry(new).or_insert(value);
        }
    }
    let read = serde_json::from_value(Value::Object(members));
    read.map_err(|error| Problem::parameter("task", &error.to_string()))
}

//! Keeps a runtime connected to its gateway.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::agent::Agent;

/// Where to register, and as what.
pub struct Options {
    pub gateway: Url,
    pub token: Option<String>,
    pub name: String,
    pub capacity: u32,
    pub labels: Map<String, Value>,
}

/// The runtime cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the runtime cannot go on")]
pub struct RunError;

pub async fn run(_options: Options, _agent: Arc<dyn Agent>, shutdown: CancellationToken) -> Result<(), RunError> {
    shutdown.cancelled().await;
    Ok(())
}

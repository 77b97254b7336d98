//! Which people's chats belong to which project and environment.
//!
//! A person links by sending a one-time code to the bot. A link without an environment makes the chat the project's
//! default; one with an environment is told of the sessions in it. Links are stored; codes live in memory and die with
//! the process or after ten minutes.

use std::sync::{Arc, RwLock};

use serde::{Deserialize, Serialize};

use crate::{chat::Person, engine::Engine, ids::Project};

/// A person whose chat is told, and who may answer there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    pub id: String,
    pub project: String,
    /// `None`: for the whole project, where no chat is linked to the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    pub connector: String,
    /// The chat in which the code was sent.
    pub address: String,
    pub user: String,
    pub name: String,
    pub at: String,
}

impl Link {
    pub fn target(&self) -> String {
        format!("{}:{}", self.connector, self.address)
    }
}

/// Every link. Reading never waits.
pub struct Links {
    #[expect(dead_code, reason = "links are stored")]
    engine: Arc<dyn Engine>,
    links: RwLock<Vec<Link>>,
}

impl Links {
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine, links: RwLock::default() }
    }

    /// Chats to tell, in the order of preference: those of the environment, then those of the whole project.
    pub fn targets(&self, project: &Project, environment: Option<&str>) -> [Vec<String>; 2] {
        let links = self.links.read().expect("no holder panics");
        let of = |scope: Option<&str>| {
            let ours = links.iter().filter(|link| *link.project == **project && link.environment.as_deref() == scope);
            let mut targets: Vec<String> = ours.map(Link::target).collect();
            targets.sort();
            targets.dedup();
            targets
        };
        [environment.map(|named| of(Some(named))).unwrap_or_default(), of(None)]
    }

    /// Whether this person may answer for sessions of this project and environment.
    pub fn may_answer(&self, project: &str, environment: Option<&str>, connector: &str, person: &Person) -> bool {
        let links = self.links.read().expect("no holder panics");
        links.iter().any(|link| {
            link.connector == connector
                && link.user == person.id
                && link.project == project
                && (link.environment.is_none() || link.environment.as_deref() == environment)
        })
    }
}

#[cfg(test)]
impl Links {
    /// Links that are there without a code.
    pub(crate) fn with(engine: Arc<dyn Engine>, links: Vec<Link>) -> Self {
        Self { engine, links: RwLock::new(links) }
    }
}

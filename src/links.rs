//! Which people's chats belong to which project and environment.
//!
//! A person links by sending a one-time code to the bot. A link without an environment makes the chat the project's
//! default; one with an environment is told of the sessions in it. Links are stored, all of a project in one record, so
//! that its limits and a second link for the same chat are decided by compare-and-set. Codes live in memory and die with
//! the process or after ten minutes.

pub mod codes;

use std::{
    collections::HashMap,
    sync::{Arc, RwLock, RwLockReadGuard},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use self::codes::{Codes, Scope};
use crate::{
    chat::Person,
    clock,
    engine::{Engine, EngineError, RecordKey, RecordKind, Version},
    ids::{self, Project, SessionId},
};

/// Links of one project.
pub const PER_PROJECT: usize = 256;
/// Links of one environment, and of those without one: each question is a message to all of them.
pub const PER_ENVIRONMENT: usize = 32;
/// The version of the stored form.
const VERSION: u32 = 1;
/// What the records of links are called, before the project's name.
const RECORD: &str = "link.";
/// How often a change is made anew because another one came first.
const TRIES: usize = 16;

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

    /// A link to the whole project lets its person answer everywhere in it.
    fn reaches(&self, environment: Option<&str>) -> bool {
        self.environment.is_none() || self.environment.as_deref() == environment
    }

    fn is_of(&self, connector: &str, user: &str) -> bool {
        self.connector == connector && self.user == user
    }
}

/// Why links were not changed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the project, or the environment, has as many links as it may have")]
    Full,
    #[error("the stored links of this project cannot be read")]
    Unreadable,
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What came of a code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    pub link: Link,
    /// This person was linked to the same in this chat before.
    pub again: bool,
}

/// Every link. Reading never waits.
pub struct Links {
    engine: Arc<dyn Engine>,
    pub codes: Codes,
    projects: RwLock<HashMap<String, OfProject>>,
}

/// The links of one project as its record has them, and what is asked of them at every decision.
#[derive(Default)]
struct OfProject {
    version: Version,
    links: Vec<Link>,
    /// Targets by environment, sorted and each once.
    targets: HashMap<String, Vec<String>>,
    /// Of the links to the whole project.
    default: Vec<String>,
}

impl OfProject {
    fn new(version: Version, links: Vec<Link>) -> Self {
        let (mut targets, mut default) = (HashMap::<String, Vec<String>>::new(), Vec::new());
        for link in &links {
            match &link.environment {
                Some(environment) => targets.entry(environment.clone()).or_default().push(link.target()),
                None => default.push(link.target()),
            }
        }
        for targets in targets.values_mut().chain([&mut default]) {
            targets.sort();
            targets.dedup();
        }
        Self { version, links, targets, default }
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    v: u32,
    links: Vec<Link>,
}

impl Links {
    /// No links. Those that are stored come with [`Self::load`].
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine, codes: Codes::default(), projects: RwLock::default() }
    }

    /// Every link that is stored.
    ///
    /// # Errors
    /// The engine cannot list them. What cannot be read is left alone, and said in the log.
    pub async fn load(engine: Arc<dyn Engine>) -> Result<Self, EngineError> {
        let links = Self::new(engine);
        for (key, version, value) in links.engine.list(RecordKind::Gateway, Some(SessionId::NONE)).await? {
            let Some(project) = key.name.strip_prefix(RECORD) else { continue };
            match decoded(&value) {
                Some(stored) => links.show(project, version, stored),
                None => tracing::error!(project, "the stored links of a project cannot be read: nobody in it is told"),
            }
        }
        Ok(links)
    }

    /// Chats to tell, in the order of preference: those of the environment, then those of the whole project.
    pub fn targets(&self, project: &Project, environment: Option<&str>) -> [Vec<String>; 2] {
        let projects = self.read();
        let Some(of_project) = projects.get(&**project) else { return Default::default() };
        let named = environment.and_then(|named| of_project.targets.get(named)).cloned();
        [named.unwrap_or_default(), of_project.default.clone()]
    }

    /// Whether this person may answer for sessions of this project and environment.
    pub fn may_answer(&self, project: &str, environment: Option<&str>, connector: &str, person: &Person) -> bool {
        let fits = |link: &&Link| link.is_of(connector, &person.id) && link.reaches(environment);
        self.read().get(project).is_some_and(|of_project| of_project.links.iter().any(|link| fits(&link)))
    }

    /// Whether this person is linked to anything.
    pub fn knows(&self, connector: &str, person: &Person) -> bool {
        self.read().values().any(|of_project| of_project.links.iter().any(|link| link.is_of(connector, &person.id)))
    }

    /// A person's links, in all projects.
    pub fn of_person(&self, connector: &str, person: &Person) -> Vec<Link> {
        let projects = self.read();
        let all = projects.values().flat_map(|of_project| &of_project.links);
        all.filter(|link| link.is_of(connector, &person.id)).cloned().collect()
    }

    /// Who is linked to sessions of this project and environment in a chat.
    pub fn at(&self, project: &str, environment: Option<&str>, target: &str) -> Vec<Link> {
        let fits = |link: &&Link| link.reaches(environment) && link.target() == target;
        self.of_project(project).into_iter().filter(|link| fits(&link)).collect()
    }

    /// A project's links, oldest first.
    pub fn of_project(&self, project: &str) -> Vec<Link> {
        self.read().get(project).map(|of_project| of_project.links.clone()).unwrap_or_default()
    }

    /// Links a person's chat; again in the same chat is no second link.
    ///
    /// # Errors
    /// [`LinkError`]; nothing is changed then, unless the engine did not say.
    pub async fn add(
        &self,
        scope: &Scope,
        (connector, address): (&str, &str),
        person: &Person,
    ) -> Result<Linked, LinkError> {
        let fresh = Link {
            id: ids::random_id(),
            project: scope.project.to_string(),
            environment: scope.environment.clone(),
            connector: connector.to_owned(),
            address: address.to_owned(),
            user: person.id.clone(),
            name: person.name.clone(),
            at: clock::now_text(),
        };
        self.change(&scope.project, |links| {
            let same = |link: &&mut Link| {
                link.is_of(connector, &person.id) && link.address == address && link.environment == fresh.environment
            };
            if let Some(link) = links.iter_mut().find(same) {
                link.name.clone_from(&fresh.name);
                return Ok(Linked { link: link.clone(), again: true });
            }
            let beside = links.iter().filter(|link| link.environment == fresh.environment).count();
            if links.len() >= PER_PROJECT || beside >= PER_ENVIRONMENT {
                return Err(LinkError::Full);
            }
            links.push(fresh.clone());
            Ok(Linked { link: fresh.clone(), again: false })
        })
        .await
    }

    /// Removes one link of a project. `None`: there is none.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub async fn remove(&self, project: &str, id: &str) -> Result<Option<Link>, LinkError> {
        let removed = self.remove_where(project, |link| link.id == id).await?;
        Ok(removed.into_iter().next())
    }

    /// Removes all links of a person.
    ///
    /// # Errors
    /// As [`Self::add`]; some may be removed.
    pub async fn remove_person(&self, connector: &str, person: &Person) -> Result<Vec<Link>, LinkError> {
        let mut projects: Vec<String> =
            self.of_person(connector, person).into_iter().map(|link| link.project).collect();
        projects.sort();
        projects.dedup();
        let mut removed = Vec::new();
        for project in projects {
            removed.extend(self.remove_where(&project, |link| link.is_of(connector, &person.id)).await?);
        }
        Ok(removed)
    }

    async fn remove_where(&self, project: &str, fits: impl Fn(&Link) -> bool) -> Result<Vec<Link>, LinkError> {
        if !self.of_project(project).iter().any(&fits) {
            return Ok(Vec::new());
        }
        self.change(project, |links| Ok(links.extract_if(.., |link| fits(link)).collect())).await
    }

    /// Changes a project's links as long as another change comes first.
    async fn change<T>(
        &self,
        project: &str,
        change: impl Fn(&mut Vec<Link>) -> Result<T, LinkError>,
    ) -> Result<T, LinkError> {
        let key = RecordKey { kind: RecordKind::Gateway, session: SessionId::NONE, name: format!("{RECORD}{project}") };
        let mut conflict = None;
        for _ in 0..TRIES {
            let (seen, mut links) = match self.read().get(project) {
                Some(of_project) => (Some(of_project.version), of_project.links.clone()),
                None => (None, Vec::new()),
            };
            let done = change(&mut links)?;
            match self.engine.put(key.clone(), seen, encoded(&links)).await {
                Ok(version) => {
                    self.show(project, version, links);
                    return Ok(done);
                }
                Err(error @ EngineError::Conflict { .. }) => conflict = Some(error),
                Err(error) => return Err(error.into()),
            }
            if let Some((version, value)) = self.engine.get(key.clone()).await? {
                self.show(project, version, decoded(&value).ok_or(LinkError::Unreadable)?);
            }
        }
        Err(conflict.unwrap_or(EngineError::Unavailable(None)).into())
    }

    /// What is asked for from here on, unless something newer is.
    fn show(&self, project: &str, version: Version, links: Vec<Link>) {
        let mut projects = self.projects.write().expect("no holder panics");
        if projects.get(project).is_none_or(|known| known.version < version) {
            projects.insert(project.to_owned(), OfProject::new(version, links));
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, OfProject>> {
        self.projects.read().expect("no holder panics")
    }
}

fn encoded(links: &[Link]) -> Bytes {
    let stored = Stored { v: VERSION, links: links.to_vec() };
    serde_json::to_vec(&stored).expect("links are plain data").into()
}

/// `None`: it is damaged, or a newer gateway wrote it.
fn decoded(value: &[u8]) -> Option<Vec<Link>> {
    serde_json::from_slice::<Stored>(value).ok().filter(|stored| stored.v == VERSION).map(|stored| stored.links)
}

#[cfg(test)]
impl Links {
    /// Links that are there without a code.
    pub(crate) fn with(engine: Arc<dyn Engine>, links: Vec<Link>) -> Self {
        let made = Self::new(engine);
        for link in links {
            let project = link.project.clone();
            let mut of_project = made.of_project(&project);
            of_project.push(link);
            let version = Version::try_from(of_project.len()).expect("few links");
            made.show(&project, version, of_project);
        }
        made
    }
}

#[cfg(test)]
mod tests;

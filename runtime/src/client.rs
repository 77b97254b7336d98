//! The runtime's end of `/v1/runtime`: keeps a connection for as long as that can help, and the sessions across
//! connections.
//!
//! Promises to agents: every event published reaches the log once and in order, or its loss is told to the gateway;
//! every command is applied once; every outcome is handed over once. A session ends here when the gateway releases
//! it, when a command terminates it, or when this process stops; a lost connection ends none.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use onlooker_protocol::code::ComeBack;
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    agent::{Agent, Options},
    backoff::Backoff,
    socket::{self, SocketError},
};
use connection::Connection;
use session::Session;

mod connection;
mod questions;
pub(crate) mod session;
pub(crate) mod window;
mod worker;

/// How long the last events may take at shutdown.
const FAREWELL: Duration = Duration::from_secs(5);

pub(crate) async fn run(
    options: Options,
    agent: Arc<dyn Agent>,
    shutdown: CancellationToken,
) -> Result<(), SocketError> {
    let url = socket::address(&options.gateway, "/v1/runtime")?;
    let mut client = Client { options, agent, sessions: Sessions::default(), workers: JoinSet::new() };
    let mut backoff = Backoff::new();
    let result = loop {
        let began = Instant::now();
        let mut goaway = Duration::ZERO;
        let lost = match client.connect(&url, &shutdown, &mut goaway).await {
            Ok(()) => break Ok(()),
            Err(error) => error,
        };
        client.sessions.each(|session| session.disconnected());
        if lost.come_back() == ComeBack::Never {
            break Err(lost);
        }
        let wait = backoff.after_loss(began, lost.come_back(), goaway);
        warn!(error = %lost, wait_ms = wait.as_millis(), "not connected to the gateway");
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
    };
    client.end_all().await;
    result
}

struct Client {
    options: Options,
    agent: Arc<dyn Agent>,
    sessions: Sessions,
    workers: JoinSet<()>,
}

impl Client {
    /// One connection's life. `Ok` means that the shutdown is complete.
    async fn connect(
        &mut self,
        url: &url::Url,
        shutdown: &CancellationToken,
        goaway: &mut Duration,
    ) -> Result<(), SocketError> {
        let greeted = async { Connection::greet(self, socket::connect(url, None).await?).await };
        let (mut connection, sink) = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            greeted = greeted => greeted?,
        };
        info!(gateway = %socket::shown(url), name = %self.options.name, "connected to the gateway");
        let result = connection.run(self, sink, shutdown).await;
        *goaway = connection.goaway_left();
        result
    }

    /// Takes a session up and begins to work on its tasks.
    fn take(&mut self, session: Session) -> Arc<Session> {
        let session = Arc::new(session);
        self.sessions.insert(session.clone());
        self.workers.spawn(worker::work_through(session.clone(), self.agent.clone()));
        // Finished workers are collected here, so that their number is bounded by that of live sessions.
        while self.workers.try_join_next().is_some() {}
        session
    }

    /// The session is no longer this runtime's; its work is dropped.
    fn let_go(&self, id: &str) {
        if let Some(session) = self.sessions.remove(id) {
            session.ended.cancel();
        }
    }

    async fn end_all(&mut self) {
        self.sessions.each(|session| session.ended.cancel());
        let all = async { while self.workers.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, all).await.is_err() {
            warn!("work did not end in time and is aborted");
            self.workers.shutdown().await;
        }
    }
}

/// The sessions held, shared between the reading and the writing half of a connection.
#[derive(Clone, Default)]
struct Sessions {
    by_id: Arc<Mutex<HashMap<String, Arc<Session>>>>,
    /// Somebody has something to send.
    outgoing: Arc<Notify>,
    /// A session was let go.
    gone: Arc<Notify>,
}

impl Sessions {
    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.by_id.lock().expect("no section of this mutex panics")
    }

    fn get(&self, id: &str) -> Option<Arc<Session>> {
        self.locked().get(id).cloned()
    }

    fn insert(&self, session: Arc<Session>) {
        self.locked().insert(session.id.clone(), session);
    }

    fn remove(&self, id: &str) -> Option<Arc<Session>> {
        let session = self.locked().remove(id);
        self.gone.notify_one();
        session
    }

    async fn all_gone(&self) {
        while self.len() > 0 {
            self.gone.notified().await;
        }
    }

    fn len(&self) -> usize {
        self.locked().len()
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.locked().values().cloned().collect()
    }

    fn each(&self, act: impl Fn(&Session)) {
        for session in self.all() {
            act(&session);
        }
    }
}

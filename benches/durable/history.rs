//! Subscribers that resume: they read histories page after page over HTTP, as fast as they get them or by the clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::Outcome;

pub(crate) struct Readers {
    tasks: JoinSet<Outcome<()>>,
    stop: CancellationToken,
    bytes: Arc<AtomicU64>,
    begun: Instant,
}

impl Readers {
    /// Starts so many readers over these sessions; each resumes one after the other, so many in a second at most.
    pub(crate) fn start(address: &str, sessions: &[String], readers: usize, resumes: Option<f64>) -> Self {
        let (mut tasks, stop, bytes) = (JoinSet::new(), CancellationToken::new(), Arc::<AtomicU64>::default());
        for reader in 0..readers {
            let mut sessions = sessions.to_vec();
            let places = sessions.len();
            sessions.rotate_left(reader * places / readers);
            let (address, bytes, stop) = (address.to_owned(), Arc::clone(&bytes), stop.clone());
            let pause = resumes.map(|resumes| Duration::from_secs_f64(readers as f64 / resumes));
            tasks.spawn(async move {
                tokio::select! {
                    read = resume(address, sessions, pause, bytes) => read,
                    () = stop.cancelled() => Ok(()),
                }
            });
        }
        Self { tasks, stop, bytes, begun: Instant::now() }
    }

    /// Ends them and says how many bytes they got in a second.
    pub(crate) async fn end(mut self) -> Outcome<f64> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(self.bytes.load(Ordering::Relaxed) as f64 / self.begun.elapsed().as_secs_f64())
    }
}

async fn resume(address: String, sessions: Vec<String>, pause: Option<Duration>, bytes: Arc<AtomicU64>) -> Outcome<()> {
    let mut connection = BufReader::new(TcpStream::connect(&address).await?);
    let (begun, mut resumed) = (Instant::now(), 0_u32);
    let mut body = Vec::new();
    for session in sessions.iter().cycle() {
        let mut since = "start".to_owned();
        loop {
            page(&mut connection, &address, session, &since, &mut body).await?;
            bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
            let position = position(&body).ok_or("a page has no position")?;
            if body.starts_with(br#"{"events":[]"#) || position == since {
                break;
            }
            since = position;
        }
        resumed += 1;
        if let Some(pause) = pause {
            tokio::time::sleep_until((begun + pause * resumed).into()).await;
        }
    }
    Ok(())
}

async fn page(
    connection: &mut BufReader<TcpStream>,
    address: &str,
    session: &str,
    since: &str,
    body: &mut Vec<u8>,
) -> Outcome<()> {
    let request = format!("GET /v1/sessions/{session}/events?since={since} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    connection.get_mut().write_all(request.as_bytes()).await?;
    let (mut line, mut length, mut first) = (String::new(), None, true);
    loop {
        line.clear();
        connection.read_line(&mut line).await?;
        let line = line.trim_end().to_ascii_lowercase();
        if first && !line.starts_with("http/1.1 200 ") {
            return Err(format!("a page was refused: {line}").into());
        }
        first = false;
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok();
        }
    }
    body.resize(length.ok_or("a page has no length")?, 0);
    connection.read_exact(body).await?;
    Ok(())
}

/// The position that a page ends with.
fn position(body: &[u8]) -> Option<String> {
    let end = &body[body.len().saturating_sub(200)..];
    let end = std::str::from_utf8(end).ok()?;
    let (_, rest) = end.rsplit_once(r#""],"position":""#).or_else(|| end.rsplit_once(r#"],"position":""#))?;
    Some(rest.split('"').next()?.to_owned())
}

//! A webhook's receiver that confirms, refuses, hangs, or ends the connection, as chance has it.

use std::{collections::HashMap, time::Duration};

use rand::{RngExt as _, rngs::SmallRng};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::chance;
use crate::history::{Delivered, History, Reaction, What};

/// Longer than the gateway waits for it.
const HANG: Duration = Duration::from_secs(2);

pub struct Receiver {
    pub url: String,
    server: JoinHandle<()>,
}

impl Receiver {
    /// `trouble` is the share of requests that are not confirmed.
    pub async fn start(history: History, seed: u64, trouble: f64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let mut rng = chance(seed, 1_000);
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, history.clone(), choose(&mut rng, trouble)));
            }
        });
        Self { url, server }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[derive(Clone, Copy)]
enum Choice {
    Confirm,
    Refuse,
    Hang,
    End,
}

fn choose(rng: &mut SmallRng, trouble: f64) -> Choice {
    match rng.random_range(0..4) {
        _ if !rng.random_bool(trouble) => Choice::Confirm,
        0 | 1 => Choice::Refuse,
        2 => Choice::Hang,
        _ => Choice::End,
    }
}

/// One request on one connection, as the gateway sends them.
async fn serve(mut stream: TcpStream, history: History, choice: Choice) -> Option<()> {
    let (headers, body) = read(&mut stream).await?;
    let reaction = match choice {
        Choice::Confirm => Reaction::Confirmed,
        Choice::Refuse => Reaction::Refused,
        Choice::Hang | Choice::End => Reaction::Silent,
    };
    history.record(What::Delivered(delivered(&headers, &body, reaction)));
    let answer = match choice {
        Choice::Confirm => "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
        Choice::Refuse => "HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        Choice::Hang => {
            tokio::time::sleep(HANG).await;
            return None;
        }
        Choice::End => return None,
    };
    stream.write_all(answer.as_bytes()).await.ok()
}

/// `None`: the connection ended in the middle of a request, which then never was one.
async fn read(stream: &mut TcpStream) -> Option<(HashMap<String, String>, Value)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let pair = |line: &str| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    let headers: HashMap<_, _> = head.lines().filter_map(pair).collect();
    let length: usize = headers.get("content-length")?.parse().ok()?;
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some((headers, serde_json::from_slice(&bytes[end..]).expect("a notice is JSON")))
}

fn delivered(headers: &HashMap<String, String>, body: &Value, reaction: Reaction) -> Delivered {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let guardrail = &body["guardrail"];
    let revision = u32::try_from(guardrail["revision"].as_u64().unwrap_or_default()).unwrap();
    let about = if guardrail.is_null() { text(&body["task"]) } else { text(&guardrail["guardrailId"]) };
    let id = headers.get("webhook-id").cloned().unwrap_or_default();
    assert_eq!(id, text(&body["id"]), "the header and the body name the same notice");
    Delivered {
        id,
        repeat: body["repeat"] == true,
        kind: text(&body["type"]),
        session: text(&body["session"]),
        about: (about, revision),
        reaction,
    }
}

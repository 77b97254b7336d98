//! What the session log does to a store: groups of chunks and heads, committed together.

use std::collections::VecDeque;

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Bytes of one record.
pub const RECORD: usize = 300;
/// Bytes before the first record of a chunk.
pub const CHUNK_HEADER: usize = 16;
/// Bytes of a session's head.
pub const HEAD: usize = 64;

/// What one commit does for one session.
pub struct SessionWrite {
    pub session: u64,
    pub first: u64,
    pub chunk: Vec<u8>,
    pub head: [u8; HEAD],
    /// First offsets of the chunks that this commit deletes.
    pub trimmed: Vec<u64>,
}

/// How many records a chunk holds.
pub fn records_of(chunk: &[u8]) -> u64 {
    (chunk.len().saturating_sub(CHUNK_HEADER) / RECORD) as u64
}

#[derive(Default)]
struct Session {
    next: u64,
    chunks: VecDeque<(u64, u64)>,
}

/// An endless source of groups. Sessions take turns.
pub struct Load {
    sessions: Vec<Session>,
    turn: usize,
    pool: Vec<u8>,
    random: StdRng,
    bound: Option<u64>,
}

impl Load {
    /// `bound` is the number of records that each session keeps.
    pub fn new(sessions: usize, bound: Option<u64>) -> Self {
        let mut random = StdRng::seed_from_u64(7);
        let pool = (0..4096).flat_map(|n| record(n, &mut random)).collect();
        let sessions = (0..sessions).map(|_| Session::default()).collect();
        Self { sessions, turn: 0, pool, random, bound }
    }

    /// One commit: the next `sessions` sessions get `records` records each.
    pub fn group(&mut self, sessions: usize, records: usize) -> Vec<SessionWrite> {
        (0..sessions).map(|_| self.write(records)).collect()
    }

    fn write(&mut self, records: usize) -> SessionWrite {
        let number = self.turn;
        self.turn = (self.turn + 1) % self.sessions.len();
        let session = &mut self.sessions[number];
        let first = session.next;
        session.next += records as u64;
        session.chunks.push_back((first, session.next));
        let mut trimmed = Vec::new();
        while let (Some(bound), Some(&(oldest, end))) = (self.bound, session.chunks.front()) {
            if session.next - end < bound {
                break;
            }
            trimmed.push(oldest);
            session.chunks.pop_front();
        }
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&session.next.to_be_bytes());
        self.random.fill(&mut head[8..]);
        SessionWrite { session: number as u64, first, chunk: self.chunk(first, records), head, trimmed }
    }

    fn chunk(&mut self, first: u64, records: usize) -> Vec<u8> {
        let mut chunk = Vec::with_capacity(CHUNK_HEADER + records * RECORD);
        chunk.extend_from_slice(&first.to_be_bytes());
        chunk.extend_from_slice(&(records as u64).to_be_bytes());
        for _ in 0..records {
            let at = self.random.random_range(0..self.pool.len() / RECORD) * RECORD;
            chunk.extend_from_slice(&self.pool[at..at + RECORD]);
        }
        chunk
    }
}

/// A record that compresses about as an event does: words of a frame around text that differs.
fn record(number: u64, random: &mut StdRng) -> Vec<u8> {
    let mut text =
        format!(r#"{{"type":"step","n":{number},"at":"2000-01-01T00:00:00.000Z","action":"click","target":"#);
    while text.len() < RECORD {
        text.push_str(&format!("{:x} ", random.random::<u64>()));
    }
    text.into_bytes()[..RECORD].to_vec()
}

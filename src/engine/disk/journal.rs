//! The journal: what a group appends lies in one row first, whatever logs it is for, in the order of the commits. A log's
//! records move to chunks of its own later, many at once ([`super::committer`] calls that settling), and the rows go when
//! all that is in them has moved or is gone.
//!
//! A chunk for each append would cost a page of the index each, which is twenty times what a usual event has.
//!
//! Rows are kept as chunks of a log that does not exist. A stored log's row says from which journal row on entries are
//! newer than it; older ones, and those of logs that are gone, mean nothing.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes};
use xxhash_rust::xxh3::xxh3_64;

use super::encoding::{self, Heads, LogRow};
use crate::{engine::Record, ids::SessionId};

/// Where the rows lie. Numbers of logs begin at 1.
pub(super) const LOG: i64 = 0;
/// What the journal holds at most before whoever writes waits until some of it is settled.
pub(super) const MOST_BYTES: usize = 64 << 20;

/// What a row's memory may hold on to between two groups.
const KEPT_BYTES: usize = 256 << 10;

/// A row of the journal, as it grows.
#[derive(Default)]
pub(super) struct Entries {
    heads: Vec<u8>,
    frames: Vec<u8>,
}

impl Entries {
    pub(super) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Adds what one append brought to a log, and the log's row after it.
    pub(super) fn add(&mut self, row: &LogRow, records: &[Record]) {
        self.heads.put_i64(row.number);
        row.put(&mut self.heads);
        let length_at = self.heads.len();
        self.heads.put_u32(0);
        if !records.is_empty() {
            encoding::put_description(&mut self.heads, records);
        }
        let length = (self.heads.len() - length_at - 4) as u32;
        self.heads[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
        for record in records {
            self.frames.extend_from_slice(&record.frame);
        }
    }

    /// The row's heads and frames. Nothing more is added until they are cleared.
    pub(super) fn seal(&mut self, number: i64) -> (&[u8], &[u8]) {
        self.heads.put_u64(xxh3_64(&self.frames));
        encoding::seal_chunk(&mut self.heads, LOG, number);
        (&self.heads, &self.frames)
    }

    /// The memory is used again, unless there is much of it.
    pub(super) fn clear(&mut self) {
        for part in [&mut self.heads, &mut self.frames] {
            part.clear();
            part.shrink_to(KEPT_BYTES);
        }
    }
}

/// What one append brought.
pub(super) struct Entry {
    /// The log's row after it.
    pub row: LogRow,
    pub records: Vec<Record>,
}

/// The entries of a row. None: it is not what was written at this place.
pub(super) fn decode(number: i64, heads: &[u8], frames: &[u8]) -> Option<Vec<Entry>> {
    let (mut heads, sum) = encoding::unsealed_chunk(heads, LOG, number)?.split_last_chunk::<8>()?;
    if u64::from_be_bytes(*sum) != xxh3_64(frames) {
        return None;
    }
    let mut frames = Bytes::copy_from_slice(frames);
    let mut entries = Vec::new();
    while !heads.is_empty() {
        let log = heads.try_get_i64().ok()?;
        let row = LogRow::take(log, &mut heads)?;
        let length = usize::try_from(heads.try_get_u32().ok()?).ok()?;
        let (description, rest) = heads.split_at_checked(length)?;
        heads = rest;
        let records = if description.is_empty() {
            Vec::new()
        } else {
            Heads::read(description, row.head.next)?.split(&mut frames)?
        };
        entries.push(Entry { row, records });
    }
    frames.is_empty().then_some(entries)
}

/// A row that is in the store.
#[derive(Clone, Copy)]
pub(super) struct StoredRow {
    /// Its checksum, as the totals have it.
    pub sum: u64,
    pub bytes: usize,
}

/// Which rows there are, and whose records are in them. Their numbers have no hole.
pub(super) struct Journal {
    next: i64,
    rows: VecDeque<StoredRow>,
    bytes: usize,
    /// Logs with records here that are not being settled; each once.
    waiting: Vec<SessionId>,
    settling: VecDeque<SessionId>,
    /// Rows before this one are needed no more once nothing is being settled.
    below: i64,
    /// Bytes from which on it is settled.
    settled_at: usize,
}

impl Journal {
    pub(super) fn new(next: i64, rows: &[StoredRow], waiting: Vec<SessionId>, settled_at: usize) -> Self {
        let bytes = rows.iter().map(|row| row.bytes).sum();
        let rows: VecDeque<_> = rows.iter().copied().collect();
        let below = next - rows.len() as i64;
        Self { next, rows, bytes, waiting, settling: VecDeque::new(), below, settled_at }
    }

    /// The number of the next row.
    pub(super) fn next(&self) -> i64 {
        self.next
    }

    /// The next row is in the store.
    pub(super) fn push(&mut self, row: StoredRow) {
        self.next += 1;
        self.bytes += row.bytes;
        self.rows.push_back(row);
    }

    /// A log has records here that it had not before.
    pub(super) fn waits(&mut self, session: SessionId) {
        self.waiting.push(session);
    }

    pub(super) fn is_too_long(&self) -> bool {
        self.bytes > MOST_BYTES
    }

    pub(super) fn is_settling(&self) -> bool {
        !self.settling.is_empty() || self.oldest() < self.below
    }

    /// Begins to settle everything that is here now, if it is due and not under way.
    pub(super) fn settle_if_due(&mut self) {
        if !self.is_settling() && self.bytes > self.settled_at {
            self.settle_all();
        }
    }

    pub(super) fn settle_all(&mut self) {
        self.settling.extend(self.waiting.drain(..));
        self.below = self.next;
    }

    pub(super) fn take(&mut self) -> Option<SessionId> {
        self.settling.pop_front()
    }

    /// It was taken and is not settled.
    pub(super) fn put_back(&mut self, session: SessionId) {
        self.settling.push_front(session);
    }

    /// Rows that are needed no more, oldest first; none while something is being settled.
    pub(super) fn obsolete(&self) -> impl Iterator<Item = (i64, StoredRow)> {
        let below = if self.settling.is_empty() { self.below } else { self.oldest() };
        (self.oldest()..below).zip(self.rows.iter().copied())
    }

    /// So many of the oldest are no longer in the store.
    pub(super) fn removed(&mut self, rows: usize) {
        self.bytes -= self.rows.drain(..rows).map(|row| row.bytes).sum::<usize>();
    }

    fn oldest(&self) -> i64 {
        self.next - self.rows.len() as i64
    }
}

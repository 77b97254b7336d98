//! What lies in the store, byte for byte: every value carries a checksum over itself and over the place where it
//! belongs. A flipped bit, or a value in another's place, is always found; what is not whole is never decoded.
//!
//! Numbers are big-endian, or LEB128 where they are small.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use onlooker_protocol::event::Epoch;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    engine::{Head, Record, RecordKey, RecordKind, Version},
    ids::SessionId,
};

/// A log's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogRow {
    pub number: i64,
    pub session: SessionId,
    pub head: Head,
    /// Bytes of the frames that can be read.
    pub frame_bytes: u64,
    /// The time of the oldest record that can be read; 0 in an empty log.
    pub oldest_at: u64,
}

impl LogRow {
    const BYTES: usize = 20 + 8 + 6 * 8;

    /// What the log counts against the bounds, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let records = self.head.next - self.head.first;
        self.frame_bytes + records * std::mem::size_of::<Record>() as u64
    }

    /// As it is stored. `journal`: rows of the journal from this one on may say more.
    pub(super) fn encode(&self, journal: i64) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::BYTES + 16);
        self.put(&mut out);
        out.put_i64(journal);
        sealed(out, self.number)
    }

    /// The stored row, and from where on the journal may say more.
    pub(super) fn decode(number: i64, bytes: &[u8]) -> Option<(Self, i64)> {
        let mut bytes = unsealed(bytes, number)?;
        let row = Self::take(number, &mut bytes)?;
        // A store that has never had a journal does not say it.
        Some((row, if bytes.is_empty() { 0 } else { bytes.try_get_i64().ok()? }))
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put_slice(self.session.as_str().as_bytes());
        out.put_slice(self.head.epoch.as_str().as_bytes());
        let Head { term, first, next, n, .. } = self.head;
        for number in [term, first, next, n, self.frame_bytes, self.oldest_at] {
            out.put_u64(number);
        }
    }

    pub(super) fn take(number: i64, bytes: &mut &[u8]) -> Option<Self> {
        let session = std::str::from_utf8(bytes.get(..20)?).ok()?.parse().ok()?;
        let epoch = Epoch::new(std::str::from_utf8(bytes.get(20..28)?).ok()?)?;
        bytes.advance(28);
        let mut next_number = || bytes.try_get_u64().ok();
        let (term, first, next, n) = (next_number()?, next_number()?, next_number()?, next_number()?);
        let (frame_bytes, oldest_at) = (next_number()?, next_number()?);
        let head = Head { epoch, term, first, next, n };
        (first <= next).then_some(Self { number, session, head, frame_bytes, oldest_at })
    }
}

/// The mark of a removed log whose content is not all purged yet.
pub(super) fn removed_mark(number: i64) -> Vec<u8> {
    sealed(Vec::new(), number)
}

pub(super) fn is_removed_mark(number: i64, bytes: &[u8]) -> bool {
    bytes == removed_mark(number)
}

/// The value with the checksum over it and its number at the end.
fn sealed(mut value: Vec<u8>, number: i64) -> Vec<u8> {
    seal(&mut value, number);
    value
}

fn seal(value: &mut Vec<u8>, number: i64) {
    let sum = xxh3_64_with_seed(value, number.cast_unsigned());
    value.put_u64(sum);
}

fn unsealed(bytes: &[u8], number: i64) -> Option<&[u8]> {
    let (value, sum) = bytes.split_last_chunk::<8>()?;
    (xxh3_64_with_seed(value, number.cast_unsigned()) == u64::from_be_bytes(*sum)).then_some(value)
}

/// The checksum at the end of a sealed value.
pub(super) fn sum_of(sealed: &[u8]) -> u64 {
    sealed.last_chunk().map_or(0, |sum| u64::from_be_bytes(*sum))
}

/// What a set of rows must be: so many, with checksums that give this together. Finds rows that are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    pub rows: u64,
    pub mixed: u64,
}

impl Total {
    pub(super) fn add(&mut self, sum: u64) {
        self.rows = self.rows.wrapping_add(1);
        self.mixed ^= sum;
    }

    pub(super) fn take(&mut self, sum: u64) {
        self.rows = self.rows.wrapping_sub(1);
        self.mixed ^= sum;
    }
}

/// What is true of the store as a whole; written with every commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub next_number: i64,
    pub logs: Total,
    pub records: Total,
}

impl Totals {
    pub(super) const NAME: &str = "totals";

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        out.put_i64(self.next_number);
        for number in [self.logs.rows, self.logs.mixed, self.records.rows, self.records.mixed] {
            out.put_u64(number);
        }
        sealed(out, 0)
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = unsealed(bytes, 0)?;
        let next_number = bytes.try_get_i64().ok()?;
        let mut total = || Some(Total { rows: bytes.try_get_u64().ok()?, mixed: bytes.try_get_u64().ok()? });
        Some(Self { next_number, logs: total()?, records: total()? })
    }
}

/// What the last process that had the store left for the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LastRun {
    /// A commit counted as kept when the operating system had it.
    pub os: bool,
    pub closed: bool,
    /// Something may have been lost, and no process has come to a clean end since.
    pub may_have_lost: bool,
    /// The machine's start, where it is known.
    pub boot: String,
}

impl LastRun {
    pub(super) const NAME: &str = "run";

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.os), u8::from(self.closed), u8::from(self.may_have_lost)];
        out.put_slice(self.boot.as_bytes());
        sealed(out, 0)
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (flags, boot) = unsealed(bytes, 0)?.split_first_chunk::<3>()?;
        let [os, closed, may_have_lost] = flags.map(|flag| flag == 1);
        Some(Self { os, closed, may_have_lost, boot: String::from_utf8(boot.to_vec()).ok()? })
    }
}

/// A batch's records as the store keeps them: what describes them, and their frames one behind the other.
pub(super) struct EncodedChunk {
    pub heads: Vec<u8>,
    pub frames: Vec<u8>,
}

/// Encodes records that are not none.
pub(super) fn encode_chunk(log: i64, records: &[Record]) -> EncodedChunk {
    let last = records.last().map_or(0, |record| record.offset);
    let mut frames = Vec::with_capacity(records.iter().map(|record| record.frame.len()).sum());
    for record in records {
        frames.extend_from_slice(&record.frame);
    }
    let mut heads = Vec::with_capacity(records.len() * 6 + 64);
    heads.put_u64(xxh3_64(&frames));
    put_description(&mut heads, records);
    seal_chunk(&mut heads, log, last.cast_signed());
    EncodedChunk { heads, frames }
}

/// Where records begin, their types, and of each its length, time and type. Not for none.
pub(super) fn put_description(out: &mut Vec<u8>, records: &[Record]) {
    let mut kinds: Vec<&str> = Vec::new();
    for record in records {
        if !kinds.contains(&&*record.kind) {
            kinds.push(&record.kind);
        }
    }
    out.put_u64(records.first().map_or(0, |record| record.offset));
    put_small(out, kinds.len() as u64);
    for kind in &kinds {
        put_small(out, kind.len() as u64);
        out.extend_from_slice(kind.as_bytes());
    }
    let mut at = 0;
    for record in records {
        put_small(out, record.frame.len() as u64);
        // Times mostly move forward a little; where they do not, the difference wraps.
        put_small(out, record.at.wrapping_sub(at));
        put_small(out, kinds.iter().position(|kind| **kind == *record.kind).unwrap_or(0) as u64);
        at = record.at;
    }
}

/// Puts the checksum behind the heads of the chunk at a place.
pub(super) fn seal_chunk(heads: &mut Vec<u8>, log: i64, last: i64) {
    seal(heads, place(log, last.cast_unsigned()));
}

pub(super) fn unsealed_chunk(heads: &[u8], log: i64, last: i64) -> Option<&[u8]> {
    unsealed(heads, place(log, last.cast_unsigned()))
}

/// One number for a chunk's place, as a checksum's seed.
fn place(log: i64, last: u64) -> i64 {
    log.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64.cast_signed()) ^ last.cast_signed()
}

/// What describes records.
pub(super) struct Heads {
    pub first: u64,
    kinds: Vec<Arc<str>>,
    pub entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub frame_bytes: usize,
    pub at: u64,
    kind: usize,
}

impl Heads {
    /// What describes a chunk's records, and the checksum of their frames. None: they are not what was written at this
    /// place.
    pub(super) fn decode(log: i64, last: i64, bytes: &[u8]) -> Option<(Self, FramesSum)> {
        let mut bytes = unsealed_chunk(bytes, log, last)?;
        let sum = FramesSum(bytes.try_get_u64().ok()?);
        Some((Self::read(bytes, last.cast_unsigned().checked_add(1)?)?, sum))
    }

    /// What [`put_description`] wrote of records up to before `next`.
    pub(super) fn read(mut bytes: &[u8], next: u64) -> Option<Self> {
        let first = bytes.try_get_u64().ok()?;
        let mut kinds = Vec::new();
        for _ in 0..take_small(&mut bytes)? {
            let length = usize::try_from(take_small(&mut bytes)?).ok()?;
            let (kind, rest) = bytes.split_at_checked(length)?;
            kinds.push(std::str::from_utf8(kind).ok()?.into());
            bytes = rest;
        }
        let (mut entries, mut at) = (Vec::new(), 0_u64);
        while !bytes.is_empty() {
            let frame_bytes = usize::try_from(take_small(&mut bytes)?).ok()?;
            at = at.wrapping_add(take_small(&mut bytes)?);
            let kind = usize::try_from(take_small(&mut bytes)?).ok().filter(|kind| *kind < kinds.len())?;
            entries.push(Entry { frame_bytes, at, kind });
        }
        let dense = first.checked_add(entries.len() as u64)? == next;
        dense.then_some(Self { first, kinds, entries })
    }

    /// The records of a chunk, whose frames share one buffer. None: the frames are not those that were written.
    pub(super) fn records(self, frames: &[u8], sum: FramesSum) -> Option<Vec<Record>> {
        if FramesSum(xxh3_64(frames)) != sum {
            return None;
        }
        let mut frames = Bytes::copy_from_slice(frames);
        self.split(&mut frames).filter(|_| frames.is_empty())
    }

    /// Takes the records' frames from the beginning of the buffer. None: there are fewer.
    pub(super) fn split(self, frames: &mut Bytes) -> Option<Vec<Record>> {
        let total = self.entries.iter().try_fold(0_usize, |sum, entry| sum.checked_add(entry.frame_bytes))?;
        if frames.len() < total {
            return None;
        }
        let Self { kinds, entries, first } = self;
        let record = |(entry, offset): (Entry, u64)| Record {
            offset,
            at: entry.at,
            kind: Arc::clone(&kinds[entry.kind]),
            frame: frames.split_to(entry.frame_bytes),
        };
        Some(entries.into_iter().zip(first..).map(record).collect())
    }
}

/// What the frames of a chunk must be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct FramesSum(u64);

fn put_small(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

fn take_small(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// A kind as it is stored; the order is that of the kinds.
pub(super) fn kind_number(kind: RecordKind) -> u8 {
    match kind {
        RecordKind::Session => 1,
        RecordKind::Guardrail => 2,
        RecordKind::Notice => 3,
        RecordKind::Lease => 4,
        RecordKind::Picture => 5,
        RecordKind::Gateway => 6,
    }
}

pub(super) const KINDS: [RecordKind; 6] = [
    RecordKind::Session,
    RecordKind::Guardrail,
    RecordKind::Notice,
    RecordKind::Lease,
    RecordKind::Picture,
    RecordKind::Gateway,
];

pub(super) fn kind_from(number: u8) -> Option<RecordKind> {
    KINDS.into_iter().find(|kind| kind_number(*kind) == number)
}

/// The head of a record: its version, and checksums over its value and over all of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHead {
    pub version: Version,
    value_sum: u64,
}

impl RecordHead {
    pub(super) fn new(version: Version, value: &[u8]) -> Self {
        Self { version, value_sum: xxh3_64(value) }
    }

    pub(super) fn encode(&self, key: &RecordKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        out.put_u64(self.version);
        out.put_u64(self.value_sum);
        sealed(out, key_sum(key))
    }

    pub(super) fn decode(key: &RecordKey, bytes: &[u8]) -> Option<Self> {
        let mut bytes = unsealed(bytes, key_sum(key))?;
        Some(Self { version: bytes.try_get_u64().ok()?, value_sum: bytes.try_get_u64().ok()? })
    }

    pub(super) fn is_of(&self, value: &[u8]) -> bool {
        xxh3_64(value) == self.value_sum
    }
}

fn key_sum(key: &RecordKey) -> i64 {
    let mut bytes = Vec::with_capacity(21 + key.name.len());
    bytes.push(kind_number(key.kind));
    bytes.extend_from_slice(key.session.as_str().as_bytes());
    bytes.extend_from_slice(key.name.as_bytes());
    xxh3_64(&bytes).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::random_epoch;

    #[test]
    fn a_row_from_before_there_was_a_journal_is_read() {
        let head = Head { epoch: random_epoch(), term: 2, first: 3, next: 9, n: 4 };
        let row = LogRow { number: 7, session: SessionId::random(), head, frame_bytes: 600, oldest_at: 5 };
        let mut before = Vec::new();
        row.put(&mut before);
        assert_eq!(LogRow::decode(7, &sealed(before, 7)), Some((row, 0)));
        assert_eq!(LogRow::decode(7, &row.encode(12)), Some((row, 12)));
        assert_eq!(LogRow::decode(8, &row.encode(12)), None);
    }
}

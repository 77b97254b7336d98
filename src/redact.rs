//! Replaces a session's secrets in everything that may be shown.
//!
//! A [`Redactor`] finds a registered value as it is, JSON-escaped, percent-encoded and in base64 or base64url at any
//! alignment, also where such encodings are nested; every byte that belongs to any match goes, so that no part of a
//! longer secret is left where a shorter one was found. Values are taken without white space at their ends: a value
//! of at least 4 characters is found inside strings, a shorter one only where it is the whole string (again without
//! white space at its ends). The same holds for free text that has no digit and fewer than 12 characters; such a word
//! is left where it is an object's key, because answers like "name" are keys everywhere.
//!
//! Case matters. A value cut over two strings is not found, and numbers, `true` and the like are not looked at.

mod forms;
mod sieve;
mod view;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    fmt, mem,
    sync::OnceLock,
};

use aho_corasick::{Anchored, automaton::Automaton, nfa::contiguous::NFA};
use serde_json::{Map, Value};

use self::{
    forms::{Forms, Reach, SecretBytes},
    sieve::Sieve,
    view::{Decoding, View},
};
use crate::sabotage::{self, Guard};

/// What stands where a secret was.
pub const MARKER: &str = "[redacted]";
/// Values of one session.
pub const VALUES_MAX: usize = 10_000;
/// Bytes of one value.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a session's values together. In the worst case, text that is all escapes, a byte becomes about 30 states of
/// the automaton in all forms together, of about 12 bytes each: 128 KiB of values stay below 64 MiB. A usual session,
/// with five values of 20 bytes, needs some 16 KiB.
pub const BYTES_MAX: usize = 128 * 1024;

const INSIDE_CHARS_MIN: usize = 4;
const WORD_CHARS_MAX: usize = 11;

/// What a value is, which says where it is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// A password, a code, a key, a user name.
    Credential,
    /// What a person wrote in an answer.
    FreeText,
}

/// The value is not registered, and would show: what brought it must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRegistered {
    #[error("a secret has more than {VALUE_BYTES_MAX} bytes")]
    TooLong,
    #[error("the session has more than {VALUES_MAX} secrets")]
    TooMany,
    #[error("the session's secrets have more than {BYTES_MAX} bytes together")]
    TooMuch,
}

/// Where a value is looked for, from the narrowest to the widest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    WholeValue,
    WholeValueOrKey,
    Inside,
}

impl Extent {
    fn of(value: &str, nature: Nature) -> Self {
        let chars = value.chars().count();
        let word = chars <= WORD_CHARS_MAX && !value.chars().any(char::is_numeric);
        match nature {
            Nature::FreeText if word => Self::WholeValue,
            _ if chars < INSIDE_CHARS_MIN => Self::WholeValueOrKey,
            _ => Self::Inside,
        }
    }
}

/// One session's secrets, and the search for them. Costs nothing while it is empty.
#[derive(Default)]
pub struct Redactor {
    values: HashMap<SecretBytes, Extent>,
    bytes: usize,
    /// Made at the first search after a registration, so that many registrations in a row cost one.
    search: OnceLock<Search>,
}

impl Redactor {
    /// Registers a value for the rest of the session. Registered again, it is looked for in the wider of both ways.
    /// A value of white space alone is no secret.
    pub fn register(&mut self, value: &str, nature: Nature) -> Result<(), NotRegistered> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(NotRegistered::TooLong);
        }
        let value = value.trim();
        if value.is_empty() {
            return Ok(());
        }
        let extent = Extent::of(value, nature);
        if let Some(known) = self.values.get_mut(value.as_bytes()) {
            if *known < extent {
                *known = extent;
                self.search.take();
            }
            return Ok(());
        }
        if self.values.len() >= VALUES_MAX {
            return Err(NotRegistered::TooMany);
        }
        if self.bytes + value.len() > BYTES_MAX {
            return Err(NotRegistered::TooMuch);
        }
        self.bytes += value.len();
        self.values.insert(SecretBytes::new(value), extent);
        self.search.take();
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Forgets and overwrites every value. What the automaton made of them is freed but not overwritten.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Replaces secrets in every string and key at any depth, and says whether there were any. Keys stay different
    /// from one another, and in their order.
    pub fn redact_value(&self, value: &mut Value) -> bool {
        !self.is_idle() && self.walk(value)
    }

    /// As [`Self::redact_value`], but leaves the members that `kept` names as they are: ids and words of the
    /// protocol that have been checked by then.
    pub fn redact_members(&self, members: &mut Map<String, Value>, kept: &[&str]) -> bool {
        !self.is_idle() && self.walk_members(members, kept)
    }

    /// Borrowed when there was nothing to replace.
    pub fn redact_str<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.is_idle() { Cow::Borrowed(text) } else { self.replace(text, Extent::WholeValue) }
    }

    /// Whether a JSON text in which nothing is escaped certainly holds no secret, by one quick look at all of it. Where it
    /// does not say so, the text's value has to be searched.
    ///
    /// Every string and key then stands in the text as it is, so what is found inside one is found in the text. Texts that
    /// say more when they are decoded, and values that count only as a whole string, are left to the search.
    pub fn is_clear(&self, text: &str) -> bool {
        if self.is_idle() {
            return true;
        }
        let search = self.search.get_or_init(|| Search::new(&self.values));
        let may_decode = |byte: u8| matches!(byte, b'\\' | b'%' | b'+');
        search.whole.is_empty()
            && !text.bytes().fold(false, |found, byte| found | may_decode(byte))
            && !search.may_be_inside(text.as_bytes())
    }

    fn is_idle(&self) -> bool {
        self.values.is_empty() || sabotage::is_off(Guard::Redactor)
    }

    fn walk(&self, value: &mut Value) -> bool {
        match value {
            Value::String(text) => match self.replace(text, Extent::WholeValue) {
                Cow::Owned(clean) => {
                    *text = clean;
                    true
                }
                Cow::Borrowed(_) => false,
            },
            Value::Array(elements) => elements.iter_mut().fold(false, |changed, element| self.walk(element) | changed),
            Value::Object(members) => self.walk_members(members, &[]),
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }

    fn walk_members(&self, members: &mut Map<String, Value>, kept: &[&str]) -> bool {
        let mut changed = false;
        for (_, value) in members.iter_mut().filter(|(name, _)| !kept.contains(&name.as_str())) {
            changed |= self.walk(value);
        }
        self.rename_members(members, kept) | changed
    }

    fn rename_members(&self, members: &mut Map<String, Value>, kept: &[&str]) -> bool {
        let clean_name = |name: &String| match self.replace(name, Extent::WholeValueOrKey) {
            Cow::Owned(clean) if !kept.contains(&name.as_str()) => Some(clean),
            _ => None,
        };
        let renamed: Vec<Option<String>> = members.keys().map(clean_name).collect();
        if renamed.iter().all(Option::is_none) {
            return false;
        }
        let unchanged = members.keys().zip(&renamed).filter(|(_, clean)| clean.is_none());
        let mut taken: HashSet<String> = unchanged.map(|(name, _)| name.clone()).collect();
        // Never counts back, so that many equal names cost one attempt each.
        let mut number = 1;
        for ((name, value), clean) in mem::take(members).into_iter().zip(renamed) {
            let Some(clean) = clean else {
                members.insert(name, value);
                continue;
            };
            let mut unique = clean.clone();
            while !taken.insert(unique.clone()) {
                number += 1;
                unique = format!("{clean} ({number})");
            }
            members.insert(unique, value);
        }
        true
    }

    /// `narrowest` is the narrowest extent that applies to this text: keys are spared by the narrowest of all.
    fn replace<'t>(&self, text: &'t str, narrowest: Extent) -> Cow<'t, str> {
        let search = self.search.get_or_init(|| Search::new(&self.values));
        let covered = search.covered(text, narrowest);
        if covered.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut clean = String::with_capacity(text.len());
        let mut end = 0;
        for range in covered {
            clean.push_str(&text[end..range.0]);
            clean.push_str(MARKER);
            end = range.1;
        }
        clean.push_str(&text[end..]);
        Cow::Owned(clean)
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").field("values", &self.values.len()).finish_non_exhaustive()
    }
}

/// The values' forms, ready to be searched for.
struct Search {
    automaton: Option<NFA>,
    /// What the automaton need not look at.
    sieve: Option<Sieve>,
    /// By the automaton's pattern.
    reaches: Vec<Reach>,
    whole: HashMap<SecretBytes, Extent>,
}

/// Start and end (exclusive) of a part of a text, in bytes.
type Range = (usize, usize);

impl Search {
    fn new(values: &HashMap<SecretBytes, Extent>) -> Self {
        let mut inside = Forms::new();
        let mut whole = HashMap::new();
        for (value, extent) in values {
            let value = std::str::from_utf8(value.as_ref()).expect("values are registered as text");
            if *extent == Extent::Inside {
                forms::add_inside(value, &mut inside);
                continue;
            }
            for form in forms::whole(value) {
                let widest = whole.entry(form).or_insert(*extent);
                *widest = (*widest).max(*extent);
            }
        }
        let (patterns, reaches): (Vec<SecretBytes>, Vec<Reach>) = inside.into_iter().unzip();
        let automaton = (!patterns.is_empty())
            .then(|| NFA::builder().prefilter(false).build(&patterns).expect("a session's secrets are few and short"));
        let sieve = Sieve::new(patterns.iter().map(AsRef::as_ref));
        Self { automaton, sieve, reaches, whole }
    }

    fn may_be_inside(&self, text: &[u8]) -> bool {
        self.automaton.is_some() && self.sieve.as_ref().is_none_or(|sieve| sieve.may_hold(text))
    }

    /// What has to go: in order, apart from each other, and never empty.
    fn covered(&self, text: &str, narrowest: Extent) -> Vec<Range> {
        let mut covered = Vec::new();
        self.search_view(&View::of(text), narrowest, 0, &mut covered);
        covered.sort_unstable();
        let mut merged: Vec<Range> = Vec::new();
        for range in covered {
            match merged.last_mut() {
                Some(last) if range.0 <= last.1 => last.1 = last.1.max(range.1),
                _ => merged.push(range),
            }
        }
        if !merged.is_empty() {
            // What a marker itself spells is no secret: redacting twice is the same as once.
            let markers: Vec<Range> = text.match_indices(MARKER).map(|(at, marker)| (at, at + marker.len())).collect();
            let marker_at = |range: &Range| markers[..markers.partition_point(|marker| marker.0 <= range.0)].last();
            merged.retain(|range| marker_at(range).is_none_or(|marker| range.1 > marker.1));
        }
        debug_assert!(merged.iter().all(|range| text.is_char_boundary(range.0) && text.is_char_boundary(range.1)));
        merged
    }

    /// Looks at a view and at what it decodes to. Two layers of any kind are taken off, and a third of JSON.
    fn search_view(&self, view: &View<'_>, narrowest: Extent, layers: usize, covered: &mut Vec<Range>) {
        if view.bytes.is_empty() {
            return;
        }
        if self.whole.get(view.trimmed()).is_some_and(|extent| *extent >= narrowest) {
            covered.push(view.origin(0, view.bytes.len()));
            return;
        }
        if let Some(automaton) = &self.automaton
            && self.may_be_inside(&view.bytes)
        {
            self.search_inside(automaton, view, covered);
        }
        let next = match layers {
            0 | 1 => &Decoding::ALL[..],
            2 => &[Decoding::Json],
            _ => &[],
        };
        for decoded in next.iter().filter_map(|decoding| view.decoded(*decoding)) {
            self.search_view(&decoded, narrowest, layers + 1, covered);
        }
    }

    /// Takes the longest form that ends at each byte, which covers every shorter one that ends there: the time is
    /// linear in the text, however many values overlap.
    fn search_inside(&self, automaton: &NFA, view: &View<'_>, covered: &mut Vec<Range>) {
        let mut state = automaton.start_state(Anchored::No).expect("the automaton is built for searches anywhere");
        let first = covered.len();
        for (at, byte) in view.bytes.iter().enumerate() {
            state = automaton.next_state(Anchored::No, state, *byte);
            if !automaton.is_match(state) {
                continue;
            }
            // The first pattern of a state is its own; those that follow are shorter ends of it.
            let pattern = automaton.match_pattern(state, 0);
            let found = (at + 1 - automaton.pattern_len(pattern), at + 1);
            let (start, end) = widened(&view.bytes, found, self.reaches[pattern.as_usize()]);
            let mut range = view.origin(start, end);
            while covered.len() > first && covered.last().is_some_and(|last| last.1 >= range.0) {
                let last = covered.pop().expect("just looked at");
                range = (last.0.min(range.0), last.1.max(range.1));
            }
            covered.push(range);
        }
    }
}

fn widened(bytes: &[u8], (mut start, mut end): Range, reach: Reach) -> Range {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_');
    if let Reach::Base64 { before, after } = reach {
        if before && start > 0 && is_base64(&bytes[start - 1]) {
            start -= 1;
        }
        if after {
            end += usize::from(bytes.get(end).is_some_and(is_base64));
            end += bytes[end..].iter().take(2).take_while(|byte| **byte == b'=').count();
        }
    }
    (start, end)
}

#[cfg(test)]
mod tests;

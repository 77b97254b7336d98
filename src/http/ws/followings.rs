//! What one connection follows. Most connections follow one session, and pay for one; some follow thousands.

use std::collections::HashMap;

use crate::{ids::SessionId, subscriber::Following};

/// With more than this, sessions are looked up in a map.
const SCANNED: usize = 16;

#[derive(Default)]
pub(super) struct Followings {
    /// In the order of their slots, which is that of their beginnings.
    all: Vec<(u32, Box<Followed>)>,
    /// Where there are many.
    by_session: Option<HashMap<SessionId, u32>>,
    next_slot: u32,
}

pub(super) struct Followed {
    pub following: Following,
    /// What its client called its request, until it is answered.
    pub reference: Option<Box<str>>,
}

impl Followings {
    /// A slot that no other subscription of the connection has or had.
    pub(super) fn new_slot(&mut self) -> u32 {
        self.next_slot += 1;
        self.next_slot - 1
    }

    /// `slot` is the newest one.
    pub(super) fn insert(&mut self, slot: u32, followed: Followed) {
        if self.all.is_empty() {
            self.all.reserve_exact(1);
        }
        if let Some(by_session) = &mut self.by_session {
            by_session.insert(followed.following.session().id, slot);
        }
        self.all.push((slot, Box::new(followed)));
        if self.by_session.is_none() && self.all.len() > SCANNED {
            let ids = self.all.iter().map(|(slot, followed)| (followed.following.session().id, *slot));
            self.by_session = Some(ids.collect());
        }
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Followed> {
        let place = self.place(slot)?;
        Some(&mut *self.all[place].1)
    }

    pub(super) fn slot_of(&self, session: SessionId) -> Option<u32> {
        match &self.by_session {
            Some(by_session) => by_session.get(&session).copied(),
            None => {
                let found = self.all.iter().find(|(_, followed)| followed.following.session().id == session);
                found.map(|(slot, _)| *slot)
            }
        }
    }

    pub(super) fn of_session(&mut self, session: &str) -> Option<&mut Following> {
        let slot = self.slot_of(session.parse().ok()?)?;
        self.get_mut(slot).map(|followed| &mut followed.following)
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Following> {
        let place = self.place(slot)?;
        let (_, followed) = self.all.remove(place);
        if let Some(by_session) = &mut self.by_session {
            by_session.remove(&followed.following.session().id);
        }
        Some(followed.following)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Following> {
        self.all.iter().map(|(_, followed)| &followed.following)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Following> {
        self.all.iter_mut().map(|(_, followed)| &mut followed.following)
    }

    /// Takes all of them out.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Following> {
        self.by_session = None;
        std::mem::take(&mut self.all).into_iter().map(|(_, followed)| followed.following)
    }

    fn place(&self, slot: u32) -> Option<usize> {
        self.all.binary_search_by_key(&slot, |(slot, _)| *slot).ok()
    }
}

//! Those who follow one session, as a list that is walked while it changes.
//!
//! It is kept in pieces. A walk takes one piece at a time and holds it without a lock; who comes or goes meanwhile copies
//! that piece and no other.

use std::sync::Arc;

/// Members of one piece.
const PIECE: usize = 64;

pub(super) struct Audience<T> {
    pieces: Vec<Arc<Vec<Arc<T>>>>,
    /// Pieces that have room. The last one is filled first.
    with_room: Vec<usize>,
    members: usize,
}

/// In which piece a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat(u32);

impl<T> Default for Audience<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), with_room: Vec::new(), members: 0 }
    }
}

impl<T> Audience<T> {
    pub(super) fn enter(&mut self, member: Arc<T>) -> Seat {
        let index = *self.with_room.last().unwrap_or(&self.pieces.len());
        if index == self.pieces.len() {
            self.pieces.push(Arc::default());
            self.with_room.push(index);
        }
        let piece = Arc::make_mut(&mut self.pieces[index]);
        piece.push(member);
        if piece.len() == PIECE {
            self.with_room.pop();
        }
        self.members += 1;
        Seat(index as u32)
    }

    pub(super) fn leave(&mut self, member: &Arc<T>, seat: Seat) {
        let index = seat.0 as usize;
        let piece = &mut self.pieces[index];
        let Some(place) = piece.iter().position(|other| Arc::ptr_eq(other, member)) else { return };
        let piece = Arc::make_mut(piece);
        let was_full = piece.len() == PIECE;
        piece.swap_remove(place);
        if was_full {
            self.with_room.push(index);
        }
        self.members -= 1;
    }

    pub(super) fn len(&self) -> usize {
        self.members
    }

    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn piece(&self, index: usize) -> Option<Arc<Vec<Arc<T>>>> {
        self.pieces.get(index).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn members(audience: &Audience<u32>) -> Vec<u32> {
        let pieces = (0..audience.pieces()).flat_map(|index| audience.piece(index).unwrap().to_vec());
        let mut all: Vec<u32> = pieces.map(|member| *member).collect();
        all.sort_unstable();
        all
    }

    proptest! {
        #[test]
        fn it_holds_who_has_entered_and_not_left(steps in prop::collection::vec(any::<(bool, u16)>(), 1..600)) {
            let (mut audience, mut there) = (Audience::default(), BTreeMap::new());
            for (number, (enters, which)) in (0..).zip(steps) {
                if enters || there.is_empty() {
                    let member = Arc::new(number);
                    let seat = audience.enter(Arc::clone(&member));
                    there.insert(number, (member, seat));
                } else {
                    let leaver = *there.keys().nth(usize::from(which) % there.len()).unwrap();
                    let (member, seat) = there.remove(&leaver).unwrap();
                    audience.leave(&member, seat);
                }
                prop_assert_eq!(members(&audience), there.keys().copied().collect::<Vec<_>>());
                prop_assert_eq!(audience.len(), there.len());
                // Nobody's room is lost: pieces are as many as the largest audience needed, but for those that left.
                prop_assert!(audience.pieces() <= 600 / PIECE + 1);
            }
        }
    }

    #[test]
    fn a_walk_goes_on_over_the_piece_that_it_holds() {
        let mut audience = Audience::default();
        let seats: Vec<_> = (0..100_u32).map(Arc::new).map(|m| (audience.enter(m.clone()), m)).collect();
        let held = audience.piece(0).unwrap();
        for (seat, member) in &seats {
            audience.leave(member, *seat);
        }
        assert_eq!((held.len(), audience.len()), (64, 0));
    }
}

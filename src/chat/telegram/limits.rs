//! What Telegram takes from a bot in one chat, as far as the pace of single messages does not say it.
//!
//! A chat that answered with a wait is left alone for that long, by whichever message comes next; and a group gets no
//! more than [`GROUP_SHARE`] a minute (core.telegram.org/bots/faq).

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

/// Messages to one group in any [`GROUP_WINDOW`].
const GROUP_SHARE: usize = 20;
const GROUP_WINDOW: Duration = Duration::from_secs(60);
/// Chats that are remembered. What finds no room is sent, and Telegram itself says when to wait.
const CHATS_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Limits(Mutex<HashMap<i64, Chat>>);

#[derive(Default)]
struct Chat {
    quiet_until: Option<Instant>,
    /// When messages were sent to a group, oldest first.
    sent: VecDeque<Instant>,
}

impl Chat {
    fn is_idle(&self, now: Instant) -> bool {
        self.quiet_until.is_none_or(|until| until <= now)
            && self.sent.back().is_none_or(|last| *last + GROUP_WINDOW <= now)
    }

    fn wait(&self, now: Instant) -> Duration {
        let quiet = self.quiet_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let nth = self.sent.len().checked_sub(GROUP_SHARE).and_then(|nth| self.sent.get(nth));
        quiet.max(nth.map_or(Duration::ZERO, |sent| (*sent + GROUP_WINDOW).saturating_duration_since(now)))
    }
}

impl Limits {
    /// Takes the place of one message in the chat, or says how long there is none.
    pub(super) fn take(&self, chat: i64, now: Instant) -> Result<(), Duration> {
        let mut chats = self.lock();
        let wait = chats.get(&chat).map_or(Duration::ZERO, |chat| chat.wait(now));
        if !wait.is_zero() {
            return Err(wait);
        }
        // Groups have negative ids.
        if chat < 0
            && let Some(chat) = entry(&mut chats, chat, now)
        {
            chat.sent.push_back(now);
            let old = chat.sent.len().saturating_sub(GROUP_SHARE);
            chat.sent.drain(..old);
        }
        Ok(())
    }

    /// How long the chat is to be left alone altogether.
    pub(super) fn quiet(&self, chat: i64, now: Instant) -> Option<Duration> {
        let until = self.lock().get(&chat)?.quiet_until?;
        Some(until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }

    pub(super) fn told_to_wait(&self, chat: i64, wait: Duration, now: Instant) {
        if let Some(until) = now.checked_add(wait)
            && let Some(chat) = entry(&mut self.lock(), chat, now)
        {
            chat.quiet_until = Some(until);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i64, Chat>> {
        self.0.lock().expect("no holder panics")
    }
}

fn entry(chats: &mut HashMap<i64, Chat>, chat: i64, now: Instant) -> Option<&mut Chat> {
    if chats.len() >= CHATS_MAX && !chats.contains_key(&chat) {
        chats.retain(|_, chat| !chat.is_idle(now));
        if chats.len() >= CHATS_MAX {
            return None;
        }
    }
    Some(chats.entry(chat).or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_group_gets_twenty_messages_a_minute_and_a_person_more() {
        let (limits, began) = (Limits::default(), Instant::now());
        for nth in 0..20 {
            assert_eq!(limits.take(-100, began + nth * SECOND), Ok(()));
        }
        assert_eq!(limits.take(-100, began + 20 * SECOND), Err(40 * SECOND));
        assert_eq!(limits.take(-200, began + 20 * SECOND), Ok(()), "another group");
        assert_eq!(limits.take(-100, began + 60 * SECOND), Ok(()));
        assert_eq!(limits.take(-100, began + 60 * SECOND), Err(SECOND));
        assert!((0..100).all(|_| limits.take(100, began).is_ok()));
    }

    #[test]
    fn a_chat_that_told_to_wait_is_left_alone_and_others_are_not() {
        let (limits, began) = (Limits::default(), Instant::now());
        limits.told_to_wait(7, 5 * SECOND, began);
        assert_eq!(limits.take(7, began + SECOND), Err(4 * SECOND));
        assert_eq!(limits.quiet(7, began + SECOND), Some(4 * SECOND));
        assert_eq!(limits.take(8, began), Ok(()));
        assert_eq!(limits.take(7, began + 5 * SECOND), Ok(()));
        assert_eq!(limits.quiet(7, began + 5 * SECOND), None);
    }

    #[test]
    fn chats_are_forgotten_once_nothing_holds_and_never_grow_without_bound() {
        let (limits, began) = (Limits::default(), Instant::now());
        for chat in 1..=CHATS_MAX as i64 + 10 {
            limits.told_to_wait(chat, 9 * SECOND, began);
        }
        assert_eq!(limits.lock().len(), CHATS_MAX);
        limits.told_to_wait(-1, SECOND, began + 9 * SECOND);
        assert_eq!(limits.lock().len(), 1);
    }
}

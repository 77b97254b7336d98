//! How often something may be tried: so many times in a window that slides, for each of a bounded number of keys.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::Mutex,
    time::Duration,
};

use tokio::time::Instant;

/// Counts tries. Where more keys come than are remembered, the one that tried longest ago is forgotten.
pub struct Tries<K> {
    limit: usize,
    window: Duration,
    keys: usize,
    table: Mutex<HashMap<K, VecDeque<Instant>>>,
}

impl<K: Eq + Hash + Clone> Tries<K> {
    /// At least one try, and one key.
    pub fn new(limit: usize, window: Duration, keys: usize) -> Self {
        Self { limit: limit.max(1), window, keys: keys.max(1), table: Mutex::default() }
    }

    /// Counts a try, unless there were too many.
    ///
    /// # Errors
    /// How long until the next one is allowed.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut table = self.table.lock().expect("no holder panics");
        match self.wait_in(&table, &key, now) {
            Some(wait) => Err(wait),
            None => {
                self.count_in(&mut table, key, now);
                Ok(())
            }
        }
    }

    /// How long until the next try is allowed, if it is not now.
    pub fn wait(&self, key: &K, now: Instant) -> Option<Duration> {
        self.wait_in(&self.table.lock().expect("no holder panics"), key, now)
    }

    /// Counts a try that has been made.
    pub fn count(&self, key: K, now: Instant) {
        self.count_in(&mut self.table.lock().expect("no holder panics"), key, now);
    }

    fn wait_in(&self, table: &HashMap<K, VecDeque<Instant>>, key: &K, now: Instant) -> Option<Duration> {
        let tries = table.get(key)?;
        let frees = *tries.get(tries.len().checked_sub(self.limit)?)? + self.window;
        (now < frees).then(|| frees - now)
    }

    fn count_in(&self, table: &mut HashMap<K, VecDeque<Instant>>, key: K, now: Instant) {
        if table.len() >= self.keys && !table.contains_key(&key) {
            self.make_room(table, now);
        }
        let tries = table.entry(key).or_default();
        tries.push_back(now);
        while tries.len() > self.limit {
            tries.pop_front();
        }
    }

    fn make_room(&self, table: &mut HashMap<K, VecDeque<Instant>>, now: Instant) {
        table.retain(|_, tries| tries.back().is_some_and(|at| now < *at + self.window));
        if table.len() >= self.keys {
            let oldest = table.iter().min_by_key(|(_, tries)| tries.back().copied()).map(|(key, _)| key.clone());
            oldest.and_then(|key| table.remove(&key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_slides_for_each_key_by_itself() {
        let (tries, start) = (Tries::new(2, Duration::from_secs(60), 8), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!((tries.take("a", at(0)), tries.take("a", at(30))), (Ok(()), Ok(())));
        assert_eq!(tries.take("a", at(40)), Err(Duration::from_secs(20)));
        assert_eq!(tries.take("b", at(40)), Ok(()));
        assert_eq!(tries.take("a", at(60)), Ok(()), "what was refused did not count");
        assert_eq!(tries.wait(&"a", at(61)), Some(Duration::from_secs(29)));
        tries.count("a", at(61));
        assert_eq!(tries.wait(&"a", at(90)), Some(Duration::from_secs(30)), "the two newest count");
    }

    #[test]
    fn the_table_is_bounded() {
        let (tries, now) = (Tries::new(1, Duration::from_secs(60), 16), Instant::now());
        for key in 0..100 {
            assert_eq!(tries.take(key, now + Duration::from_millis(key)), Ok(()));
        }
        assert_eq!(tries.table.lock().unwrap().len(), 16);
        assert!(tries.wait(&99, now + Duration::from_secs(1)).is_some(), "the newest are remembered");
    }
}

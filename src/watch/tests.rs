//! Who counts, until when, and what is remembered of those who left; on given times.

use super::*;

const TIMES: WatchTimes = WatchTimes {
    live_window: Duration::from_secs(20),
    attention_lease: Duration::from_secs(30),
    poll_window: Duration::from_secs(10),
    remember: Duration::from_secs(10),
};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn newcomer(attentive: Attentive) -> Newcomer {
    Newcomer {
        subscriber: "connection".into(),
        who: "ada".into(),
        via: "websocket",
        observer: false,
        able: true,
        sees_results: true,
        attentive,
    }
}

/// A watch and its time 0: the clock's now, because guards that end report by the clock.
fn begin() -> (Watch, Instant) {
    (Watch::new(TIMES), Instant::now())
}

fn counts(watch: &Watch, now: Instant) -> (u32, u32, u32) {
    let counts = watch.counts(now);
    (counts.watching, counts.able, counts.following)
}

fn epoch() -> Epoch {
    Epoch::new("abcdefgh").unwrap()
}

fn why(watch: &Watch, now: Instant) -> String {
    watch.list(epoch(), now)[0].why.clone()
}

/// Whether the owner has been told of a change since this was last asked.
async fn told(watch: &Watch) -> bool {
    tokio::time::timeout(Duration::from_millis(20), watch.changed()).await.is_ok()
}

#[test]
fn a_watcher_counts_while_its_code_answers_and_its_person_is_there() {
    let (watch, start) = begin();
    let guard = watch.enter(newcomer(Attentive::Active), start);
    assert_eq!(counts(&watch, start), (1, 1, 1));
    assert_eq!(counts(&watch, start + seconds(20) - Duration::from_nanos(1)), (1, 1, 1));
    assert_eq!(counts(&watch, start + seconds(20)), (0, 0, 1));
    assert_eq!(why(&watch, start + seconds(20)), "its own code has not answered a ping within the window");
    guard.alive(start + seconds(21));
    assert_eq!(counts(&watch, start + seconds(21)), (1, 1, 1));
    assert_eq!(counts(&watch, start + seconds(30)), (0, 0, 1), "the word that somebody looks is a lease");
    assert_eq!(why(&watch, start + seconds(30)), "its word that somebody is looking has run out");
    guard.attention(true, start + seconds(31));
    assert_eq!(counts(&watch, start + seconds(31)), (1, 1, 1));
}

#[test]
fn who_cannot_say_counts_while_it_is_live_and_who_is_idle_never() {
    let (watch, start) = begin();
    let cannot_say = watch.enter(newcomer(Attentive::CannotSay), start);
    for second in (0..100).step_by(19) {
        assert_eq!(counts(&watch, start + seconds(second)), (1, 1, 1));
        cannot_say.alive(start + seconds(second));
    }
    drop(cannot_say);
    let start = start + seconds(200);
    let idle = watch.enter(newcomer(Attentive::Idle), start);
    idle.alive(start + seconds(1));
    assert_eq!(counts(&watch, start + seconds(1)), (0, 0, 1));
    assert_eq!(why(&watch, start), "it says that nobody is looking, or has not said that somebody is");
    idle.attention(true, start + seconds(2));
    assert_eq!(counts(&watch, start + seconds(2)), (1, 1, 1));
    idle.attention(false, start + seconds(3));
    assert_eq!(counts(&watch, start + seconds(3)), (0, 0, 1));
}

#[test]
fn an_observer_never_counts_and_a_read_only_watcher_is_not_able() {
    let (watch, start) = begin();
    let observer = watch.enter(Newcomer { observer: true, ..newcomer(Attentive::Active) }, start);
    observer.proved(9, start);
    assert_eq!(counts(&watch, start), (0, 0, 1));
    assert_eq!(why(&watch, start), "it is an observer");
    assert_eq!(watch.presence(start), Presence::default(), "and proves no result either");
    let read_only = watch.enter(Newcomer { able: false, ..newcomer(Attentive::Active) }, start);
    read_only.proved(9, start);
    assert_eq!(counts(&watch, start), (1, 0, 2));
    let presence = watch.presence(start);
    assert!(!presence.any_able() && !presence.covers(9));
    assert_eq!(presence.results_proved, Some(9));
}

#[test]
fn only_a_watcher_that_counts_and_sees_results_proves_one() {
    let (watch, start) = begin();
    let blind = watch.enter(Newcomer { sees_results: false, ..newcomer(Attentive::Active) }, start);
    blind.proved(5, start);
    assert_eq!(watch.presence(start).results_proved, None);
    let idle = watch.enter(newcomer(Attentive::Idle), start);
    idle.proved(5, start);
    assert_eq!(watch.presence(start).results_proved, None, "a tab that nobody looks at");
    idle.attention(true, start + seconds(1));
    assert_eq!(watch.presence(start + seconds(1)).results_proved, Some(5), "until somebody does");
}

#[test]
fn proof_is_the_highest_and_stays_after_its_watcher_left() {
    let (watch, start) = begin();
    let guard = watch.enter(newcomer(Attentive::Active), start);
    guard.proved(7, start);
    guard.proved(3, start);
    assert!(watch.presence(start).covers(7) && !watch.presence(start).covers(8));
    guard.leave(Leave::Clean);
    let presence = watch.presence(start + seconds(1));
    assert!(!presence.covers(0));
    assert_eq!(presence.results_proved, Some(7));
    assert_eq!(presence.departures.len(), 1);
    assert_eq!((presence.departures[0].leave, presence.departures[0].proved), (Leave::Clean, Some(7)));
}

#[test]
fn a_poller_counts_from_its_arrival_until_its_window_after_the_response() {
    let (watch, start) = begin();
    let key: Arc<str> = "key".into();
    let poll = watch.poll(Arc::clone(&key), "ada", true, start);
    assert_eq!(counts(&watch, start + seconds(500)), (1, 1, 1), "however long it waits");
    poll.written(Some(4), Some(4));
    assert!(watch.presence(start).covers(4));
    let again = watch.poll(key, "ada", true, start);
    assert_eq!(counts(&watch, start), (1, 1, 1), "one credential is one poller");
    drop(poll);
    drop(again);
    let end = Instant::now();
    assert_eq!(counts(&watch, end + seconds(9)), (1, 1, 1));
    assert_eq!(counts(&watch, end + seconds(10)), (0, 0, 0));
    let presence = watch.presence(end + seconds(10));
    assert_eq!(presence.departures.len(), 1);
    assert_eq!(presence.departures[0].leave, Leave::Clean, "no further grace");
    assert_eq!(presence.results_proved, Some(4));
}

#[test]
fn a_poll_that_was_not_answered_proves_nothing() {
    let (watch, start) = begin();
    drop(watch.poll("key".into(), "ada", true, start));
    assert_eq!(watch.presence(start).results_proved, None);
    assert!(!watch.presence(start).covers(0));
}

#[test]
fn a_poll_proves_questions_and_results_apart() {
    let (watch, start) = begin();
    watch.poll("a".into(), "ada", true, start).written(Some(4), None);
    assert!(watch.presence(start).covers(4));
    assert_eq!(watch.presence(start).results_proved, None);
    watch.poll("b".into(), "bob", false, start).written(Some(9), Some(8));
    assert!(!watch.presence(start).covers(9), "bob may not answer");
    assert_eq!(watch.presence(start).results_proved, Some(8));
}

#[test]
fn who_reads_a_later_result_has_not_read_an_earlier_one() {
    let (watch, start) = begin();
    let poll = watch.poll("a".into(), "ada", true, start);
    poll.written_result(8);
    poll.written_result(8);
    let presence = watch.presence(start);
    assert!(presence.has_had(8) && !presence.has_had(4));
    for offset in 100..200 {
        poll.written_result(offset);
    }
    assert_eq!(watch.presence(start).results_read.len(), book::RESULTS_READ, "bounded");
    poll.written(None, Some(9));
    assert!(watch.presence(start).has_had(4), "a page carries all of them");
}

#[tokio::test]
async fn a_guard_that_is_dropped_reports_its_end_once_and_as_abnormal() {
    let (watch, start) = begin();
    let guard = watch.enter(newcomer(Attentive::Active), start);
    assert!(told(&watch).await, "that it came");
    assert!(!told(&watch).await);
    drop(guard);
    assert!(told(&watch).await, "that it went");
    assert!(!told(&watch).await, "once");
    let presence = watch.presence(Instant::now());
    assert_eq!(presence.watchers, []);
    assert_eq!(presence.departures.len(), 1);
    assert_eq!((presence.departures[0].leave, presence.departures[0].last_able), (Leave::Abnormal, true));
    assert_eq!(counts(&watch, Instant::now()), (0, 0, 0));
}

#[test]
fn a_lapse_is_reported_once_at_the_time_at_which_it_happened() {
    let (watch, start) = begin();
    let guard = watch.enter(newcomer(Attentive::Active), start);
    assert_eq!(watch.settle(start), Some(start + seconds(20)));
    for later in [21, 22, 25] {
        let presence = watch.presence(start + seconds(later));
        let at: Vec<Instant> = presence.departures.iter().map(|departure| departure.at).collect();
        assert_eq!(at, [start + seconds(20)]);
    }
    drop(guard);
    assert_eq!(watch.presence(start + seconds(25)).departures.len(), 1, "its end is none after its lapse");
}

#[test]
fn lapses_are_found_in_their_order_so_that_the_last_able_one_is_known() {
    let (watch, start) = begin();
    let _first = watch.enter(newcomer(Attentive::Active), start);
    let _second = watch.enter(newcomer(Attentive::Active), start + seconds(3));
    let presence = watch.presence(start + seconds(24));
    let found: Vec<_> = presence.departures.iter().map(|departure| (departure.at, departure.last_able)).collect();
    assert_eq!(found, [(start + seconds(20), false), (start + seconds(23), true)]);
}

#[test]
fn the_next_change_is_the_earliest_lapse_of_those_who_count() {
    let (watch, start) = begin();
    assert_eq!(watch.presence(start).next_change, None);
    let _a = watch.enter(newcomer(Attentive::Active), start);
    let _b = watch.enter(newcomer(Attentive::Active), start + seconds(5));
    assert_eq!(watch.presence(start + seconds(5)).next_change, Some(start + seconds(20)));
    assert_eq!(watch.presence(start + seconds(20)).next_change, Some(start + seconds(25)));
    assert_eq!(watch.presence(start + seconds(25)).next_change, None);
}

#[test]
fn who_left_before_a_raising_is_not_replaced_by_who_leaves_after_it() {
    let (watch, start) = begin();
    let _before = watch.enter(newcomer(Attentive::Active), start);
    let raised = start + seconds(21);
    watch.raised(raised);
    let passer_by = watch.enter(newcomer(Attentive::Active), raised + seconds(1));
    passer_by.attention(false, raised + seconds(2));
    let presence = watch.presence(raised + seconds(2));
    let at: Vec<Instant> = presence.departures.iter().map(|departure| departure.at).collect();
    assert_eq!(at, [start + seconds(20), raised + seconds(2)]);
}

#[tokio::test]
async fn the_owner_hears_of_the_proofs_that_matter_and_of_no_others() {
    let (watch, start) = begin();
    let guard = watch.enter(newcomer(Attentive::Active), start);
    assert!(told(&watch).await);
    guard.proved(4, start);
    assert!(!told(&watch).await, "nothing is open");
    watch.set_interest(Some(6));
    guard.proved(5, start);
    assert!(!told(&watch).await, "older than what is open");
    guard.proved(6, start);
    assert!(told(&watch).await);
    guard.alive(start + seconds(1));
    assert!(!told(&watch).await, "a pong that proves nothing new changes nothing");
}

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn key(name: &str) -> RecordKey {
    key_of("a", name)
}

fn key_of(session: &str, name: &str) -> RecordKey {
    RecordKey { kind: RecordKind::Notice, session: session.repeat(20).parse().unwrap(), name: name.to_owned() }
}

fn due(at: Instant, version: Version, target: &str) -> Due {
    Due { at, version, target: target.into() }
}

fn schedule(waiting: usize, per_target: usize) -> Schedule {
    paced(waiting, per_target, &[])
}

fn paced(waiting: usize, per_target: usize, paces: &[(&str, Duration, Duration)]) -> Schedule {
    let paces = paces
        .iter()
        .map(|(name, address, overall)| ((*name).to_owned(), Pace { address: *address, overall: *overall }));
    Schedule::new(Shares { waiting, per_notifier: 16, per_target }, paces)
}

fn names(schedule: &Schedule, now: Instant) -> Vec<String> {
    std::iter::from_fn(|| schedule.take(now)).map(|(key, _)| key.name).collect()
}

#[test]
fn targets_take_turns_and_none_has_more_than_its_share() {
    let (schedule, now) = (schedule(100, 2), Instant::now());
    for name in ["s1", "s2", "s3", "s4"] {
        schedule.put(key(name), due(now, 1, "slow"));
    }
    schedule.put(key("q1"), due(now, 1, "quick"));
    assert_eq!(names(&schedule, now), ["q1", "s1", "s2"]);
    schedule.finish(&key("s1"), None);
    assert_eq!(names(&schedule, now), ["s3"]);
}

#[test]
fn a_newer_version_replaces_and_an_older_one_does_not() {
    let (schedule, now) = (schedule(100, 2), Instant::now());
    let later = now + Duration::from_secs(9);
    schedule.put(key("a"), due(now, 1, "t"));
    schedule.put(key("a"), due(later, 2, "t"));
    schedule.put(key("a"), due(now, 1, "t"));
    assert!(schedule.take(now).is_none());
    assert_eq!(schedule.next_at(), Some(later));
    assert_eq!(schedule.take(later).map(|(_, due)| due.version), Some(2));
}

#[test]
fn what_is_put_during_the_work_is_kept_for_after_it() {
    let (schedule, now) = (schedule(100, 2), Instant::now());
    schedule.put(key("a"), due(now, 1, "t"));
    schedule.take(now).unwrap();
    schedule.put(key("a"), due(now, 3, "t"));
    assert!(schedule.take(now).is_none(), "never twice at a time");
    schedule.finish(&key("a"), Some(due(now + Duration::from_secs(5), 2, "t")));
    assert_eq!(schedule.take(now).map(|(_, due)| due.version), Some(3));
}

#[test]
fn above_the_limit_what_is_due_last_is_forgotten_and_reloaded_later() {
    let (schedule, now) = (schedule(4, 9), Instant::now());
    for (nth, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        schedule.put(key(name), due(now + Duration::from_secs(nth as u64), 1, "t"));
    }
    schedule.put(key("urgent"), due(now, 1, "t"));
    schedule.put(key("late"), due(now + Duration::from_secs(99), 1, "t"));
    assert!(!schedule.wants_reload(), "no room yet");
    assert_eq!(names(&schedule, now + Duration::from_secs(100)), ["a", "urgent", "b", "c"]);
    assert!(schedule.wants_reload());
    assert!(!schedule.wants_reload());
}

#[test]
fn the_backlog_of_a_held_target_keeps_no_other_out_of_memory() {
    let (schedule, now) = (schedule(4, 9), Instant::now());
    for name in ["a", "b", "c", "d"] {
        schedule.put(key(name), due(now, 1, "held"));
    }
    schedule.hold("held", Held::Target, now + 3600 * SECOND);
    schedule.put(key("other"), due(now + SECOND, 1, "other"));
    assert_eq!(schedule.len(), 4);
    assert_eq!(names(&schedule, now + SECOND), ["other"]);
}

#[test]
fn a_forgotten_session_is_never_due_and_another_one_still_is() {
    let (schedule, now) = (schedule(9, 9), Instant::now());
    for session in ["a", "b", "c"] {
        schedule.put(key_of(session, "n"), due(now, 1, "t"));
    }
    let (taken, _) = schedule.take(now).unwrap();
    assert_eq!(taken.session, key("").session);
    for session in ["a", "b"] {
        schedule.forget(key_of(session, "").session);
    }
    schedule.finish(&taken, Some(due(now, 2, "t")));
    let left: Vec<_> = std::iter::from_fn(|| schedule.take(now)).map(|(key, _)| key.session).collect();
    assert_eq!(left, [key_of("c", "").session]);
}

#[test]
fn an_address_is_left_alone_for_its_pace_and_the_others_are_not() {
    let (schedule, now) = (paced(100, 4, &[("chat", SECOND, Duration::ZERO)]), Instant::now());
    for name in ["a1", "a2"] {
        schedule.put(key(name), due(now, 1, "chat:a"));
    }
    schedule.put(key("b1"), due(now, 1, "chat:b"));
    assert_eq!(names(&schedule, now), ["a1", "b1"], "one at a time");
    let began = now + SECOND / 4;
    assert_eq!(schedule.begin(&key("a1"), began), Begin::Now);
    schedule.finish(&key("a1"), None);
    assert!(schedule.take(began + SECOND / 2).is_none());
    assert_eq!(schedule.next_at(), Some(began + SECOND));
    assert_eq!(names(&schedule, began + SECOND), ["a2"]);
}

#[test]
fn what_was_not_sent_does_not_count_against_the_pace() {
    let (schedule, now) = (paced(100, 4, &[("chat", SECOND, SECOND)]), Instant::now());
    for name in ["a1", "a2", "a3"] {
        schedule.put(key(name), due(now, 1, "chat:a"));
    }
    for name in ["a1", "a2"] {
        assert_eq!(names(&schedule, now), [name]);
        schedule.finish(&key(name), Some(due(now + 9 * SECOND, 1, "chat:a")));
    }
    assert_eq!(names(&schedule, now), ["a3"]);
}

#[test]
fn sends_of_one_notifier_are_its_pace_apart_in_the_order_in_which_they_ask() {
    let gap = Duration::from_millis(50);
    let (schedule, now) = (paced(100, 4, &[("chat", Duration::ZERO, gap)]), Instant::now());
    for name in ["a", "b", "c", "d", "e", "f"] {
        schedule.put(key(name), due(now, 1, &format!("chat:{name}")));
    }
    assert_eq!(names(&schedule, now), ["a", "b", "c", "d"], "so many prepare at once");
    assert_eq!(schedule.begin(&key("b"), now), Begin::Now);
    assert_eq!(schedule.begin(&key("a"), now), Begin::At(now + gap));
    assert_eq!(schedule.begin(&key("d"), now), Begin::At(now + 2 * gap));
    // A timer was late: those behind it wait for it.
    let late = now + gap + gap / 2;
    assert_eq!(schedule.begin(&key("a"), late), Begin::Now);
    assert_eq!(schedule.begin(&key("d"), now + 2 * gap), Begin::At(late + gap));
    assert_eq!(schedule.begin(&key("d"), late + gap), Begin::Now);
    assert!(schedule.take(late + gap).is_none());
}

#[test]
fn a_hold_stops_also_what_is_about_to_be_sent_and_holds_only_whom_it_names() {
    let paces = [("chat", Duration::ZERO, Duration::ZERO), ("other", Duration::ZERO, Duration::ZERO)];
    let (schedule, now) = (paced(100, 4, &paces), Instant::now());
    let targets = ["chat:a", "chat:b", "other:a"];
    for (nth, target) in targets.into_iter().enumerate() {
        for round in ["1", "2"] {
            schedule.put(key(&format!("{nth}{round}")), due(now, 1, target));
        }
    }
    let taken: Vec<_> = std::iter::from_fn(|| schedule.take(now)).map(|(key, _)| key).collect();
    assert_eq!(taken.len(), 6);
    let until = now + 30 * SECOND;
    schedule.hold("chat:a", Held::Target, until);
    assert_eq!(schedule.begin(&key("01"), now), Begin::Held(until));
    assert_eq!(schedule.begin(&key("11"), now), Begin::Now);
    schedule.hold("chat:a", Held::Notifier, now + SECOND);
    assert_eq!(schedule.begin(&key("12"), now), Begin::Held(now + SECOND));
    assert_eq!(schedule.begin(&key("21"), now), Begin::Now);
    for key in taken {
        schedule.finish(&key, Some(due(now, 2, targets[usize::from(key.name.as_bytes()[0] - b'0')])));
    }
    assert_eq!(names(&schedule, now), ["21", "22"]);
    assert_eq!(names(&schedule, now + SECOND), ["11", "12"]);
    assert!(schedule.take(until - SECOND / 10).is_none());
    assert_eq!(names(&schedule, until), ["01", "02"]);
}

#[test]
fn notifiers_take_turns_whatever_one_of_them_has_to_say() {
    let paces = [("chat", Duration::ZERO, Duration::ZERO), ("hook", Duration::ZERO, Duration::ZERO)];
    let (schedule, now) = (paced(1000, 4, &paces), Instant::now());
    for nth in 0..100 {
        schedule.put(key(&format!("c{nth:03}")), due(now, 1, &format!("chat:{nth:03}")));
    }
    for nth in 0..3 {
        schedule.put(key(&format!("h{nth}")), due(now, 1, "hook"));
    }
    let first: Vec<_> = names(&schedule, now).into_iter().take(6).collect();
    assert_eq!(first.iter().filter(|name| name.starts_with('h')).count(), 3, "{first:?}");
}

#[test]
fn nothing_is_remembered_of_a_target_once_all_is_done_and_its_hold_is_over() {
    let (schedule, now) = (paced(100, 4, &[("chat", SECOND, SECOND)]), Instant::now());
    for nth in 0..50 {
        let (name, target) = (format!("n{nth}"), format!("chat:{nth}"));
        let at = now + 100 * nth * SECOND;
        schedule.put(key(&name), due(at, 1, &target));
        assert_eq!(names(&schedule, at), [name.as_str()]);
        assert_eq!(schedule.begin(&key(&name), at), Begin::Now);
        schedule.hold(&target, Held::Target, at + 50 * SECOND);
        schedule.finish(&key(&name), None);
    }
    assert!(schedule.take(now + 10_000 * SECOND).is_none());
    let inner = schedule.lock();
    assert!(inner.targets.is_empty() && inner.alarms.is_empty() && inner.sizes.is_empty() && inner.running.is_empty());
}

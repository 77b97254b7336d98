//! A subscription's place between its own task and the fan-out, under many orders of their steps.
//!
//! The very file of the gateway, built on locks and atomics whose every use is a point at which another thread may go on.
//! Whoever is never called would wait for ever: that is found as a deadlock.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]
#![allow(unreachable_pub, reason = "the gateway shows it to more than this test does")]

#[path = "../src/hub/place.rs"]
mod place;

mod sync {
    pub(crate) use shuttle::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    };
}

use onlooker_protocol::event::Epoch;
use place::{At, Offered, Place};
use shuttle::{
    rand::Rng as _,
    sync::{Arc, Condvar, Mutex},
    thread,
};

/// Events that are published.
const EVENTS: u64 = 4;

/// Something that is called and waited for; calls add up to one.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// A peer that takes what it gets, and sometimes nothing.
#[derive(Default)]
struct Peer {
    got: Mutex<Vec<u64>>,
}

impl Peer {
    fn get(&self, from: u64, to: u64) {
        self.got.lock().unwrap().extend(from..to);
    }

    fn has_all(&self) -> bool {
        self.got.lock().unwrap().len() as u64 >= EVENTS
    }
}

struct World {
    place: Place<Arc<Peer>>,
    peer: Arc<Peer>,
    /// The next offset of the log.
    head: Mutex<u64>,
    committed: Bell,
    called: Bell,
    /// Whether the fan-out calls the own task where it cannot go on.
    calls: bool,
}

fn at(next: u64) -> At {
    At { epoch: Epoch::new("abcdefgh").expect("eight characters"), next }
}

impl World {
    fn head(&self) -> u64 {
        *self.head.lock().unwrap()
    }

    fn call(&self) {
        if self.place.call() {
            self.called.ring();
        }
    }

    fn publish(&self) {
        for _ in 0..EVENTS {
            *self.head.lock().unwrap() += 1;
            self.committed.ring();
        }
    }

    /// The fan-out, after each time that the head has moved.
    fn walk(&self) {
        let head = self.head();
        let mut batch = (u64::MAX, u64::MAX);
        loop {
            let take = |peer: &Arc<Peer>| {
                let takes = shuttle::rand::thread_rng().gen_bool(0.7);
                if takes {
                    peer.get(batch.0, batch.1);
                }
                takes
            };
            match self.place.offer(at(batch.0), batch.1, |_| true, take) {
                Offered::Taken if batch.1 >= head => return,
                Offered::Taken => {}
                Offered::Elsewhere(there, _) if there.next >= head => return,
                Offered::Elsewhere(there, _) => batch = (there.next, head),
                Offered::NotHeld => break,
            }
        }
        self.place.give_back();
        if self.calls {
            self.call();
        }
    }

    /// The own task, until its peer has everything.
    fn follow(&self) {
        let mut next = 0;
        while !self.peer.has_all() {
            self.called.wait();
            if let Some(there) = self.place.take_back() {
                next = there.next;
            }
            let head = self.head();
            if next < head {
                self.peer.get(next, head);
                next = head;
                self.call();
            } else {
                self.place.hand_over(at(next), Arc::clone(&self.peer));
            }
        }
    }
}

fn run(calls: bool) {
    let world = Arc::new(World {
        place: Place::new(),
        peer: Arc::default(),
        head: Mutex::new(0),
        committed: Bell::default(),
        called: Bell::default(),
        calls,
    });
    let (publisher, fan_out, own_task) = (Arc::clone(&world), Arc::clone(&world), Arc::clone(&world));
    let publisher = thread::spawn(move || publisher.publish());
    let fan_out = thread::spawn(move || {
        while !fan_out.peer.has_all() {
            fan_out.committed.wait();
            fan_out.walk();
            if fan_out.peer.has_all() {
                // The own task looks once more, and sees that all is done.
                fan_out.called.ring();
            }
        }
    });
    world.call();
    let own_task = thread::spawn(move || {
        own_task.follow();
        own_task.committed.ring();
    });
    for thread in [publisher, fan_out, own_task] {
        thread.join().unwrap();
    }
    assert!(world.place.at().is_none_or(|at| at.next == EVENTS));
    assert_eq!(*world.peer.got.lock().unwrap(), (0..EVENTS).collect::<Vec<_>>(), "each once, in order");
}

#[test]
fn every_event_is_handed_out_once_and_in_order_whoever_holds_the_place() {
    shuttle::check_random(|| run(true), 20_000);
    shuttle::check_pct(|| run(true), 20_000, 3);
}

/// That the runs above would find it.
#[test]
#[should_panic = "deadlock"]
fn a_fan_out_that_calls_nobody_is_found() {
    shuttle::check_random(|| run(false), 20_000);
}

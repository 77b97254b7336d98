//! The two ways to a socket, under a kernel that takes as much as it likes.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
};

use proptest::prelude::*;

use super::*;

/// A kernel that takes so many bytes with each write, and nothing where the script says 0.
#[derive(Clone, Default)]
struct Kernel(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    script: VecDeque<usize>,
    taken: Vec<u8>,
    writes: usize,
    waiter: Option<Waker>,
    broken: bool,
}

impl Kernel {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap()
    }

    /// From here on it takes everything. Wakes whoever waits for that.
    fn open(&self) {
        let waiter = {
            let mut inside = self.inside();
            inside.script = VecDeque::new();
            inside.waiter.take()
        };
        waiter.into_iter().for_each(Waker::wake);
    }
}

impl AsyncWrite for Kernel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inside = self.inside();
        if inside.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let most = inside.script.pop_front().unwrap_or(usize::MAX);
        if most == 0 {
            inside.waiter = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = most.min(bytes.len());
        inside.writes += 1;
        inside.taken.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let joined: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        self.poll_write(cx, &joined)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Kernel {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// Counts how often the own task is woken.
#[derive(Default)]
struct OwnTask(AtomicUsize);

impl Wake for OwnTask {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Bench {
    kernel: Kernel,
    socket: Socket,
    own_task: Arc<OwnTask>,
    /// What was accepted, in its order.
    accepted: Vec<u8>,
    messages: u64,
}

impl Bench {
    fn new(script: impl IntoIterator<Item = usize>) -> Self {
        let kernel = Kernel::default();
        kernel.inside().script = script.into_iter().collect();
        let socket = Socket::new(Stream::Any(Box::new(kernel.clone())), None);
        let own_task = Arc::default();
        Self { kernel, socket, own_task, accepted: Vec::new(), messages: 0 }
    }

    fn flush(&self) -> Poll<io::Result<bool>> {
        let waker = Waker::from(Arc::clone(&self.own_task));
        self.socket.poll_flush(&mut Context::from_waker(&waker))
    }

    fn offer(&mut self, frame: &Bytes) -> bool {
        let cut = frame.len() / 3;
        let taken = self.socket.offer(&[frame.slice(..cut), frame.slice(cut..)], 1);
        if taken {
            self.accept(frame);
        }
        taken
    }

    fn queue(&mut self, frame: &Bytes, cut: usize) {
        let cut = cut.min(frame.len());
        self.socket.queue([frame.slice(..cut), frame.slice(cut..)], 1);
        self.accept(frame);
    }

    fn accept(&mut self, frame: &Bytes) {
        self.accepted.extend_from_slice(frame);
        self.messages += 1;
    }

    fn woken(&self) -> usize {
        self.own_task.0.load(Ordering::Relaxed)
    }

    /// What the kernel has is a beginning of what was accepted, and the counts say how much of it.
    fn check(&self, sizes: &[usize]) {
        let taken = self.kernel.inside().taken.len();
        assert_eq!(self.kernel.inside().taken, self.accepted[..taken], "whole frames in their order");
        assert_eq!(self.socket.waiting(), self.accepted.len() - taken);
        assert_eq!(self.socket.is_idle(), taken == self.accepted.len());
        assert_eq!(self.socket.stalled_since().is_some(), taken < self.accepted.len());
        let mut end = 0;
        let whole = sizes.iter().take_while(|size| {
            end += **size;
            end <= taken
        });
        assert_eq!((self.socket.queued(), self.socket.handed_on()), (self.messages, whole.count() as u64));
    }
}

#[derive(Clone, Debug)]
enum Act {
    Offer(usize),
    Queue(usize, usize),
    Flush,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (1_usize..40).prop_map(Act::Offer),
        2 => (1_usize..40, 0_usize..40).prop_map(|(size, cut)| Act::Queue(size, cut)),
        3 => Just(Act::Flush),
    ]
}

proptest! {
    #[test]
    fn frames_arrive_whole_and_in_order_whatever_the_kernel_takes(
        script in prop::collection::vec(0_usize..7, 0..200),
        acts in prop::collection::vec(act(), 1..80),
        gathers: bool,
    ) {
        let mut bench = Bench::new(script);
        bench.socket.set_gathers(gathers);
        assert!(bench.flush().is_ready());
        let mut sizes = Vec::new();
        for (number, act) in (0_u8..).zip(acts) {
            let frame = |size| Bytes::from(vec![number; size]);
            match act {
                Act::Offer(size) => {
                    let idle = bench.socket.is_idle();
                    let woken = bench.woken();
                    let taken = bench.offer(&frame(size));
                    assert!(idle || gathers || !taken, "nothing overtakes what waits");
                    if taken {
                        sizes.push(size);
                    }
                    if taken && idle && !bench.socket.is_idle() {
                        assert!(bench.woken() > woken, "the own task has to see to what waits");
                    }
                }
                Act::Queue(size, cut) => {
                    bench.queue(&frame(size), cut);
                    sizes.push(size);
                }
                Act::Flush => {
                    let woken = bench.woken();
                    if bench.flush().is_pending() {
                        let comes_back = bench.woken() > woken || bench.kernel.inside().waiter.is_some();
                        assert!(comes_back, "the kernel knows whom to wake, or it has another turn");
                    }
                }
            }
            bench.check(&sizes);
        }
        bench.kernel.open();
        // Once more than usual: the first turn may be left to others.
        if bench.flush().is_pending() {
            assert!(bench.flush().is_ready());
        }
        bench.check(&sizes);
        prop_assert!(bench.socket.is_idle());
    }
}

#[test]
fn what_many_bring_is_one_write_of_the_own_task() {
    let mut bench = Bench::new([]);
    bench.socket.set_gathers(true);
    assert!(bench.flush().is_ready());
    let frame = Bytes::from_static(b"frame");
    assert!(bench.offer(&frame) && bench.offer(&frame));
    assert_eq!((bench.woken(), bench.kernel.inside().writes), (1, 0));
    // Others have their turn first, and bring more.
    assert!(bench.flush().is_pending());
    assert_eq!(bench.woken(), 2);
    assert!(bench.offer(&frame));
    assert!(matches!(bench.flush(), Poll::Ready(Ok(true))));
    let inside = bench.kernel.inside();
    assert_eq!((inside.writes, &inside.taken[..]), (1, &b"frameframeframe"[..]));
}

#[test]
fn no_more_is_gathered_than_fits_and_nothing_while_the_kernel_takes_nothing() {
    let mut bench = Bench::new([3, 0]);
    bench.socket.set_gathers(true);
    assert!(bench.flush().is_ready());
    let frame = Bytes::from(vec![b'x'; GATHERED / 2]);
    assert!(bench.offer(&frame) && bench.offer(&frame));
    assert!(!bench.offer(&frame), "the own task reads the rest from the log");
    assert!(bench.flush().is_pending() && bench.flush().is_pending());
    assert_eq!(bench.kernel.inside().taken.len(), 3);
    assert!(!bench.offer(&frame), "a full socket is left to the own task");
    bench.kernel.open();
    assert!(matches!(bench.flush(), Poll::Ready(Ok(true))));
    assert!(bench.offer(&frame));
}

#[test]
fn a_write_that_stops_at_any_byte_goes_on_at_the_next() {
    let frame = Bytes::from_static(b"\x81\x05hello");
    for at in 1..frame.len() {
        let mut bench = Bench::new([at, 0]);
        assert!(bench.flush().is_ready());
        assert!(bench.offer(&frame));
        assert_eq!((bench.socket.waiting(), bench.woken()), (frame.len() - at, 1));
        assert!(!bench.offer(&frame), "something waits");
        // The write that would have blocked has registered the own task, though somebody else tried it.
        bench.kernel.open();
        assert_eq!(bench.woken(), 2);
        assert!(matches!(bench.flush(), Poll::Ready(Ok(true))));
        assert_eq!(bench.kernel.inside().taken, frame);
    }
}

#[test]
fn what_would_block_at_once_is_not_taken() {
    let mut bench = Bench::new([0]);
    assert!(bench.flush().is_ready());
    assert!(!bench.offer(&Bytes::from_static(b"x")));
    assert!(bench.socket.is_idle());
}

#[test]
fn nothing_is_taken_before_the_own_task_is_there_and_after_the_last_frame() {
    let mut bench = Bench::new([]);
    let frame = Bytes::from_static(b"x");
    assert!(!bench.offer(&frame), "nobody could go on with it");
    assert!(bench.flush().is_ready());
    assert!(bench.offer(&frame));
    bench.socket.queue_last(Bytes::from_static(b"end"));
    assert!(bench.flush().is_ready());
    assert!(!bench.offer(&frame));
    bench.socket.queue([frame], 1);
    assert!(bench.flush().is_ready());
    assert_eq!(bench.kernel.inside().taken, b"xend");
}

#[test]
fn a_write_that_fails_is_told_to_the_own_task() {
    let mut bench = Bench::new([]);
    assert!(bench.flush().is_ready());
    bench.kernel.inside().broken = true;
    assert!(!bench.offer(&Bytes::from_static(b"x")));
    assert_eq!(bench.woken(), 1);
    assert!(matches!(bench.flush(), Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe));
}

#[test]
fn a_connection_that_is_over_lets_go_of_its_stream() {
    let bench = Bench::new([]);
    assert!(bench.flush().is_ready());
    assert_eq!(Arc::strong_count(&bench.kernel.0), 2);
    bench.socket.shut();
    assert_eq!(Arc::strong_count(&bench.kernel.0), 1);
}

//! Runtimes that publish in batches: several connections, several sessions on each, a bounded number of batches that
//! are not acknowledged yet. What they send is made before; only the numbers are written into it, so that as much of
//! the machine as possible is left to the gateway.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt, stream::SplitSink, stream::SplitStream};
use serde::Deserialize;
use tokio::{net::TcpStream, sync::Notify, task::JoinSet, time::sleep_until};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};
use tokio_util::sync::CancellationToken;

use crate::{
    Outcome,
    figures::Times,
    server::{Server, Usage, Used},
};

/// A data that makes an event's stored frame about 300 bytes long.
const DATA: &str = r##"{"name":"click","target":"#checkout > button.primary","x":512,"y":300,"url":"https://shop.example/cart?item=1207"}"##;
/// Room for a number: JSON allows spaces before it.
const DIGITS: usize = 10;
/// Batches of a session that may wait for their acknowledgement when batches come by the clock.
const PACED_WINDOW: usize = 64;
/// Batches of a connection that wait for theirs at most.
const OUTSTANDING: usize = 256;
/// Between the beginning of a load and what is measured.
const SETTLE: Duration = Duration::from_secs(1);

type Socket = WebSocketStream<TcpStream>;

/// How fast batches are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As fast as acknowledgements come, with so many batches of a session outstanding.
    Full { window: usize },
    /// So many events a second in all, whatever comes back.
    Rate(f64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) pace: Pace,
    /// Events.
    pub(crate) batch: usize,
}

/// What a measured stretch of a load came to.
pub(crate) struct Measured {
    /// Events that were acknowledged.
    pub(crate) events: f64,
    /// From the moment when a batch was to be sent until all of it was acknowledged.
    pub(crate) acks: Times,
    /// How much later than planned batches were sent; nothing at full speed.
    pub(crate) late: Times,
    pub(crate) server: Used,
    pub(crate) generator: Used,
}

impl Measured {
    pub(crate) fn rate(&self) -> f64 {
        self.events / self.server.seconds
    }
}

pub(crate) struct Fleet {
    connections: Vec<Connection>,
}

struct Connection {
    socket: Socket,
    lanes: Vec<Lane>,
}

/// One session.
struct Lane {
    session: String,
    /// The number of the next event.
    next: u64,
    /// Batches that are not acknowledged.
    waiting: VecDeque<Sent>,
}

struct Sent {
    last: u64,
    events: u64,
    /// When it was to be sent.
    due: Instant,
}

#[derive(Default)]
struct Meter {
    acknowledged: AtomicU64,
    measuring: AtomicBool,
    acks: Mutex<Times>,
    late: Mutex<Times>,
}

/// What the gateway says, as far as it matters here.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Said {
    Hello,
    Registered,
    Opened {
        session: String,
    },
    Accepted {
        session: String,
        n: u64,
    },
    Ping {
        id: u64,
    },
    EventRefused,
    Error,
    #[serde(other)]
    Other,
}

impl Fleet {
    /// Connects runtimes and opens sessions of their own.
    pub(crate) async fn connect(server: &Server, connections: usize, sessions: usize) -> Outcome<Self> {
        let mut tasks = JoinSet::new();
        for number in 0..connections {
            let (address, share) = (server.address.clone(), sessions / connections);
            tasks.spawn(async move { Connection::open(&address, number, share).await });
        }
        let connections = tasks.join_all().await.into_iter().collect::<Outcome<_>>()?;
        Ok(Self { connections })
    }

    pub(crate) fn sessions(&self) -> impl Iterator<Item = &str> {
        self.connections.iter().flat_map(|connection| connection.lanes.iter().map(|lane| lane.session.as_str()))
    }

    /// Publishes so many more events to each session, and waits until all are acknowledged.
    pub(crate) async fn fill(&mut self, load: Load, events: u64) -> Outcome<()> {
        self.drive(load, Some(events), Arc::default(), CancellationToken::new()).await?.await
    }

    /// Publishes for a while and says what that came to.
    pub(crate) async fn measure(&mut self, server: &Server, load: Load, time: Duration) -> Outcome<Measured> {
        let (meter, stop) = (Arc::<Meter>::default(), CancellationToken::new());
        let driven = self.drive(load, None, Arc::clone(&meter), stop.clone()).await?;
        let measuring = async {
            tokio::time::sleep(SETTLE).await;
            let before = (server.usage()?, Usage::of_this()?, meter.acknowledged.load(Ordering::Relaxed));
            meter.measuring.store(true, Ordering::Relaxed);
            tokio::time::sleep(time).await;
            meter.measuring.store(false, Ordering::Relaxed);
            let after = (server.usage()?, Usage::of_this()?, meter.acknowledged.load(Ordering::Relaxed));
            stop.cancel();
            Outcome::Ok((before, after))
        };
        let (driven, measured) = tokio::join!(driven, measuring);
        driven?;
        let (before, after) = measured?;
        Ok(Measured {
            events: (after.2 - before.2) as f64,
            acks: std::mem::take(&mut lock(&meter.acks)),
            late: std::mem::take(&mut lock(&meter.late)),
            server: after.0.since(&before.0),
            generator: after.1.since(&before.1),
        })
    }

    /// Starts the load on every connection. What is returned ends when all of it is acknowledged.
    async fn drive(
        &mut self,
        load: Load,
        events: Option<u64>,
        meter: Arc<Meter>,
        stop: CancellationToken,
    ) -> Outcome<impl Future<Output = Outcome<()>>> {
        let mut tasks = JoinSet::new();
        let parts = self.connections.len();
        for connection in self.connections.drain(..) {
            let (meter, stop) = (Arc::clone(&meter), stop.clone());
            tasks.spawn(connection.publish(load, parts, events, meter, stop));
        }
        Ok(async move {
            while let Some(ended) = tasks.join_next().await {
                self.connections.push(ended??);
            }
            Ok(())
        })
    }
}

impl Connection {
    async fn open(address: &str, number: usize, sessions: usize) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (mut socket, _) = client_async(format!("ws://{address}/v1/runtime"), stream).await?;
        let register = format!(r#"{{"type":"register","name":"publisher-{number}","capacity":{sessions}}}"#);
        socket.send(Message::text(register)).await?;
        let (mut sink, mut stream) = socket.split();
        let asking = async {
            for session in 0..sessions {
                sink.feed(Message::text(format!(r#"{{"type":"open","ref":"{session}"}}"#))).await?;
            }
            sink.flush().await?;
            Outcome::Ok(sink)
        };
        let opening = async {
            let mut lanes = Vec::with_capacity(sessions);
            while lanes.len() < sessions {
                if let Said::Opened { session } = next(&mut stream).await? {
                    lanes.push(Lane { session, next: 1, waiting: VecDeque::new() });
                }
            }
            Outcome::Ok((stream, lanes))
        };
        let (sink, opened) = tokio::join!(asking, opening);
        let (stream, lanes) = opened?;
        Ok(Self { socket: stream.reunite(sink?)?, lanes })
    }

    async fn publish(
        self,
        load: Load,
        connections: usize,
        events: Option<u64>,
        meter: Arc<Meter>,
        stop: CancellationToken,
    ) -> Outcome<Self> {
        let (mut sink, mut stream) = self.socket.split();
        let places = self.lanes.iter().enumerate().map(|(at, lane)| (lane.session.clone(), at)).collect();
        let last = events.map(|events| self.lanes.iter().map(|lane| lane.next + events - 1).collect());
        let publishing = Publishing { places, last, lanes: Mutex::new(self.lanes), room: Notify::new(), meter };
        {
            let pongs = Mutex::new(VecDeque::new());
            let reading = publishing.read(&mut stream, &pongs);
            let sending = publishing.send(&mut sink, load, connections, &stop, &pongs);
            tokio::select! {
                read = reading => read?,
                sent = sending => sent?,
            }
        }
        let lanes = publishing.lanes.into_inner().map_err(|_| "a publisher panicked")?;
        Ok(Self { socket: stream.reunite(sink)?, lanes })
    }
}

/// What the sending and the reading half of a connection share.
struct Publishing {
    places: HashMap<String, usize>,
    /// The last number of each session, where that is given.
    last: Option<Vec<u64>>,
    lanes: Mutex<Vec<Lane>>,
    /// Something was acknowledged, or is to be answered.
    room: Notify,
    meter: Arc<Meter>,
}

impl Publishing {
    async fn read(&self, stream: &mut SplitStream<Socket>, pongs: &Mutex<VecDeque<u64>>) -> Outcome<()> {
        loop {
            match next(stream).await? {
                Said::Accepted { session, n } => self.accepted(&session, n),
                Said::Ping { id } => lock(pongs).push_back(id),
                _ => continue,
            }
            self.room.notify_one();
        }
    }

    fn accepted(&self, session: &str, n: u64) {
        let Some(at) = self.places.get(session) else { return };
        let mut lanes = lock(&self.lanes);
        let waiting = &mut lanes[*at].waiting;
        let measuring = self.meter.measuring.load(Ordering::Relaxed);
        while let Some(sent) = waiting.pop_front_if(|sent| sent.last <= n) {
            self.meter.acknowledged.fetch_add(sent.events, Ordering::Relaxed);
            if measuring {
                lock(&self.meter.acks).add(sent.due.elapsed());
            }
        }
    }

    async fn send(
        &self,
        sink: &mut SplitSink<Socket, Message>,
        load: Load,
        connections: usize,
        stop: &CancellationToken,
        pongs: &Mutex<VecDeque<u64>>,
    ) -> Outcome<()> {
        let mut template = Template::new(load.batch);
        let (window, interval) = match load.pace {
            Pace::Full { window } => (window, None),
            Pace::Rate(rate) => {
                (PACED_WINDOW, Some(Duration::from_secs_f64(load.batch as f64 * connections as f64 / rate)))
            }
        };
        let (begun, mut sent, mut turn) = (Instant::now(), 0_u32, 0);
        loop {
            while let Some(id) = { lock(pongs).pop_front() } {
                sink.send(Message::text(format!(r#"{{"type":"pong","id":{id}}}"#))).await?;
            }
            let due = interval.map(|interval| begun + interval * sent);
            if let Some(due) = due.filter(|due| *due > Instant::now()) {
                tokio::select! {
                    () = sleep_until(due.into()) => {}
                    () = stop.cancelled() => {}
                }
            }
            match self.batch(&mut template, window, &mut turn, due, stop.is_cancelled()) {
                Next::Send(text) => {
                    sink.send(Message::text(text)).await?;
                    sent += 1;
                }
                Next::Wait => self.room.notified().await,
                Next::Done => return Ok(()),
            }
        }
    }

    /// The next batch of the next session that has room for one.
    fn batch(
        &self,
        template: &mut Template,
        window: usize,
        turn: &mut usize,
        due: Option<Instant>,
        stopped: bool,
    ) -> Next {
        let mut lanes = lock(&self.lanes);
        let count = lanes.len();
        let outstanding = lanes.iter().map(|lane| lane.waiting.len()).sum::<usize>();
        for _ in (0..count).filter(|_| outstanding < OUTSTANDING) {
            let at = *turn % count;
            *turn += 1;
            let lane = &mut lanes[at];
            let end = self.last.as_ref().map_or(u64::MAX, |last| last[at] + 1);
            let events = template.events().min(end.saturating_sub(lane.next) as usize);
            if stopped || events == 0 || lane.waiting.len() >= window {
                continue;
            }
            let text = template.text(&lane.session, lane.next, events);
            let now = Instant::now();
            if let Some(due) = due.filter(|_| self.meter.measuring.load(Ordering::Relaxed)) {
                lock(&self.meter.late).add(now.saturating_duration_since(due));
            }
            lane.next += events as u64;
            lane.waiting.push_back(Sent { last: lane.next - 1, events: events as u64, due: due.unwrap_or(now) });
            return Next::Send(text);
        }
        let all_sent = |at: usize, lane: &Lane| self.last.as_ref().is_some_and(|last| lane.next > last[at]);
        let done =
            lanes.iter().enumerate().all(|(at, lane)| lane.waiting.is_empty() && (stopped || all_sent(at, lane)));
        if done { Next::Done } else { Next::Wait }
    }
}

enum Next {
    Send(String),
    Wait,
    Done,
}

/// The text of a batch, with places for its numbers.
struct Template {
    events: Vec<u8>,
    /// Bytes of one event with the comma behind it.
    stride: usize,
    number_at: usize,
}

impl Template {
    fn new(batch: usize) -> Self {
        let head = r#"{"n":"#;
        let event = format!(r#"{head}{:DIGITS$},"type":"action","data":{DATA}}},"#, 0);
        let events = event.repeat(batch).into_bytes();
        Self { stride: event.len(), number_at: head.len(), events }
    }

    fn events(&self) -> usize {
        self.events.len() / self.stride
    }

    /// A frame with so many events, numbered from `first` on.
    fn text(&mut self, session: &str, first: u64, events: usize) -> String {
        for (event, n) in self.events.chunks_exact_mut(self.stride).take(events).zip(first..) {
            put_number(&mut event[self.number_at..self.number_at + DIGITS], n);
        }
        let events = &self.events[..events * self.stride - 1];
        let events = std::str::from_utf8(events).expect("the template is ASCII");
        format!(r#"{{"type":"events","session":"{session}","events":[{events}]}}"#)
    }
}

fn put_number(place: &mut [u8], mut n: u64) {
    for digit in place.iter_mut().rev() {
        *digit = if n == 0 { b' ' } else { b'0' + (n % 10) as u8 };
        n /= 10;
    }
}

async fn next(stream: &mut SplitStream<Socket>) -> Outcome<Said> {
    loop {
        let Message::Text(text) = stream.next().await.ok_or("the gateway closed the connection")?? else { continue };
        match serde_json::from_str(&text)? {
            Said::EventRefused | Said::Error => return Err(format!("refused: {text}").into()),
            said => return Ok(said),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

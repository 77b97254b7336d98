//! What it looks like when somebody is no longer there: each way of disappearing, at each surface at once, and what
//! follows from it for the question that they had.

use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::{
    lookers::{CONNECTED, End},
    tunnel::{Tunnel, Weather},
    *,
};

/// Somebody who has a question, at the other end of a tunnel.
struct Scene<'a> {
    stage: &'a Stage,
    surface: Surface,
    session: String,
    tunnel: Tunnel,
    looker: Looker,
}

impl<'a> Scene<'a> {
    async fn begin(stage: &'a Stage, surface: Surface) -> Self {
        let session = stage.session().await;
        let tunnel = Tunnel::to(&stage.gateway.url).await;
        let looker = Looker::look(&tunnel.url, surface, &session, None).await;
        stage.wait_counts(&session, (1, 1)).await;
        stage.ask(&session, "g").await;
        stage.wait_why(&session, "g", COVERED).await;
        assert_eq!(stage.told("guardrail.opened", &session), 0, "{surface:?}");
        Self { stage, surface, session, tunnel, looker }
    }

    /// Somebody else is told, once, and not before the grace was over; whoever comes back changes nothing about it.
    async fn somebody_is_told_once(&self, since: Instant, within: Duration) {
        let Self { stage, surface, session, .. } = self;
        stage.wait_told(session).await;
        let took = since.elapsed();
        assert!(took >= stage_grace() && took < within, "{surface:?}: told after {took:?}");
        let why = stage.why(session, "g").await;
        assert!(why.iter().any(|why| why.contains(GRACE)), "{surface:?}: {why:?}");
        let _back = stage.look(*surface, session).await;
        stage.wait_counts(session, (1, 1)).await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(stage.told("guardrail.opened", session), 1, "{surface:?}");
    }
}

fn stage_grace() -> Duration {
    short().times.grace
}

/// What the window and the grace take, and a machine that is busy with other tests.
fn lapse() -> Duration {
    short().times.live_window + stage_grace() + Duration::from_secs(4)
}

async fn at_each(scene: impl AsyncFn(Scene<'_>)) {
    let stage = Stage::begin(short()).await;
    join_all(CONNECTED.iter().map(async |surface| scene(Scene::begin(&stage, *surface).await).await)).await;
    stage.gateway.stop().await;
}

/// The connection ends and is there again before anybody could have been told.
#[tokio::test]
async fn a_page_refresh() {
    let mut config = calm(Duration::from_secs(3), Duration::from_secs(3));
    config.times.poll_window = Duration::from_secs(1);
    let stage = Stage::begin(config).await;
    join_all(CONNECTED.iter().map(async |surface| {
        let Scene { stage, session, looker, tunnel, .. } = Scene::begin(&stage, *surface).await;
        let left = Instant::now();
        looker.end(End::Going).await;
        stage.wait_counts(&session, (0, 0)).await;
        let _again = Looker::look(&tunnel.url, *surface, &session, None).await;
        stage.wait_why(&session, "g", COVERED).await;
        // Past the end of the grace.
        sleep((left + Duration::from_millis(3_500)).saturating_duration_since(Instant::now())).await;
        assert_eq!(stage.told("guardrail.opened", &session), 0, "{surface:?}");
    }))
    .await;
    stage.gateway.stop().await;
}

/// The code stands still and the socket stays open: nothing says that anybody has left.
#[tokio::test]
async fn a_laptop_lid_that_is_closed() {
    at_each(async |scene| {
        let closed = Instant::now();
        scene.looker.freeze();
        scene.somebody_is_told_once(closed, lapse()).await;
    })
    .await;
}

/// Packets vanish both ways, and neither end hears of the other.
#[tokio::test]
async fn a_phone_in_a_tunnel() {
    at_each(async |scene| {
        let entered = Instant::now();
        scene.tunnel.turns(Weather::Dark);
        scene.somebody_is_told_once(entered, lapse()).await;
    })
    .await;
}

/// Out of the tunnel in time. Its client makes another connection while the gateway still takes the lost one for
/// somebody: that one's end, when it is found out, is nobody's leave.
#[tokio::test]
async fn a_phone_that_comes_out_of_the_tunnel_in_time() {
    let mut config = short();
    config.times.first_look = LONG;
    let stage = Stage::begin(config).await;
    join_all(CONNECTED.iter().map(async |surface| {
        let Scene { tunnel, session, looker, .. } = Scene::begin(&stage, *surface).await;
        tunnel.turns(Weather::Dark);
        stage.ask(&session, "h").await;
        stage.wait_why(&session, "h", "has not proved to have it yet").await;
        let _again = stage.look(*surface, &session).await;
        for question in ["g", "h"] {
            stage.wait_why(&session, question, COVERED).await;
        }
        stage.wait_counts(&session, (1, 1)).await;
        for question in ["g", "h"] {
            stage.wait_why(&session, question, COVERED).await;
        }
        assert_eq!(stage.told("guardrail.opened", &session), 0, "{surface:?}");
        drop(looker);
    }))
    .await;
    stage.gateway.stop().await;
}

/// Its kernel says so: the connection is reset, and only the grace is waited for.
#[tokio::test]
async fn a_killed_process() {
    at_each(async |mut scene| {
        let killed = Instant::now();
        let looker = std::mem::replace(&mut scene.looker, Looker::nobody());
        looker.end(End::Reset).await;
        scene.somebody_is_told_once(killed, stage_grace() + Duration::from_secs(3)).await;
    })
    .await;
}

/// The client is gone; what stands between keeps its connection open, and alive as far as the protocol below goes.
#[tokio::test]
async fn a_proxy_that_keeps_dead_upstreams_open() {
    at_each(async |mut scene| {
        scene.tunnel.turns(Weather::KeepsUpstream);
        let killed = Instant::now();
        let looker = std::mem::replace(&mut scene.looker, Looker::nobody());
        looker.end(End::Reset).await;
        scene.somebody_is_told_once(killed, lapse()).await;
    })
    .await;
}

/// The page is out of sight and may come back: its browser answers for it, its code does not run.
#[tokio::test]
async fn a_cached_page() {
    at_each(async |scene| {
        let left = Instant::now();
        match scene.surface {
            Surface::Native | Surface::SocketIo => scene.looker.freeze_but_pong(),
            // Nothing below their code could answer for them.
            _ => scene.looker.freeze(),
        }
        scene.somebody_is_told_once(left, lapse()).await;
    })
    .await;
}

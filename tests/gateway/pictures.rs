//! Pictures by level: `full` beside `reduced`, which is made once and shown to nobody who may not see the original.

use std::{collections::BTreeSet, io::Cursor};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use onlooker_protocol::{
    picture::ShownPicture,
    runtime::OpenSession,
    subscriber::{GatewayToSubscriber, PictureLevel, Subscribe},
};
use serde_json::{Value, json};

use crate::harness::*;

/// A page as a PNG of about 200 KB, of its own colour.
pub fn page(shade: u8) -> Vec<u8> {
    let noise = |x: u32, y: u32| (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)).wrapping_mul(2_246_822_519);
    let image = RgbImage::from_fn(640, 400, |x, y| {
        if x < 320 { Rgb((noise(x, y) >> 8).to_be_bytes()[1..].try_into().unwrap()) } else { Rgb([shade; 3]) }
    });
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// The shade of a page, as a picture shows it.
fn shade_of(jpeg: &[u8]) -> u8 {
    let image = image::load_from_memory_with_format(jpeg, ImageFormat::Jpeg).unwrap().into_rgb8();
    assert_eq!(image.dimensions(), (480, 300));
    image.get_pixel(400, 150).0[1]
}

/// A PNG of 1 × 1 that says that it is larger.
fn bomb(side: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(RgbImage::new(1, 1)).write_to(&mut bytes, ImageFormat::Png).unwrap();
    let mut png = bytes.into_inner();
    png[16..20].copy_from_slice(&side.to_be_bytes());
    png[20..24].copy_from_slice(&side.to_be_bytes());
    let crc = !png[12..29].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    });
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    png
}

async fn scene() -> (TestGateway, Runtime, String) {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    (gateway, runtime, session)
}

async fn viewer(gateway: &TestGateway, session: &str, pictures: PictureLevel) -> Subscriber {
    let mut viewer = gateway.subscriber().await;
    viewer.subscribe(Subscribe { session: Some(session.to_owned()), pictures, ..follow() }).await;
    viewer.live().await;
    viewer
}

async fn next_picture(viewer: &mut Subscriber) -> (ShownPicture, Vec<u8>) {
    loop {
        match viewer.receive().await {
            Received::Picture(header, bytes) => return (header, bytes),
            Received::Frame(frame) => viewer.seen.push_back(frame),
            Received::Closed(code) => panic!("closed with {code:?}"),
        }
    }
}

/// How many pictures came to this, of those that somebody wanted reduced.
async fn reduced(gateway: &TestGateway, outcome: &str) -> f64 {
    gateway.metric(&format!("onlooker_pictures_reduced_total{{outcome=\"{outcome}\"}}")).await
}

async fn id_of_last(gateway: &TestGateway, session: &str) -> String {
    let (_, got) = gateway.get(&format!("/v1/sessions/{session}")).await;
    got["state"]["picture"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn beside_the_full_picture_a_reduced_one_comes_under_the_same_id() {
    let (gateway, mut runtime, session) = scene().await;
    let mut full = viewer(&gateway, &session, PictureLevel::Full).await;
    let mut small = viewer(&gateway, &session, PictureLevel::Reduced).await;
    for shade in [20, 220] {
        let original = page(shade);
        runtime.publish_picture(&session, &original).await;
        let (header, bytes) = next_picture(&mut full).await;
        assert!(bytes == original, "the bytes that were published");
        assert_eq!((&*header.media, header.size), ("image/png", original.len() as u64));
        let (of_small, jpeg) = next_picture(&mut small).await;
        assert_eq!((&of_small.id, &of_small.session), (&header.id, &session));
        assert_eq!((&*of_small.media, of_small.size), ("image/jpeg", jpeg.len() as u64));
        assert!(jpeg.len() < original.len() / 2, "{} of {}", jpeg.len(), original.len());
        assert!(shade_of(&jpeg).abs_diff(shade) < 10, "it shows something else");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn it_is_made_once_for_all_who_asked_and_not_at_all_for_others() {
    let (gateway, mut runtime, session) = scene().await;
    let mut others = Vec::new();
    for level in [PictureLevel::None, PictureLevel::Full] {
        others.push(viewer(&gateway, &session, level).await);
    }
    runtime.publish_picture(&session, &page(1)).await;
    next_picture(&mut others[1]).await;
    assert_eq!(reduced(&gateway, "made").await, 0.0, "nobody asked");
    let mut viewers = Vec::new();
    for _ in 0..20 {
        viewers.push(viewer(&gateway, &session, PictureLevel::Reduced).await);
    }
    let mut got = Vec::new();
    for viewer in &mut viewers {
        got.push(next_picture(viewer).await);
    }
    assert!(got.iter().all(|one| *one == got[0]));
    assert_eq!(reduced(&gateway, "made").await, 1.0);
    runtime.publish(&session, "agent", json!({ "content": "after" })).await;
    let unasked = others[0].event("agent").await;
    assert_eq!(unasked["content"], "after", "and no picture before it");
    gateway.stop().await;
}

#[tokio::test]
async fn under_control_a_reduced_picture_goes_to_the_holder_alone() {
    let (gateway, mut runtime, session) = scene().await;
    let mut holder = viewer(&gateway, &session, PictureLevel::Reduced).await;
    let mut other = viewer(&gateway, &session, PictureLevel::Reduced).await;
    let take = json!({ "type": "command", "session": session, "command": "take_control" });
    let token = holder.request(take).await.unwrap()["token"].clone();
    runtime.publish_picture(&session, &page(40)).await;
    let (header, jpeg) = next_picture(&mut holder).await;
    assert!(shade_of(&jpeg).abs_diff(40) < 10);
    let url = format!("/v1/sessions/{session}/pictures/{}?level=reduced", header.id);
    assert_eq!(gateway.get(&url).await.1["error"], "unknown_picture");
    let release = json!({ "type": "command", "session": session, "command": "release_control", "token": token });
    holder.request(release).await.unwrap();
    assert_eq!(gateway.get(&url).await.1["error"], "unknown_picture", "it went with the lease");
    runtime.publish_picture(&session, &page(240)).await;
    let (_, jpeg) = next_picture(&mut other).await;
    assert!(shade_of(&jpeg) > 230, "the first that the other gets is the one for all");
    gateway.stop().await;
}

#[tokio::test]
async fn of_a_sensitive_window_nothing_is_reduced() {
    let (gateway, mut runtime, session) = scene().await;
    let mut viewer = viewer(&gateway, &session, PictureLevel::Reduced).await;
    runtime.publish(&session, "sensitive", json!({ "on": true })).await;
    runtime.publish_picture(&session, &page(40)).await;
    assert_eq!(viewer.event("screenshot").await["withheld"], true);
    runtime.publish(&session, "sensitive", json!({ "on": false })).await;
    runtime.publish_picture(&session, &page(240)).await;
    let (_, jpeg) = next_picture(&mut viewer).await;
    assert!(shade_of(&jpeg) > 230, "the first that is shown is from after it");
    assert_eq!(reduced(&gateway, "made").await, 1.0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_bomb_and_garbage_are_skipped_and_nobody_else_notices() {
    let (gateway, mut runtime, session) = scene().await;
    let (other, _) = runtime.open(OpenSession::default()).await;
    let mut full = viewer(&gateway, &session, PictureLevel::Full).await;
    let mut small = viewer(&gateway, &session, PictureLevel::Reduced).await;
    let mut elsewhere = viewer(&gateway, &other, PictureLevel::Reduced).await;
    let broken = [bomb(30_000), vec![7; 100_000], page(9)[..50_000].to_vec()];
    for (skipped, bytes) in (1..).zip(&broken) {
        runtime.publish_picture(&session, bytes).await;
        assert!(next_picture(&mut full).await.1 == *bytes, "the full picture is what was published");
        wait_until("it is skipped", || async { reduced(&gateway, "skipped").await == f64::from(skipped) }).await;
        let url = format!("/v1/sessions/{session}/pictures/{}?level=reduced", id_of_last(&gateway, &session).await);
        assert_eq!(gateway.get(&url).await.1["error"], "unknown_picture");
    }
    runtime.publish_picture(&other, &page(40)).await;
    assert!(shade_of(&next_picture(&mut elsewhere).await.1).abs_diff(40) < 10);
    runtime.publish_picture(&session, b"few bytes that are no picture").await;
    let (header, bytes) = next_picture(&mut small).await;
    assert_eq!((&*header.media, &*bytes), ("image/png", &b"few bytes that are no picture"[..]), "the first that comes");
    assert_eq!(reduced(&gateway, "passed_on").await, 1.0);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_comes_last_and_each_after_its_event() {
    const PICTURES: usize = 30;
    let (gateway, mut runtime, session) = scene().await;
    let mut viewer = viewer(&gateway, &session, PictureLevel::Reduced).await;
    let pages = [page(20), page(220)];
    for nth in 0..PICTURES {
        runtime.publish_picture(&session, &pages[nth % 2]).await;
    }
    let (mut announced, mut shown) = (Vec::new(), Vec::new());
    while announced.len() < PICTURES || shown.last() != Some(&(PICTURES - 1)) {
        match viewer.receive().await {
            Received::Frame(GatewayToSubscriber::Event(event)) => {
                announced.extend(event.event.data["id"].as_str().map(str::to_owned));
            }
            Received::Picture(header, jpeg) => {
                let nth = announced.iter().position(|id| *id == header.id).expect("its event came before");
                assert!(shade_of(&jpeg).abs_diff([20, 220][nth % 2]) < 10, "it is the picture of another event");
                shown.push(nth);
            }
            Received::Frame(_) => {}
            Received::Closed(code) => panic!("closed with {code:?}"),
        }
    }
    assert!(shown.is_sorted(), "{shown:?}");
    assert_eq!(shown.iter().collect::<BTreeSet<_>>().len(), shown.len(), "a picture came twice");
    assert!(reduced(&gateway, "made").await <= PICTURES as f64);
    gateway.stop().await;
}

#[tokio::test]
async fn a_reduced_picture_can_be_asked_for_by_its_id() {
    let (gateway, mut runtime, session) = scene().await;
    for shade in [40, 240] {
        let original = page(shade);
        runtime.publish_picture(&session, &original).await;
        let picture =
            format!("{}/v1/sessions/{session}/pictures/{}", gateway.url, id_of_last(&gateway, &session).await);
        for _ in 0..2 {
            let response = gateway.http.get(format!("{picture}?level=reduced")).send().await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["content-type"], "image/jpeg");
            assert_eq!(response.headers()["cache-control"], "no-store");
            assert!(shade_of(&response.bytes().await.unwrap()).abs_diff(shade) < 10);
        }
        for full in [picture.clone(), format!("{picture}?level=full")] {
            assert!(gateway.http.get(full).send().await.unwrap().bytes().await.unwrap() == original);
        }
        for level in ["none", "tiny"] {
            assert_eq!(gateway.http.get(format!("{picture}?level={level}")).send().await.unwrap().status(), 400);
        }
    }
    let none = format!("/v1/sessions/{session}/pictures/none?level=reduced");
    assert_eq!(gateway.get(&none).await.1["error"], "unknown_picture");
    assert_eq!(reduced(&gateway, "made").await, 2.0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_level_of_a_later_version_is_refused() {
    let (gateway, _runtime, session) = scene().await;
    let mut subscriber = gateway.subscriber().await;
    let asked: Value = json!({ "type": "subscribe", "session": session, "pictures": "tiny" });
    assert!(subscriber.request(asked).await.is_err());
    gateway.stop().await;
}

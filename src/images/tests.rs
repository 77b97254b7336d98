use std::io::Cursor;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::metrics::{Metrics, Present};

const UNBOUNDED: ImageBounds = ImageBounds { count: usize::MAX, bytes: usize::MAX };

/// A session's images with a reducer that works when the test says so.
struct Scene {
    images: Images,
    metrics: Arc<Metrics>,
}

impl Scene {
    fn new(bounds: ImageBounds) -> Self {
        let metrics = Arc::new(Metrics::new());
        let none = Reducer::with_workers(0, TaskTracker::new(), CancellationToken::new(), Arc::clone(&metrics));
        Self { images: Images::new(bounds, none), metrics }
    }

    fn add(&self, id: &str, offset: u64, bytes: Vec<u8>, only_for: Option<HolderKey>) {
        let new = NewPicture { media: "image/png".to_owned(), bytes: bytes.into() };
        self.images.add(SessionId::random(), new, Placed { id: id.into(), offset, only_for });
    }

    /// Adds pictures `0`, `1`, `2` … that everybody may see.
    fn add_pages(&self, offsets: std::ops::Range<u64>) {
        offsets.for_each(|offset| self.add(&offset.to_string(), offset, page(), None));
    }

    fn reduced(&self, viewer: &str, committed: u64) -> Option<Arc<Picture>> {
        self.images.latest(&key(viewer), PictureLevel::Reduced, committed)
    }

    fn reduced_id(&self, viewer: &str, committed: u64) -> Option<String> {
        self.reduced(viewer, committed).map(|picture| picture.id.to_string())
    }

    /// A worker's turn with this session.
    fn work(&self) {
        self.images.reducer.make(&self.images.shelf);
    }

    fn count(&self, outcome: &str) -> u64 {
        let text = self.metrics.text(Present::default());
        let name = format!("onlooker_pictures_reduced_total{{outcome=\"{outcome}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
    }
}

fn key(name: &str) -> HolderKey {
    HolderKey::Credential(name.into())
}

/// A PNG that is worth reducing.
fn page() -> Vec<u8> {
    let noise = |x: u32, y: u32| (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)).wrapping_mul(2_246_822_519);
    let image = RgbImage::from_fn(640, 400, |x, y| {
        if x < 320 { Rgb((noise(x, y) >> 8).to_be_bytes()[1..].try_into().unwrap()) } else { Rgb([200; 3]) }
    });
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn garbage() -> Vec<u8> {
    vec![7; 100_000]
}

#[test]
fn nothing_is_reduced_before_somebody_asks() {
    let scene = Scene::new(UNBOUNDED);
    scene.add_pages(0..3);
    for level in [PictureLevel::None, PictureLevel::Full] {
        scene.images.latest(&key("ann"), level, 3);
        scene.images.latest_for_all(3);
        scene.work();
        assert_eq!(scene.count("made"), 0, "{level:?}");
    }
    assert_eq!(scene.reduced_id("ann", 3), None);
    scene.work();
    let (full, reduced) = (scene.images.get("2", &key("ann")).unwrap(), scene.reduced("ann", 3).unwrap());
    assert_eq!((&reduced.id, &*reduced.media, reduced.is_reduced()), (&full.id, "image/jpeg", true));
    assert!(reduced.bytes().len() < full.bytes().len() / 2);
    let (header, bytes) = picture::decode::<ShownPicture>(&reduced.frame).unwrap();
    assert_eq!((header.id, header.media, header.size), ("2".into(), "image/jpeg".into(), bytes.len() as u64));
    assert_eq!(scene.count("made"), 1);
}

#[test]
fn a_picture_is_reduced_once_however_many_ask() {
    let scene = Scene::new(UNBOUNDED);
    scene.add_pages(0..1);
    for viewer in 0..100 {
        assert_eq!(scene.reduced_id(&viewer.to_string(), 1), None);
    }
    (0..3).for_each(|_| scene.work());
    let shown: Vec<_> = (0..100).map(|viewer| scene.reduced(&viewer.to_string(), 1).unwrap()).collect();
    assert!(shown.iter().all(|one| Arc::ptr_eq(one, &shown[0])), "it was copied");
    assert_eq!(scene.count("made"), 1);
}

#[test]
fn a_worker_that_is_slow_makes_the_newest_and_passes_over_the_others() {
    let scene = Scene::new(UNBOUNDED);
    scene.add_pages(0..5);
    for committed in 1..=5 {
        assert_eq!(scene.reduced_id("ann", committed), None);
    }
    (0..9).for_each(|_| scene.work());
    assert_eq!((scene.reduced_id("ann", 5).as_deref(), scene.count("made")), (Some("4"), 1));
}

#[test]
fn pictures_that_come_while_one_is_made_wait_for_it_and_the_newest_is_next() {
    let scene = Scene::new(UNBOUNDED);
    scene.add_pages(0..4);
    scene.reduced("ann", 1);
    let shelf = &scene.images.shelf;
    let first = shelf.begin().unwrap();
    (2..=4).for_each(|committed| drop(scene.reduced("ann", committed)));
    assert!(shelf.finish(&first, Some(Arc::new(first.reduced_to(b"jpeg")))), "there is more to make");
    assert_eq!(scene.reduced_id("ann", 4).as_deref(), Some("0"), "better than none");
    (0..9).for_each(|_| scene.work());
    assert_eq!((scene.reduced_id("ann", 4).as_deref(), scene.count("made")), (Some("3"), 1));
}

#[test]
fn a_reduced_picture_is_shown_only_once_its_event_is_committed() {
    let scene = Scene::new(UNBOUNDED);
    scene.add_pages(0..2);
    scene.reduced("ann", 1);
    scene.work();
    scene.reduced("ann", 2);
    scene.work();
    assert_eq!(scene.reduced_id("bob", 0), None);
    assert_eq!(scene.reduced_id("bob", 1).as_deref(), Some("0"));
    assert_eq!(scene.reduced_id("bob", 2).as_deref(), Some("1"));
    assert_eq!(scene.count("made"), 2);
}

#[tokio::test]
async fn what_is_the_holders_own_is_reduced_for_the_holder_alone_and_goes_with_the_lease() {
    let scene = Scene::new(UNBOUNDED);
    scene.add_pages(0..1);
    scene.add("own", 1, page(), Some(key("holder")));
    for viewer in ["holder", "other"] {
        scene.reduced(viewer, 2);
        (0..3).for_each(|_| scene.work());
    }
    assert_eq!(scene.reduced_id("holder", 2).as_deref(), Some("own"));
    assert_eq!(scene.reduced_id("other", 2).as_deref(), Some("0"));
    assert!(scene.images.get_reduced("own", &key("holder")).await.is_some());
    assert!(scene.images.get_reduced("own", &key("other")).await.is_none());
    scene.images.forget_private();
    assert_eq!(scene.reduced_id("holder", 2).as_deref(), Some("0"));
    assert!(scene.images.get_reduced("own", &key("holder")).await.is_none());
}

/// Else whoever has control, and pictures without end, would keep everybody else from seeing the last one before.
#[test]
fn pictures_of_the_holders_own_do_not_hold_up_those_for_everybody() {
    let scene = Scene::new(UNBOUNDED);
    scene.add_pages(0..1);
    scene.add("own", 1, page(), Some(key("holder")));
    scene.reduced("other", 2);
    scene.reduced("holder", 2);
    scene.work();
    assert_eq!(scene.reduced_id("other", 2).as_deref(), Some("0"));
    scene.work();
    assert_eq!(scene.reduced_id("holder", 2).as_deref(), Some("own"));
}

#[test]
fn what_is_made_of_a_picture_that_was_forgotten_meanwhile_is_thrown_away() {
    let forget: [fn(&Images); 3] = [Images::forget_private, |images| images.remove_from(0), Images::clear];
    for forget in forget {
        let scene = Scene::new(UNBOUNDED);
        scene.add("own", 0, page(), Some(key("holder")));
        scene.reduced("holder", 1);
        let shelf = &scene.images.shelf;
        let original = shelf.begin().unwrap();
        forget(&scene.images);
        let made = Arc::new(original.reduced_to(b"jpeg"));
        let seen = Arc::downgrade(&made);
        assert!(!shelf.finish(&original, Some(made)));
        assert!(seen.upgrade().is_none(), "it is still there");
        assert_eq!((scene.reduced_id("holder", 1), shelf.lock().bytes), (None, 0));
        // The session can have a place in the queue again.
        scene.add_pages(0..1);
        scene.reduced("holder", 1);
        scene.work();
        assert_eq!(scene.reduced_id("holder", 1).as_deref(), Some("0"));
    }
}

#[test]
fn a_picture_that_cannot_be_reduced_is_passed_over() {
    let scene = Scene::new(UNBOUNDED);
    scene.add_pages(0..1);
    scene.add("garbage", 1, garbage(), None);
    (0..2).for_each(|_| {
        assert_eq!(scene.reduced_id("ann", 2), None);
        scene.work();
    });
    assert_eq!(scene.reduced_id("ann", 2).as_deref(), Some("0"));
    assert_eq!((scene.count("skipped"), scene.count("made")), (1, 1));
}

#[test]
fn a_small_picture_is_passed_on_without_a_copy() {
    let scene = Scene::new(UNBOUNDED);
    scene.add("small", 0, b"\x89PNG".to_vec(), None);
    let bytes = scene.images.shelf.lock().bytes;
    scene.reduced("ann", 1);
    scene.work();
    let full = scene.images.get("small", &key("ann")).unwrap();
    assert!(Arc::ptr_eq(&scene.reduced("ann", 1).unwrap(), &full));
    assert_eq!((scene.count("passed_on"), scene.images.shelf.lock().bytes), (1, bytes));
}

#[tokio::test]
async fn a_picture_asked_for_by_its_id_is_made_although_newer_ones_are_wanted() {
    let scene = Scene::new(UNBOUNDED);
    scene.add_pages(0..3);
    scene.reduced("ann", 1);
    let viewer = key("bob");
    let asking = scene.images.get_reduced("0", &viewer);
    let working = async {
        tokio::task::yield_now().await;
        scene.reduced("ann", 2);
        scene.reduced("ann", 3);
        (0..9).for_each(|_| scene.work());
    };
    let (got, ()) = tokio::join!(asking, working);
    assert_eq!(&*got.unwrap().id, "0");
    assert_eq!((scene.reduced_id("ann", 3).as_deref(), scene.count("made")), (Some("2"), 2));
    assert!(scene.images.get_reduced("unknown", &viewer).await.is_none());
    scene.add("garbage", 3, garbage(), None);
    let (got, ()) = tokio::join!(scene.images.get_reduced("garbage", &viewer), async { scene.work() });
    assert!(got.is_none(), "it cannot be reduced");
}

#[test]
fn the_bound_of_bytes_holds_with_reduced_pictures() {
    let free = Scene::new(UNBOUNDED);
    free.add_pages(0..2);
    let two = free.images.shelf.lock().bytes;
    let scene = Scene::new(ImageBounds { count: 9, bytes: two });
    scene.add_pages(0..2);
    scene.reduced("ann", 2);
    scene.work();
    let kept = scene.images.shelf.lock();
    assert_eq!(kept.entries.len(), 1, "the oldest goes");
    assert_eq!(kept.bytes, kept.entries.iter().map(Entry::bytes).sum::<usize>());
    assert!(kept.bytes > two / 2);
}

#[tokio::test]
async fn workers_make_what_is_asked_for_and_end() {
    let tasks = TaskTracker::new();
    let reducer = Reducer::new(tasks.clone(), CancellationToken::new(), Arc::new(Metrics::new()));
    let images = Images::new(UNBOUNDED, reducer);
    let new = NewPicture { media: "image/png".to_owned(), bytes: page().into() };
    images.add(SessionId::random(), new, Placed { id: "0".into(), offset: 0, only_for: None });
    let mut made = images.follow_reduced();
    let latest = || images.latest(&key("ann"), PictureLevel::Reduced, 1);
    assert!(latest().is_none());
    made.changed().await.unwrap();
    assert!(latest().is_some());
    tasks.close();
    tasks.wait().await;
    assert!(!images.shelf.lock().queued);
}

use super::*;
use crate::engine::{Bounds, memory::MemoryEngine};

fn engine() -> Arc<dyn Engine> {
    Arc::new(MemoryEngine::new(Bounds {
        log_records: 1,
        log_bytes: 1,
        log_age: std::time::Duration::ZERO,
        total_bytes: 1 << 20,
    }))
}

fn person(id: &str) -> Person {
    Person { id: id.to_owned(), name: format!("name of {id}") }
}

fn scope(environment: Option<&str>) -> Scope {
    Scope { project: "shop".into(), environment: environment.map(str::to_owned) }
}

#[tokio::test]
async fn links_outlive_the_process_and_are_asked_for_by_environment() {
    let engine = engine();
    let links = Links::new(Arc::clone(&engine));
    links.add(&scope(None), ("telegram", "-2"), &person("bob")).await.unwrap();
    links.add(&scope(None), ("telegram", "-1"), &person("ann")).await.unwrap();
    links.add(&scope(None), ("telegram", "-1"), &person("bob")).await.unwrap();
    links.add(&scope(Some("staging")), ("slack", "C1"), &person("ann")).await.unwrap();
    let loaded = Links::load(engine).await.unwrap();
    let project: Project = "shop".into();
    let default = ["telegram:-1", "telegram:-2"].map(str::to_owned).to_vec();
    assert_eq!(loaded.targets(&project, None), [vec![], default.clone()]);
    assert_eq!(loaded.targets(&project, Some("staging")), [vec!["slack:C1".to_owned()], default.clone()]);
    assert_eq!(loaded.targets(&project, Some("other")), [vec![], default]);
    assert_eq!(loaded.targets(&"other".into(), None), [Vec::<String>::new(), Vec::new()]);
    assert!(loaded.may_answer("shop", Some("staging"), "telegram", &person("bob")), "the whole project");
    assert!(loaded.may_answer("shop", Some("staging"), "slack", &person("ann")));
    assert!(!loaded.may_answer("shop", None, "slack", &person("ann")), "her link there is for staging");
    assert!(!loaded.may_answer("other", None, "telegram", &person("ann")));
    assert_eq!(loaded.at("shop", Some("staging"), "telegram:-1").len(), 2);
}

#[tokio::test]
async fn the_same_again_is_no_second_link_and_unlinking_takes_all_of_a_person() {
    let links = Links::new(engine());
    let first = links.add(&scope(None), ("telegram", "1"), &person("ann")).await.unwrap();
    let again = links.add(&scope(None), ("telegram", "1"), &person("ann")).await.unwrap();
    assert_eq!((first.again, again.again, &first.link.id), (false, true, &again.link.id));
    let elsewhere = Scope { project: "other".into(), environment: None };
    links.add(&elsewhere, ("telegram", "1"), &person("ann")).await.unwrap();
    links.add(&scope(None), ("telegram", "1"), &person("bob")).await.unwrap();
    assert_eq!(links.remove("other", &first.link.id).await.unwrap(), None, "another project's");
    assert_eq!(links.remove_person("telegram", &person("ann")).await.unwrap().len(), 2);
    assert!(!links.knows("telegram", &person("ann")) && links.knows("telegram", &person("bob")));
    assert_eq!(links.of_project("shop").len(), 1);
}

#[tokio::test]
async fn links_are_bounded_also_when_they_are_made_at_once() {
    let links = Arc::new(Links::new(engine()));
    let many = (0..PER_ENVIRONMENT + 8).map(|nth| {
        let links = Arc::clone(&links);
        async move { links.add(&scope(None), ("telegram", &nth.to_string()), &person("ann")).await.is_ok() }
    });
    let made = futures::future::join_all(many).await;
    assert_eq!(made.into_iter().filter(|made| *made).count(), PER_ENVIRONMENT);
    assert!(links.add(&scope(Some("e")), ("telegram", "1"), &person("ann")).await.is_ok());
}

#[tokio::test]
async fn another_processs_change_is_seen_before_ours_is_written() {
    let engine = engine();
    let (here, there) = (Links::new(Arc::clone(&engine)), Links::new(engine));
    here.add(&scope(None), ("telegram", "1"), &person("ann")).await.unwrap();
    there.add(&scope(None), ("telegram", "2"), &person("bob")).await.unwrap();
    assert_eq!(there.of_project("shop").len(), 2);
    here.add(&scope(None), ("telegram", "3"), &person("cid")).await.unwrap();
    assert_eq!(here.of_project("shop").len(), 3);
}

#[tokio::test]
async fn what_a_newer_gateway_stored_is_left_alone() {
    let engine = engine();
    let key = RecordKey { kind: RecordKind::Gateway, session: SessionId::NONE, name: "link.shop".to_owned() };
    let newer = Bytes::from_static(b"{\"v\":2,\"links\":{}}");
    engine.put(key.clone(), None, newer.clone()).await.unwrap();
    let links = Links::load(Arc::clone(&engine)).await.unwrap();
    let refused = links.add(&scope(None), ("telegram", "1"), &person("ann")).await;
    assert!(matches!(refused, Err(LinkError::Unreadable)));
    assert_eq!(engine.get(key).await.unwrap().unwrap().1, newer);
}

use std::{path::Path, time::Duration};

use onlooker_runtime::shop::{CODE, EMAIL, PASSWORD};
use serde_json::{Value, json};

use crate::script::{Reply, Script, Seen, Stage};

fn login(password: &'static str) -> Reply {
    Reply::Values(vec![("email", EMAIL), ("password", password)])
}

fn code(code: &'static str) -> Reply {
    Reply::Values(vec![("code", code)])
}

/// Keeps pictures where `ONLOOKER_TEST_PICTURES` says, for people to look at.
fn keep_pictures(script: &Script, name: &str) {
    let Some(folder) = std::env::var_os("ONLOOKER_TEST_PICTURES") else { return };
    for (nth, bytes) in script.pictures().iter().enumerate() {
        std::fs::write(Path::new(&folder).join(format!("{name}-{nth:03}.jpg")), bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_buys_what_it_was_asked_to_after_wrong_and_right_answers() {
    let Some(stage) = Stage::set().await else { return };
    let replies = [login("wrong donkey"), login(PASSWORD), code("111111"), code(CODE), Reply::Choice("approve")];
    let script = Script::new("whole", "Please buy a wool blanket for me", replies);
    let completed = stage.agent.work_on(&script).await.unwrap();
    keep_pictures(&script, "whole");

    assert!(completed.message.contains("HG-") && completed.message.contains("€89.00"), "{}", completed.message);
    assert_eq!(completed.data["usage"]["inputTokens"], 0);
    let urls = completed.data["network"][0]["urls"].as_array().unwrap();
    let visited = |part: &str| urls.iter().any(|visit| visit["url"].as_str().unwrap().contains(part));
    assert!(visited("/product/wool-blanket") && visited("/order/HG-"), "{urls:?}");

    let asked = script.asked();
    let brief: Vec<_> = asked.iter().map(|asked| (asked["kind"].as_str().unwrap(), &asked["revision"])).collect();
    let expected = [("login", 1), ("login", 2), ("two_factor", 1), ("two_factor", 2), ("purchase", 1)];
    assert_eq!(brief, expected.map(|(kind, revision)| (kind, Box::leak(Box::new(json!(revision))) as &Value)));
    assert_eq!(asked[0]["guardrailId"], asked[1]["guardrailId"]);
    assert_eq!(asked[0]["domain"], "shop.localhost");
    assert!(asked[0].get("websiteError").is_none());
    assert!(asked[1]["websiteError"].as_str().unwrap().contains("do not match"));
    assert!(asked[3]["websiteError"].as_str().unwrap().contains("not valid"));
    assert!(asked[4]["value"].as_str().unwrap().contains("€89.00"));
    stage.agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_shows_every_step_and_no_secret() {
    let Some(stage) = Stage::set().await else { return };
    let replies = [login("wrong donkey"), login(PASSWORD), code(CODE), Reply::Choice("approve")];
    let script = Script::new("published", "a mug", replies);
    stage.agent.work_on(&script).await.unwrap();

    let actions = script.events("action");
    let named = |name: &str| actions.iter().filter(|action| action["name"] == name).count();
    assert_eq!((named("navigate"), named("scroll"), named("type")), (1, 2, 5), "{actions:?}");
    assert!(named("click") >= 7, "{actions:?}");
    for action in actions.iter().filter(|action| action["name"] != "navigate") {
        let (x, y) = (action["x"].as_f64().unwrap(), action["y"].as_f64().unwrap());
        assert!((0.0..1024.0).contains(&x) && (0.0..600.0).contains(&y), "{action}");
        assert!(action.get("text").is_none(), "{action}");
    }
    let all = format!("{:?}", script.seen().iter().filter(|one| !matches!(one, Seen::Picture(_))).collect::<Vec<_>>());
    for secret in ["wrong donkey", PASSWORD, CODE] {
        assert!(!all.contains(secret), "{secret} was published");
    }
    assert!(script.pictures().len() >= 8, "{} pictures", script.pictures().len());
    assert!(script.pictures().iter().all(|bytes| bytes.starts_with(&[0xff, 0xd8, 0xff])));
    assert!(script.pictures().windows(2).all(|two| two[0] != two[1]), "equal pictures are left out");

    let mut sensitive = false;
    for one in script.seen().iter() {
        match one {
            Seen::Sensitive(on) => sensitive = *on,
            Seen::Picture(_) => assert!(!sensitive, "a picture from a sensitive window"),
            Seen::Event(kind, data) if kind == "action" && data["name"] == "type" => assert!(sensitive),
            _ => {}
        }
    }
    assert!(!sensitive);
    stage.agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_purchase_buys_nothing_and_the_next_task_starts_clean() {
    let Some(stage) = Stage::set().await else { return };
    let first = Script::new("twice", "a reading lamp", [login(PASSWORD), code(CODE), Reply::Choice("reject")]);
    let completed = stage.agent.work_on(&first).await.unwrap();
    assert!(completed.message.contains("Nothing was bought"), "{}", completed.message);

    // The session's page is signed in by now, so that only the purchase is asked.
    let second = Script::new("twice", "an ink pen", [Reply::Choice("approve")]);
    let completed = stage.agent.work_on(&second).await.unwrap();
    assert!(completed.message.contains("€38.90"), "the pen and its shipping alone: {}", completed.message);

    // Another session knows nothing of it.
    let other = Script::new("other", "an ink pen", [Reply::Decline]);
    let completed = stage.agent.work_on(&other).await.unwrap();
    assert!(completed.message.contains("Nothing was bought"), "{}", completed.message);
    assert_eq!(other.asked()[0]["kind"], "login");
    stage.agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_at_the_wheel_reaches_the_page() {
    let Some(stage) = Stage::set().await else { return };
    let script = Script::new("wheel", "a mug", [Reply::Silence]);
    let work = stage.agent.work_on(&script);
    let person = async {
        script.until("the login", |seen| matches!(seen, Seen::Asked(_))).await;
        script.pause(true);
        let before = script.pictures().len();
        // The e-mail field is in the middle of the page.
        script.interact(json!({"type": "CLICK", "x": 512, "y": 262})).await;
        script.interact(json!({"type": "TYPE", "text": "grüße@example.com"})).await;
        script.interact(json!({"type": "KEY_PRESS", "key": "Enter"})).await;
        let mut waited = Duration::ZERO;
        while script.pictures().len() < before + 3 && waited < Duration::from_secs(20) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            waited += Duration::from_millis(50);
        }
        assert!(script.pictures().len() >= before + 3, "the page follows the person");
    };
    tokio::select! {
        result = work => panic!("the task waits for its answer: {:?}", result.map(|completed| completed.message)),
        () = person => {}
    }
    keep_pictures(&script, "wheel");
    stage.agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_goes_on_from_wherever_a_person_left_the_page() {
    let Some(stage) = Stage::set().await else { return };
    let script = Script::new("left", "a mug", [login(PASSWORD), code(CODE), Reply::Choice("approve")]);
    let person = async {
        let adds = |seen: &Seen| matches!(seen, Seen::Event(kind, data) if kind == "agent" && data["content"].to_string().contains("into the cart"));
        script.until("the agent adds to the cart", adds).await;
        script.pause(true);
        let navigated = script.events("action").iter().filter(|action| action["name"] == "navigate").count();
        // The shop's name, which leads home; then a place where nothing is.
        script.interact(json!({"type": "CLICK", "x": 90, "y": 30})).await;
        script.interact(json!({"type": "SCROLL", "deltaY": 200})).await;
        script.interact(json!({"type": "KEY_PRESS", "key": "Home"})).await;
        script.all_done().await;
        let after = script.events("action").iter().filter(|action| action["name"] == "navigate").count();
        assert_eq!(after, navigated, "the agent leaves the page to the person");
        script.pause(false);
    };
    let (completed, ()) = tokio::join!(stage.agent.work_on(&script), person);
    assert!(completed.unwrap().message.contains("€22.90"), "one mug, and no second one");
    stage.agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_browser_fails_its_task_and_the_next_one_gets_a_new_browser() {
    let Some(stage) = Stage::set().await else { return };
    let script = Script::new("dying", "a mug", [Reply::Silence]);
    let work = stage.agent.work_on(&script);
    let murder = async {
        script.until("the login", |seen| matches!(seen, Seen::Asked(_))).await;
        let process = stage.agent.browser_process().await.unwrap();
        std::process::Command::new("kill").args(["-9", &process.to_string()]).status().unwrap();
        std::future::pending::<()>().await;
    };
    let failed = tokio::select! { result = work => result.unwrap_err(), () = murder => unreachable!() };
    assert_eq!(failed.code, "BROWSER_LOST");

    let again = Script::new("dying", "a mug", [Reply::Decline]);
    assert!(stage.agent.work_on(&again).await.is_ok());
    stage.agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_that_is_gone_fails_the_task_with_a_clear_code() {
    let Some(stage) = Stage::set().await else { return };
    drop(stage.shop);
    let failed = stage.agent.work_on(&Script::new("gone", "", [])).await.unwrap_err();
    assert_eq!(failed.code, "NAVIGATION_FAILED");
    stage.agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_leaves_neither_process_nor_profile() {
    let Some(stage) = Stage::set().await else { return };
    stage.agent.work_on(&Script::new("short", "", [Reply::Decline])).await.unwrap();
    let process = stage.agent.browser_process().await.unwrap();
    let command = std::fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap();
    let profile = command.split('\0').find_map(|argument| argument.strip_prefix("--user-data-dir=")).unwrap();
    assert!(Path::new(profile).is_dir());
    stage.agent.shutdown().await;
    assert!(!Path::new(profile).exists());
    assert!(!Path::new(&format!("/proc/{process}")).exists());
    assert_eq!(stage.agent.browser_process().await, None);
}

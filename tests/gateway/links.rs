//! Linking: codes, who may make them, what they link, and what is kept.

use std::time::Duration;

use onlooker::{config::key::Scope, notifier::Delivery, reach_out::ladder::Step};
use onlooker_protocol::runtime::OpenSession;
use serde_json::{Value, json};

use crate::{harness::*, parley::*};

const ANN: (&str, &str) = ("ann-chat", "ann");

async fn links(hall: &Hall) -> Vec<Value> {
    let (status, listed) = hall.gateway.get("/v1/links").await;
    assert_eq!(status, 200, "{listed}");
    listed["links"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_code_links_once_and_the_same_again_in_a_chat_is_no_second_link() {
    let hall = Hall::open(for_chats()).await;
    let (status, issued) = hall.gateway.post("/v1/links/codes", json!({ "environment": "prod" })).await;
    assert_eq!(status, 201, "{issued}");
    let code = issued["code"].as_str().unwrap();
    assert_eq!(issued["say"], json!({ "parley": format!("link {code}") }));
    let until = time::OffsetDateTime::parse(
        issued["expiresAt"].as_str().unwrap(),
        &time::format_description::well_known::Rfc3339,
    );
    let left = until.unwrap() - time::OffsetDateTime::now_utc();
    assert!((590..=600).contains(&left.whole_seconds()), "{left}");

    let typed = format!("/start {}", code.replace('-', " ").to_uppercase());
    let heard = hall.tell(ANN, &typed).await;
    assert!(heard.text.starts_with("This chat is linked to environment “prod” of project “default”."), "{heard:?}");
    let again = hall.tell(("bob-chat", "bob"), code).await;
    assert!(again.text.starts_with("That code is not good"), "{again:?}");
    assert_eq!(hall.refused("parley", "wrong_code").await, 1.0);

    let second = hall.code(Some("prod")).await;
    let heard = hall.tell(ANN, &second).await;
    assert!(heard.text.starts_with("This chat is already linked to environment “prod”"), "{heard:?}");
    let links = links(&hall).await;
    assert_eq!(links.len(), 1, "{links:?}");
    assert_eq!(
        (&links[0]["target"], &links[0]["user"], &links[0]["name"], &links[0]["environment"]),
        (&json!("parley:ann-chat"), &json!("ann"), &json!("Ann"), &json!("prod"))
    );
    hall.gateway.stop().await;
}

#[tokio::test]
async fn who_guesses_codes_is_soon_not_heard_any_more() {
    let hall = Hall::open(for_chats()).await;
    let code = hall.code(None).await;
    for _ in 0..5 {
        assert!(hall.tell(ANN, "tofuk tofuk tofuk tofuk").await.text.starts_with("That code is not good"));
    }
    assert!(hall.tell(ANN, &code).await.text.starts_with("Too many codes were wrong"), "also the right one");
    assert!(hall.tell(("ann-chat", "bob"), &code).await.text.starts_with("This chat is linked"), "another person");
    hall.gateway.stop().await;
}

#[tokio::test]
async fn codes_and_links_need_the_scope_admin_and_a_chat() {
    let config = with_keys(for_chats(), &[("admin", &[Scope::Admin]), ("answers", &[Scope::Watch, Scope::Answer])]);
    let hall = Hall::open(config).await;
    let at = |path: &str| format!("{}{path}", hall.gateway.url);
    for (key, code, list) in [("key-admin", 201, 200), ("key-answers", 403, 403), ("nobody", 401, 401)] {
        let post = hall.gateway.http.post(at("/v1/links/codes")).bearer_auth(key).json(&json!({}));
        assert_eq!(hall.gateway.request(post).await.0, code, "{key}");
        assert_eq!(
            hall.gateway.request(hall.gateway.http.get(at("/v1/links")).bearer_auth(key)).await.0,
            list,
            "{key}"
        );
    }
    for environment in [json!(""), json!("a\nb"), json!("x".repeat(129)), json!(7)] {
        let post = hall.gateway.http.post(at("/v1/links/codes")).bearer_auth("key-admin");
        let (status, answer) = hall.gateway.request(post.json(&json!({ "environment": environment }))).await;
        assert_eq!(status, 400, "{environment}: {answer}");
    }
    hall.gateway.stop().await;
    let without = TestGateway::with(quick()).await;
    let (status, answer) = without.post("/v1/links/codes", json!({})).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("no chat is configured"), "{answer}");
    without.stop().await;
}

#[tokio::test]
async fn the_chats_of_the_environment_are_told_and_else_the_projects_own() {
    let hall = Hall::open(for_chats()).await;
    hall.link(ANN, None).await;
    hall.link(("prod-chat", "bob"), Some("prod")).await;
    let mut runtime = hall.gateway.runtime().await;
    for (environment, chat) in [(None, "ann-chat"), (Some("prod"), "prod-chat"), (Some("new"), "ann-chat")] {
        let open = OpenSession { environment_id: environment.map(str::to_owned), ..OpenSession::default() };
        let (session, _) = runtime.open(open).await;
        let before = hall.parley.in_chat(chat).len();
        runtime.ask(&session, "g", json!({})).await;
        let message = hall.parley.newest(chat, before + 1).await;
        assert_eq!(message.notice.environment_id.as_deref(), environment);
    }
    assert_eq!(hall.parley.all().len(), 3, "nobody else");
    hall.gateway.stop().await;
}

#[tokio::test]
async fn links_and_open_buttons_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = for_chats();
    config.data.ephemeral = false;
    config.data.dir = Some(folder.path().join("data"));
    let open = || {
        let options = onlooker::engine::disk::DiskOptions {
            dir: folder.path().join("data"),
            bounds: onlooker::gateway::bounds(&config),
            durability: onlooker::config::Durability::Os,
        };
        std::sync::Arc::new(onlooker::engine::disk::DiskEngine::open(options).unwrap())
    };
    let hall = Hall::on(config.clone(), open(), Default::default()).await;
    hall.link(ANN, None).await;
    let code = hall.code(None).await;
    let mut runtime = hall.gateway.runtime().await;
    let (session, claim) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "g", json!({ "kind": "purchase" })).await;
    let card = hall.parley.newest("ann-chat", 1).await;
    hall.told(&session, "g").await;
    let parley = hall.parley.clone();
    hall.gateway.stop().await;

    let hall = Hall::on(config.clone(), open(), parley).await;
    assert_eq!(links(&hall).await.len(), 1);
    assert!(hall.tell(("bob-chat", "bob"), &code).await.text.starts_with("That code is not good"), "codes die");
    assert_eq!(hall.tap("ann", &card, "Approve").await.text, "Approved. The session goes on.");
    hall.parley.reads(&card.id, "Answered by Ann").await;
    let mut runtime = hall.gateway.runtime().await;
    runtime.reclaim(&session, &claim, 0).await;
    assert_eq!(runtime.outcome().await.guardrail_id, "g");
    hall.gateway.stop().await;
}

#[tokio::test]
async fn a_test_message_says_what_came_of_it_and_is_limited() {
    let hall = Hall::open(for_chats()).await;
    hall.link(ANN, None).await;
    let id = links(&hall).await[0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/links/{id}/test");
    let (status, answer) = hall.gateway.post(&path, json!({})).await;
    assert_eq!((status, &answer["outcome"], &answer["target"]), (200, &json!("confirmed"), &json!("parley:ann-chat")));
    let message = hall.parley.newest("ann-chat", 1).await;
    assert_eq!(message.card.heading, "This is a test");
    hall.parley.breaks("ann-chat", Delivery::Rejected { error: "the chat is gone".to_owned() });
    let (_, answer) = hall.gateway.post(&path, json!({})).await;
    assert_eq!((&answer["outcome"], &answer["error"]), (&json!("rejected"), &json!("the chat is gone")));
    let retry_after = Some(Duration::from_secs(3));
    hall.parley.breaks("ann-chat", Delivery::Refused { error: "busy".to_owned(), retry_after });
    let (_, answer) = hall.gateway.post(&path, json!({})).await;
    assert_eq!((&answer["outcome"], &answer["retryAfter"]), (&json!("refused"), &json!(3000)));
    for _ in 0..7 {
        assert_eq!(hall.gateway.post(&path, json!({})).await.0, 200);
    }
    let (status, answer) = hall.gateway.post(&path, json!({})).await;
    assert_eq!((status, &answer["error"]), (429, &json!("rate_limited")));
    assert_eq!(hall.gateway.post("/v1/links/none/test", json!({})).await.0, 404);
    hall.gateway.stop().await;
}

#[tokio::test]
async fn a_chat_that_is_linked_while_nobody_could_be_told_is_told() {
    let hall = Hall::open(for_chats()).await;
    let mut runtime = hall.gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "g", json!({})).await;
    hall.gateway.wait_why(&session, "g", "no_target").await;
    hall.link(ANN, None).await;
    hall.parley.newest("ann-chat", 1).await;
    hall.gateway.stop().await;
}

#[tokio::test]
async fn a_ladder_that_names_an_unknown_chat_does_not_start() {
    let step = |target: &str| Step {
        after: Duration::from_secs(60),
        targets: vec![target.to_owned()],
        repeat: 0,
        project: None,
    };
    let mut config = for_chats();
    config.reach_out.ladder = vec![step("parley:somewhere")];
    let refused = onlooker::gateway::Gateway::start(config.clone()).await.err().unwrap().to_string();
    assert!(refused.contains("`parley:somewhere` reaches nobody"), "{refused}");
    Hall::open(config).await.gateway.stop().await;
}

//! Answers from chats: over a chat that this project does not know, through real requests.

use std::time::Duration;

use onlooker::{chat::marks::MarkKey, config::key::Scope, reach_out::ladder::Step};
use onlooker_protocol::{
    runtime::OpenSession,
    view::{Outcome, ReachOutMode},
};
use serde_json::{Value, json};

use crate::{harness::*, parley::*};

const ANN: (&str, &str) = ("ann-chat", "ann");
const BOB: (&str, &str) = ("bob-chat", "bob");

/// A hall with a session of a runtime's own, and people who are linked.
struct Scene {
    hall: Hall,
    runtime: Runtime,
    session: String,
}

impl Scene {
    async fn begin(people: &[(&str, &str)]) -> Self {
        Self::of(for_chats(), OpenSession::default(), people).await
    }

    async fn of(config: onlooker::config::Config, open: OpenSession, people: &[(&str, &str)]) -> Self {
        let hall = Hall::open(config).await;
        for person in people {
            hall.link(*person, None).await;
        }
        let mut runtime = hall.gateway.runtime().await;
        let (session, _) = runtime.open(open).await;
        Self { hall, runtime, session }
    }

    async fn ask(&mut self, id: &str, more: Value) {
        self.runtime.ask(&self.session, id, more).await;
        self.hall.told(&self.session, id).await;
    }

    async fn state(&self, id: &str) -> Value {
        self.hall.guardrail(&self.session, id).await["state"].clone()
    }
}

fn purchase() -> Value {
    json!({ "kind": "purchase", "value": "Buy the lamp for 30 €?" })
}

#[tokio::test]
async fn a_tap_answers_the_runtime_gets_it_and_every_card_says_how_it_ended() {
    let mut scene = Scene::begin(&[ANN, BOB]).await;
    scene.ask("g", purchase()).await;
    let (anns, bobs) = (scene.hall.parley.newest("ann-chat", 1).await, scene.hall.parley.newest("bob-chat", 1).await);
    assert_eq!(anns.card.text, "Buy the lamp for 30 €?");
    assert_eq!(anns.labels(), ["Approve", "Reject", "I have it"]);
    let heard = scene.hall.tap("ann", &anns, "Approve").await;
    assert_eq!(heard.text, "Approved. The session goes on.");
    let outcome = scene.runtime.outcome().await;
    assert_eq!((outcome.guardrail_id.as_str(), outcome.outcome), ("g", Outcome::Answered));
    assert_eq!((outcome.text, outcome.choice), (None, None));
    for card in [anns, bobs] {
        let drawn = scene.hall.parley.reads(&card.id, "Answered by Ann (parley)").await;
        assert_eq!(drawn.card.heading, "Answered by Ann (parley)", "the chat is named once");
        assert!(drawn.card.buttons.is_empty() && drawn.edits == 1, "{drawn:?}");
    }
    let resolution = scene.hall.guardrail(&scene.session, "g").await["resolution"].clone();
    assert_eq!((&resolution["by"], &resolution["via"]), (&json!("Ann (parley)"), &json!("parley")));
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn a_rejection_and_a_choice_are_answers_too() {
    let mut scene = Scene::begin(&[ANN]).await;
    scene.ask("g", purchase()).await;
    let card = scene.hall.parley.newest("ann-chat", 1).await;
    assert_eq!(scene.hall.tap("ann", &card, "Reject").await.text, "Rejected. The session is told.");
    assert_eq!(scene.runtime.outcome().await.outcome, Outcome::Declined);
    let choices = json!([{ "id": "s", "label": "Small" }, { "id": "l", "label": "Large" }]);
    scene.ask("h", json!({ "kind": "ambiguous", "choices": choices })).await;
    let card = scene.hall.parley.newest("ann-chat", 2).await;
    assert_eq!(scene.hall.tap("ann", &card, "Large").await.text, "“Large” it is. The session has your answer.");
    assert_eq!(scene.runtime.outcome().await.choice.as_deref(), Some("l"));
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn of_two_taps_at_once_one_wins_and_the_other_is_told_by_whom() {
    let mut scene = Scene::begin(&[ANN, BOB]).await;
    for round in 0..8 {
        scene.ask(&format!("g{round}"), purchase()).await;
        let anns = scene.hall.parley.newest("ann-chat", round + 1).await;
        let bobs = scene.hall.parley.newest("bob-chat", round + 1).await;
        let taps = (scene.hall.tap("ann", &anns, "Approve"), scene.hall.tap("bob", &bobs, "Reject"));
        let (ann, bob) = tokio::join!(taps.0, taps.1);
        match scene.runtime.outcome().await.outcome {
            Outcome::Answered => {
                assert_eq!(ann.text, "Approved. The session goes on.");
                assert!(bob.text.starts_with("Too late, nothing was done. Answered by Ann (parley) at "), "{bob:?}");
            }
            _ => {
                assert_eq!(bob.text, "Rejected. The session is told.");
                assert!(ann.text.starts_with("Too late, nothing was done. Rejected by Bob (parley) at "), "{ann:?}");
            }
        }
    }
    assert_eq!(scene.hall.refused("parley", "late").await, 8.0);
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn a_tap_that_comes_twice_is_the_same_answer_and_another_persons_is_not() {
    let mut scene = Scene::begin(&[ANN, ("ann-chat", "bob")]).await;
    scene.ask("g", purchase()).await;
    let card = scene.hall.parley.newest("ann-chat", 1).await;
    let (first, again) = (scene.hall.tap("ann", &card, "Approve").await, scene.hall.tap("ann", &card, "Approve").await);
    assert_eq!(first, again);
    let bob = scene.hall.tap("bob", &card, "Approve").await;
    assert!(bob.text.contains("Answered by Ann"), "{bob:?}");
    scene.runtime.outcome().await;
    assert_eq!(scene.runtime.commands_so_far(&scene.session).await.len(), 0, "one outcome");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn forged_foreign_and_misplaced_taps_change_nothing_and_are_counted() {
    let mut scene = Scene::begin(&[ANN, BOB]).await;
    scene.ask("g", purchase()).await;
    let card = scene.hall.parley.newest("ann-chat", 1).await;
    let mark = card.mark("Approve");
    let other_key = MarkKey::new(zeroize::Zeroizing::new([7; 32]));
    let forged = other_key.marks(&card.notice.id).unwrap().of(onlooker::chat::marks::Tap::Approve);
    for mark in [forged, mark.replacen(".a.", ".d.", 1), "a".to_owned(), String::new()] {
        let heard = scene.hall.tap_mark(ANN, &card.id, &mark).await;
        assert!(heard.text.starts_with("That button is not one of ours."), "{heard:?}");
    }
    let stranger = scene.hall.tap_mark(("ann-chat", "mallory"), &card.id, &mark).await;
    assert!(stranger.text.starts_with("You are not linked to anything here"), "{stranger:?}");
    for (by, on) in [(ANN, "ann-chat#77"), (BOB, card.id.as_str()), (("elsewhere", "ann"), card.id.as_str())] {
        let heard = scene.hall.tap_mark(by, on, &mark).await;
        assert!(heard.text.starts_with("That button belongs to another message"), "{heard:?}");
    }
    assert_eq!(scene.state("g").await, "open");
    for (reason, times) in [("forged", 4.0), ("foreign", 1.0), ("wrong_message", 3.0)] {
        assert_eq!(scene.hall.refused("parley", reason).await, times, "{reason}");
    }
    // Nothing of that has used the question up.
    scene.hall.tap("ann", &card, "Approve").await;
    assert_eq!(scene.runtime.outcome().await.outcome, Outcome::Answered);
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn who_is_linked_to_another_environment_is_a_stranger_here() {
    let open = OpenSession { environment_id: Some("prod".to_owned()), ..OpenSession::default() };
    let mut scene = Scene::of(for_chats(), open, &[]).await;
    scene.hall.link(ANN, Some("prod")).await;
    scene.hall.link(("ann-chat", "bob"), Some("staging")).await;
    scene.ask("g", purchase()).await;
    let card = scene.hall.parley.newest("ann-chat", 1).await;
    for heard in [scene.hall.tap("bob", &card, "Approve").await, scene.hall.reply("bob", &card, "yes").await] {
        assert!(heard.text.starts_with("You are not linked to what this message is about"), "{heard:?}");
    }
    assert_eq!(scene.state("g").await, "open");
    assert_eq!(scene.hall.tap("ann", &card, "Approve").await.text, "Approved. The session goes on.");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn unlinking_cuts_buttons_that_are_still_open() {
    let mut scene = Scene::begin(&[ANN, BOB]).await;
    scene.ask("g", purchase()).await;
    let (anns, bobs) = (scene.hall.parley.newest("ann-chat", 1).await, scene.hall.parley.newest("bob-chat", 1).await);
    let heard = scene.hall.tell(ANN, "/unlink").await;
    assert!(heard.text.starts_with("You are unlinked."), "{heard:?}");
    let (_, listed) = scene.hall.gateway.get("/v1/links").await;
    let bob = listed["links"].as_array().unwrap().iter().find(|link| link["user"] == "bob").unwrap();
    let path = format!("{}/v1/links/{}", scene.hall.gateway.url, bob["id"].as_str().unwrap());
    assert_eq!(scene.hall.gateway.http.delete(path).send().await.unwrap().status(), 204);
    for (user, card) in [("ann", anns), ("bob", bobs)] {
        let heard = scene.hall.tap(user, &card, "Approve").await;
        assert!(heard.text.starts_with("You are not linked"), "{heard:?}");
        let heard = scene.hall.reply(user, &card, "yes").await;
        assert!(!heard.text.contains("Sent"), "{heard:?}");
    }
    assert_eq!(scene.state("g").await, "open");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn words_answer_by_replying_and_a_choice_by_its_name() {
    let mut scene = Scene::begin(&[ANN]).await;
    scene.ask("g", json!({ "kind": "ambiguous", "value": "Which colour?" })).await;
    let card = scene.hall.parley.newest("ann-chat", 1).await;
    assert_eq!(card.labels(), ["Reject", "I have it"]);
    assert!(scene.hall.reply("ann", &card, " \n").await.text.starts_with("There are no words"));
    let heard = scene.hall.reply("ann", &card, " the blue one ").await;
    assert_eq!((heard.text.as_str(), heard.erase), ("Sent. The session has your answer.", false));
    assert_eq!(scene.runtime.outcome().await.text.as_deref(), Some("the blue one"));
    // Once more the same, and then something else.
    assert_eq!(scene.hall.reply("ann", &card, "the blue one").await, heard);
    let late = scene.hall.reply("ann", &card, "no, the red one").await;
    assert!(late.text.starts_with("Too late, nothing was done. Answered by Ann"), "{late:?}");

    scene.ask("h", json!({ "choices": [{ "id": "s", "label": "Small" }, { "id": "l", "label": "Large" }] })).await;
    let card = scene.hall.parley.newest("ann-chat", 2).await;
    scene.hall.reply("ann", &card, "large").await;
    let outcome = scene.runtime.outcome().await;
    assert_eq!((outcome.choice.as_deref(), outcome.text), (Some("l"), None));
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn words_for_a_login_go_through_and_are_taken_out_of_the_chat() {
    let mut scene = Scene::begin(&[ANN]).await;
    scene.ask("g", json!({ "kind": "two_factor", "value": "The code?" })).await;
    let card = scene.hall.parley.newest("ann-chat", 1).await;
    assert!(scene.hall.reply("ann", &card, "482913").await.erase);
    assert_eq!(scene.runtime.outcome().await.text.as_deref(), Some("482913"));
    // What comes after it may be another code.
    let late = scene.hall.reply("ann", &card, "482914").await;
    assert!(late.erase && late.text.starts_with("Too late"), "{late:?}");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn what_belongs_into_fields_is_refused_in_a_chat_and_gets_a_link() {
    let mut scene = Scene::begin(&[ANN]).await;
    scene.ask("g", json!({ "kind": "login", "fields": [{ "id": "password", "type": "password" }] })).await;
    let card = scene.hall.parley.newest("ann-chat", 1).await;
    assert_eq!(card.labels(), ["New link", "Reject", "I have it"]);
    let heard = scene.hall.reply("ann", &card, "hunter2hunter2").await;
    assert!(heard.erase && heard.text.starts_with("Passwords and codes must not be typed into a chat"), "{heard:?}");
    let link = heard.link.unwrap();
    assert!(link.url.starts_with("https://onlooker.example/form/"), "{link:?}");
    assert_eq!(scene.state("g").await, "open");
    let fresh = scene.hall.tap("ann", &card, "New link").await;
    assert!(fresh.link.unwrap().url.starts_with("https://onlooker.example/form/"));
    assert_eq!(scene.hall.refused("parley", "secret").await, 1.0);
    scene.hall.tap("ann", &card, "Reject").await;
    let late = scene.hall.tap_mark(ANN, &card.id, &card.mark("New link")).await;
    assert!(late.link.is_none() && late.text.contains("Rejected by Ann"), "{late:?}");
    let late = scene.hall.reply("ann", &card, "hunter2hunter2").await;
    assert!(late.erase && late.link.is_none(), "{late:?}");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn without_a_public_address_passwords_are_sent_to_the_console() {
    let mut config = for_chats();
    config.listen.public_url = None;
    let mut scene = Scene::of(config, OpenSession::default(), &[ANN]).await;
    scene.ask("g", json!({ "kind": "login", "fields": [{ "id": "password" }] })).await;
    let card = scene.hall.parley.newest("ann-chat", 1).await;
    assert_eq!(card.labels(), ["Reject", "I have it"]);
    let heard = scene.hall.reply("ann", &card, "hunter2hunter2").await;
    assert!(heard.erase && heard.link.is_none() && heard.text.contains("answer in the console"), "{heard:?}");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn a_card_that_was_superseded_says_that_it_was_asked_again() {
    let mut scene = Scene::begin(&[ANN]).await;
    scene.ask("g", purchase()).await;
    let old = scene.hall.parley.newest("ann-chat", 1).await;
    scene.ask("g", json!({ "kind": "purchase", "revision": 2, "value": "For 35 €?" })).await;
    let new = scene.hall.parley.newest("ann-chat", 2).await;
    for heard in [
        scene.hall.tap("ann", &old, "Approve").await,
        scene.hall.tap("ann", &old, "I have it").await,
        scene.hall.reply("ann", &old, "yes").await,
    ] {
        assert!(heard.text.starts_with("It was asked again"), "{heard:?}");
    }
    assert_eq!(scene.hall.refused("parley", "stale").await, 3.0);
    assert_eq!(scene.state("g").await, "open");
    scene.hall.tap("ann", &new, "Approve").await;
    assert_eq!(scene.runtime.outcome().await.revision, 2);
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn a_claim_from_a_chat_stops_the_ladder_until_it_runs_out() {
    let mut config = for_chats();
    config.times.claim = Duration::from_secs(3);
    let after = Duration::from_millis(1500);
    let step = |chat: &str| Step { after, targets: vec![format!("parley:{chat}")], repeat: 0, project: None };
    config.reach_out.ladder = vec![step("boss-chat")];
    let mut scene = Scene::of(config, OpenSession::default(), &[ANN, ("ann-chat", "bob")]).await;
    scene.ask("g", purchase()).await;
    let card = scene.hall.parley.newest("ann-chat", 1).await;
    let claimed = std::time::Instant::now();
    let heard = scene.hall.tap("ann", &card, "I have it").await;
    assert!(heard.text.starts_with("It is yours until "), "{heard:?}");
    let renewed = scene.hall.tap("ann", &card, "I have it").await;
    assert!(renewed.text.starts_with("It is yours until "), "{renewed:?}");
    let bob = scene.hall.tap("bob", &card, "I have it").await;
    assert!(bob.text.starts_with("Ann (parley) has it until "), "{bob:?}");
    let view = scene.hall.guardrail(&scene.session, "g").await;
    assert_eq!(view["claim"]["by"], "Ann (parley)");
    scene.hall.parley.newest("boss-chat", 1).await;
    assert!(claimed.elapsed() >= Duration::from_secs(3), "not while it was claimed");
    // It hinders nobody's answer.
    scene.hall.tap("bob", &card, "Approve").await;
    assert_eq!(scene.runtime.outcome().await.outcome, Outcome::Answered);
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn a_result_is_a_reply_to_the_card_that_was_answered_there() {
    let open = OpenSession { reach_out_mode: ReachOutMode::Full, ..OpenSession::default() };
    let mut scene = Scene::of(for_chats(), open, &[ANN]).await;
    scene.runtime.publish(&scene.session, "task_started", json!({ "taskId": "t" })).await;
    scene.ask("g", purchase()).await;
    let card = scene.hall.parley.newest("ann-chat", 1).await;
    scene.hall.tap("ann", &card, "Approve").await;
    scene.hall.parley.reads(&card.id, "Answered").await;
    let taken = json!({ "guardrailId": "g", "revision": 1 });
    scene.runtime.publish(&scene.session, "guardrail_taken", taken).await;
    scene.runtime.publish(&scene.session, "task_completed", json!({ "message": "The lamp is bought" })).await;
    let result = scene.hall.parley.newest("ann-chat", 2).await;
    assert_eq!((result.under.as_deref(), result.card.text.as_str()), (Some(&*card.id), "The lamp is bought"));
    let heard = scene.hall.reply("ann", &result, "thank you").await;
    assert!(heard.text.starts_with("That message tells a result"), "{heard:?}");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn who_answers_elsewhere_retires_the_buttons_of_the_chat() {
    let mut scene = Scene::begin(&[ANN]).await;
    scene.ask("g", purchase()).await;
    let card = scene.hall.parley.newest("ann-chat", 1).await;
    let body = json!({ "session": scene.session, "revision": 1, "idempotencyKey": "k", "action": "decline" });
    assert_eq!(scene.hall.gateway.post("/v1/guardrails/g/answer", body).await.0, 200);
    scene.hall.parley.reads(&card.id, "Rejected by").await;
    let heard = scene.hall.tap("ann", &card, "Approve").await;
    assert!(heard.text.starts_with("Too late, nothing was done. Rejected by "), "{heard:?}");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn what_is_told_to_the_bot_gets_a_short_help_and_not_for_ever() {
    let hall = Hall::open(for_chats()).await;
    let stranger = hall.tell(ANN, "what is this?").await;
    assert!(stranger.text.contains("send me the code"), "{stranger:?}");
    hall.link(ANN, None).await;
    assert!(hall.tell(ANN, "hello").await.text.contains("tap a button"));
    let listed = hall.tell(ANN, "/links").await;
    assert!(listed.text.contains("project “default”, as its default, in this chat"), "{listed:?}");
    for _ in 0..8 {
        hall.tell(ANN, "hello").await;
    }
    assert_eq!(hall.tell(ANN, "hello").await.text, "", "said often enough");
    assert!(hall.tell(BOB, "hello").await.text.contains("send me the code"), "another chat");
    assert!(
        hall.tell(ANN, "unlink").await.text.starts_with("You are unlinked."),
        "what does something is always heard"
    );
    hall.gateway.stop().await;
}

#[tokio::test]
async fn a_request_that_the_chat_did_not_make_is_not_heard() {
    let hall = Hall::open(for_chats()).await;
    let body = json!({ "chat": "c", "user": "u", "name": "n", "text": "hello" });
    let (status, _) = hall.gateway.post("/v1/hooks/parley", body).await;
    assert_eq!((status, hall.refused("parley", "signature").await), (401, 1.0));
    assert_eq!(hall.gateway.post("/v1/hooks/pigeon", json!({})).await.0, 404);
    hall.gateway.stop().await;
}

#[tokio::test]
async fn one_projects_people_are_strangers_to_anothers_sessions() {
    let scopes: &[Scope] = &[Scope::Publish, Scope::Watch, Scope::Answer, Scope::Admin];
    let mut config = with_keys(for_chats(), &[("one", scopes), ("two", scopes)]);
    config.keys[1].project = "q".to_owned();
    let hall = Hall::open(config).await;
    let post = |key: &str| hall.gateway.http.post(format!("{}/v1/links/codes", hall.gateway.url)).bearer_auth(key);
    for (key, by) in [("key-one", ANN), ("key-two", ("ann-chat", "bob"))] {
        let (status, issued) = hall.gateway.request(post(key).json(&json!({}))).await;
        assert_eq!(status, 201, "{issued}");
        hall.tell(by, issued["code"].as_str().unwrap()).await;
    }
    let mut runtime = Runtime::connect(&hall.gateway, "runtime", 10, Some("key-one")).await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "g", purchase()).await;
    let card = hall.parley.newest("ann-chat", 1).await;
    let bob = hall.tap("bob", &card, "Approve").await;
    assert!(bob.text.starts_with("You are not linked"), "{bob:?}");
    let list = |key: &str| hall.gateway.http.get(format!("{}/v1/links", hall.gateway.url)).bearer_auth(key);
    let (_, theirs) = hall.gateway.request(list("key-two")).await;
    assert_eq!(theirs["links"].as_array().unwrap().len(), 1);
    let id = theirs["links"][0]["id"].as_str().unwrap();
    let delete = hall.gateway.http.delete(format!("{}/v1/links/{id}", hall.gateway.url)).bearer_auth("key-one");
    assert_eq!(hall.gateway.request(delete).await.0, 404);
    assert_eq!(hall.tap("ann", &card, "Approve").await.text, "Approved. The session goes on.");
    hall.gateway.stop().await;
}

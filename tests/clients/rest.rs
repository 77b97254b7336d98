//! Programs over REST, and those that use a socket beside it.

use std::sync::Arc;

use onlooker::config::key::Scope;
use onlooker_protocol::view::Outcome;
use onlooker_runtime::{Completed, Failed, Task};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    harness::*,
    program::Start,
    world::{LONG, SHORT, World, answering_within, completed, failed, ordinary},
};

/// Work that waits until the test lets it go on, once for each task.
fn gate() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(0))
}

async fn pass(gate: &Semaphore) {
    gate.acquire().await.unwrap().forget();
}

fn usage_is_whole(usage: &Value) {
    let expected = json!({
        "prompt_tokens": 12450, "completion_tokens": 3200, "total_tokens": 15650, "completion_time": 23.5, "cost": 0.0124,
        "inputTokens": 12450, "outputTokens": 3200, "computeTime": 23.5,
    });
    assert_eq!(*usage, expected);
}

#[tokio::test]
async fn the_quickstart_gets_its_result_inline() {
    let world = World::start(answering_within(LONG), |task| async move {
        let parameters = task.parameters();
        assert_eq!(parameters.parameters["startingUrl"], "https://example.com");
        assert_eq!(parameters.max_duration, Some(60_000));
        assert!(parameters.terminate_on_completion);
        completed("Example Domain")
    })
    .await;
    let end = Start::node("rest/quickstart.mjs").against(world.url()).ends().await;
    assert_eq!((&end["inline"], &end["message"]), (&json!(true), &json!("Example Domain")));
    assert_eq!(end["files"][0]["filename"], "report.zip");
    usage_is_whole(&end["usage"]);
    world.stop().await;
}

#[tokio::test]
async fn the_quickstart_polls_for_a_result_that_takes_longer() {
    let may = gate();
    let held = Arc::clone(&may);
    let world = World::start(answering_within(SHORT), move |_| {
        let held = Arc::clone(&held);
        async move {
            pass(&held).await;
            completed("Example Domain")
        }
    })
    .await;
    let mut program = Start::node("rest/quickstart.mjs").against(world.url());
    program.says("pending").await;
    may.add_permits(1);
    let end = program.ends().await;
    assert_eq!((&end["inline"], &end["message"]), (&json!(false), &json!("Example Domain")));
    usage_is_whole(&end["usage"]);
    world.stop().await;
}

#[tokio::test]
async fn the_quickstart_works_with_curl() {
    for wait in [LONG, SHORT] {
        let world = World::start(answering_within(wait), |task| async move {
            assert_eq!(task.prompt(), "Go to example.com and tell me its heading");
            tokio::time::sleep(2 * SHORT).await;
            completed("Example Domain")
        })
        .await;
        let end = Start::shell("rest/quickstart.sh").against(world.url()).ends().await;
        assert_eq!(end["result"]["data"]["message"], "Example Domain");
        world.stop().await;
    }
}

/// How the first answer to a loop comes.
#[derive(Clone, Copy, PartialEq)]
enum First {
    Inline,
    Pending,
}

async fn loop_shows(name: &str, first: First, result: fn() -> Result<Completed, Failed>) -> Value {
    let may = gate();
    let held = Arc::clone(&may);
    let wait = if first == First::Inline { LONG } else { SHORT };
    let world = World::start(answering_within(wait), move |task| {
        let held = Arc::clone(&held);
        async move {
            assert_eq!(task.prompt(), "Compare the prices of three desk lamps");
            assert_eq!(task.parameters().parameters["startingUrl"], "https://shop.example");
            if first == First::Pending {
                pass(&held).await;
            }
            result()
        }
    })
    .await;
    let mut program = Start::node("rest/loops.mjs").with("LOOP", name).against(world.url());
    let answered = program.says("answered").await;
    assert_eq!(answered["pending"], first == First::Pending);
    may.add_permits(1);
    let end = program.ends().await;
    world.stop().await;
    end
}

async fn loop_ends_well(name: &str, first: First) {
    let end = loop_shows(name, first, || completed("The lamp from Oslo")).await;
    assert_eq!(end["message"], "The lamp from Oslo");
    assert_eq!((&end["tokens"], &end["cost"]), (&json!(15650), &json!(0.0124)));
}

async fn loop_tells_a_failure(name: &str, first: First) {
    let end = loop_shows(name, first, || failed("Navigation timeout after 30 seconds", "NAVIGATION_TIMEOUT")).await;
    let told = end["failed"].as_str().unwrap_or_default();
    assert!(told.contains("Navigation timeout after 30 seconds"), "{end}");
}

macro_rules! loops {
    ($($name:ident)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test]
            async fn ends_with_an_inline_result() {
                loop_ends_well(stringify!($name), First::Inline).await;
            }

            #[tokio::test]
            async fn ends_with_a_polled_result() {
                loop_ends_well(stringify!($name), First::Pending).await;
            }

            #[tokio::test]
            async fn tells_a_failure_that_is_inline() {
                loop_tells_a_failure(stringify!($name), First::Inline).await;
            }

            #[tokio::test]
            async fn tells_a_failure_that_is_polled() {
                loop_tells_a_failure(stringify!($name), First::Pending).await;
            }
        }
    )*};
}

/// The loops of `loops.mjs`, each after the samples of a generation.
mod loops {
    use super::{First, loop_ends_well, loop_tells_a_failure};

    loops! { complete pending active typed status recipe }
}

#[tokio::test]
async fn a_second_task_is_queued_behind_the_first() {
    let may = gate();
    let held = Arc::clone(&may);
    let (works, mut working) = mpsc::unbounded_channel();
    let world = World::start(answering_within(LONG), move |task| {
        let (held, works) = (Arc::clone(&held), works.clone());
        async move {
            works.send(task.session().to_owned()).unwrap();
            pass(&held).await;
            completed(format!("done: {}", task.prompt()))
        }
    })
    .await;
    let mut program = Start::node("rest/multi_task.mjs").against(world.url());
    program.says("first sent").await;
    let session = working.recv().await.unwrap();
    program.go_on().await;
    program.says("second sent").await;
    wait_until("the second task is queued", || async {
        let (_, seen) = world.gateway.get(&format!("/v1/sessions/{session}")).await;
        let text = seen.to_string();
        text.contains(r#""status":"queued""#) && text.contains(r#""status":"running""#)
    })
    .await;
    assert!(working.try_recv().is_err(), "the second task waits for the first");
    may.add_permits(3);
    let end = program.ends().await;
    let messages = json!(["done: Find the cheapest lamp", "done: Now find a bulb for it", "done: Sum up"]);
    assert_eq!(end["messages"], messages);
    world.stop().await;
}

/// Asks once, and completes with how it was answered.
async fn asking(task: Task, heard: mpsc::UnboundedSender<(Outcome, Option<String>)>) -> Result<Completed, Failed> {
    let outcome = task.ask(json!({ "value": "What is the code?", "kind": "two_factor" })).await;
    let declined = outcome.outcome == Outcome::Declined;
    heard.send((outcome.outcome, outcome.text.clone())).unwrap();
    if declined { failed("The person said no", "DECLINED") } else { completed("logged in") }
}

async fn a_guardrail_is_answered_by_rest(wait: std::time::Duration, inline: bool) {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let may = gate();
    let held = Arc::clone(&may);
    let world = World::start(answering_within(wait), move |task| {
        let (heard, held) = (heard.clone(), Arc::clone(&held));
        async move {
            if !inline {
                tokio::time::sleep(4 * SHORT).await;
            }
            let again = task.clone();
            asking(task, heard.clone()).await?;
            pass(&held).await;
            asking(again, heard).await
        }
    })
    .await;
    let mut program = Start::node("rest/guardrail.mjs").against(world.url());
    assert_eq!(program.says("asked").await["value"], "What is the code?");
    assert_eq!(hears.recv().await.unwrap(), (Outcome::Answered, Some("secret answer 1".to_owned())));
    may.add_permits(1);
    program.says("asked").await;
    assert_eq!(hears.recv().await.unwrap(), (Outcome::Answered, Some("secret answer 2".to_owned())));
    let end = program.ends().await;
    assert_eq!((&end["inline"], &end["asked"], &end["message"]), (&json!(inline), &json!(2), &json!("logged in")));
    world.stop().await;
}

#[tokio::test]
async fn a_guardrail_is_found_in_the_inline_answer() {
    a_guardrail_is_answered_by_rest(LONG, true).await;
}

#[tokio::test]
async fn a_guardrail_is_found_by_polling() {
    a_guardrail_is_answered_by_rest(SHORT, false).await;
}

#[tokio::test]
async fn a_guardrail_is_declined_and_a_task_stopped_instead_of_an_answer() {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let world = World::start(answering_within(LONG), move |task| asking(task, heard.clone())).await;
    let end = Start::node("rest/decline.mjs").against(world.url()).ends().await;
    assert_eq!(hears.recv().await.unwrap().0, Outcome::Declined);
    assert_eq!((&end["declined"]["status"], &end["declined"]["code"]), (&json!("failed"), &json!("DECLINED")));
    assert_eq!(end["declined"]["error"], "The person said no");
    // Whoever answers what a stop has closed is told that it came too late.
    assert_eq!(end["late"]["applied"], false, "{end}");
    world.stop().await;
}

async fn a_guardrail_is_answered_on_the_socket(client: &str) {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let may = gate();
    let held = Arc::clone(&may);
    let world = World::start(ordinary(), move |task| {
        let (heard, held) = (heard.clone(), Arc::clone(&held));
        async move {
            // A client that joins too late for the question gets it all the same.
            pass(&held).await;
            asking(task, heard).await
        }
    })
    .await;
    may.add_permits(1);
    let mut program = Start::node("rest/guardrail_socket.mjs").with("CLIENT", client).against(world.url());
    assert_eq!(program.says("asked").await["value"], "What is the code?");
    assert_eq!(hears.recv().await.unwrap(), (Outcome::Answered, Some("secret answer 1".to_owned())));
    let result = program.says("completed").await;
    assert_eq!((&result["message"], &result["cost"]), (&json!("logged in"), &json!(0.0124)));
    let asked = result["heard"].as_array().unwrap().iter().filter(|kind| *kind == "guardrail_trigger").count();
    assert_eq!(asked, 1, "{result}");
    let end = program.ends().await;
    assert_eq!(
        (&end["reason"], &end["message"], &end["type"]),
        (&json!("terminated"), &json!("Session ended"), &json!("end_session"))
    );
    world.stop().await;
}

#[tokio::test]
async fn a_guardrail_is_answered_on_the_socket_by_4_0() {
    a_guardrail_is_answered_on_the_socket("socket.io-client-4.0").await;
}

#[tokio::test]
async fn a_guardrail_is_answered_on_the_socket_by_4_5() {
    a_guardrail_is_answered_on_the_socket("socket.io-client-4.5").await;
}

#[tokio::test]
async fn a_guardrail_is_answered_on_the_socket_by_4_6() {
    a_guardrail_is_answered_on_the_socket("socket.io-client-4.6").await;
}

#[tokio::test]
async fn a_guardrail_is_answered_on_the_socket_by_the_newest() {
    a_guardrail_is_answered_on_the_socket("socket.io-client").await;
}

async fn a_person_takes_the_wheel(over: &str) {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let (felt, mut feels) = mpsc::unbounded_channel();
    let world = World::start(ordinary(), move |task| {
        let (heard, felt) = (heard.clone(), felt.clone());
        async move {
            let asked = task.ask(json!({ "value": "Please solve the captcha", "kind": "captcha" }));
            tokio::pin!(asked);
            let outcome = loop {
                tokio::select! {
                    biased;
                    input = task.interaction() => felt.send(input).unwrap(),
                    outcome = &mut asked => break outcome,
                }
            };
            task.ready().await;
            heard.send(outcome.text).unwrap();
            completed("The report is open")
        }
    })
    .await;
    let program = Start::node("rest/manual.mjs").with("OVER", over).against(world.url());
    let end = program.ends().await;
    assert_eq!(end["message"], "The report is open");
    assert_eq!(hears.recv().await.unwrap().as_deref(), Some("The captcha is solved"));
    let mut inputs = Vec::new();
    while let Ok(input) = feels.try_recv() {
        inputs.push(Value::Object(input));
    }
    let expected = json!([
        { "type": "CLICK", "x": 500.0, "y": 145.0 },
        { "type": "CLICK", "x": 1024.0, "y": 600.0 },
        { "type": "DOUBLE_CLICK", "x": 0.0, "y": 0.0 },
        { "type": "TYPE", "text": "hello wörld 👋", "humanLike": true },
        { "type": "KEY_PRESS", "key": "Enter" },
        { "type": "KEY_PRESS", "key": "a" },
    ]);
    assert_eq!(Value::from(inputs), expected);
    world.stop().await;
}

#[tokio::test]
async fn a_person_takes_the_wheel_over_a_socket() {
    a_person_takes_the_wheel("socket").await;
}

#[tokio::test]
async fn a_person_takes_the_wheel_over_rest() {
    a_person_takes_the_wheel("rest").await;
}

#[tokio::test]
async fn structured_output_comes_as_a_string_under_the_clients_own_task_id() {
    let world = World::start(ordinary(), |task| async move {
        let parameters = &task.parameters().parameters;
        match parameters["outputType"].as_str() {
            Some("structured_json") => {
                assert_eq!(task.id().len(), 32, "the id that the client chose");
                assert_eq!(parameters["outputSchema"]["required"], json!(["name", "price"]));
                completed(r#"{"name":"Lamp","price":24.5,"tags":["desk"]}"#)
            }
            Some("structured_csv") => {
                assert_eq!(parameters["outputSchema"], json!(["name", "price"]));
                completed("name,price\nLamp,24.5\nBulb,3\n")
            }
            other => panic!("an output type of {other:?}"),
        }
    })
    .await;
    let end = Start::node("rest/structured.mjs").against(world.url()).ends().await;
    assert_eq!(end["product"], json!({ "name": "Lamp", "price": 24.5, "tags": ["desk"] }));
    assert_eq!(end["header"], json!(["name", "price"]));
    assert_eq!(end["rows"], json!([["Lamp", "24.5"], ["Bulb", "3"]]));
    world.stop().await;
}

#[tokio::test]
async fn uploaded_files_reach_the_task_that_names_them() {
    let (named, mut names) = mpsc::unbounded_channel();
    let world = World::start(ordinary(), move |task| {
        named.send(task.parameters().parameters["files"].clone()).unwrap();
        async { completed("uploaded") }
    })
    .await;
    let end = Start::node("rest/files.mjs").against(world.url()).ends().await;
    assert_eq!(end["message"], "uploaded");
    assert_eq!(names.recv().await.unwrap(), end["files"]);
    assert!(end["refused"].as_str().is_some_and(|refused| refused.starts_with("HTTP 4")), "{end}");
    assert!(names.try_recv().is_err(), "a task with a file that does not exist was begun");
    world.stop().await;
}

#[tokio::test]
async fn a_session_is_paused_resumed_stopped_and_terminated() {
    let (works, mut working) = mpsc::unbounded_channel();
    let world = World::start(answering_within(SHORT), move |task| {
        let works = works.clone();
        async move {
            works.send(task.prompt().to_owned()).unwrap();
            if task.prompt() == "Watch the price" {
                std::future::pending::<()>().await;
            }
            completed("it works")
        }
    })
    .await;
    let end = Start::node("rest/control.mjs").against(world.url()).ends().await;
    assert_eq!(working.recv().await.unwrap(), "Watch the price");
    assert_eq!(working.recv().await.unwrap(), "Say that it works");
    assert!(working.try_recv().is_err(), "a session that had ended took a task");
    assert_ne!(end["last"]["type"], "task_completed", "{end}");
    assert!(end["refused"].as_str().is_some_and(|refused| refused.starts_with("HTTP 4")), "{end}");
    world.stop().await;
}

#[tokio::test]
async fn errors_are_as_documented() {
    let all = &[Scope::Publish, Scope::Watch, Scope::Answer, Scope::Control];
    let config = with_keys(ordinary(), &[("runtime", all), ("client", all), ("hasty", all)]);
    let world = World::with_token(config, Some("key-runtime"), |_| async { completed("never asked for") }).await;
    let program = Start::node("rest/errors.mjs").with("API_KEY", "key-client").with("HASTY_KEY", "key-hasty");
    let end = program.against(world.url()).ends().await;
    let found = |name: &str| {
        let found = &end["found"][name];
        (found["status"].as_u64().unwrap(), found["message"].as_str().unwrap().to_owned(), found["code"].clone())
    };
    let is = |name: &str, status: u64, text: &str| {
        let (found, message, _) = found(name);
        assert_eq!((found, message.as_str()), (status, text), "{name}");
    };
    is("noKey", 401, "API key required. Provide Authorization: Bearer <api_key>");
    is("wrongKey", 401, "Invalid or revoked API key");
    is("noPrompt", 400, "Missing required field: task.prompt");
    assert_eq!(found("noPrompt").2, "MISSING_REQUIRED_FIELD");
    is("reachOutMode", 400, "reachOutMode must be one of: off, guardrail_only, full");
    is("noMessage", 400, "sessionId and message are required");
    is("unknownSession", 401, "Session not found or unauthorized");
    for (name, status, part) in [
        ("misplaced", 400, "reachOutMode"),
        ("unknownTask", 404, "not found"),
        ("notJson", 400, "line 1"),
        ("contentType", 415, "application/json"),
    ] {
        let (found, message, _) = found(name);
        assert_eq!(found, status, "{name}: {message}");
        assert!(message.contains(part), "{name}: {message}");
    }

    let limited = end["limited"].as_array().unwrap();
    let statuses: Vec<u64> = limited.iter().map(|answer| answer["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [[200; 10].as_slice(), &[429; 2]].concat());
    for (n, answer) in limited.iter().take(10).enumerate() {
        let expected = (json!("10"), json!((9 - n).to_string()));
        assert_eq!((answer["limit"].clone(), answer["remaining"].clone()), expected, "{answer}");
    }
    let last = limited.last().unwrap();
    let number = |name: &str| last[name].as_str().and_then(|value| value.parse::<u64>().ok());
    assert!(number("retryAfter").is_some_and(|seconds| (1..=60).contains(&seconds)), "{last}");
    assert!(number("reset").is_some_and(|seconds| seconds > 1_700_000_000), "{last}");
    assert_eq!(last["message"], "Rate limit exceeded. Please try again later.");
    world.stop().await;
}

async fn a_task_reports_to_a_webhook(submitted: &str) -> (Value, Delivered) {
    let receiver = Receiver::start().await;
    let mut config = ordinary();
    config.webrun.private_webhooks = true;
    let world = World::start(config, |_| async { completed("Headlines of today") }).await;
    let program = Start::node("rest/webhook.mjs").with("WEBHOOK_URL", &receiver.url).with("SUBMITTED", submitted);
    let end = program.against(world.url()).ends().await;
    wait_until("the webhook is told", || async { !receiver.got().is_empty() }).await;
    world.stop().await;
    let got = receiver.got();
    assert_eq!(got.len(), 1, "once per task");
    assert_eq!(got[0].headers["authorization"], "Bearer canary-of-the-hook");
    (end, got[0].clone())
}

#[tokio::test]
async fn a_webhook_gets_the_full_response() {
    let (end, got) = a_task_reports_to_a_webhook("full_response").await;
    let body = &got.body;
    assert_eq!((&body["sessionId"], &body["taskId"]), (&end["sessionId"], &end["taskId"]));
    assert_eq!((&body["type"], &body["data"]["message"]), (&json!("task_completed"), &json!("Headlines of today")));
    assert_eq!((&body["usage"]["inputTokens"], &body["usage"]["cost"]), (&json!(12450), &json!(0.0124)));
    assert!(body["completedAt"].is_string(), "{body}");
}

#[tokio::test]
async fn a_webhook_gets_the_answer_alone() {
    let (_, got) = a_task_reports_to_a_webhook("ai_response").await;
    assert_eq!(got.body, "Headlines of today");
}

#[tokio::test]
async fn a_webhook_is_pinged() {
    let (end, got) = a_task_reports_to_a_webhook("just_ping").await;
    let body = &got.body;
    assert_eq!((&body["sessionId"], &body["taskId"]), (&end["sessionId"], &end["taskId"]));
    assert_eq!(body["event"], "task_completed");
    assert!(!got.body.to_string().contains("Headlines"), "{body}");
}

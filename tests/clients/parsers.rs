//! npm's parsers as oracles: what the gateway writes they read as it was meant, and what they write the gateway reads.

use std::sync::Arc;

use proptest::{
    collection::{hash_map, vec},
    prelude::*,
    strategy::ValueTree,
    test_runner::TestRunner,
};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    program::Start,
    socket::Scene,
    world::{World, completed, ordinary},
};

/// How many events are published.
const EVENTS: usize = 150;

/// Strings that some layer gives a meaning of its own.
const MEANT: &[&str] =
    &["\u{1e}", "\u{0}", "\u{2028}", "bAQID", "42[\"message\"]", "_placeholder", "__proto__", "\u{feff}", "💡"];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), prop::sample::select(MEANT).prop_map(str::to_owned)]
}

/// JSON that JavaScript can hold: its integers are exact below 2^53 only.
fn value() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        (-(1_i64 << 53) + 1..1_i64 << 53).prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no other", |number| number.is_finite()).prop_map(Value::from),
    ];
    let placeholder = json!({ "_placeholder": true, "num": 0 });
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number,
        text().prop_map(Value::from),
        Just(placeholder),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            hash_map(text(), inner, 0..6).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Equal for JavaScript, where 1 and 1.0 are one number and objects have no order.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, value)| other.get(name).is_some_and(|other| same(value, other)))
        }
        _ => one == other,
    }
}

fn all_same(one: &[Value], other: &[Value]) {
    for (n, (one, other)) in one.iter().zip(other).enumerate() {
        assert!(same(one, other), "the {n}th was\n{one}\nand became\n{other}");
    }
    assert_eq!(one.len(), other.len());
}

async fn npm_reads_what_the_gateway_writes(mode: &str) {
    let mut scene = Scene::begin(ordinary()).await;
    let start = Start::node("parsers/from_gateway.mjs").with("MODE", mode).with("SESSION_ID", &scene.session);
    let mut program = start.against(&scene.gateway.url);
    program.says("connected").await;
    let mut runner = TestRunner::default();
    let mut published = Vec::new();
    let mut last = 0;
    for n in 0..EVENTS {
        let data = json!({ "name": "x", "n": n, "value": value().new_tree(&mut runner).unwrap().current() });
        last = scene.runtime.send_event(&scene.session, "action", data.clone()).await;
        published.push(data);
    }
    scene.runtime.accepted(&scene.session, last).await;
    scene.complete().await;
    let end = program.ends().await;
    all_same(&published, end["heard"].as_array().unwrap());
    scene.gateway.stop().await;
}

#[tokio::test]
async fn npm_reads_what_the_gateway_writes_to_a_websocket() {
    npm_reads_what_the_gateway_writes("websocket").await;
}

#[tokio::test]
async fn npm_reads_what_the_gateway_writes_to_a_poll() {
    npm_reads_what_the_gateway_writes("polling").await;
}

async fn the_gateway_reads_what_npm_writes(mode: &str) {
    let (felt, mut feels) = mpsc::unbounded_channel();
    let (begun, mut begins) = mpsc::unbounded_channel();
    let first = Arc::new(Semaphore::new(1));
    let world = World::start(ordinary(), move |task| {
        let (felt, begun, first) = (felt.clone(), begun.clone(), Arc::clone(&first));
        async move {
            // The first task is there for what is typed; it goes on until the other tasks wait behind it.
            if let Ok(is_first) = first.try_acquire() {
                is_first.forget();
                for _ in 0..60 {
                    felt.send(Value::Object(task.interaction().await)).unwrap();
                }
            } else {
                begun.send(task.parameters().clone()).unwrap();
            }
            completed("done")
        }
    })
    .await;
    let (status, created) = world.gateway.post("/v1/sessions", json!({ "task": { "prompt": "Feel" } })).await;
    assert_eq!(status, 201, "{created}");
    let session = created["session"].as_str().unwrap();
    let seed = rand::random::<u32>().to_string();
    println!("SEED={seed}");
    let start =
        Start::node("parsers/to_gateway.mjs").with("MODE", mode).with("SESSION_ID", session).with("SEED", &seed);
    let mut program = start.against(world.url());
    let sent = program.says("end").await;
    let mut typed = Vec::new();
    let mut tasks = Vec::new();
    for _ in 0..sent["typed"].as_array().unwrap().len() {
        typed.push(feels.recv().await.unwrap());
    }
    for _ in 0..sent["tasks"].as_array().unwrap().len() {
        let task = begins.recv().await.unwrap();
        tasks.push(json!({
            "actionType": "newTask",
            "newState": "start",
            "prompt": task.prompt,
            "outputType": task.parameters["outputType"],
            "outputSchema": task.parameters["outputSchema"],
        }));
    }
    all_same(sent["typed"].as_array().unwrap(), &typed);
    all_same(sent["tasks"].as_array().unwrap(), &tasks);
    world.stop().await;
}

#[tokio::test]
async fn the_gateway_reads_what_npm_writes_to_a_websocket() {
    the_gateway_reads_what_npm_writes("websocket").await;
}

#[tokio::test]
async fn the_gateway_reads_what_npm_writes_in_a_post() {
    the_gateway_reads_what_npm_writes("polling").await;
}

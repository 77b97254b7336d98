//! A task's result in the words of WebRun's clients: polls, sockets and task webhooks say the same.

use serde_json::{Map, Value, json};

/// `data` of a completed task: what the runtime said, the documented members always, the old token members too.
pub fn result_data(data: &Value, usage: &Map<String, Value>) -> Value {
    let mut shown = data.as_object().cloned().unwrap_or_default();
    shown.remove("usage");
    shown.remove("taskId");
    shown.entry("message").or_insert_with(|| "".into());
    for name in ["files", "network"] {
        shown.entry(name).or_insert_with(|| json!([]));
    }
    for name in ["prompt_tokens", "completion_tokens", "total_tokens", "completion_time"] {
        shown.insert(name.to_owned(), usage[name].clone());
    }
    Value::Object(shown)
}

/// Usage under both namings. `seconds` is how long the task has taken so far, for runtimes that do not say.
pub fn usage(said: Option<&Map<String, Value>>, seconds: Option<f64>) -> Map<String, Value> {
    let number = |names: [&str; 2]| {
        let said = said?;
        names.iter().find_map(|name| said.get(*name).and_then(Value::as_f64))
    };
    let whole = |number: f64| if number.fract() == 0.0 { json!(number as u64) } else { json!(number) };
    let input = number(["prompt_tokens", "inputTokens"]).unwrap_or(0.0);
    let output = number(["completion_tokens", "outputTokens"]).unwrap_or(0.0);
    let total = number(["total_tokens", "totalTokens"]).unwrap_or(input + output);
    let time = number(["completion_time", "computeTime"]).or(seconds).unwrap_or(0.0);
    let cost = number(["cost", "cost"]).unwrap_or(0.0);
    Map::from_iter([
        ("prompt_tokens".to_owned(), whole(input)),
        ("completion_tokens".to_owned(), whole(output)),
        ("total_tokens".to_owned(), whole(total)),
        ("completion_time".to_owned(), json!(time)),
        ("cost".to_owned(), json!(cost)),
        ("inputTokens".to_owned(), whole(input)),
        ("outputTokens".to_owned(), whole(output)),
        ("computeTime".to_owned(), json!(time)),
    ])
}

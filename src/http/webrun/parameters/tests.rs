use proptest::prelude::*;
use serde_json::json;

use super::*;

fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        other => panic!("{other} is no object"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "bodies are written where they are used")]
fn started(body: Value) -> OpenSession {
    start(members(body.clone())).unwrap_or_else(|problem| panic!("{body}: {}", problem.body()))
}

/// The refusal's body, without what every one has.
fn refused(read: Result<OpenSession, Problem>) -> Value {
    let problem = read.expect_err("refused");
    assert_eq!(problem.status(), StatusCode::BAD_REQUEST);
    let mut body = problem.body();
    assert_eq!(body["message"], body["error"]);
    let body = body.as_object_mut().unwrap();
    body.retain(|name, _| matches!(name.as_str(), "message" | "code" | "details"));
    Value::Object(body.clone())
}

fn message_of(body: &Value) -> String {
    refused(start(members(body.clone())))["message"].as_str().unwrap().to_owned()
}

#[test]
fn every_generation_says_the_same_in_its_own_words() {
    let today = started(json!({
        "environmentId": "683a1f2e4b0c1d2e3f4a5b6c", "policyId": "pol_xyz789", "mode": "default",
        "reachOutMode": "full",
        "task": { "prompt": "Buy", "startingUrl": "https://a.example", "maxDuration": 60000, "taskId": "t1" },
    }));
    let older = started(json!({
        "profileId": "683a1f2e4b0c1d2e3f4a5b6c", "policyId": "pol_xyz789", "mode": "default", "reachOutMode": "full",
        "initialTask": { "taskDetails": "Buy", "startingPoint": "https://a.example", "maxDuration": 60000 },
        "taskId": "t1",
    }));
    let oldest = started(json!({
        "taskDetails": "Buy", "startingUrl": "https://a.example", "maxDuration": 60000, "taskId": "t1",
        "environmentId": "683a1f2e4b0c1d2e3f4a5b6c", "policyId": "pol_xyz789", "mode": "default",
        "reachOutMode": "full", "sessionId": "ignored",
    }));
    assert_eq!(today, older);
    assert_eq!(today, oldest);
    assert_eq!(today.environment_id.as_deref(), Some("683a1f2e4b0c1d2e3f4a5b6c"));
    assert_eq!(today.reach_out_mode, ReachOutMode::Full);
    assert_eq!(Value::Object(today.parameters), json!({ "policyId": "pol_xyz789", "mode": "default" }));
    let task = today.task.unwrap();
    assert_eq!((task.prompt.as_deref(), task.task_id.as_deref()), (Some("Buy"), Some("t1")));
    assert_eq!(Value::Object(task.parameters), json!({ "startingUrl": "https://a.example" }));
}

#[test]
fn without_a_prompt_there_is_no_first_task_and_nothing_of_it_is_lost() {
    assert_eq!(started(json!({})), OpenSession::default());
    assert_eq!(started(json!({ "task": {} })), OpenSession::default());
    assert_eq!(started(json!({ "task": null, "environmentId": "", "proxy": null })), OpenSession::default());
    let secrets = json!([{ "match": "all", "fields": { "password": "hunter2" } }]);
    let session = started(json!({ "task": { "prompt": " ", "secrets": secrets, "startingUrl": "https://a.example" } }));
    assert_eq!(session.task, None);
    assert_eq!(session.secrets[0].fields["password"], "hunter2");
    assert_eq!(Value::Object(session.parameters), json!({ "task": { "startingUrl": "https://a.example" } }));
}

#[test]
fn a_run_needs_a_prompt_and_ends_with_its_task() {
    let session = run(members(json!({ "prompt": "Buy", "terminateOnCompletion": false, "sessionId": "x" }))).unwrap();
    let task = session.task.unwrap();
    assert!(task.terminate_on_completion);
    assert_eq!(task.max_duration, Some(300_000), "as documented");
    assert!(session.parameters.is_empty());
    let missing = |name: &str| {
        json!({ "message": format!("Missing required field: {name}"), "code": "MISSING_REQUIRED_FIELD",
            "details": { "field": name } })
    };
    let old = json!({ "message": "taskDetails is required", "code": "MISSING_REQUIRED_FIELD",
        "details": { "field": "taskDetails" } });
    let empty = |name: &str| json!({ "message": format!("{name} cannot be empty"), "code": "INVALID_TASK_DETAILS" });
    for (body, wanted) in [
        (json!({}), missing("task.prompt")),
        (json!({ "mode": "default" }), missing("task.prompt")),
        (json!({ "task": { "startingUrl": "https://a.example" } }), missing("task.prompt")),
        (json!({ "task": { "prompt": null } }), missing("task.prompt")),
        (json!({ "startingUrl": "https://a.example" }), old),
        (json!({ "task": { "prompt": "" } }), empty("prompt")),
        (json!({ "prompt": " \n" }), empty("prompt")),
        (json!({ "taskDetails": "" }), empty("taskDetails")),
        (json!({ "initialTask": { "taskDetails": " " } }), empty("taskDetails")),
    ] {
        assert_eq!(refused(run(members(body.clone()))), wanted, "{body}");
    }
}

#[test]
fn a_new_task_needs_a_prompt() {
    let read = |body: Value| task(members(body));
    assert_eq!(read(json!({ "taskDetails": "Buy" })).unwrap().prompt.as_deref(), Some("Buy"));
    assert_eq!(read(json!({})).unwrap_err().message(), "Missing required field: prompt");
    assert_eq!(read(json!({ "prompt": "" })).unwrap_err().message(), "prompt cannot be empty");
    assert_eq!(read(json!({ "taskDetails": "" })).unwrap_err().message(), "taskDetails cannot be empty");
}

#[test]
fn what_a_refused_parameter_is_told() {
    let table = [
        (json!({ "reachOutMode": "sometimes" }), "reachOutMode must be one of: off, guardrail_only, full"),
        (json!({ "reachOutMode": 1 }), "reachOutMode must be one of: off, guardrail_only, full"),
        (json!({ "mode": "turbo" }), "Invalid parameter 'mode': must be one of: default"),
        (json!({ "task": 1 }), "Invalid parameter 'task': must be an object"),
        (
            json!({ "task": {}, "initialTask": {} }),
            "Invalid parameter 'initialTask': is the old name of task; send one of them",
        ),
        (json!({ "prompt": 1 }), "Invalid parameter 'prompt': must be a string"),
        (json!({ "startingPoint": 1 }), "Invalid parameter 'startingUrl': must be a string"),
        (json!({ "terminateOnCompletion": "yes" }), "Invalid parameter 'terminateOnCompletion': must be true or false"),
        (json!({ "maxDuration": -1 }), "Invalid parameter 'maxDuration': must be at least 1000"),
        (json!({ "maxDuration": -0.5 }), "Invalid parameter 'maxDuration': must be at least 1000"),
        (json!({ "maxInputTokens": -1 }), "Invalid parameter 'maxInputTokens': must be at least 0"),
        (json!({ "maxOutputTokens": 1.5 }), "Invalid parameter 'maxOutputTokens': must be a whole number"),
        (json!({ "maxDuration": "60000" }), "Invalid parameter 'maxDuration': must be a number"),
        (json!({ "files": "abc" }), "Invalid parameter 'files': must be an array of strings that are not empty"),
        (json!({ "files": [1] }), "Invalid parameter 'files': must be an array of strings that are not empty"),
        (json!({ "files": vec!["f"; 101] }), "Invalid parameter 'files': must have at most 100 items"),
        (json!({ "taskId": "a b" }), "Invalid parameter 'taskId': must be 1 to 64 characters of A-Z a-z 0-9 _ -"),
        (json!({ "policyId": 1 }), "Invalid parameter 'policyId': must be 1 to 64 characters of A-Z a-z 0-9 _ -"),
        (
            json!({ "environmentId": "../x" }),
            "Invalid parameter 'environmentId': must be 1 to 64 characters of A-Z a-z 0-9 _ -",
        ),
        (
            json!({ "outputType": "xml" }),
            "Invalid parameter 'outputType': must be one of: text, structured_json, structured_csv",
        ),
        (json!({ "outputType": "structured_json" }), "Missing required field: outputSchema"),
        (json!({ "outputType": "structured" }), "Missing required field: outputSchema"),
        (
            json!({ "outputType": "structured_json", "outputSchema": ["a"] }),
            "Invalid parameter 'outputSchema': must be a JSON Schema object",
        ),
        (
            json!({ "outputType": "structured_json", "outputSchema": { "type": "strnig" } }),
            "Invalid parameter 'outputSchema': is not a valid JSON Schema at /type",
        ),
        (
            json!({ "outputType": "structured_csv", "outputSchema": { "properties": { "a": { "minLength": -1 } } } }),
            "Invalid parameter 'outputSchema': is not a valid JSON Schema at /properties/a/minLength",
        ),
        (
            json!({ "outputType": "structured_json", "outputSchema": { "$schema": "https://schema.example/own" } }),
            "Invalid parameter 'outputSchema': is not a valid JSON Schema",
        ),
        (
            json!({ "outputType": "structured_csv", "outputSchema": [] }),
            "Invalid parameter 'outputSchema': must have column names that are not empty",
        ),
        (
            json!({ "outputType": "structured_csv", "outputSchema": ["a", 1] }),
            "Invalid parameter 'outputSchema': must have column names that are not empty",
        ),
        (
            json!({ "outputType": "structured_csv", "outputSchema": ["a", "a"] }),
            "Invalid parameter 'outputSchema': has a column name twice",
        ),
        (json!({ "outputSchema": "x" }), "Invalid parameter 'outputSchema': must be an object"),
        (json!({ "secrets": {} }), "Invalid parameter 'secrets': must be an array"),
        (json!({ "secrets": [1] }), "Invalid parameter 'secrets[0]': must be an object"),
        (json!({ "secrets": [{ "fields": { "a": "b" } }] }), "Missing required field: secrets[0].match"),
        (json!({ "secrets": [{ "match": "all" }] }), "Missing required field: secrets[0].fields"),
        (
            json!({ "secrets": [{ "match": "all", "fields": { "a": ["b"] } }] }),
            "Invalid parameter 'secrets[0].fields': must have strings as its values",
        ),
        (
            json!({ "secrets": [{ "match": "all", "fields": {} }] }),
            "Invalid parameter 'secrets': secrets[0].fields is empty",
        ),
        (json!({ "webhook": "https://h.example" }), "Invalid parameter 'webhook': must be an object"),
        (json!({ "webhook": { "name": "n", "submittedData": "just_ping" } }), "Missing required field: webhook.url"),
        (
            json!({ "webhook": { "name": "n", "url": "ftp://h", "submittedData": "just_ping" } }),
            "Invalid parameter 'webhook.url': must be an http or https URL",
        ),
        (
            json!({ "webhook": { "name": "n", "url": "https://h.example", "submittedData": "all" } }),
            "Invalid parameter 'webhook.submittedData': must be one of: full_response, ai_response, just_ping",
        ),
        (
            json!({ "webhook": { "name": "n", "url": "https://h.example", "submittedData": "just_ping", "auth": "a\r\nb" } }),
            "Invalid parameter 'webhook.auth': must be a string that can be the value of a header",
        ),
        (json!({ "proxy": "US" }), "Invalid parameter 'proxy': must be an object"),
        (json!({ "proxy": {} }), "Missing required field: proxy.source"),
        (
            json!({ "proxy": { "source": "webrun" } }),
            "Invalid parameter 'proxy.source': must be one of: WebRun, custom",
        ),
        (json!({ "proxy": { "source": "WebRun" } }), "Missing required field: proxy.country"),
        (
            json!({ "proxy": { "source": "WebRun", "country": "us" } }),
            "Invalid parameter 'proxy.country': must be an ISO 3166-1 alpha-2 country code, such as US, or random",
        ),
        (
            json!({ "proxy": { "source": "WebRun", "country": "US", "level": "deep" } }),
            "Invalid parameter 'proxy.level': must be one of: system, chrome",
        ),
        (json!({ "proxy": { "source": "custom", "host": "h", "port": 1 } }), "Missing required field: proxy.type"),
        (
            json!({ "proxy": { "source": "custom", "type": "https", "host": "h", "port": 1 } }),
            "Invalid parameter 'proxy.type': must be one of: http, socks",
        ),
        (
            json!({ "proxy": { "source": "custom", "type": "http", "host": "http://h/", "port": 1 } }),
            "Invalid parameter 'proxy.host': must be a host name or an IP address",
        ),
        (
            json!({ "proxy": { "source": "custom", "type": "http", "host": "h", "port": 0 } }),
            "Invalid parameter 'proxy.port': must be a number from 1 to 65535",
        ),
        (
            json!({ "proxy": { "source": "custom", "type": "http", "host": "h", "port": "65536" } }),
            "Invalid parameter 'proxy.port': must be a number from 1 to 65535",
        ),
        (
            json!({ "proxy": { "source": "custom", "type": "http", "host": "h", "port": "+80" } }),
            "Invalid parameter 'proxy.port': must be a number from 1 to 65535",
        ),
        (
            json!({ "proxy": { "source": "custom", "type": "http", "host": "h", "port": "" } }),
            "Invalid parameter 'proxy.port': must be a number from 1 to 65535",
        ),
        (
            json!({ "proxy": { "source": "custom", "type": "http", "host": "h", "port": 1, "password": 1 } }),
            "Invalid parameter 'proxy.password': must be a string",
        ),
    ];
    for (body, wanted) in table {
        assert_eq!(message_of(&body), wanted, "{body}");
    }
}

#[test]
fn a_limit_that_is_refused_names_the_parameter_the_value_and_the_least() {
    let wanted = json!({
        "message": "Invalid parameter 'maxDuration': must be at least 1000",
        "code": "INVALID_PARAMETER",
        "details": { "parameter": "maxDuration", "value": -5, "min": 1000 },
    });
    assert_eq!(refused(start(members(json!({ "task": { "prompt": "p", "maxDuration": -5 } })))), wanted);
}

#[test]
fn limits_that_documented_samples_break_are_brought_inside() {
    for (said, wanted) in [
        (json!(5), 1_000),
        (json!(0), 1_000),
        (json!(60_000), 60_000),
        (json!(60_000.0), 60_000),
        (json!(600_000), 300_000),
        (json!(u64::MAX), 300_000),
        (json!(1e300), 300_000),
    ] {
        let task = started(json!({ "prompt": "p", "maxDuration": said })).task.unwrap();
        assert_eq!(task.max_duration, Some(wanted), "{said}");
    }
    let task = started(json!({ "prompt": "p", "maxInputTokens": 400_000, "maxOutputTokens": 0 })).task.unwrap();
    assert_eq!(Value::Object(task.parameters), json!({ "maxInputTokens": 100_000, "maxOutputTokens": 0 }));
}

#[test]
fn a_parameter_in_the_wrong_place_is_told_where_it_belongs() {
    for name in OF_SESSION {
        let body = json!({ "task": { "prompt": "p", *name: "x" } });
        let refused = refused(start(members(body)));
        let wanted = format!(
            "Invalid parameter '{name}': belongs to the session, beside task; a session keeps it for all its tasks"
        );
        assert_eq!((&refused["message"], &refused["details"]["expected"]), (&json!(wanted), &json!(name)));
    }
    for name in OF_TASK {
        for object in ["task", "initialTask"] {
            let body = json!({ object: { "startingUrl": "https://a.example" }, *name: "x" });
            let refused = refused(start(members(body)));
            assert_eq!(refused["message"], format!("Invalid parameter '{name}': belongs inside {object}"));
            assert_eq!(refused["details"]["expected"], format!("{object}.{name}"));
        }
    }
    let in_message = task(members(json!({ "prompt": "p", "proxy": { "source": "WebRun", "country": "US" } })));
    assert!(in_message.unwrap_err().message().starts_with("Invalid parameter 'proxy': belongs to the session"));
}

#[test]
fn everything_valid_is_kept() {
    let proxies = [
        json!({ "source": "WebRun", "country": "random", "level": "chrome" }),
        json!({ "source": "WebRun", "country": "DE", "x": 1 }),
        json!({ "source": "custom", "type": "socks", "host": "::1", "port": "65535", "level": "system" }),
        json!({ "source": "custom", "type": "http", "host": "p.example", "port": "1", "username": "u", "password": "p" }),
    ];
    for proxy in proxies {
        let session = started(json!({ "proxy": proxy }));
        assert_eq!(session.parameters["proxy"], proxy);
    }
    let numbered = started(json!({ "proxy": { "source": "custom", "type": "http", "host": "h", "port": 8080 } }));
    assert_eq!(numbered.parameters["proxy"]["port"], "8080", "the documented type");
    let kept = json!({
        "startingUrl": "https://a.example", "outputType": "structured_csv", "outputSchema": ["name", "price"],
        "files": ["abc123..."], "avoidDomains": ["b.example"], "ownMember": { "deep": [null, 1.5] },
        "webhook": { "name": "n", "url": "https://h.example/x", "auth": "Bearer t", "submittedData": "full_response" },
    });
    let mut said = kept.clone();
    said["prompt"] = json!("p");
    let task = started(json!({ "task": said })).task.unwrap();
    assert_eq!(Value::Object(task.parameters), kept);
    let placeholders = json!({ "prompt": "p", "webhook": {}, "secrets": [], "files": [], "outputSchema": {} });
    let task = started(json!({ "task": placeholders })).task.unwrap();
    assert_eq!(Value::Object(task.parameters), json!({ "files": [], "outputSchema": {} }), "as in a documented sample");
    let early = json!({ "prompt": "p", "outputType": "structured", "outputSchema": { "type": "object" } });
    assert_eq!(started(early).task.unwrap().parameters["outputType"], "structured_json");
    let otp = started(json!({ "prompt": "p", "secrets": [{ "match": "*.a.example", "fields": { "otp": 123456 } }] }));
    assert_eq!(otp.task.unwrap().secrets[0].fields["otp"], "123456");
}

/// Values that no refusal may show, at every place that could hold one.
#[test]
fn no_refusal_shows_what_was_sent() {
    let canary = "c4n4ry-s3cr3t";
    let at = |path: &[&str]| {
        path.iter().rev().fold(json!([canary]), |inner, name| match *name {
            "[]" => json!([inner]),
            name => json!({ name: inner }),
        })
    };
    let places: &[&[&str]] = &[
        &["proxy", "password"],
        &["proxy"],
        &["secrets"],
        &["secrets", "[]"],
        &["secrets", "[]", "match"],
        &["webhook"],
        &["webhook", "auth"],
        &["prompt"],
        &["maxDuration"],
        &["outputSchema"],
        &["outputType"],
        &["mode"],
        &["reachOutMode"],
        &["taskId"],
        &["files"],
        &["startingUrl"],
    ];
    for place in places {
        for body in [at(place), json!({ "task": at(place) })] {
            if let Err(problem) = start(members(body.clone())) {
                assert!(!problem.body().to_string().contains(canary), "{body}: {}", problem.body());
            }
        }
    }
    let texts = json!({ "proxy": { "source": "custom", "type": "http", "host": canary, "port": canary } });
    assert!(!refused(start(members(texts))).to_string().contains(canary));
}

/// JSON with the names and the words that mean something here more often than others.
fn any_json() -> impl Strategy<Value = Value> {
    let names = OF_TASK.iter().chain(OF_SESSION).copied().chain(["task", "initialTask", "taskId", "mode", "x"]);
    let names: Vec<&str> =
        names.chain(["source", "country", "match", "fields", "name", "url", "submittedData"]).collect();
    let words = [
        "",
        "p",
        "default",
        "full",
        "WebRun",
        "custom",
        "US",
        "all",
        "text",
        "structured_json",
        "https://a.example",
        "just_ping",
        "8080",
        "object",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(words.to_vec()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 8, move |inner| {
        let name =
            prop_oneof![4 => proptest::sample::select(names.clone()).prop_map(str::to_owned), 1 => any::<String>()];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((name, inner), 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// A session as a client of today would ask for it.
fn said_again(session: &OpenSession) -> Map<String, Value> {
    let mut said = session.parameters.clone();
    said.insert("reachOutMode".to_owned(), serde_json::to_value(session.reach_out_mode).unwrap());
    said.insert("environmentId".to_owned(), serde_json::to_value(&session.environment_id).unwrap());
    if let Some(task) = &session.task {
        said.insert("task".to_owned(), serde_json::to_value(task).unwrap());
    }
    if !session.secrets.is_empty() {
        let task = said.entry("task").or_insert_with(|| json!({}));
        task["secrets"] = serde_json::to_value(&session.secrets).unwrap();
    }
    said
}

/// A start in one of its three forms, most of which are right.
fn any_start() -> impl Strategy<Value = Map<String, Value>> {
    let one_of = |values: &[Value]| proptest::sample::select(values.to_vec());
    let number = prop_oneof![any::<u64>().prop_map(Value::from), (0.0..1e6f64).prop_map(|n| Value::from(n.trunc()))];
    let member = prop_oneof![
        (proptest::sample::select(&["prompt", "taskDetails"][..]), ".{1,8}".prop_map(Value::from)),
        (
            proptest::sample::select(&["startingUrl", "startingPoint"][..]),
            one_of(&[json!("https://a.example"), json!(null), json!("")]),
        ),
        (proptest::sample::select(&["maxDuration", "maxInputTokens", "maxOutputTokens"][..]), number),
        (Just("terminateOnCompletion"), any::<bool>().prop_map(Value::from)),
        (Just("outputType"), one_of(&[json!("text"), json!("structured"), json!("structured_csv")])),
        (Just("outputSchema"), one_of(&[json!({}), json!({ "type": "object" }), json!(["a", "b"])])),
        (
            Just("secrets"),
            one_of(&[json!([]), json!([{ "match": "all", "fields": { "otp": 1.5, "b": "c" } }]), json!(null)]),
        ),
        (Just("files"), one_of(&[json!([]), json!(["f1"])])),
        (
            Just("webhook"),
            one_of(&[json!({}), json!({ "name": "n", "url": "http://h/", "submittedData": "just_ping", "own": 1 })]),
        ),
        (Just("taskId"), one_of(&[json!("t"), json!(""), json!(null)])),
        (Just("avoidDomains"), one_of(&[json!(["a.example"])])),
        (proptest::sample::select(&["environmentId", "profileId", "policyId"][..]), one_of(&[json!("e1"), json!("")])),
        (Just("reachOutMode"), one_of(&[json!("off"), json!("full"), json!(null)])),
        (Just("mode"), one_of(&[json!("default"), json!(null)])),
        (
            Just("proxy"),
            one_of(&[
                json!({ "source": "WebRun", "country": "DE", "level": null }),
                json!({ "source": "custom", "type": "http", "host": "h", "port": 80, "own": [] }),
                json!(null),
            ]),
        ),
        (Just("own"), any_json()),
    ];
    let members = proptest::collection::vec(member, 0..12);
    (members, proptest::sample::select(&["", "task", "initialTask"][..])).prop_map(|(members, nested)| {
        let members = members.into_iter().map(|(name, value)| (name.to_owned(), value));
        if nested.is_empty() {
            return members.collect();
        }
        let (task, mut session): (Map<_, _>, Map<_, _>) =
            members.partition(|(name, _)| OF_TASK.contains(&name.as_str()) || name == "own");
        session.insert(nested.to_owned(), Value::Object(task));
        session
    })
}

fn reads_the_same_again(body: Map<String, Value>) -> Result<(), TestCaseError> {
    if let Ok(session) = start(body.clone()) {
        prop_assert_eq!(&start(said_again(&session)).unwrap(), &session);
    }
    if let Ok(session) = run(body.clone()) {
        prop_assert_eq!(&run(said_again(&session)).unwrap(), &session);
    }
    if let Ok(read) = task(body) {
        let Value::Object(again) = serde_json::to_value(&read).unwrap() else { unreachable!() };
        prop_assert_eq!(&task(again).unwrap(), &read);
    }
    Ok(())
}

proptest! {
    #[test]
    fn whatever_is_sent_is_read_or_refused_and_what_is_read_reads_the_same_again(
        members in proptest::collection::vec(
            (proptest::sample::select(
                OF_TASK.iter().chain(OF_SESSION).copied().chain(["task", "initialTask", "mode", "own"]).collect::<Vec<_>>(),
            ), any_json()),
            0..6,
        )
    ) {
        reads_the_same_again(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())?;
    }

    #[test]
    fn what_is_right_reads_the_same_again(body in any_start()) {
        reads_the_same_again(body)?;
    }
}

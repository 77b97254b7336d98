//! `outputType` and `outputSchema`: the form that a result is wanted in.

use serde_json::{Map, Value};

use super::{Problem, values::Members};

const COLUMNS_MAX: usize = 1_000;
/// Of the place that an error names, in bytes.
const PLACE_MAX: usize = 200;

/// Checks both where they stand. The early name `structured` is brought up to date.
pub(super) fn check(task: &mut Map<String, Value>) -> Result<(), Problem> {
    if task.get("outputType").is_some_and(|kind| kind == "structured") {
        task.insert("outputType".to_owned(), "structured_json".into());
    }
    task.one_of("outputType", &["text", "structured_json", "structured_csv"])?;
    let schema = task.take("outputSchema");
    let kind = task.get("outputType").and_then(Value::as_str).unwrap_or("text");
    let checked = match (kind, &schema) {
        ("text", None | Some(Value::Object(_) | Value::Array(_))) => Ok(()),
        ("text", Some(_)) => Err(Problem::parameter("outputSchema", "must be an object")),
        (_, None) => Err(Problem::missing("outputSchema").with("outputType", kind)),
        (_, Some(schema @ Value::Object(_))) => is_schema(schema),
        ("structured_csv", Some(Value::Array(columns))) => are_columns(columns),
        ("structured_csv", Some(_)) => {
            Err(Problem::parameter("outputSchema", "must be an array of column names or a JSON Schema object"))
        }
        (_, Some(_)) => Err(Problem::parameter("outputSchema", "must be a JSON Schema object")),
    };
    checked?;
    if let Some(schema) = schema {
        task.insert("outputSchema".to_owned(), schema);
    }
    Ok(())
}

/// Against the meta-schema of the draft that it names, 2020-12 when it names none.
fn is_schema(schema: &Value) -> Result<(), Problem> {
    jsonschema::meta::validate(schema).map_err(|error| {
        let mut place = error.instance_path().to_string();
        place.truncate(place.floor_char_boundary(PLACE_MAX));
        let what = if place.is_empty() { String::new() } else { format!(" at {place}") };
        Problem::parameter("outputSchema", &format!("is not a valid JSON Schema{what}")).with("path", place)
    })
}

fn are_columns(columns: &[Value]) -> Result<(), Problem> {
    let wrong = |problem: &str| Err(Problem::parameter("outputSchema", problem));
    let names: Option<Vec<&str>> = columns.iter().map(|name| name.as_str().filter(|name| !name.is_empty())).collect();
    let Some(mut names) = names.filter(|names| !names.is_empty()) else {
        return wrong("must have column names that are not empty");
    };
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return wrong("has a column name twice");
    }
    if names.len() > COLUMNS_MAX {
        return wrong(&format!("must have at most {COLUMNS_MAX} columns"));
    }
    Ok(())
}

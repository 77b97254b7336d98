//! What a person does in the page, passed on as real events.

use std::{convert::Infallible, time::Duration};

use serde_json::{Map, Value};

use super::{StepError, VIEWPORT, camera::Camera, link::TaskLink, tab::Tab};

/// Keys of one `TYPE`.
const TEXT_MAX: usize = 4096;

/// An interaction that the page understands. `Debug` is left out: what a person types may be a secret.
#[derive(PartialEq)]
enum Interaction<'a> {
    Click { x: f64, y: f64, count: i64 },
    Type { text: &'a str, rest: Duration },
    Press { key: &'a str },
    Scroll { x: f64, y: f64, down: f64 },
}

/// Passes on interactions for as long as it is polled.
pub(super) async fn follow<L: TaskLink>(link: &L, tab: &Tab, camera: &Camera<'_, L>) -> Infallible {
    loop {
        let action = link.interaction().await;
        let Some(interaction) = understand(&action) else {
            tracing::debug!(session.id = link.session(), "an interaction was not understood");
            continue;
        };
        if let Err(error) = pass_on(tab, interaction).await {
            tracing::debug!(session.id = link.session(), %error, "an interaction failed");
        }
        camera.shoot().await;
    }
}

fn understand(action: &Map<String, Value>) -> Option<Interaction<'_>> {
    let text = |name: &str| action.get(name).and_then(Value::as_str);
    let number = |name: &str| action.get(name).and_then(Value::as_f64);
    let place = || {
        let (x, y) = (number("x")?, number("y")?);
        let inside = (0.0..f64::from(VIEWPORT.0)).contains(&x) && (0.0..f64::from(VIEWPORT.1)).contains(&y);
        inside.then_some((x, y))
    };
    match text("type")? {
        "CLICK" => place().map(|(x, y)| Interaction::Click { x, y, count: 1 }),
        "DOUBLE_CLICK" => place().map(|(x, y)| Interaction::Click { x, y, count: 2 }),
        "SCROLL" => {
            let (x, y) = place().unwrap_or((f64::from(VIEWPORT.0) / 2.0, f64::from(VIEWPORT.1) / 2.0));
            number("deltaY").map(|down| Interaction::Scroll { x, y, down })
        }
        "TYPE" => {
            let human = action.get("humanLike").and_then(Value::as_bool).unwrap_or(false);
            let rest = Duration::from_millis(if human { 40 } else { 0 });
            text("text").filter(|text| text.len() <= TEXT_MAX).map(|text| Interaction::Type { text, rest })
        }
        "KEY_PRESS" => text("key").map(|key| Interaction::Press { key }),
        _ => None,
    }
}

async fn pass_on(tab: &Tab, interaction: Interaction<'_>) -> Result<(), StepError> {
    match interaction {
        Interaction::Click { x, y, count } => tab.click(x, y, count).await,
        Interaction::Type { text, rest } => tab.type_text(text, rest).await,
        Interaction::Press { key } => tab.press(key).await.map(|_| ()),
        Interaction::Scroll { x, y, down } => tab.scroll(x, y, down).await,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn action(value: Value) -> Map<String, Value> {
        let Value::Object(action) = value else { panic!("an action is an object") };
        action
    }

    #[test]
    fn clicks_are_taken_in_page_pixels_and_only_inside_the_page() {
        let click = action(json!({"type": "CLICK", "x": 512, "y": 300.5}));
        assert!(understand(&click) == Some(Interaction::Click { x: 512.0, y: 300.5, count: 1 }));
        let double = action(json!({"type": "DOUBLE_CLICK", "x": 0, "y": 0}));
        assert!(understand(&double) == Some(Interaction::Click { x: 0.0, y: 0.0, count: 2 }));
        for (x, y) in [(json!(512), json!(600)), (json!(-1), json!(3)), (json!("512"), json!(3))] {
            assert!(understand(&action(json!({"type": "CLICK", "x": x, "y": y}))).is_none());
        }
    }

    #[test]
    fn keys_and_text_are_taken_as_they_are() {
        let key = action(json!({"type": "KEY_PRESS", "key": "Enter"}));
        assert!(understand(&key) == Some(Interaction::Press { key: "Enter" }));
        let text = action(json!({"type": "TYPE", "text": "hello"}));
        assert!(understand(&text) == Some(Interaction::Type { text: "hello", rest: Duration::ZERO }));
        assert!(understand(&action(json!({"type": "TYPE", "text": "x".repeat(TEXT_MAX + 1)}))).is_none());
        assert!(understand(&action(json!({"type": "DANCE"}))).is_none());
    }
}

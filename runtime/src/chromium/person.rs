//! What a person does in the page, passed on as real events.

use std::convert::Infallible;

use futures::FutureExt;
use serde_json::{Map, Value};

use super::{
    StepError, VIEWPORT,
    camera::Camera,
    keyboard::Chord,
    link::TaskLink,
    tab::{Tab, Typing},
};

/// Bytes of one `TYPE`, as many as the gateway lets through.
const TEXT_MAX: usize = 16 * 1024;

/// An interaction that the page understands. `Debug` is left out: what a person types may be a secret.
#[derive(PartialEq)]
enum Interaction<'a> {
    Click { x: f64, y: f64, count: i64 },
    Type { text: &'a str, typing: Typing },
    Press(Chord<'a>),
    Scroll { x: f64, y: f64, down: f64 },
}

/// Passes on interactions for as long as it is polled. Whoever else wants to act in the page waits until all that
/// have come are done.
pub(super) async fn follow<L: TaskLink>(link: &L, tab: &Tab, camera: &Camera<'_, L>) -> Infallible {
    loop {
        let first = link.interaction().await;
        let _hands = tab.hands().await;
        let mut next = Some(first);
        while let Some(action) = next {
            match understand(&action) {
                Some(interaction) => {
                    if let Err(error) = pass_on(tab, interaction).await {
                        tracing::debug!(%error, "an interaction failed");
                    }
                    camera.shoot().await;
                }
                None => tracing::debug!("an interaction was not understood"),
            }
            next = link.interaction().now_or_never();
        }
    }
}

fn understand(action: &Map<String, Value>) -> Option<Interaction<'_>> {
    let text = |name: &str| action.get(name).and_then(Value::as_str);
    let number = |name: &str| action.get(name).and_then(Value::as_f64);
    // The far edges are the last pixels: clients scale pictures, and round.
    let along = |name: &str, length: u32| {
        let length = f64::from(length);
        number(name).filter(|at| (0.0..=length).contains(at)).map(|at| at.min(length - 1.0))
    };
    let place = || Some((along("x", VIEWPORT.0)?, along("y", VIEWPORT.1)?));
    match text("type")? {
        "CLICK" => place().map(|(x, y)| Interaction::Click { x, y, count: 1 }),
        "DOUBLE_CLICK" => place().map(|(x, y)| Interaction::Click { x, y, count: 2 }),
        "SCROLL" => {
            let (x, y) = place().unwrap_or((f64::from(VIEWPORT.0) / 2.0, f64::from(VIEWPORT.1) / 2.0));
            number("deltaY").map(|down| Interaction::Scroll { x, y, down })
        }
        "TYPE" => {
            let human = action.get("humanLike").and_then(Value::as_bool).unwrap_or(false);
            let typing = if human { Typing::Human } else { Typing::AtOnce };
            text("text").filter(|text| text.len() <= TEXT_MAX).map(|text| Interaction::Type { text, typing })
        }
        "KEY_PRESS" => text("key").and_then(Chord::parse).map(Interaction::Press),
        _ => None,
    }
}

async fn pass_on(tab: &Tab, interaction: Interaction<'_>) -> Result<(), StepError> {
    match interaction {
        Interaction::Click { x, y, count } => tab.click(x, y, count).await,
        Interaction::Type { text, typing } => tab.type_text(text, typing).await,
        Interaction::Press(chord) => tab.press(&chord).await,
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
        let corner = action(json!({"type": "CLICK", "x": 1024, "y": 600}));
        assert!(understand(&corner) == Some(Interaction::Click { x: 1023.0, y: 599.0, count: 1 }));
        for (x, y) in [(json!(512), json!(601)), (json!(-1), json!(3)), (json!("512"), json!(3))] {
            assert!(understand(&action(json!({"type": "CLICK", "x": x, "y": y}))).is_none());
        }
    }

    #[test]
    fn keys_and_text_are_taken_as_they_are() {
        let key = action(json!({"type": "KEY_PRESS", "key": "Enter"}));
        assert!(understand(&key) == Some(Interaction::Press(Chord::of("Enter"))));
        assert!(understand(&action(json!({"type": "KEY_PRESS", "key": "Enterr"}))).is_none());
        let text = action(json!({"type": "TYPE", "text": "hello"}));
        assert!(understand(&text) == Some(Interaction::Type { text: "hello", typing: Typing::AtOnce }));
        let human = action(json!({"type": "TYPE", "text": "hello", "humanLike": true}));
        assert!(understand(&human) == Some(Interaction::Type { text: "hello", typing: Typing::Human }));
        assert!(understand(&action(json!({"type": "TYPE", "text": "x".repeat(TEXT_MAX + 1)}))).is_none());
        assert!(understand(&action(json!({"type": "DANCE"}))).is_none());
    }
}

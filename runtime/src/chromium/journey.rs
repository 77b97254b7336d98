//! The way through the shop: look, choose, sign in, ask, buy.
//!
//! Each step begins with what the page shows, never with what the last step left behind: a person may have moved.
//! Nothing is bought unless a person approved exactly the total that stands on the page when the order is placed.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use onlooker_protocol::{
    event::kind::{ACTION, AGENT, RESPONSE_UPDATE},
    runtime::GuardrailOutcome,
};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::{sync::MutexGuard, time::sleep};
use url::Url;
use zeroize::Zeroize;

use super::{
    Settings, StepError,
    answer::{self, Verdict},
    camera::Camera,
    keyboard::Chord,
    link::TaskLink,
    meter::Meter,
    tab::{Spot, Tab, Typing, View},
};
use crate::agent::Completed;

pub(super) const STEPS_MAX: u32 = 60;
/// Answers that the shop may refuse before the task gives up.
const TRIES_MAX: u32 = 5;
const URLS_MAX: usize = 200;
/// Between two keys, at full pace.
const KEY_REST: Duration = Duration::from_millis(30);

pub(super) struct Journey<'a, L> {
    link: &'a L,
    tab: &'a Tab,
    camera: &'a Camera<'a, L>,
    meter: &'a Meter,
    settings: &'a Settings,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The first page was opened.
    opened: bool,
    wanted: Option<String>,
    added: bool,
    /// By kind: the guardrail's id and its last revision.
    asked: HashMap<&'static str, (String, u32)>,
    urls: Vec<Value>,
}

/// What a step comes to.
enum Step {
    Next,
    Done(Completed),
}

/// An outcome whose values are overwritten once they were used.
struct Taken(GuardrailOutcome);

impl Deref for Taken {
    type Target = GuardrailOutcome;

    fn deref(&self) -> &GuardrailOutcome {
        &self.0
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.text.zeroize();
        self.0.values.values_mut().for_each(Zeroize::zeroize);
    }
}

impl<'a, L: TaskLink> Journey<'a, L> {
    pub(super) fn new(
        link: &'a L,
        tab: &'a Tab,
        camera: &'a Camera<'a, L>,
        meter: &'a Meter,
        settings: &'a Settings,
    ) -> Self {
        Self { link, tab, camera, meter, settings, progress: Mutex::default() }
    }

    pub(super) async fn run(&self) -> Result<Completed, StepError> {
        for _ in 0..STEPS_MAX {
            drop(self.alone().await);
            match self.step_and_disturbance().await {
                (Ok(Step::Done(completed)), _) => return Ok(completed),
                (Ok(Step::Next) | Err(StepError::Disturbed), _) => {}
                (Err(error), true) if error.is_about_the_page() => {}
                (Err(error), _) => return Err(error),
            }
        }
        Err(StepError::StepsSpent)
    }

    /// One step, and whether a person took the wheel during it.
    async fn step_and_disturbance(&self) -> (Result<Step, StepError>, bool) {
        let step = self.step();
        tokio::pin!(step);
        let mut disturbed = false;
        loop {
            tokio::select! {
                biased;
                result = &mut step => return (result, disturbed),
                () = self.link.held(), if !disturbed => disturbed = true,
            }
        }
    }

    async fn step(&self) -> Result<Step, StepError> {
        if !self.read(|progress| progress.opened) {
            return self.open_first().await;
        }
        let view = self.tab.view().await?;
        match view.page.as_str() {
            "front" => self.choose(&view).await,
            "product" => self.add_to_cart(&view).await,
            "cart" => self.go_to_checkout(&view).await,
            "login" => self.sign_in(&view).await,
            "two-factor" => self.confirm_identity(&view).await,
            "checkout" => self.buy(&view).await,
            "confirmation" => Ok(self.finish(&view).await),
            _ if self.begins_elsewhere() => Ok(self.tell_of(&view).await),
            _ => self.open_front().await,
        }
    }

    /// Waits while a person has the wheel and until what they did there is done; keeps them from the page while the
    /// guard lives.
    async fn alone(&self) -> MutexGuard<'_, ()> {
        let _rest = self.meter.rest();
        loop {
            self.link.ready().await;
            let hands = self.tab.hands().await;
            if !self.link.is_held() {
                return hands;
            }
        }
    }

    /// The page that the task names, or the shop.
    async fn open_first(&self) -> Result<Step, StepError> {
        let step = match self.link.starting_url() {
            Some(text) => {
                let url = starting_url(text).ok_or(StepError::StartingUrl)?;
                self.say("I open the page that I was given.").await;
                self.open(url.as_str()).await?
            }
            None => {
                self.say("I open the shop.").await;
                self.open_front().await?
            }
        };
        self.write(|progress| progress.opened = true);
        Ok(step)
    }

    async fn open_front(&self) -> Result<Step, StepError> {
        self.open(self.settings.shop.as_str()).await
    }

    async fn open(&self, url: &str) -> Result<Step, StepError> {
        self.act(json!({"name": "navigate", "url": url})).await?;
        self.tab.goto(url).await?;
        self.arrived().await?;
        Ok(Step::Next)
    }

    /// Whether the task is about another site, on which this agent can do nothing but look.
    fn begins_elsewhere(&self) -> bool {
        let url = self.link.starting_url().and_then(starting_url);
        url.is_some_and(|url| url.origin() != self.settings.shop.origin())
    }

    async fn tell_of(&self, view: &View) -> Step {
        let name = [&view.title, &view.heading, &view.url].into_iter().find(|name| !name.is_empty());
        let message = format!("The page is open: “{}”.", name.map_or("", String::as_str));
        self.link.publish(RESPONSE_UPDATE, json!({"message": message})).await;
        self.camera.shoot().await;
        Step::Done(self.completed(message))
    }

    async fn choose(&self, view: &View) -> Result<Step, StepError> {
        let (wanted, added) = self.read(|progress| (progress.wanted.clone(), progress.added));
        if added {
            return self.follow("#open-cart", view).await;
        }
        let wanted = match wanted {
            Some(wanted) => wanted,
            None if view.cart > 0 => {
                self.say("The cart still holds things from before; I look at it first.").await;
                return self.follow("#open-cart", view).await;
            }
            None => {
                let wanted = pick(self.link.prompt(), &view.products);
                let wanted = wanted.ok_or_else(|| StepError::ElementNotFound("product to choose".to_owned()))?;
                self.look_around(view).await?;
                self.say(&format!("I choose the product “{wanted}”.")).await;
                self.write(|progress| progress.wanted = Some(wanted.clone()));
                wanted
            }
        };
        self.follow(&format!("[data-product={}]", Value::from(wanted)), view).await
    }

    /// Scrolls down and up again, as somebody would who sees the shop for the first time.
    async fn look_around(&self, view: &View) -> Result<(), StepError> {
        self.say(&format!("The shop shows {} products; I look through them.", view.products.len())).await;
        let (x, y) = (512.0, 320.0);
        for down in [320.0, -320.0] {
            self.act(json!({"name": "scroll", "x": x, "y": y, "deltaY": down, "url": view.url})).await?;
            self.tab.scroll(x, y, down).await?;
            self.rest().await;
            self.camera.shoot().await;
        }
        Ok(())
    }

    async fn add_to_cart(&self, view: &View) -> Result<Step, StepError> {
        let (wanted, added) = self.read(|progress| (progress.wanted.clone(), progress.added));
        if added || wanted.is_none_or(|wanted| wanted != view.heading) {
            return self.open_front().await;
        }
        self.say(&format!("“{}” is what I am looking for; I put it into the cart.", view.heading)).await;
        let step = self.follow("#add-to-cart", view).await?;
        self.write(|progress| progress.added = true);
        Ok(step)
    }

    async fn go_to_checkout(&self, view: &View) -> Result<Step, StepError> {
        let undecided = self.read(|progress| progress.wanted.is_none());
        if view.cart == 0 {
            self.write(|progress| progress.added = false);
            return self.open_front().await;
        }
        if undecided {
            return self.follow("#empty-cart", view).await;
        }
        self.say(&format!("The cart comes to {}; I go to the checkout.", view.total)).await;
        self.follow("#go-to-checkout", view).await
    }

    async fn sign_in(&self, view: &View) -> Result<Step, StepError> {
        let domain = self.settings.shop.host_str().unwrap_or_default();
        let question = json!({
            "kind": "login",
            "value": format!("{domain} wants a login before the order can be placed. Which account should I use?"),
            "domain": domain,
            "fields": [
                {"id": "email", "label": "E-mail", "type": "email", "required": true, "secret": false},
                {"id": "password", "label": "Password", "type": "password", "required": true, "secret": true},
            ],
        });
        let outcome = self.ask("login", question, view).await?;
        if answer::verdict(&outcome, "login")? == Verdict::Declined {
            return Ok(self.nothing_bought("The login was declined").await);
        }
        let (email, password) = answer::login(&outcome);
        self.submit(view, &[("#email", email), ("#password", password)], "#sign-in").await
    }

    async fn confirm_identity(&self, view: &View) -> Result<Step, StepError> {
        let domain = self.settings.shop.host_str().unwrap_or_default();
        let question = json!({
            "kind": "two_factor",
            "value": format!("{domain} wants the six-digit code from the authenticator app."),
            "domain": domain,
            "fields": [{"id": "code", "label": "Code", "type": "code", "required": true, "secret": true}],
        });
        let outcome = self.ask("two_factor", question, view).await?;
        if answer::verdict(&outcome, "code")? == Verdict::Declined {
            return Ok(self.nothing_bought("The code was declined").await);
        }
        self.submit(view, &[("#code", answer::code(&outcome))], "#verify").await
    }

    async fn buy(&self, view: &View) -> Result<Step, StepError> {
        let total = view.total.as_str();
        let domain = self.settings.shop.host_str().unwrap_or_default();
        let question = json!({
            "kind": "purchase",
            "value": format!("The order comes to {total} in all. Should I place it?"),
            "domain": domain,
            "choices": [
                {"id": "approve", "label": format!("Buy for {total}")},
                {"id": "reject", "label": "Do not buy"},
            ],
        });
        let outcome = self.ask("purchase", question, view).await?;
        if answer::verdict(&outcome, "purchase")? == Verdict::Declined || !answer::approves(&outcome) {
            self.say("I do not place the order, and empty the cart.").await;
            self.follow("#open-cart", view).await?;
            let cart = self.tab.view().await?;
            if cart.cart > 0 {
                self.follow("#empty-cart", &cart).await?;
            }
            return Ok(self.nothing_bought(&format!("The purchase for {total} was rejected")).await);
        }
        drop(self.alone().await);
        let now = self.tab.view().await?;
        if now.page != "checkout" || now.total != total {
            return Ok(Step::Next);
        }
        self.say(&format!("The purchase for {total} is approved; I place the order.")).await;
        self.follow("#place-order", &now).await
    }

    async fn finish(&self, view: &View) -> Step {
        let message = format!("The order is placed. Its number is {}, its total {}.", view.order, view.total);
        self.link.publish(RESPONSE_UPDATE, json!({"message": message})).await;
        self.camera.shoot().await;
        Step::Done(self.completed(message))
    }

    async fn nothing_bought(&self, why: &str) -> Step {
        let message = format!("{why}. Nothing was bought.");
        self.link.publish(RESPONSE_UPDATE, json!({"message": message})).await;
        Step::Done(self.completed(message))
    }

    /// Asks, under a higher revision when the same was asked before, with what the site said to the last answer.
    async fn ask(&self, kind: &'static str, mut question: Value, view: &View) -> Result<Taken, StepError> {
        let (id, revision) = self.write(|progress| {
            let (id, revision) = progress.asked.entry(kind).or_insert_with(|| (new_id(), 0));
            *revision += 1;
            (id.clone(), *revision)
        });
        if revision > TRIES_MAX {
            return Err(StepError::TriesSpent(if kind == "two_factor" { "code" } else { kind }));
        }
        question["type"] = "human_input_needed".into();
        question["guardrailId"] = id.into();
        question["revision"] = revision.into();
        if let Some(error) = &view.error {
            question["websiteError"] = error.as_str().into();
            self.say(&format!("The site says: “{error}” I have to ask again.")).await;
        } else {
            self.say("I need a person for the next step.").await;
        }
        let _rest = self.meter.rest();
        Ok(Taken(self.link.ask(question).await))
    }

    /// Types the values into the page and submits them, unseen by the camera and in a sensitive window.
    async fn submit(&self, view: &View, values: &[(&str, &str)], button: &str) -> Result<Step, StepError> {
        // Begun, it is finished: half an answer left in the page would be seen.
        let hands = self.alone().await;
        if self.tab.view().await?.page != view.page {
            return Ok(Step::Next);
        }
        self.say("I have the answer and type it into the page.").await;
        let shutter = self.camera.close_shutter().await;
        self.link.sensitive(true).await;
        let result = self.type_and_submit(view, values, button).await;
        self.link.sensitive(false).await;
        drop((shutter, hands));
        result?;
        self.arrived().await?;
        let now = self.tab.view().await?;
        if now.error.is_none() {
            self.link.publish(RESPONSE_UPDATE, json!({"message": "The site has accepted the answer."})).await;
        }
        Ok(Step::Next)
    }

    async fn type_and_submit(&self, view: &View, values: &[(&str, &str)], button: &str) -> Result<(), StepError> {
        for (field, value) in values {
            let spot = self.tab.find(field).await?;
            self.link.publish(ACTION, describe("type", &spot, &view.url)).await;
            // Three clicks select what the field holds already.
            self.tab.click(spot.x, spot.y, 3).await?;
            self.tab.press(&Chord::of("Backspace")).await?;
            self.tab.type_text(value, Typing::Steady(KEY_REST.min(self.settings.pace))).await?;
        }
        let spot = self.tab.find(button).await?;
        self.link.publish(ACTION, describe("click", &spot, &view.url)).await;
        let left = self.tab.document().await?;
        self.tab.click(spot.x, spot.y, 1).await?;
        self.tab.loaded_after(left).await
    }

    /// Clicks what leads to another page, and waits for that page.
    async fn follow(&self, selector: &str, view: &View) -> Result<Step, StepError> {
        let spot = self.tab.find(selector).await?;
        self.act(describe("click", &spot, &view.url)).await?;
        let left = self.tab.document().await?;
        self.tab.click(spot.x, spot.y, 1).await?;
        self.tab.loaded_after(left).await?;
        self.arrived().await?;
        Ok(Step::Next)
    }

    /// Notes the page and shows it.
    async fn arrived(&self) -> Result<(), StepError> {
        let url = self.tab.view().await?.url;
        let milliseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0;
        self.write(|progress| {
            if progress.urls.len() < URLS_MAX {
                progress.urls.push(json!({"url": url, "timestamp": milliseconds}));
            }
        });
        self.camera.shoot().await;
        self.rest().await;
        Ok(())
    }

    async fn say(&self, sentence: &str) {
        self.link.publish(AGENT, json!({"content": sentence})).await;
    }

    /// Announces an input, unless a person has the wheel.
    async fn act(&self, action: Value) -> Result<(), StepError> {
        if self.link.is_held() {
            return Err(StepError::Disturbed);
        }
        self.link.publish(ACTION, action).await;
        Ok(())
    }

    async fn rest(&self) {
        sleep(self.settings.pace).await;
    }

    fn completed(&self, message: String) -> Completed {
        let data = self.read(|progress| {
            let network = json!({"id": self.link.session(), "taskId": self.link.id(), "urls": progress.urls});
            json!({"files": [], "network": [network]})
        });
        let Value::Object(data) = data else { unreachable!("an object was just built") };
        Completed { message, data }
    }

    fn read<T>(&self, look: impl FnOnce(&Progress) -> T) -> T {
        look(&self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A page that a task may begin with. What has no scheme is meant as people type it; files and the browser's own pages
/// are nobody's.
fn starting_url(text: &str) -> Option<Url> {
    let url = match Url::parse(text) {
        Err(url::ParseError::RelativeUrlWithoutBase) => Url::parse(&format!("https://{text}")),
        parsed => parsed,
    };
    url.ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn describe(name: &str, spot: &Spot, url: &str) -> Value {
    json!({"name": name, "target": spot.label, "x": spot.x, "y": spot.y, "url": url})
}

/// A guardrail's id: 20 characters `[a-z0-9]`.
fn new_id() -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    (0..20).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

/// The product with most of its words in the prompt; the first when the prompt names none.
fn pick(prompt: &str, products: &[String]) -> Option<String> {
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
    };
    let asked = words(prompt);
    let named = |product: &String| words(product).iter().filter(|word| asked.contains(word)).count();
    products.iter().rev().max_by_key(|product| named(product)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_may_name_a_product() {
        let products = ["Enamel mug", "Reading lamp", "Ink pen"].map(str::to_owned);
        let picked = |prompt: &str| pick(prompt, &products).unwrap();
        assert_eq!(picked("Buy me a lamp, please"), "Reading lamp");
        assert_eq!(picked("an INK PEN or a mug"), "Ink pen");
        assert_eq!(picked("What is the weather like?"), "Enamel mug");
        assert_eq!(pick("a mug", &[]), None);
    }

    #[test]
    fn a_task_begins_with_pages_of_the_web_only() {
        let opened = |text: &str| starting_url(text).map(String::from);
        assert_eq!(opened("http://shop.example/a?b").as_deref(), Some("http://shop.example/a?b"));
        assert_eq!(opened("shop.example/a").as_deref(), Some("https://shop.example/a"));
        for text in
            ["file:///etc/passwd", "chrome://settings", "about:blank", "javascript:alert(1)", "data:text/html,x", ""]
        {
            assert_eq!(opened(text), None, "{text}");
        }
    }

    #[test]
    fn guardrail_ids_have_the_form_that_the_gateway_expects() {
        let id = new_id();
        assert!(id.len() == 20 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{id}");
        assert_ne!(id, new_id());
    }
}

//! A chat of its own kind, as somebody outside of the project would connect one: its people, its messages, its requests
//! to the gateway. Nothing here uses more of the gateway than its public interface.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use futures::future::BoxFuture;
use onlooker::{
    chat::{Connector, Desk, Health, Hook, HookAnswer, Person, Said, What, card::Card},
    config::Config,
    engine::{Engine, memory::MemoryEngine},
    gateway::{Gateway, bounds},
    notifier::{Delivery, Message, Notifier, Receipt},
};
use onlooker_protocol::notice::Notice;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::*;

/// How the chat proves that a request is its own.
const SECRET: &str = "parley-secret";

/// A message as it lies in a chat.
#[derive(Clone, Debug)]
pub struct Lying {
    pub id: String,
    pub chat: String,
    pub card: Card,
    pub notice: Notice,
    /// The message that it is a reply to.
    pub under: Option<String>,
    /// The picture that came with it.
    pub picture: Option<String>,
    /// How often it was changed.
    pub edits: usize,
}

impl Lying {
    pub fn mark(&self, label: &str) -> String {
        let button = self.card.buttons.iter().find(|button| button.label == label);
        button.unwrap_or_else(|| panic!("there is no button `{label}`: {:?}", self.card)).mark.clone()
    }

    pub fn labels(&self) -> Vec<&str> {
        self.card.buttons.iter().map(|button| button.label.as_str()).collect()
    }

    pub fn form(&self) -> String {
        let link = self.card.links.iter().find(|(label, _)| *label == "Open the form");
        link.unwrap_or_else(|| panic!("there is no form: {:?}", self.card)).1.clone()
    }
}

#[derive(Default)]
pub struct Parley {
    messages: Mutex<Vec<Lying>>,
    /// What the chats answer that take nothing.
    broken: Mutex<HashMap<String, Delivery>>,
}

impl Parley {
    pub fn all(&self) -> Vec<Lying> {
        self.messages.lock().unwrap().clone()
    }

    pub fn in_chat(&self, chat: &str) -> Vec<Lying> {
        self.all().into_iter().filter(|message| message.chat == chat).collect()
    }

    pub fn breaks(&self, chat: &str, delivery: Delivery) {
        self.broken.lock().unwrap().insert(chat.to_owned(), delivery);
    }

    /// The newest message in a chat, once there are so many.
    pub async fn newest(&self, chat: &str, count: usize) -> Lying {
        wait_until(&format!("{count} messages lie in {chat}"), || async { self.in_chat(chat).len() >= count }).await;
        let messages = self.in_chat(chat);
        assert_eq!(messages.len(), count, "{messages:?}");
        messages.last().unwrap().clone()
    }

    /// A message once its heading has this in it.
    pub async fn reads(&self, id: &str, part: &str) -> Lying {
        let find = || self.all().into_iter().find(|message| message.id == id && message.card.heading.contains(part));
        wait_until(&format!("the message reads “{part}”"), || async { find().is_some() }).await;
        find().unwrap()
    }
}

impl Notifier for Parley {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Delivery> {
        Box::pin(async move {
            if let Some(delivery) = self.broken.lock().unwrap().get(&message.address) {
                return delivery.clone();
            }
            let notice = message.notice().expect("a notice");
            let card = Card::of(message, &notice, 1000);
            let mut messages = self.messages.lock().unwrap();
            if let Some(Receipt(id)) = &message.card {
                let lying = messages.iter_mut().find(|lying| lying.id == *id).expect("it lies there");
                (lying.card, lying.notice, lying.edits) = (card, notice, lying.edits + 1);
                return Delivery::Shown(Receipt(id.clone()));
            }
            let id = format!("{}#{}", message.address, messages.len() + 1);
            let under = message.thread.clone().map(|Receipt(id)| id);
            let picture = message.extras.picture.as_ref().map(|picture| picture.id.to_string());
            messages.push(Lying {
                id: id.clone(),
                chat: message.address.clone(),
                card,
                notice,
                under,
                picture,
                edits: 0,
            });
            Delivery::Shown(Receipt(id))
        })
    }
}

/// What the chat's server sends.
#[derive(Deserialize)]
struct Update {
    chat: String,
    user: String,
    name: String,
    tap: Option<String>,
    on: Option<String>,
    text: Option<String>,
}

impl Connector for Parley {
    fn name(&self) -> &'static str {
        "parley"
    }

    fn hook<'a>(&'a self, request: Hook, desk: &'a dyn Desk) -> BoxFuture<'a, HookAnswer> {
        Box::pin(async move {
            if request.headers.get("x-parley-secret").is_none_or(|secret| secret != SECRET) {
                return HookAnswer::refused(401, "signature");
            }
            let Ok(update) = serde_json::from_slice::<Update>(&request.body) else {
                return HookAnswer::refused(400, "malformed");
            };
            let what = match (update.tap, update.on, update.text) {
                (Some(mark), Some(on), None) => What::Tapped { mark, on: Receipt(on) },
                (None, Some(to), Some(text)) => What::Replied { to: Receipt(to), text },
                (None, None, Some(text)) => What::Told { text },
                _ => return HookAnswer::refused(400, "malformed"),
            };
            let by = Person { id: update.user, name: update.name };
            let reply = desk.hear(Said { connector: self.name(), address: update.chat, by, what }).await;
            let link = reply.link.map(|(label, url)| json!({ "label": label, "url": url }));
            HookAnswer::json(&json!({ "text": reply.text, "link": link, "erase": reply.erase }))
        })
    }

    fn run<'a>(&'a self, _: Arc<dyn Desk>, stop: CancellationToken) -> BoxFuture<'a, ()> {
        Box::pin(stop.cancelled_owned())
    }

    fn health(&self) -> Health {
        Health::Working
    }
}

/// What the desk answers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Heard {
    pub text: String,
    pub link: Option<Link>,
    pub erase: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Link {
    pub label: String,
    pub url: String,
}

/// A gateway that is connected to the chat.
pub struct Hall {
    pub gateway: TestGateway,
    pub parley: Arc<Parley>,
}

/// Nobody is given time to look, and forms have an address.
pub fn for_chats() -> Config {
    let long = std::time::Duration::from_secs(60);
    let mut config = calm(long, long);
    config.listen.public_url = Some("https://onlooker.example/".parse().unwrap());
    config
}

impl Hall {
    pub async fn open(config: Config) -> Self {
        let engine = Arc::new(MemoryEngine::new(bounds(&config)));
        Self::on(config, engine, Arc::default()).await
    }

    pub async fn on(config: Config, engine: Arc<dyn Engine>, parley: Arc<Parley>) -> Self {
        let chats: Vec<Arc<dyn Connector>> = vec![Arc::clone(&parley) as Arc<dyn Connector>];
        let gateway = Gateway::start_with(config, engine, chats).await.expect("the gateway starts");
        Self { gateway: TestGateway::of(gateway), parley }
    }

    /// Sends what the chat's server would.
    pub async fn update(&self, mut update: Value, (chat, user): (&str, &str)) -> Heard {
        update["chat"] = json!(chat);
        update["user"] = json!(user);
        update["name"] = json!(format!("{}{}", user[..1].to_uppercase(), &user[1..]));
        let hook = self.gateway.http.post(format!("{}/v1/hooks/parley", self.gateway.url));
        let (status, heard) = self.gateway.request(hook.header("x-parley-secret", SECRET).json(&update)).await;
        assert_eq!(status, 200, "{heard}");
        serde_json::from_value(heard).unwrap()
    }

    pub async fn tell(&self, by: (&str, &str), text: &str) -> Heard {
        self.update(json!({ "text": text }), by).await
    }

    pub async fn tap(&self, user: &str, message: &Lying, label: &str) -> Heard {
        self.tap_mark((&message.chat, user), &message.id, &message.mark(label)).await
    }

    pub async fn tap_mark(&self, by: (&str, &str), on: &str, mark: &str) -> Heard {
        self.update(json!({ "tap": mark, "on": on }), by).await
    }

    pub async fn reply(&self, user: &str, message: &Lying, text: &str) -> Heard {
        self.update(json!({ "on": message.id, "text": text }), (&message.chat, user)).await
    }

    pub async fn code(&self, environment: Option<&str>) -> String {
        let (status, issued) = self.gateway.post("/v1/links/codes", json!({ "environment": environment })).await;
        assert_eq!(status, 201, "{issued}");
        issued["code"].as_str().unwrap().to_owned()
    }

    /// Links a person's chat.
    pub async fn link(&self, by: (&str, &str), environment: Option<&str>) {
        let code = self.code(environment).await;
        let heard = self.tell(by, &format!("link {code}")).await;
        assert!(heard.text.contains("linked to"), "{heard:?}");
    }

    /// Waits until every notice of a question is known to lie where it lies.
    pub async fn told(&self, session: &str, id: &str) {
        let confirmed = || async {
            let why = self.gateway.why(session, id).await;
            let notices = why["notices"].as_array().unwrap().clone();
            !notices.is_empty() && notices.iter().all(|notice| notice["state"] == "confirmed")
        };
        wait_until("every notice is confirmed", confirmed).await;
    }

    pub async fn guardrail(&self, session: &str, id: &str) -> Value {
        self.gateway.get(&format!("/v1/guardrails/{id}?session={session}")).await.1["guardrail"].take()
    }

    /// How often something from a chat was refused for this reason.
    pub async fn refused(&self, chat: &str, reason: &str) -> f64 {
        let (_, text) = self.gateway.get("/metrics").await;
        let labels = format!("onlooker_callbacks_refused_total{{chat=\"{chat}\",reason=\"{reason}\"}} ");
        let text = text.as_str().unwrap().to_owned();
        text.lines().find_map(|line| line.strip_prefix(&labels)?.parse().ok()).unwrap_or(0.0)
    }
}

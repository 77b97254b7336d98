//! Task webhooks: one POST when a task ends, to the URL that its creator named (section 4.3 of the contract).
//!
//! Promises:
//! * A task's webhook is sent at most once, also when the process is killed. It is `due` while the task is over and
//!   nothing was sent; it is recorded as `being sent` before anything leaves; after that it is not sent again,
//!   whatever became of it: retries are documented as none.
//! * What authorizes it (`auth`, the userinfo of its URL) is in memory only. One whose authorization died with a process
//!   is not sent without it.
//! * It goes to public addresses only, unless the operator allows others: what is checked is the address that is
//!   connected to. Redirects are not followed; the proxies of the environment are not used, because behind one nobody
//!   here would know the address.
//!
//! Told is whoever waits for a result that comes, or that cannot come any more: of completed and failed tasks, and of
//! tasks that were lost with their session. Not told is whoever stopped the task or terminated the session.

mod address;
mod carrier;
mod payload;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use reqwest::header::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;
use zeroize::Zeroizing;

pub use carrier::{Carrier, CarrierOptions, Due, Owners, TaskWebhooks};
pub use payload::{Ending, Standing, body};

/// The longest URL and the longest authorization, in bytes.
const LONGEST: usize = 8 * 1024;
/// Of a name.
const LONGEST_NAME: usize = 256;

/// What the receiver gets of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubmittedData {
    FullResponse,
    AiResponse,
    JustPing,
}

/// A task's webhook as its creator asked for it.
pub struct Webhook {
    pub name: String,
    /// Without userinfo.
    pub url: Url,
    pub form: SubmittedData,
    /// The task's output is JSON in a text.
    pub structured: bool,
    pub authorization: Authorization,
}

/// The value of the header `Authorization`. It is overwritten when it is dropped.
pub enum Authorization {
    None,
    Held(Zeroizing<String>),
    /// It died with an earlier process.
    Lost,
}

/// One request.
pub struct Post {
    pub url: Url,
    pub authorization: Option<Zeroizing<String>>,
    pub body: Vec<u8>,
}

impl Webhook {
    /// Reads `webhook` among a task's parameters. An empty one, as a documented sample has it, is none.
    ///
    /// # Errors
    /// Says what is wrong, without a value.
    pub fn read(parameters: &Map<String, Value>) -> Result<Option<Self>, &'static str> {
        let said = match parameters.get("webhook") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(said)) if said.is_empty() => return Ok(None),
            Some(Value::Object(said)) => said,
            Some(_) => return Err("webhook must be an object"),
        };
        let text = |name: &str| said.get(name).and_then(Value::as_str);
        let url = text("url").filter(|url| url.len() <= LONGEST).and_then(|url| Url::parse(url).ok());
        let mut url = url
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or("webhook.url must be an http or https URL")?;
        let form = match text("submittedData") {
            Some("full_response") => SubmittedData::FullResponse,
            Some("ai_response") => SubmittedData::AiResponse,
            Some("just_ping") => SubmittedData::JustPing,
            _ => return Err("webhook.submittedData must be one of: full_response, ai_response, just_ping"),
        };
        let userinfo = take_userinfo(&mut url);
        let auth = match said.get("auth") {
            None | Some(Value::Null) => userinfo,
            Some(Value::String(auth)) if auth.is_empty() => userinfo,
            Some(Value::String(auth)) if auth.len() <= LONGEST && HeaderValue::from_str(auth).is_ok() => {
                Some(Zeroizing::new(auth.clone()))
            }
            Some(_) => return Err("webhook.auth must be a string that can be the value of a header"),
        };
        let name = text("name").unwrap_or_default();
        let output = parameters.get("outputType").and_then(Value::as_str);
        Ok(Some(Self {
            name: name[..name.floor_char_boundary(LONGEST_NAME)].to_owned(),
            url,
            form,
            structured: matches!(output, Some("structured_json" | "structured")),
            authorization: auth.map_or(Authorization::None, Authorization::Held),
        }))
    }
}

/// The header that a URL's userinfo stands for.
fn take_userinfo(url: &mut Url) -> Option<Zeroizing<String>> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decoded = |part: &str| Zeroizing::new(percent_decode_str(part).collect::<Vec<u8>>());
    let mut pair = decoded(url.username());
    pair.push(b':');
    pair.extend_from_slice(&decoded(url.password().unwrap_or_default()));
    let encoded = Zeroizing::new(STANDARD.encode(&*pair));
    // Of a URL with a host neither can fail.
    let _: Result<(), ()> = url.set_username("").and_then(|()| url.set_password(None));
    Some(Zeroizing::new(format!("Basic {}", *encoded)))
}

#[cfg(test)]
mod tests;

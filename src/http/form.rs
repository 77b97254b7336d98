//! `GET` and `POST /form/{token}`: a page that takes what must not be typed into a chat.
//!
//! The link is signed, names one notice and opens for a quarter of an hour; see [`crate::forms`]. Getting the page
//! changes nothing, because chats get links to preview them. The first answer that fits closes the question, and the
//! page then shows the outcome. It needs no script, sets no cookie and asks nobody else; what is typed is in no log, no
//! error and no page.

mod page;

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use onlooker_protocol::{
    code::{Code, Refusal},
    subscriber::{Answer, AnswerAction},
    view::GuardrailView,
};
use time::OffsetDateTime;
use tokio::time::Instant;
use url::form_urlencoded;
use zeroize::Zeroizing;

use self::page::{ACTION, Again, CHOICE, SEAL, TEXT, Wrong, value_name};
use super::{App, Path, view::is_own_page};
use crate::{
    chat::card,
    control::{Holder, HolderKey},
    guardrail::Actor,
    links::Link,
    outbox::{Found, NoticeSubject},
    session::Session,
    tries::Tries,
};

/// Of what is sent, in bytes.
const BODY: usize = 64 * 1024;
/// Answers with the links of one notice …
const POSTS: usize = 10;
/// … within this time.
const POSTS_WITHIN: Duration = Duration::from_secs(60);
/// Notices whose answers are counted.
const NOTICES: usize = 4096;
/// Of a session's id, in characters.
const SHORT_ID: usize = 4;
/// What the metric calls this channel, as answers do.
const VIA: &str = "form";

/// Counts answers, by notice.
pub fn posts() -> Tries<String> {
    Tries::new(POSTS, POSTS_WITHIN, NOTICES)
}

pub fn routes() -> Router<App> {
    let form = get(show).post(take).layer(DefaultBodyLimit::max(BODY));
    // No token has the form `static/…`.
    Router::new().route("/form/static/form.css", get(style)).route("/form/{token}", form)
}

/// A question that a link opens.
struct Open {
    notice: String,
    session: Session,
    /// The session's name for people: never its whole id, which opens it.
    name: String,
    view: GuardrailView,
    /// Who has the link, as far as that is known.
    holder: Holder,
}

/// Why a link opens no form.
enum Shut {
    /// It was not made here, or what it opened is forgotten.
    Nothing,
    /// The chat that got it is unlinked.
    NotLinked,
    AskedAgain,
    Over(Box<GuardrailView>),
    TooOld,
    NotNow,
}

async fn show(State(app): State<App>, Path(token): Path<String>) -> Response {
    match open(&app, &token).await {
        Ok(open) => form(&app, &token, &open, StatusCode::OK, &Again::default()),
        Err(shut) => shut_page(&shut),
    }
}

async fn take(State(app): State<App>, Path(token): Path<String>, request: Request) -> Response {
    let forms = &app.directory.services().forms;
    let Some(opens) = forms.read(&token, OffsetDateTime::now_utc()) else {
        return refused(&app, "forged", shut_page(&Shut::Nothing));
    };
    if let Err(wait) = app.form_posts.take(opens.notice, Instant::now()) {
        return refused(&app, "too_many", too_many(wait));
    }
    let is_ours = is_from_form(&app, request.headers());
    let typed = match Typed::read(request, &app).await {
        Ok(typed) => typed,
        Err(response) => return refused(&app, "malformed", response),
    };
    if !is_ours || !typed.get(SEAL).is_some_and(|seal| forms.is_sealed(&token, seal)) {
        return refused(&app, "origin", not_from_here());
    }
    match open_for_answer(&app, &token).await {
        Ok(open) => answer(&app, &token, &open, &typed).await,
        Err(shut) => refused(&app, "shut", shut_page(&shut)),
    }
}

// --- what a link opens -----------------------------------------------------------------------------------------------

/// The question while it is open and the link is not too old.
async fn open(app: &App, token: &str) -> Result<Open, Shut> {
    let open = open_for_answer(app, token).await?;
    if open.view.state.is_closed() {
        return Err(Shut::Over(Box::new(open.view)));
    }
    Ok(open)
}

/// Also a closed question, whose answer may come a second time.
async fn open_for_answer(app: &App, token: &str) -> Result<Open, Shut> {
    let services = app.directory.services();
    let opens = services.forms.read(token, OffsetDateTime::now_utc()).ok_or(Shut::Nothing)?;
    let found = services.outbox.find(&opens.notice).await.map_err(|_| Shut::NotNow)?.ok_or(Shut::Nothing)?;
    let NoticeSubject::Guardrail { id, revision } = &found.key.subject else { return Err(Shut::Nothing) };
    let session = app.directory.get_any(found.key.session).ok_or(Shut::Nothing)?;
    let state = session.snapshot().await.map_err(|_| Shut::Nothing)?.state;
    let holder = holder(app, &found, &session, state.environment_id.as_deref()).ok_or(Shut::NotLinked)?;
    let view = session.guardrail(id.clone()).await.map_err(|_| Shut::Nothing)?;
    if view.revision != *revision {
        return Err(Shut::AskedAgain);
    }
    if opens.expired && !view.state.is_closed() {
        return Err(Shut::TooOld);
    }
    let name = state.external_id.clone().unwrap_or_else(|| format!("{}…", &session.id.as_str()[..SHORT_ID]));
    Ok(Open { notice: found.id, session, name, view, holder })
}

/// Who has the link: whoever is linked in the chat that got it. `None`: nobody is any more, and the operator does not
/// name the chat either.
fn holder(app: &App, found: &Found, session: &Session, environment: Option<&str>) -> Option<Holder> {
    let (targets, target) = (&app.directory.services().targets, &found.key.target);
    let mut links = targets.links.at(&session.project, environment, target);
    links.sort_by(|a, b| a.user.cmp(&b.user));
    links.dedup_by(|a, b| a.user == b.user);
    let chat = card::channel(crate::notifier::split_target(target).0);
    match links.as_slice() {
        [Link { connector, user, name, .. }] => {
            let by = HolderKey::Credential(format!("{connector}:{user}").into());
            Some(Holder { who: format!("{name} ({chat})"), by })
        }
        [] if !targets.may_be_told(target, &session.project, environment) => None,
        _ => {
            let by = HolderKey::Credential(format!("form:{}", found.id).into());
            Some(Holder { who: format!("somebody ({chat})"), by })
        }
    }
}

// --- what was sent ---------------------------------------------------------------------------------------------------

/// What the form brought. Overwritten when it is no longer needed, and shown by nothing.
struct Typed(Vec<(String, Zeroizing<String>)>);

impl Typed {
    async fn read(request: Request, app: &App) -> Result<Self, Response> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
        {
            let text = "This page takes what its own form sends, and nothing else.";
            return Err(html(StatusCode::UNSUPPORTED_MEDIA_TYPE, page::notice("That is no form", text)));
        }
        let body = Bytes::from_request(request, app).await.map_err(|rejection| {
            let text = "That is more than the form takes, or it did not arrive. Go back and try again.";
            html(rejection.status(), page::notice("Not sent", text))
        })?;
        let pairs = form_urlencoded::parse(&body);
        Ok(Self(pairs.map(|(name, value)| (name.into_owned(), Zeroizing::new(value.into_owned()))).collect()))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The answer to a question, or what is wrong with it.
    fn answer(&self, open: &Open) -> Result<Answer, Wrong> {
        let (view, mut wrong) = (&open.view, Wrong::default());
        let action = match self.get(ACTION) {
            Some("decline") => AnswerAction::Decline,
            _ => AnswerAction::Submit,
        };
        let idempotency_key = format!("form-{}", open.notice);
        let mut answer = Answer {
            revision: view.revision,
            idempotency_key,
            action,
            text: None,
            choice: None,
            values: BTreeMap::new(),
        };
        if action == AnswerAction::Decline {
            return Ok(answer);
        }
        for (nth, asked) in view.fields.iter().enumerate() {
            let value = self.get(&value_name(nth)).unwrap_or_default();
            // Only what is certain to be a slip of the keyboard: a password may begin with a space.
            let value = if asked.kind.as_deref() == Some("password") { value } else { value.trim() };
            if !value.is_empty() {
                answer.values.insert(asked.id.clone(), value.to_owned());
            } else if asked.required {
                wrong.fields.push((nth, "This is needed."));
            }
        }
        if !view.choices.is_empty() {
            answer.choice = self.choice(view);
            wrong.choice = answer.choice.is_none().then_some("Choose one of these.");
        }
        if view.fields.is_empty() && view.choices.is_empty() {
            answer.text =
                self.get(TEXT).map(|text| text.replace("\r\n", "\n").trim().to_owned()).filter(|text| !text.is_empty());
            let missing = answer.text.is_none() && card::wants_words(Some(view.kind));
            wrong.text = missing.then_some("This is needed.");
        }
        if wrong.is_empty() { Ok(answer) } else { Err(wrong) }
    }

    fn choice(&self, view: &GuardrailView) -> Option<String> {
        let nth: usize = self.get(CHOICE)?.parse().ok()?;
        view.choices.get(nth).map(|choice| choice.id.clone())
    }

    /// What may be shown again.
    fn again(&self, view: &GuardrailView, wrong: Wrong) -> Again {
        let shown = |(nth, asked): (usize, &onlooker_protocol::view::Field)| {
            self.get(&value_name(nth)).filter(|_| !asked.secret).map(str::to_owned)
        };
        Again {
            values: view.fields.iter().enumerate().map(shown).collect(),
            choice: self.choice(view),
            text: self.get(TEXT).map(str::to_owned),
            wrong,
        }
    }
}

async fn answer(app: &App, token: &str, open: &Open, typed: &Typed) -> Response {
    let answer = match typed.answer(open) {
        Ok(answer) => answer,
        // It is over anyway: how matters more.
        Err(_) if open.view.state.is_closed() => {
            return refused(app, "late", late_page(&open.view));
        }
        Err(wrong) => {
            return form(app, token, open, StatusCode::UNPROCESSABLE_ENTITY, &typed.again(&open.view, wrong));
        }
    };
    let id = open.view.guardrail_id.clone();
    let actor = Actor { holder: open.holder.clone(), via: VIA };
    match open.session.answer(id.clone(), answer, actor).await {
        Ok(_) => with_headers(Redirect::to(&format!("/form/{token}")).into_response()),
        Err(refusal) => {
            let view = open.session.guardrail(id).await.unwrap_or_else(|_| open.view.clone());
            refused_answer(app, token, open, typed, (&refusal, &view))
        }
    }
}

fn refused_answer(
    app: &App,
    token: &str,
    open: &Open,
    typed: &Typed,
    (refusal, view): (&Refusal, &GuardrailView),
) -> Response {
    match refusal.code {
        Code::AlreadyAnswered | Code::GuardrailClosed => refused(app, "late", late_page(view)),
        Code::StaleRevision => refused(app, "stale", shut_page(&Shut::AskedAgain)),
        Code::UnknownGuardrail | Code::UnknownSession => refused(app, "gone", shut_page(&Shut::Nothing)),
        Code::TooLarge => {
            let long = |(nth, _): (usize, _)| (nth, "One of these is too long.");
            let fields = open.view.fields.iter().enumerate().map(long).collect();
            let wrong = Wrong { fields, text: Some("This is too long."), ..Wrong::default() };
            form(app, token, open, StatusCode::UNPROCESSABLE_ENTITY, &typed.again(&open.view, wrong))
        }
        _ => refused(app, "unavailable", shut_page(&Shut::NotNow)),
    }
}

/// Whether the request comes from the form's own page, as far as the browser says. That page tells nobody where it was,
/// so that its origin is `null` (Fetch, "append a request Origin header"); the seal is what nobody else has.
fn is_from_form(app: &App, headers: &HeaderMap) -> bool {
    let fetch_site = headers.get(HeaderName::from_static("sec-fetch-site"));
    let own_origin = match headers.get(header::ORIGIN) {
        None => true,
        Some(origin) => origin == "null" || is_own_page(app, headers),
    };
    own_origin && fetch_site.is_none_or(|site| site == "same-origin")
}

// --- pages -----------------------------------------------------------------------------------------------------------

fn form(app: &App, token: &str, open: &Open, status: StatusCode, again: &Again) -> Response {
    let services = app.directory.services();
    html(status, page::form(&open.view, &open.name, &services.forms.seal(token), again))
}

fn shut_page(shut: &Shut) -> Response {
    let (status, title, text) = match shut {
        Shut::Nothing => (
            StatusCode::NOT_FOUND,
            "This link opens nothing",
            "It is mistyped, or what it was for is over and forgotten. Use the link in the newest message.",
        ),
        Shut::NotLinked => (
            StatusCode::FORBIDDEN,
            "No longer linked",
            "The chat that got this link is no longer linked to the session's project. Ask whoever runs Onlooker for a \
             new code, and send it to the bot.",
        ),
        Shut::AskedAgain => (
            StatusCode::GONE,
            "It was asked again",
            "This question was replaced by a newer one. Use the link in the newer message.",
        ),
        Shut::TooOld => (
            StatusCode::GONE,
            "This link is too old",
            "A link opens the form for 15 minutes. The question is still open: go back to the message and tap “New \
             link” to get a fresh one.",
        ),
        Shut::NotNow => (
            StatusCode::SERVICE_UNAVAILABLE,
            "Not now",
            "The gateway cannot do this at the moment. Go back and try again in a minute.",
        ),
        Shut::Over(view) => return html(StatusCode::OK, page::notice(&ended(view).0, &ended(view).1)),
    };
    html(status, page::notice(title, text))
}

/// Somebody else's answer was first.
fn late_page(view: &GuardrailView) -> Response {
    let (how, _) = ended(view);
    html(StatusCode::CONFLICT, page::notice("Too late", &format!("{how}. What you sent was not used.")))
}

/// How a question ended, and what follows.
fn ended(view: &GuardrailView) -> (String, String) {
    let Some(resolution) = &view.resolution else { return ("It is over".to_owned(), NOTHING_TO_DO.to_owned()) };
    let how = card::ending(Some(resolution.outcome), resolution.by.as_deref(), Some(&resolution.via));
    let at = resolution.at.get(11..16).map(|minute| format!("At {minute} UTC. ")).unwrap_or_default();
    (how, format!("{at}{NOTHING_TO_DO}"))
}

const NOTHING_TO_DO: &str = "Nothing more is needed: you can close this page.";

fn not_from_here() -> Response {
    let text = "This did not come from the form's own page, so nothing was done. Open the link again and send it from \
                there.";
    html(StatusCode::FORBIDDEN, page::notice("Not sent", text))
}

fn too_many(wait: Duration) -> Response {
    let text = "This form was sent too often. Wait a minute, then go back and try again.";
    let mut response = html(StatusCode::TOO_MANY_REQUESTS, page::notice("Too often", text));
    response.headers_mut().insert(header::RETRY_AFTER, (wait.as_secs() + 1).into());
    response
}

/// Nothing changed, and it is counted.
fn refused(app: &App, why: &'static str, response: Response) -> Response {
    app.metrics.callback_refused(VIA, why);
    response
}

const CONTENT_POLICY: &str =
    "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

fn html(status: StatusCode, text: String) -> Response {
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"))];
    with_headers((status, kind, text).into_response())
}

async fn style() -> Response {
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("text/css; charset=utf-8"))];
    with_headers((kind, include_str!("../../dashboard/form/form.css")).into_response())
}

fn with_headers(mut response: Response) -> Response {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("x-robots-tag"), "noindex"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

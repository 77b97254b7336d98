//! A small web shop for demonstrations: products, a cart, a login with a second factor, a checkout.
//!
//! Everything it serves is inside the binary and refers to nothing outside, so that it looks the same without a
//! network. Nothing is sold: the only account and its answers are printed on the pages that ask for them. What a
//! visitor did is kept in memory under a cookie, for the last [`VISITORS_MAX`] visitors.

mod pages;
mod product;
mod visit;

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Form, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};
use url::Url;

pub use product::Product;
pub use visit::VISITORS_MAX;
use visit::{SignedIn, Visit, Visits};

/// The only account of the shop.
pub const EMAIL: &str = "ada@example.com";
pub const PASSWORD: &str = "correct horse";
pub const CODE: &str = "246810";

/// A running shop. It ends when this is dropped.
pub struct Shop {
    /// The front page. On loopback the host is `shop.localhost`, which every browser resolves to it.
    pub url: Url,
    _stop: DropGuard,
    _server: AbortOnDropHandle<()>,
}

impl Shop {
    /// Serves the shop on a free port of the loopback address.
    pub async fn start() -> io::Result<Self> {
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Serves the shop on `address`; port 0 takes a free one.
    pub async fn listen(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        let host = match local.ip() {
            ip if ip.is_loopback() || ip.is_unspecified() => "shop.localhost".to_owned(),
            _ => local.ip().to_string(),
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let url = Url::parse(&format!("http://{host}:{}/", local.port())).expect("a host and a port make a URL");
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router()).with_graceful_shutdown(stopped).await {
                tracing::error!(%error, "the demo shop stopped serving");
            }
        });
        Ok(Self { url, _stop: stop.drop_guard(), _server: AbortOnDropHandle::new(server) })
    }
}

type Visitors = State<Arc<Visits>>;

fn router() -> Router {
    Router::new()
        .route("/", get(front))
        .route("/shop.css", get(style))
        .route("/product/{slug}", get(product))
        .route("/cart", get(cart))
        .route("/cart/add", post(add_to_cart))
        .route("/cart/empty", post(empty_cart))
        .route("/login", get(login).post(sign_in))
        .route("/verify", get(second_factor).post(verify))
        .route("/checkout", get(checkout))
        .route("/order", post(place_order))
        .route("/order/{number}", get(confirmation))
        .fallback(|| async { not_found() })
        .with_state(Arc::new(Visits::default()))
}

async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], pages::STYLE)
}

async fn front(State(visits): Visitors, headers: HeaderMap) -> Response {
    let (id, visit) = visits.enter(&headers);
    let page = pages::front(&visit);
    ([(header::SET_COOKIE, visit::cookie(&id))], Html(page)).into_response()
}

async fn product(State(visits): Visitors, headers: HeaderMap, Path(slug): Path<String>) -> Response {
    let (id, visit) = visits.enter(&headers);
    let Some(product) = Product::find(&slug) else { return not_found() };
    ([(header::SET_COOKIE, visit::cookie(&id))], Html(pages::product(product, &visit))).into_response()
}

async fn cart(State(visits): Visitors, headers: HeaderMap) -> Html<String> {
    Html(pages::cart(&visits.enter(&headers).1))
}

#[derive(Deserialize)]
struct Wanted {
    product: String,
}

async fn add_to_cart(State(visits): Visitors, headers: HeaderMap, Form(wanted): Form<Wanted>) -> Response {
    let Some(product) = Product::find(&wanted.product) else { return not_found() };
    let id = visits.change(&headers, |visit| visit.add(product));
    ([(header::SET_COOKIE, visit::cookie(&id))], Redirect::to("/cart")).into_response()
}

async fn empty_cart(State(visits): Visitors, headers: HeaderMap) -> Redirect {
    visits.change(&headers, |visit| visit.cart.clear());
    Redirect::to("/cart")
}

async fn login(State(visits): Visitors, headers: HeaderMap) -> Html<String> {
    Html(pages::login(&visits.enter(&headers).1, "", None))
}

#[derive(Deserialize)]
struct Credentials {
    #[serde(default)]
    email: String,
    #[serde(default)]
    password: String,
}

async fn sign_in(State(visits): Visitors, headers: HeaderMap, Form(given): Form<Credentials>) -> Response {
    let email = given.email.trim();
    let error = if email.is_empty() || given.password.is_empty() {
        "Please enter your e-mail address and your password."
    } else if !email.eq_ignore_ascii_case(EMAIL) || given.password != PASSWORD {
        "This e-mail address and password do not match. Please try again."
    } else {
        visits.change(&headers, |visit| visit.signed_in = SignedIn::PasswordOnly);
        return Redirect::to("/verify").into_response();
    };
    let page = pages::login(&visits.enter(&headers).1, email, Some(error));
    (StatusCode::UNPROCESSABLE_ENTITY, Html(page)).into_response()
}

async fn second_factor(State(visits): Visitors, headers: HeaderMap) -> Response {
    let (_, visit) = visits.enter(&headers);
    match visit.signed_in {
        SignedIn::No => Redirect::to("/login").into_response(),
        SignedIn::PasswordOnly => Html(pages::second_factor(&visit, None)).into_response(),
        SignedIn::Fully => Redirect::to("/checkout").into_response(),
    }
}

#[derive(Deserialize)]
struct SecondFactor {
    #[serde(default)]
    code: String,
}

async fn verify(State(visits): Visitors, headers: HeaderMap, Form(given): Form<SecondFactor>) -> Response {
    let (_, visit) = visits.enter(&headers);
    if visit.signed_in == SignedIn::No {
        return Redirect::to("/login").into_response();
    }
    let code: String = given.code.chars().filter(|c| !c.is_whitespace()).collect();
    if code == CODE {
        visits.change(&headers, |visit| visit.signed_in = SignedIn::Fully);
        return Redirect::to("/checkout").into_response();
    }
    let error = if code.len() == CODE.len() && code.bytes().all(|b| b.is_ascii_digit()) {
        "That code is not valid. Please check it and try again."
    } else {
        "The code has six digits. Please try again."
    };
    (StatusCode::UNPROCESSABLE_ENTITY, Html(pages::second_factor(&visit, Some(error)))).into_response()
}

/// Where a visitor must go before checking out, if anywhere.
fn before_checkout(visit: &Visit) -> Option<Redirect> {
    match visit.signed_in {
        _ if visit.cart.is_empty() => Some(Redirect::to("/cart")),
        SignedIn::No => Some(Redirect::to("/login")),
        SignedIn::PasswordOnly => Some(Redirect::to("/verify")),
        SignedIn::Fully => None,
    }
}

async fn checkout(State(visits): Visitors, headers: HeaderMap) -> Response {
    let (_, visit) = visits.enter(&headers);
    before_checkout(&visit).map_or_else(|| Html(pages::checkout(&visit)).into_response(), Redirect::into_response)
}

async fn place_order(State(visits): Visitors, headers: HeaderMap) -> Response {
    let (_, visit) = visits.enter(&headers);
    if let Some(elsewhere) = before_checkout(&visit) {
        return elsewhere.into_response();
    }
    let mut number = String::new();
    visits.change(&headers, |visit| number = visit.order());
    Redirect::to(&format!("/order/{number}")).into_response()
}

async fn confirmation(State(visits): Visitors, headers: HeaderMap, Path(number): Path<String>) -> Response {
    let (_, visit) = visits.enter(&headers);
    match visit.orders.iter().find(|order| order.number == number) {
        Some(order) => Html(pages::confirmation(order, &visit)).into_response(),
        None => not_found(),
    }
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, Html(pages::not_found())).into_response()
}

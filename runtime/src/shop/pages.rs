//! The shop's pages: templates with `{{names}}`, filled with escaped text.

use super::{
    product::{Product, price},
    visit::{Line, Order, SignedIn, Visit},
};

pub(super) const STYLE: &str = include_str!("shop.css");
const FRAME: &str = include_str!("frame.html");
const FRONT: &str = include_str!("front.html");
const PRODUCT: &str = include_str!("product.html");
const CART: &str = include_str!("cart.html");
const EMPTY_CART: &str = include_str!("empty_cart.html");
const LOGIN: &str = include_str!("login.html");
const SECOND_FACTOR: &str = include_str!("second_factor.html");
const CHECKOUT: &str = include_str!("checkout.html");
const CONFIRMATION: &str = include_str!("confirmation.html");

pub(super) fn front(visit: &Visit) -> String {
    let cards: String = Product::ALL
        .iter()
        .map(|product| {
            format!(
                r#"<a class="card" href="/product/{slug}" data-product="{name}">{picture}<span class="card-text"><strong>{name}</strong><small>{line}</small><b class="price">{price}</b></span></a>"#,
                slug = product.slug,
                name = product.name,
                line = product.line,
                price = price(product.cents),
                picture = picture(product),
            )
        })
        .collect();
    frame("front", "Harbour Goods", visit, &fill(FRONT, &[("cards", &cards)]))
}

pub(super) fn product(product: &Product, visit: &Visit) -> String {
    let body = fill(
        PRODUCT,
        &[
            ("slug", product.slug),
            ("name", product.name),
            ("line", product.line),
            ("description", product.description),
            ("price", &price(product.cents)),
            ("picture", &picture(product)),
        ],
    );
    frame("product", product.name, visit, &body)
}

pub(super) fn cart(visit: &Visit) -> String {
    if visit.cart.is_empty() {
        return frame("cart", "Your cart", visit, EMPTY_CART);
    }
    frame("cart", "Your cart", visit, &fill(CART, &sums(visit).each()))
}

pub(super) fn login(visit: &Visit, email: &str, error: Option<&str>) -> String {
    let values = [
        ("error", notice(error)),
        ("email", escape(email)),
        ("demo_email", super::EMAIL.to_owned()),
        ("demo_password", super::PASSWORD.to_owned()),
    ];
    frame("login", "Sign in", visit, &fill(LOGIN, &values.each_ref().map(|(name, value)| (*name, value.as_str()))))
}

pub(super) fn second_factor(visit: &Visit, error: Option<&str>) -> String {
    let body = fill(SECOND_FACTOR, &[("error", &notice(error)), ("demo_code", super::CODE)]);
    frame("two-factor", "Confirm that it is you", visit, &body)
}

pub(super) fn checkout(visit: &Visit) -> String {
    frame("checkout", "Checkout", visit, &fill(CHECKOUT, &sums(visit).each()))
}

pub(super) fn confirmation(order: &Order, visit: &Visit) -> String {
    let body = fill(
        CONFIRMATION,
        &[
            ("number", &escape(&order.number)),
            ("total", &price(order.total)),
            ("lines", &lines(&order.lines)),
            ("email", super::EMAIL),
        ],
    );
    frame("confirmation", "Thank you", visit, &body)
}

pub(super) fn not_found() -> String {
    let body = r#"<section class="narrow panel"><h1>Nothing here</h1><p>This page does not exist.</p><p><a class="button" href="/">To the shop</a></p></section>"#;
    frame("not-found", "Nothing here", &Visit::default(), body)
}

struct Sums {
    lines: String,
    goods: String,
    shipping: String,
    total: String,
}

impl Sums {
    fn each(&self) -> [(&str, &str); 4] {
        [("lines", &self.lines), ("goods", &self.goods), ("shipping", &self.shipping), ("total", &self.total)]
    }
}

fn sums(visit: &Visit) -> Sums {
    Sums {
        lines: lines(&visit.cart),
        goods: price(visit.goods()),
        shipping: if visit.shipping() == 0 { "free".to_owned() } else { price(visit.shipping()) },
        total: price(visit.total()),
    }
}

fn lines(lines: &[Line]) -> String {
    lines
        .iter()
        .map(|Line { product, pieces }| {
            format!(
                r#"<li class="line">{picture}<span><strong>{name}</strong><small>{line}</small></span><span class="pieces">× {pieces}</span><b>{sum}</b></li>"#,
                picture = picture(product),
                name = product.name,
                line = product.line,
                sum = price(product.cents * pieces),
            )
        })
        .collect()
}

/// A product's picture as inline SVG on its own tint.
fn picture(product: &Product) -> String {
    let Product { slug, name, tint: (light, dark), picture, .. } = product;
    format!(
        r##"<svg class="picture" viewBox="0 0 200 160" role="img" aria-label="{name}"><defs><linearGradient id="tint-{slug}" x1="0" y1="0" x2="1" y2="1"><stop stop-color="{light}"/><stop offset="1" stop-color="{dark}"/></linearGradient></defs><rect width="200" height="160" fill="url(#tint-{slug})"/><ellipse cx="100" cy="134" rx="58" ry="7" fill="#000" opacity=".08"/>{picture}</svg>"##
    )
}

fn notice(error: Option<&str>) -> String {
    error.map(|text| format!(r#"<p class="error" role="alert">{}</p>"#, escape(text))).unwrap_or_default()
}

fn frame(page: &str, title: &str, visit: &Visit, body: &str) -> String {
    let account = if visit.signed_in == SignedIn::Fully { "Ada Lovelace" } else { "Sign in" };
    let pieces = visit.pieces().to_string();
    fill(FRAME, &[("page", page), ("title", title), ("account", account), ("pieces", &pieces), ("body", body)])
}

/// Puts the values in the places of their names, in one pass, so that a value is never taken for a place.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(template.len() + 1024);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").expect("a template closes what it opens");
        out.push_str(before);
        out.push_str(values.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value));
        rest = after;
    }
    out.push_str(rest);
    out
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_visitor_typed_is_shown_as_text() {
        let page = login(&Visit::default(), r#""><script>alert(1)</script>{{demo_password}}"#, None);
        assert!(!page.contains("<script>"));
        assert!(page.contains("{{demo_password}}"), "a value is not a place");
    }

    #[test]
    fn every_place_of_every_page_is_filled() {
        let mut visit = Visit::default();
        visit.add(&Product::ALL[0]);
        let filled = [front(&visit), cart(&visit), checkout(&visit), login(&visit, "", Some("no")), not_found()];
        for page in filled {
            assert!(!page.contains("{{"), "{page}");
            assert!(!page.contains("http://") && !page.contains("https://"), "no page asks for anything outside");
        }
    }
}

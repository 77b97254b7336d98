//! What visitors did, under their cookie.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use axum::http::{HeaderMap, header};
use rand::RngExt;

use super::product::Product;

/// Beyond this many visitors the one seen longest ago is forgotten.
pub const VISITORS_MAX: usize = 256;
/// Beyond this many orders a visitor's oldest is forgotten.
const ORDERS_MAX: usize = 16;
/// Pieces of one product in a cart.
const PIECES_MAX: u32 = 99;
/// Sent to any address, below [`FREE_SHIPPING_FROM`]; in cents.
const SHIPPING: u32 = 4_90;
const FREE_SHIPPING_FROM: u32 = 75_00;

#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum SignedIn {
    #[default]
    No,
    PasswordOnly,
    Fully,
}

#[derive(Clone)]
pub(super) struct Line {
    pub product: &'static Product,
    pub pieces: u32,
}

#[derive(Clone)]
pub(super) struct Order {
    pub number: String,
    pub lines: Vec<Line>,
    pub total: u32,
}

#[derive(Clone, Default)]
pub(super) struct Visit {
    pub cart: Vec<Line>,
    pub signed_in: SignedIn,
    pub orders: Vec<Order>,
    seen: u64,
}

impl Visit {
    pub(super) fn add(&mut self, product: &'static Product) {
        match self.cart.iter_mut().find(|line| line.product.slug == product.slug) {
            Some(line) => line.pieces = (line.pieces + 1).min(PIECES_MAX),
            None => self.cart.push(Line { product, pieces: 1 }),
        }
    }

    pub(super) fn pieces(&self) -> u32 {
        self.cart.iter().map(|line| line.pieces).sum()
    }

    pub(super) fn goods(&self) -> u32 {
        self.cart.iter().map(|line| line.product.cents * line.pieces).sum()
    }

    pub(super) fn shipping(&self) -> u32 {
        if self.goods() >= FREE_SHIPPING_FROM { 0 } else { SHIPPING }
    }

    pub(super) fn total(&self) -> u32 {
        self.goods() + self.shipping()
    }

    /// Turns the cart into an order and gives the order's number.
    pub(super) fn order(&mut self) -> String {
        let number = format!("HG-{:06}", rand::rng().random_range(100_000..1_000_000));
        let total = self.total();
        if self.orders.len() == ORDERS_MAX {
            self.orders.remove(0);
        }
        self.orders.push(Order { number: number.clone(), lines: std::mem::take(&mut self.cart), total });
        number
    }
}

#[derive(Default)]
pub(super) struct Visits {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    visits: HashMap<String, Visit>,
    clock: u64,
}

impl Visits {
    /// The visitor's cookie value and what it did so far; a new one without a cookie that is known.
    pub(super) fn enter(&self, headers: &HeaderMap) -> (String, Visit) {
        let mut kept = self.lock();
        let id = kept.visitor(headers);
        let visit = kept.visits[&id].clone();
        (id, visit)
    }

    /// Changes what is kept of the visitor, and gives its cookie value.
    pub(super) fn change(&self, headers: &HeaderMap, change: impl FnOnce(&mut Visit)) -> String {
        let mut kept = self.lock();
        let id = kept.visitor(headers);
        change(kept.visits.get_mut(&id).expect("the visitor was just entered"));
        id
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn visitor(&mut self, headers: &HeaderMap) -> String {
        self.clock += 1;
        let known = visitor_id(headers).filter(|id| self.visits.contains_key(*id)).map(str::to_owned);
        let id = known.unwrap_or_else(|| {
            if self.visits.len() >= VISITORS_MAX {
                let oldest = self.visits.iter().min_by_key(|(_, visit)| visit.seen).map(|(id, _)| id.clone());
                self.visits.remove(&oldest.expect("a full map is not empty"));
            }
            format!("{:032x}", rand::rng().random::<u128>())
        });
        self.visits.entry(id.clone()).or_default().seen = self.clock;
        id
    }
}

fn visitor_id(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    cookies.split(';').find_map(|cookie| cookie.trim().strip_prefix("visitor="))
}

/// The `Set-Cookie` value that keeps a visitor known.
pub(super) fn cookie(id: &str) -> String {
    format!("visitor={id}; Path=/; HttpOnly; SameSite=Lax")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_cookie(id: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, format!("a=b; visitor={id}").parse().unwrap())])
    }

    #[test]
    fn a_known_visitor_finds_its_cart_again() {
        let visits = Visits::default();
        let id = visits.change(&HeaderMap::new(), |visit| visit.add(&Product::ALL[0]));
        assert_eq!(visits.enter(&with_cookie(&id)).1.pieces(), 1);
        assert_eq!(visits.enter(&HeaderMap::new()).1.pieces(), 0);
    }

    #[test]
    fn an_unknown_cookie_is_not_taken_over() {
        let visits = Visits::default();
        assert_ne!(visits.enter(&with_cookie("chosen-by-the-client")).0, "chosen-by-the-client");
    }

    #[test]
    fn only_the_last_visitors_are_kept() {
        let visits = Visits::default();
        let first = visits.change(&HeaderMap::new(), |visit| visit.add(&Product::ALL[0]));
        let second = visits.change(&HeaderMap::new(), |visit| visit.add(&Product::ALL[0]));
        visits.enter(&with_cookie(&first));
        for _ in 0..VISITORS_MAX - 1 {
            visits.enter(&HeaderMap::new());
        }
        assert_eq!(visits.lock().visits.len(), VISITORS_MAX);
        assert_eq!(visits.enter(&with_cookie(&first)).1.pieces(), 1);
        assert_eq!(visits.enter(&with_cookie(&second)).1.pieces(), 0);
    }

    #[test]
    fn an_order_takes_the_cart_with_its_total() {
        let mut visit = Visit::default();
        visit.add(&Product::ALL[0]);
        visit.add(&Product::ALL[0]);
        assert_eq!(visit.total(), 2 * 18_00 + 4_90);
        let number = visit.order();
        assert!(visit.cart.is_empty());
        assert_eq!((visit.orders[0].number.as_str(), visit.orders[0].total), (number.as_str(), 40_90));
    }
}

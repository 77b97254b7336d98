//! Failed joins are limited per address: a session id is a capability, and is not to be found by trying.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::Mutex,
    time::Duration,
};

use axum::http::HeaderMap;
use tokio::time::Instant;

const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered; the one whose last failure is longest ago goes first.
const ADDRESSES: usize = 4096;

#[derive(Default)]
pub(super) struct FailedJoins(Mutex<HashMap<IpAddr, VecDeque<Instant>>>);

impl FailedJoins {
    /// How long this address has to wait before it may try again, if it has failed `limit` times within the window.
    pub(super) fn refused(&self, address: IpAddr, limit: usize, now: Instant) -> Option<Duration> {
        let addresses = self.0.lock().expect("no holder panics");
        let failures = addresses.get(&network(address))?;
        let recent = failures.iter().filter(|at| now < **at + WINDOW).count();
        let counts_until = failures.get(failures.len().checked_sub(limit)?)?;
        (recent >= limit).then(|| *counts_until + WINDOW - now)
    }

    pub(super) fn failed(&self, address: IpAddr, limit: usize, now: Instant) {
        let mut addresses = self.0.lock().expect("no holder panics");
        let address = network(address);
        if addresses.len() >= ADDRESSES && !addresses.contains_key(&address) {
            make_room(&mut addresses, now);
        }
        let failures = addresses.entry(address).or_default();
        failures.push_back(now);
        while failures.len() > limit || failures.front().is_some_and(|at| now >= *at + WINDOW) {
            failures.pop_front();
        }
    }
}

fn make_room(addresses: &mut HashMap<IpAddr, VecDeque<Instant>>, now: Instant) {
    addresses.retain(|_, failures| failures.back().is_some_and(|at| now < *at + WINDOW));
    if addresses.len() >= ADDRESSES {
        let oldest = addresses.iter().min_by_key(|(_, failures)| failures.back().copied()).map(|(address, _)| *address);
        oldest.and_then(|address| addresses.remove(&address));
    }
}

/// Who has one address of IPv6 has its whole network of 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// Where a request comes from: its peer, or what trusted proxies say of whom they asked for.
pub(super) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpAddr]) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|known| known.to_canonical() == address.to_canonical());
    if !is_trusted(&peer) {
        return peer;
    }
    let named = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let named: Vec<&str> = named.flat_map(|value| value.split(',')).map(str::trim).collect();
    // Each proxy adds its own peer at the end; what stands before the first stranger, he may have written himself.
    let mut client = peer;
    for name in named.into_iter().rev() {
        let Ok(address) = name.parse() else { break };
        client = address;
        if !is_trusted(&address) {
            break;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_window_slides() {
        let (joins, start) = (FailedJoins::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let client = address("10.0.0.1");
        for second in [0, 10, 20] {
            assert_eq!(joins.refused(client, 3, at(second)), None);
            joins.failed(client, 3, at(second));
        }
        assert_eq!(joins.refused(client, 3, at(30)), Some(Duration::from_secs(30)));
        assert_eq!(joins.refused(address("10.0.0.2"), 3, at(30)), None);
        assert_eq!(joins.refused(client, 3, at(60)), None);
        joins.failed(client, 3, at(61));
        assert_eq!(joins.refused(client, 3, at(62)), Some(Duration::from_secs(8)));
    }

    #[test]
    fn the_table_is_bounded_and_a_network_is_one_address() {
        let (joins, now) = (FailedJoins::default(), Instant::now());
        for i in 0..2 * ADDRESSES as u32 {
            joins.failed(IpAddr::V4(i.into()), 1, now);
        }
        assert_eq!(joins.0.lock().unwrap().len(), ADDRESSES);
        joins.failed(address("2001:db8::1"), 1, now);
        assert!(joins.refused(address("2001:db8::2"), 1, now).is_some());
        assert!(joins.refused(address("2001:db8:0:1::2"), 1, now).is_none());
    }

    #[test]
    fn only_trusted_proxies_name_others() {
        let headers =
            |value: &str| HeaderMap::from_iter([("x-forwarded-for".parse().unwrap(), value.parse().unwrap())]);
        let (peer, trusted) = (address("127.0.0.1"), [address("127.0.0.1"), address("10.0.0.1")]);
        let table = [
            ("", "127.0.0.1"),
            ("1.2.3.4", "1.2.3.4"),
            ("9.9.9.9, 1.2.3.4", "1.2.3.4"),
            ("9.9.9.9, 1.2.3.4, 10.0.0.1", "1.2.3.4"),
            ("nonsense", "127.0.0.1"),
            ("1.2.3.4, nonsense", "127.0.0.1"),
        ];
        for (value, wanted) in table {
            assert_eq!(client_address(peer, &headers(value), &trusted), address(wanted), "{value}");
        }
        assert_eq!(client_address(peer, &headers("1.2.3.4"), &[]), peer);
    }
}

//! Hosts as sites name them, and the patterns that select them.

use std::net::Ipv6Addr;

use url::{Host, Url};

/// What an entry's `match` selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    All,
    Exact(Host<String>),
    /// Every subdomain of this domain, at any depth; not the domain itself.
    Below(String),
}

/// How well a pattern fits; the greater one is the closer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    All,
    /// With the length of the domain, of which the longest wins.
    Below(usize),
    Exact,
}

impl Pattern {
    /// `None` for what is neither a host, nor `*.` before a domain, nor `all`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("all") {
            return Some(Self::All);
        }
        let (domain, below) = text.strip_prefix("*.").map_or((text, false), |domain| (domain, true));
        if domain.contains('*') {
            return None;
        }
        match (bare_host(domain)?, below) {
            (Host::Domain(domain), true) => Some(Self::Below(domain)),
            (_, true) => None,
            (host, false) => Some(Self::Exact(host)),
        }
    }

    pub(super) fn fit(&self, host: &Host<String>) -> Option<Fit> {
        match (self, host) {
            (Self::All, _) => Some(Fit::All),
            (Self::Exact(own), host) => (own == host).then_some(Fit::Exact),
            (Self::Below(domain), Host::Domain(host)) => {
                let label = host.strip_suffix(domain.as_str())?.strip_suffix('.')?;
                (!label.is_empty()).then_some(Fit::Below(domain.len()))
            }
            (Self::Below(_), _) => None,
        }
    }
}

/// The host that a guardrail's `domain` names: a host, a host and port, or a URL that browsers open. Read as browsers
/// read it (WHATWG URL): lower case, IDNA as ASCII, without the dot at the end. `None` when it names none beyond doubt.
pub(super) fn named(domain: &str) -> Option<Host<String>> {
    let domain = domain.trim();
    if domain.contains("://") {
        let url = Url::parse(domain).ok()?;
        let opens = matches!(url.scheme(), "http" | "https" | "ws" | "wss");
        return if opens { normal(url.host()?.to_owned()) } else { None };
    }
    if let Ok(address) = domain.parse::<Ipv6Addr>() {
        return Some(Host::Ipv6(address));
    }
    // Without a scheme, `a@b` is no address that anybody opens: which of both was meant is a guess.
    if domain.contains('@') {
        return None;
    }
    normal(Url::parse(&format!("http://{domain}")).ok()?.host()?.to_owned())
}

/// A host and nothing else: no port, no path.
fn bare_host(text: &str) -> Option<Host<String>> {
    match text.parse::<Ipv6Addr>() {
        Ok(address) => Some(Host::Ipv6(address)),
        Err(_) => normal(Host::parse(text).ok()?),
    }
}

/// Without the dot of a fully qualified name. A name with an empty label is none.
fn normal(host: Host<String>) -> Option<Host<String>> {
    let Host::Domain(name) = host else { return Some(host) };
    let name = name.strip_suffix('.').unwrap_or(&name);
    name.split('.').all(|label| !label.is_empty()).then(|| Host::Domain(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, domain: &str) -> bool {
        let pattern = Pattern::parse(pattern).expect(pattern);
        named(domain).and_then(|host| pattern.fit(&host)).is_some()
    }

    #[test]
    fn a_pattern_selects_hosts_and_never_a_part_of_a_name() {
        for (pattern, domain, expected) in [
            ("github.com", "github.com", true),
            ("github.com", "evilgithub.com", false),
            ("github.com", "github.com.evil.com", false),
            ("github.com", "www.github.com", false),
            ("*.github.com", "evilgithub.com", false),
            ("*.x.com", "sub.x.com", true),
            ("*.x.com", "a.b.x.com", true),
            ("*.x.com", "x.com", false),
            ("*.x.com", "x.com.evil.com", false),
            ("*.x.com", "https://evil.com/sub.x.com", false),
            ("*.x.com", "https://sub.x.com@evil.com/", false),
            ("x.com", "https://evil.com@x.com/", true),
            ("x.com", "evil.com@x.com", false),
            ("x.com", "https://x.com\\@evil.com", true),
            ("x.com", "https://evil.com#x.com", false),
            ("x.com", "evil.com?x.com", false),
            ("x.com", "x.com:8443", true),
            ("x.com", "x.com/login?next=1", true),
            ("x.com", "HTTPS://X.Com:443/", true),
            ("X.COM", "x.com", true),
            ("x.com.", "x.com", true),
            ("x.com", "x.com.", true),
            ("*.x.com", "sub.x.com.:80", true),
            ("x.com", "x.com..", false),
            ("*.x.com", ".x.com", false),
            ("bücher.example", "xn--bcher-kva.example", true),
            ("xn--bcher-kva.example", "https://BÜCHER.example/", true),
            ("*.bücher.example", "shop.xn--bcher-kva.example", true),
            ("x.com", "x。com", true),
            ("аpple.com", "apple.com", false),
            ("127.0.0.1", "http://127.0.0.1:3000", true),
            ("127.0.0.1", "http://0x7f.1/", true),
            ("127.0.0.1", "127.0.0.10", false),
            ("::1", "http://[::1]:8080/", true),
            ("[::1]", "::1", true),
            ("::1", "[0:0::1]", true),
            ("*.0.0.com", "127.0.0.1", false),
            ("localhost", "localhost:3000", true),
            ("all", "anything.example", true),
            ("ALL", "10.0.0.1", true),
            ("all", "javascript://x.com", false),
            ("all", "", false),
            ("x.com", "ftp://x.com", false),
            ("x.com", "a b", false),
        ] {
            assert_eq!(fits(pattern, domain), expected, "{pattern} {domain}");
        }
    }

    #[test]
    fn what_is_no_host_is_no_pattern() {
        let bad = [
            "",
            " ",
            "*",
            "*.",
            "*x.com",
            "a.*.com",
            "*.*.com",
            "x.com:80",
            "https://x.com",
            "x.com/a",
            "a@b",
            "a b",
            ".x.com",
            "*.127.0.0.1",
            "*.[::1]",
            "..",
            ".",
        ];
        for pattern in bad {
            assert_eq!(Pattern::parse(pattern), None, "{pattern}");
        }
    }

    #[test]
    fn exact_is_closer_than_the_longer_ending_and_all_is_last() {
        let mut fits = [Fit::All, Fit::Exact, Fit::Below(5), Fit::Below(9)];
        fits.sort_unstable();
        assert_eq!(fits, [Fit::All, Fit::Below(5), Fit::Below(9), Fit::Exact]);
    }
}

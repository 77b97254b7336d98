//! Strings that must never show: no `Debug`, no `Display`, no serialisation, overwritten when dropped.

use url::Url;
use zeroize::Zeroizing;

/// A secret text.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself. Every call is a place to look at in a review.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// A URL that may hold a secret: userinfo, or a token in its path or query, as chat webhooks have.
/// `Debug` and `Display` show its scheme and host only.
#[derive(Clone)]
pub struct SecretUrl {
    whole: Secret,
    shown: String,
}

impl SecretUrl {
    /// `None` unless it is an absolute `http` or `https` URL.
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
        let shown = url.origin().ascii_serialization();
        Some(Self { whole: Secret::new(String::from(url)), shown })
    }

    pub fn expose(&self) -> &str {
        self.whole.expose()
    }
}

impl std::fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/…", self.shown)
    }
}

impl std::fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_and_display_show_nothing_of_a_secret() {
        let url = SecretUrl::parse("https://bob:hunter22@chat.example/hooks/T0KEN?x=T0KEN").unwrap();
        let shown = format!("{:?} {url:?} {url}", Secret::new("hunter22"));
        assert_eq!(shown, "[secret] https://chat.example/… https://chat.example/…");
        assert!(url.expose().contains("hunter22"));
    }
}

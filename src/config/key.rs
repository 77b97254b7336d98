//! API keys as the configuration holds them: who they belong to and a digest, never the key.

use std::fmt;

/// What a key or token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// To be a runtime.
    Publish,
    /// To follow and read.
    Watch,
    /// To answer and claim guardrails.
    Answer,
    /// To start and steer sessions, and to take the wheel.
    Control,
    /// To issue tokens and see the operator's surfaces of the project.
    Admin,
}

impl Scope {
    pub const ALL: [Scope; 5] = [Self::Publish, Self::Watch, Self::Answer, Self::Control, Self::Admin];

    pub fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Watch => "watch",
            Self::Answer => "answer",
            Self::Control => "control",
            Self::Admin => "admin",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The SHA-256 of a key. Keys are 200 random bits, so that a plain digest is enough.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyDigest(pub [u8; 32]);

impl KeyDigest {
    /// Takes 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }

    pub fn to_hex(self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a string takes everything");
            text
        })
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[digest]")
    }
}

/// One `[[keys]]` of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyEntry {
    /// Names the key in logs and in what others see of its holder.
    pub id: String,
    pub project: String,
    pub scopes: Vec<Scope>,
    pub sha256: KeyDigest,
    /// Whether its runtimes serve every project.
    pub pool: bool,
    /// What WebRun clients are told of the account behind it. Nothing here counts money.
    pub account: Account,
    /// US dollars, shown to WebRun clients as they are.
    pub balance: Option<f64>,
}

/// Whether the holder of a key may start anything on the WebRun surfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Account {
    #[default]
    Active,
    Deactivated,
    InsufficientBalance,
}

impl Account {
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "active" => Some(Self::Active),
            "deactivated" => Some(Self::Deactivated),
            "insufficient_balance" => Some(Self::InsufficientBalance),
            _ => None,
        }
    }
}

impl fmt::Display for KeyEntry {
    /// The entry as it is put into the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scopes: Vec<_> = self.scopes.iter().map(|scope| format!("\"{scope}\"")).collect();
        writeln!(f, "[[keys]]\nid = \"{}\"\nproject = \"{}\"", self.id, self.project)?;
        writeln!(f, "scopes = [{}]\nsha256 = \"{}\"", scopes.join(", "), self.sha256.to_hex())?;
        if self.pool { writeln!(f, "pool = true") } else { Ok(()) }
    }
}

/// Whether a text may name a project or a key: `[A-Za-z0-9_-]{1,64}`.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

//! A session's secrets, and the fillers that answer a guardrail before anybody is disturbed.
//!
//! Values live in memory only and are overwritten when they are dropped. They fill guardrails of the kinds `login` and
//! `two_factor` alone, and only for the host that their entry names. No error and no `Debug` here shows a value.

mod host;
mod parameters;

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use onlooker_protocol::{
    subscriber::SecretEntry,
    view::{Field, GuardrailKind},
};
use zeroize::Zeroize;

use self::host::Pattern;
pub use self::parameters::in_parameters;

const ENTRIES_MAX: usize = 100;
const FIELDS_MAX: usize = 100;
const VALUE_BYTES_MAX: usize = 16 * 1024;
const NAME_BYTES_MAX: usize = 256;
/// Guardrails of one session whose fillings are remembered. Beyond it a person is asked.
const TRIED_MAX: usize = 1_000;

/// What a guardrail asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub kind: GuardrailKind,
    /// A host, with or without port, or a URL.
    pub domain: Option<&'a str>,
    pub fields: &'a [Field],
}

/// What could be filled in. `Debug` shows names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Filling {
    /// By field id; by the secrets' own names for a login that lists no fields.
    pub values: BTreeMap<String, String>,
    /// Every field without a value, in the order asked. The optional ones are here too, because when a person has to
    /// be asked anyway, that person should see them.
    pub missing: Vec<Field>,
}

impl Filling {
    fn nothing(ask: &Ask<'_>) -> Self {
        Self { values: BTreeMap::new(), missing: ask.fields.to_vec() }
    }

    /// Whether nobody has to be asked: something is filled, and no required field is missing.
    pub fn is_complete(&self) -> bool {
        !self.values.is_empty() && self.missing.iter().all(|field| !field.required)
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing: Vec<&str> = self.missing.iter().map(|field| field.id.as_str()).collect();
        f.debug_struct("Filling")
            .field("filled", &self.values.keys().collect::<Vec<_>>())
            .field("missing", &missing)
            .finish()
    }
}

/// A source of values for guardrails.
pub trait Filler {
    /// Gives values for the fields it knows; the others are `missing`.
    fn fill(&self, ask: &Ask<'_>) -> Filling;
}

/// A session's fillers, in the order in which they are asked.
#[derive(Default)]
pub struct Fillers {
    session: SessionSecrets,
    /// Stored credentials and vaults come here.
    more: Vec<Box<dyn Filler + Send + Sync>>,
    tried: HashSet<String>,
}

impl Fillers {
    pub fn new(more: Vec<Box<dyn Filler + Send + Sync>>) -> Self {
        Self { more, ..Self::default() }
    }

    /// Secrets that the session was given at its start or with a task.
    ///
    /// # Errors
    /// What is wrong with them, without a value.
    pub fn add(&mut self, entries: Vec<SecretEntry>) -> Result<(), String> {
        self.session.add(entries)
    }

    /// Asks the fillers in order; each is asked for what those before it left open, so that the first value for a
    /// field wins. A guardrail that got values once gets none again, under any revision: they did not work.
    pub fn fill(&mut self, guardrail_id: &str, ask: &Ask<'_>) -> Filling {
        if self.tried.contains(guardrail_id) || self.tried.len() >= TRIED_MAX {
            return Filling::nothing(ask);
        }
        let session: &dyn Filler = &self.session;
        let more = self.more.iter().map(|filler| -> &dyn Filler { &**filler });
        let filling = merge(std::iter::once(session).chain(more), ask);
        if !filling.values.is_empty() {
            self.tried.insert(guardrail_id.to_owned());
        }
        filling
    }

    /// The values never reached the runtime: they may be given again.
    pub fn untried(&mut self, guardrail_id: &str) {
        self.tried.remove(guardrail_id);
    }

    /// Remembers that a guardrail got values, as its record says after a restart.
    pub fn mark_tried(&mut self, guardrail_id: &str) {
        if self.tried.len() < TRIED_MAX {
            self.tried.insert(guardrail_id.to_owned());
        }
    }
}

impl fmt::Debug for Fillers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fillers").field("more", &self.more.len()).field("tried", &self.tried.len()).finish()
    }
}

/// A login without fields takes everything from one filler: a name from one and a password from another are no login.
fn merge<'f>(fillers: impl Iterator<Item = &'f dyn Filler>, ask: &Ask<'_>) -> Filling {
    let mut merged = Filling::nothing(ask);
    for filler in fillers {
        let filling = filler.fill(&Ask { fields: &merged.missing, ..*ask });
        for (name, value) in filling.values {
            merged.values.entry(name).or_insert(value);
        }
        merged.missing.retain(|field| !merged.values.contains_key(&field.id));
        if merged.missing.is_empty() && !merged.values.is_empty() {
            break;
        }
    }
    merged
}

struct Entry {
    pattern: Pattern,
    fields: BTreeMap<String, String>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.fields.values_mut().for_each(Zeroize::zeroize);
    }
}

impl Entry {
    /// The field's id names its secret, else its type does. Case counts only between names that differ in nothing else.
    fn value_for(&self, field: &Field) -> Option<&str> {
        [Some(&field.id), field.kind.as_ref()].into_iter().flatten().find_map(|name| self.value(name))
    }

    /// An empty value fills nothing.
    fn value(&self, name: &str) -> Option<&str> {
        let same = || {
            let lower = name.to_lowercase();
            self.fields.iter().find(|(own, value)| own.to_lowercase() == lower && !value.is_empty())
        };
        let exact = self.fields.get(name).filter(|value| !value.is_empty());
        exact.or_else(|| same().map(|(_, value)| value)).map(String::as_str)
    }
}

/// The secrets that a session was given.
#[derive(Default)]
pub struct SessionSecrets {
    entries: Vec<Entry>,
}

impl SessionSecrets {
    /// Refuses what [`check`] refuses.
    pub fn new(entries: Vec<SecretEntry>) -> Result<Self, String> {
        let mut secrets = Self::default();
        secrets.add(entries)?;
        Ok(secrets)
    }

    /// Adds entries, for instance a task's. Of several for the same hosts the last one counts. When any is refused,
    /// none is added.
    pub fn add(&mut self, entries: Vec<SecretEntry>) -> Result<(), String> {
        let checked = check(&entries);
        let parsed: Vec<Entry> = entries.into_iter().filter_map(parse).collect();
        checked?;
        let fresh = parsed.iter().filter(|new| self.entries.iter().all(|old| old.pattern != new.pattern)).count();
        if self.entries.len() + fresh > ENTRIES_MAX {
            return Err(format!("the session's secrets have more than {ENTRIES_MAX} entries"));
        }
        for new in parsed {
            match self.entries.iter_mut().find(|old| old.pattern == new.pattern) {
                Some(old) => *old = new,
                None => self.entries.push(new),
            }
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every value, for the redactor.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().flat_map(|entry| entry.fields.values()).map(String::as_str)
    }

    /// The one entry for this host. `all` is every site's, also of a guardrail that names none; a domain that cannot
    /// be read is not trusted with anything.
    fn entry_for(&self, domain: Option<&str>) -> Option<&Entry> {
        let Some(domain) = domain else {
            return self.entries.iter().find(|entry| entry.pattern == Pattern::All);
        };
        let host = host::named(domain)?;
        let fits = self.entries.iter().filter_map(|entry| Some((entry.pattern.fit(&host)?, entry)));
        fits.max_by_key(|(fit, _)| *fit).map(|(_, entry)| entry)
    }
}

/// An entry that [`check`] refuses is overwritten here.
fn parse(mut entry: SecretEntry) -> Option<Entry> {
    let fields = std::mem::take(&mut entry.fields);
    let mut parsed = Entry { pattern: Pattern::All, fields };
    parsed.pattern = Pattern::parse(&entry.matches)?;
    Some(parsed)
}

impl Filler for SessionSecrets {
    fn fill(&self, ask: &Ask<'_>) -> Filling {
        let mut filling = Filling::nothing(ask);
        if !matches!(ask.kind, GuardrailKind::Login | GuardrailKind::TwoFactor) {
            return filling;
        }
        let Some(entry) = self.entry_for(ask.domain) else { return filling };
        if ask.fields.is_empty() && ask.kind == GuardrailKind::Login {
            filling.values = entry.fields.clone();
            filling.values.retain(|_, value| !value.is_empty());
            return filling;
        }
        filling.missing.retain(|field| match entry.value_for(field) {
            Some(value) => {
                filling.values.insert(field.id.clone(), value.to_owned());
                false
            }
            None => true,
        });
        filling
    }
}

impl fmt::Debug for SessionSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionSecrets").field("entries", &self.entries.len()).finish()
    }
}

/// Says what is wrong with secrets that a client sent, by place: a value put where a name belongs must not show either.
pub fn check(entries: &[SecretEntry]) -> Result<(), String> {
    if entries.len() > ENTRIES_MAX {
        return Err(format!("secrets has more than {ENTRIES_MAX} entries"));
    }
    for (index, entry) in entries.iter().enumerate() {
        check_entry(entry).map_err(|what| format!("secrets[{index}]{what}"))?;
    }
    Ok(())
}

fn check_entry(entry: &SecretEntry) -> Result<(), String> {
    if entry.matches.trim().is_empty() {
        return Err(".match is empty".to_owned());
    }
    if entry.matches.len() > NAME_BYTES_MAX || Pattern::parse(&entry.matches).is_none() {
        return Err(".match is neither a host, nor `*.` before a domain, nor `all`".to_owned());
    }
    if entry.fields.is_empty() {
        return Err(".fields is empty".to_owned());
    }
    if entry.fields.len() > FIELDS_MAX {
        return Err(format!(".fields has more than {FIELDS_MAX} members"));
    }
    if entry.fields.keys().any(|name| name.trim().is_empty() || name.len() > NAME_BYTES_MAX) {
        return Err(format!(".fields has a name that is empty or longer than {NAME_BYTES_MAX} bytes"));
    }
    if entry.fields.values().any(|value| value.len() > VALUE_BYTES_MAX) {
        return Err(format!(".fields has a value longer than {VALUE_BYTES_MAX} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! Puts a configuration together from its sources, and says exactly where a wrong value stands.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use zeroize::Zeroizing;

use super::{
    Config, ConfigError, Place, did_you_mean,
    key::{Account, KeyDigest, KeyEntry, Scope, is_name},
    settings::{Raw, SETTINGS, Setting},
    units,
};
use crate::reach_out::ladder::Step;

/// Names of what is written as `[[name]]` tables, in the file only.
const TABLES: &[&str] = &["keys", "ladder"];
/// The shortest wait before the next step of the ladder.
const SHORTEST_STEP: Duration = Duration::from_secs(10);

/// Where values come from. Later ones win: file, environment, flags.
#[derive(Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// Names and values; only `ONLOOKER_…` is looked at, and there `ONLOOKER_CONFIG` names the file.
    pub environment: BTreeMap<String, String>,
    /// Names of settings (`data_dir`) and their values.
    pub flags: Vec<(&'static str, String)>,
}

/// A checked configuration and what the operator should know about it.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<String>,
}

/// Reads all sources and checks the whole. Opens no port and starts nothing.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut config = Config::default();
    let mut warnings = Vec::new();
    let named = sources.environment.get("ONLOOKER_CONFIG").filter(|name| !name.is_empty()).map(PathBuf::from);
    if let Some(path) = sources.file.clone().or(named) {
        let unreadable = |source| ConfigError::Unreadable { path: path.clone(), source };
        let text = Zeroizing::new(std::fs::read_to_string(&path).map_err(unreadable)?);
        read_file(&mut config, &path, &text)?;
    }
    read_environment(&mut config, &sources.environment, &mut warnings)?;
    for (name, value) in &sources.flags {
        let place = Place::Flag(format!("--{}", name.replace('_', "-")));
        let setting = setting(name).ok_or_else(|| unknown(place.clone(), name, &names()))?;
        apply(&mut config, setting, &Raw::Text(value), || place)?;
    }
    warnings.extend(config.check()?);
    Ok(Loaded { config, warnings })
}

/// Every variable that is read, beside `ONLOOKER_CONFIG`.
pub fn environment_names() -> impl Iterator<Item = (String, &'static str)> {
    SETTINGS.iter().map(|setting| (format!("ONLOOKER_{}", setting.name.to_uppercase().replace('.', "_")), setting.name))
}

fn read_environment(
    config: &mut Config,
    environment: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    let known: Vec<_> = environment_names().collect();
    for ((variable, _), setting) in known.iter().zip(SETTINGS) {
        if let Some(value) = environment.get(variable) {
            apply(config, setting, &Raw::Text(value), || Place::Environment(variable.clone()))?;
        }
    }
    // Variables of other commands, of the log filter, and those that orchestrators make for a service of this name.
    let others = ["ONLOOKER_CONFIG", "ONLOOKER_LOG", "ONLOOKER_KEY", "ONLOOKER_TOKEN", "ONLOOKER_GATEWAY"];
    let made = |name: &str| name.starts_with("ONLOOKER_SERVICE_") || name.starts_with("ONLOOKER_PORT");
    let variables: Vec<&str> = known.iter().map(|(variable, _)| variable.as_str()).collect();
    for name in environment.keys().filter(|name| name.starts_with("ONLOOKER_")) {
        if !variables.contains(&name.as_str()) && !others.contains(&name.as_str()) && !made(name) {
            let hint = nearest(name, &variables);
            warnings.push(format!("environment variable {name} is not known{}", did_you_mean(hint.as_deref())));
        }
    }
    Ok(())
}

/// Reads the text of a file; `path` is for messages.
fn read_file(config: &mut Config, path: &Path, text: &str) -> Result<(), ConfigError> {
    let place = |offset: usize| Place::File { path: path.to_owned(), line: line_of(text, offset) };
    let document = DeTable::parse(text).map_err(|error| ConfigError::NotToml {
        place: place(error.span().map_or(0, |span| span.start)),
        // Only the parser's sentence: its full form repeats the line, which may hold a secret.
        problem: error.message().to_owned(),
    })?;
    read_table(config, "", document.get_ref(), &place)
}

fn read_table(
    config: &mut Config,
    prefix: &str,
    table: &DeTable<'_>,
    place: &dyn Fn(usize) -> Place,
) -> Result<(), ConfigError> {
    let known = names();
    for key in table.keys() {
        let name = format!("{prefix}{}", key.get_ref());
        let is_part = known.iter().any(|known| known.strip_prefix(&name).is_some_and(|rest| rest.starts_with('.')));
        if setting(&name).is_none() && !is_part && !TABLES.contains(&name.as_str()) {
            return Err(unknown(place(key.span().start), &name, &known));
        }
    }
    // In the table's order of settings, not the file's: a secret is set after the URL that it belongs to.
    for setting in SETTINGS {
        let Some((key, value)) = setting.name.strip_prefix(prefix).and_then(|name| entry(table, name)) else {
            continue;
        };
        if value.get_ref().is_table() {
            continue;
        }
        apply(config, setting, &raw(value.get_ref()), || place(key.span().start))?;
    }
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) => read_table(config, &format!("{name}."), inner, place)?,
            _ if setting(&name).is_some() => {}
            DeValue::Array(entries) if name == "keys" => config.keys = read_tables(entries, "keys", place, read_key)?,
            DeValue::Array(entries) if name == "ladder" => {
                config.reach_out.ladder = read_tables(entries, "ladder", place, read_step)?;
            }
            _ => return Err(wrong(place(key.span().start), &name, "must be a table, written `[name]` or `[[name]]`")),
        }
    }
    Ok(())
}

type PlaceOf<'a> = &'a dyn Fn(usize) -> Place;

fn read_tables<T>(
    entries: &[Spanned<DeValue<'_>>],
    name: &str,
    place: PlaceOf<'_>,
    read: fn(&DeTable<'_>, &Place, PlaceOf<'_>) -> Result<T, ConfigError>,
) -> Result<Vec<T>, ConfigError> {
    entries
        .iter()
        .map(|entry| match entry.get_ref() {
            DeValue::Table(table) => read(table, &place(entry.span().start), place),
            _ => Err(wrong(place(entry.span().start), name, &format!("must be written as `[[{name}]]` tables"))),
        })
        .collect()
}

fn check_members(table: &DeTable<'_>, known: &[&str], place: PlaceOf<'_>) -> Result<(), ConfigError> {
    match table.keys().find(|key| !known.contains(&key.get_ref().as_ref())) {
        Some(key) => Err(unknown(place(key.span().start), key.get_ref(), known)),
        None => Ok(()),
    }
}

/// One step of the ladder.
fn read_step(table: &DeTable<'_>, start: &Place, place: PlaceOf<'_>) -> Result<Step, ConfigError> {
    check_members(table, &["after", "targets", "repeat", "project"], place)?;
    let refuse = |name: &str, problem: &str| {
        let at = entry(table, name).map_or_else(|| start.clone(), |(key, _)| place(key.span().start));
        wrong(at, &format!("ladder.{name}"), problem)
    };
    let value = |name: &str| entry(table, name).map(|(_, value)| raw(value.get_ref()));
    let after = match value("after") {
        Some(Raw::Text(text)) => units::time(text).map_err(|problem| refuse("after", &problem))?,
        _ => return Err(refuse("after", "must be a time, such as \"2min\"")),
    };
    if after < SHORTEST_STEP {
        return Err(refuse("after", "must be at least 10s: nobody answers faster"));
    }
    let targets = match value("targets") {
        Some(Raw::List(targets)) if !targets.is_empty() => targets.into_iter().map(str::to_owned).collect(),
        _ => {
            return Err(refuse("targets", "must be a list, such as [\"linked\"] or [\"telegram:12345\", \"webhook\"]"));
        }
    };
    let repeat = match value("repeat") {
        None => 0,
        Some(Raw::Integer(times)) => u32::try_from(times)
            .ok()
            .filter(|times| *times <= 100)
            .ok_or_else(|| refuse("repeat", "must be 0 to 100"))?,
        Some(_) => return Err(refuse("repeat", "must be 0 to 100")),
    };
    let project = match value("project") {
        None => None,
        Some(Raw::Text(name)) if is_name(name) => Some(name.to_owned()),
        Some(_) => return Err(refuse("project", "must be 1 to 64 letters, digits, `_` or `-`")),
    };
    Ok(Step { after, targets, repeat, project })
}

fn read_key(table: &DeTable<'_>, start: &Place, place: PlaceOf<'_>) -> Result<KeyEntry, ConfigError> {
    const MEMBERS: &[&str] = &["id", "project", "scopes", "sha256", "pool", "account", "balance"];
    check_members(table, MEMBERS, place)?;
    let refuse = |name: &str, problem: &str| {
        let at = entry(table, name).map_or_else(|| start.clone(), |(key, _)| place(key.span().start));
        wrong(at, &format!("keys.{name}"), problem)
    };
    let text = |name: &str| entry(table, name).and_then(|(_, value)| value.get_ref().as_str());
    let name = |member: &str| {
        text(member)
            .filter(|text| is_name(text))
            .map(str::to_owned)
            .ok_or_else(|| refuse(member, "must be 1 to 64 letters, digits, `_` or `-`"))
    };
    let scopes = match entry(table, "scopes").map(|(_, value)| raw(value.get_ref())) {
        Some(Raw::List(names)) if !names.is_empty() => names.into_iter().map(Scope::from_name).collect(),
        _ => None,
    };
    let pool = match entry(table, "pool").map(|(_, value)| value.get_ref()) {
        None => false,
        Some(DeValue::Boolean(pool)) => *pool,
        Some(_) => return Err(refuse("pool", "must be true or false")),
    };
    let account = match entry(table, "account") {
        None => Account::Active,
        Some(_) => text("account")
            .and_then(Account::from_name)
            .ok_or_else(|| refuse("account", "must be one of: active, deactivated, insufficient_balance"))?,
    };
    let balance = match entry(table, "balance").map(|(_, value)| value.get_ref()) {
        None => None,
        Some(DeValue::Float(number)) => number.as_str().parse().ok().filter(|number: &f64| number.is_finite()),
        Some(DeValue::Integer(number)) => number.as_str().parse().ok(),
        Some(_) => return Err(refuse("balance", "must be a number of US dollars")),
    };
    Ok(KeyEntry {
        id: name("id")?,
        project: name("project")?,
        scopes: scopes.ok_or_else(|| refuse("scopes", "must be a list of: publish, watch, answer, control, admin"))?,
        sha256: text("sha256")
            .and_then(KeyDigest::from_hex)
            .ok_or_else(|| refuse("sha256", "must be the 64 hexadecimal digits of the key's SHA-256"))?,
        pool,
        account,
        balance,
    })
}

fn raw<'a>(value: &'a DeValue<'_>) -> Raw<'a> {
    match value {
        DeValue::String(text) => Raw::Text(text),
        DeValue::Boolean(flag) => Raw::Boolean(*flag),
        DeValue::Integer(integer) => {
            i64::from_str_radix(integer.as_str(), integer.radix()).map_or(Raw::Other, Raw::Integer)
        }
        DeValue::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(|item| item.get_ref().as_str()).collect();
            items.map_or(Raw::Other, Raw::List)
        }
        _ => Raw::Other,
    }
}

fn entry<'t, 'a>(
    table: &'t DeTable<'a>,
    name: &str,
) -> Option<(&'t Spanned<toml::de::DeString<'a>>, &'t Spanned<DeValue<'a>>)> {
    table.iter().find(|(key, _)| key.get_ref() == name)
}

fn apply(
    config: &mut Config,
    setting: &Setting,
    raw: &Raw<'_>,
    place: impl FnOnce() -> Place,
) -> Result<(), ConfigError> {
    (setting.set)(config, raw).map_err(|problem| wrong(place(), setting.name, &problem))
}

fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

fn names() -> Vec<&'static str> {
    SETTINGS.iter().map(|setting| setting.name).chain(TABLES.iter().copied()).collect()
}

fn wrong(place: Place, key: &str, problem: &str) -> ConfigError {
    ConfigError::WrongValue { place, key: key.to_owned(), problem: problem.to_owned() }
}

fn unknown(place: Place, key: &str, known: &[&str]) -> ConfigError {
    ConfigError::UnknownKey { place, key: key.to_owned(), nearest: nearest(key, known) }
}

/// The name that was probably meant: the most alike, or one that is right but for its table.
fn nearest(wrong: &str, known: &[&str]) -> Option<String> {
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned);
    let alike = |name: &str| {
        let whole = strsim::jaro_winkler(wrong, name);
        let ends = if last(wrong) == last(name) { 1.0 } else { 0.0 };
        whole.max(ends)
    };
    let best = known.iter().map(|name| (alike(name), name)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.75).then(|| (*best.1).to_owned())
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests;

//! Members of an object a client sent, by the type that they must have.

use serde_json::{Map, Value};

use super::Problem;

/// A member that is `null` is not there.
pub(super) trait Members {
    fn has(&self, name: &str) -> bool;
    /// Removes a member, a `null` too.
    fn take(&mut self, name: &str) -> Option<Value>;
    fn take_text(&mut self, name: &str) -> Result<Option<String>, Problem>;
    fn take_flag(&mut self, name: &str) -> Result<bool, Problem>;
    /// A whole number, brought into the range. What is less than nothing is refused.
    fn take_number(&mut self, name: &str, range: (u64, u64)) -> Result<Option<u64>, Problem>;
    /// Checks a text that stays where it is.
    fn text(&mut self, name: &str) -> Result<(), Problem>;
    /// Checks an array of texts that stays where it is.
    fn texts(&mut self, name: &str, most: usize) -> Result<(), Problem>;
    /// Checks a text of a short list that stays where it is.
    fn one_of(&mut self, name: &str, words: &[&str]) -> Result<(), Problem>;
}

impl Members for Map<String, Value> {
    fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !value.is_null())
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.shift_remove(name).filter(|value| !value.is_null())
    }

    fn take_text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Problem::parameter(name, "must be a string")),
        }
    }

    fn take_flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(Problem::parameter(name, "must be true or false")),
        }
    }

    fn take_number(&mut self, name: &str, (low, high): (u64, u64)) -> Result<Option<u64>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Number(number)) => clamped(name, &number, low, high).map(Some),
            Some(_) => Err(Problem::parameter(name, "must be a number").with("min", low).with("max", high)),
        }
    }

    fn text(&mut self, name: &str) -> Result<(), Problem> {
        if let Some(text) = self.take_text(name)? {
            self.insert(name.to_owned(), text.into());
        }
        Ok(())
    }

    fn texts(&mut self, name: &str, most: usize) -> Result<(), Problem> {
        let Some(said) = self.take(name) else { return Ok(()) };
        let is_text = |item: &Value| item.as_str().is_some_and(|text| !text.is_empty());
        let Some(items) = said.as_array().filter(|items| items.iter().all(is_text)) else {
            return Err(Problem::parameter(name, "must be an array of strings that are not empty"));
        };
        if items.len() > most {
            return Err(Problem::parameter(name, &format!("must have at most {most} items")).with("max", most));
        }
        self.insert(name.to_owned(), said);
        Ok(())
    }

    fn one_of(&mut self, name: &str, words: &[&str]) -> Result<(), Problem> {
        let Some(said) = self.take(name) else { return Ok(()) };
        if !said.as_str().is_some_and(|said| words.contains(&said)) {
            return Err(Problem::parameter(name, &format!("must be one of: {}", words.join(", "))));
        }
        self.insert(name.to_owned(), said);
        Ok(())
    }
}

fn clamped(name: &str, number: &serde_json::Number, low: u64, high: u64) -> Result<u64, Problem> {
    let with =
        |problem: &str| Problem::parameter(name, problem).with("value", Value::Number(number.clone())).with("min", low);
    if let Some(whole) = number.as_u64() {
        return Ok(whole.clamp(low, high));
    }
    match number.as_f64() {
        Some(below) if below < 0.0 => Err(with(&format!("must be at least {low}"))),
        Some(above) if above >= high as f64 => Ok(high),
        // `60000.0`, as some languages write it, is a whole number too.
        Some(whole) if whole.fract() == 0.0 => Ok((whole as u64).clamp(low, high)),
        _ => Err(with("must be a whole number")),
    }
}

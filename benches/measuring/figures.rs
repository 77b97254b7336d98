//! Figures of several rounds: medians with their spread, as a table for people and as JSON for machines.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// Times of many like things.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The time that this share of all stayed below, in ms; 0 where there is none.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let mut times = self.0.clone();
        times.sort_unstable();
        let place = (times.len() as f64 * share) as usize;
        times.get(place.min(times.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    }
}

/// One table: what was measured is in the rows, the ways in which it was measured are the columns.
pub(crate) struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<(String, Vec<Vec<f64>>)>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { title: title.into(), columns: columns.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds what one round found.
    pub(crate) fn add(&mut self, column: &str, row: &str, figure: f64) {
        let Some(column) = self.columns.iter().position(|name| name == column) else { return };
        let found = self.rows.iter().position(|(name, _)| name == row);
        let place = found.unwrap_or_else(|| {
            self.rows.push((row.to_owned(), vec![Vec::new(); self.columns.len()]));
            self.rows.len() - 1
        });
        self.rows[place].1[column].push(figure);
    }

    /// Adds a row of ratios to the figures that one column has in the same round.
    pub(crate) fn compare(&mut self, row: &str, with: &str) {
        let Some(base) = self.columns.iter().position(|name| name == with) else { return };
        let Some((_, cells)) = self.rows.iter().find(|(name, _)| name == row) else { return };
        let ratios = |cell: &Vec<f64>| cell.iter().zip(&cells[base]).map(|(figure, base)| figure / base).collect();
        let ratios = cells.iter().map(ratios).collect();
        self.rows.push((format!("{row}: × {with}"), ratios));
    }

    pub(crate) fn print(&self) {
        let head = std::iter::once(self.title.clone()).chain(self.columns.iter().cloned()).collect();
        let rows = self.rows.iter().map(|(name, cells)| {
            std::iter::once(name.clone()).chain(cells.iter().map(|cell| shown(cell))).collect::<Vec<_>>()
        });
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..=self.columns.len()).map(width).collect();
        for (number, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} |"));
            println!("|{}", cells.collect::<String>());
            if number == 0 {
                let rule = widths.iter().map(|width| format!(" {} |", "-".repeat(*width)));
                println!("|{}", rule.collect::<String>());
            }
        }
        println!();
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|(name, cells)| {
            let cells = self.columns.iter().cloned().zip(cells.iter().map(|cell| json!(cell)));
            (name.clone(), Value::Object(cells.collect()))
        });
        json!({ "title": self.title, "figures": rows.collect::<Map<_, _>>() })
    }
}

/// The least, the median and the greatest.
fn spread(figures: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (least, greatest) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
    Some((least, median, greatest))
}

fn shown(figures: &[f64]) -> String {
    match spread(figures) {
        None => String::new(),
        Some((least, _, greatest)) if least == greatest => number(least),
        Some((least, median, greatest)) => format!("{} ({}–{})", number(median), number(least), number(greatest)),
    }
}

fn number(figure: f64) -> String {
    match figure.abs() {
        large if large >= 100.0 => format!("{figure:.0}"),
        middle if middle >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

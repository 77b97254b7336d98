//! The table for people and the same figures for machines.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::scenarios::Figures;

/// One part of the table: its title, and the figures of each store.
pub type Part = (String, Vec<Figures>);

pub fn render(stores: &[String], parts: &[Part]) -> String {
    let mut text = String::new();
    for (title, columns) in parts {
        let mut rows = vec![std::iter::once(title.clone()).chain(stores.iter().cloned()).collect()];
        rows.extend(rows_of(columns));
        let widths: Vec<usize> = (0..=stores.len()).map(|column| width(&rows, column)).collect();
        for (number, row) in rows.iter().enumerate() {
            line(&mut text, row, &widths);
            if number == 0 {
                let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
                line(&mut text, &rule, &widths);
            }
        }
        text.push('\n');
    }
    text
}

fn line(text: &mut String, cells: &[String], widths: &[usize]) {
    for (cell, width) in cells.iter().zip(widths) {
        let _ = write!(text, "| {cell:<width$} ");
    }
    text.push_str("|\n");
}

fn width(rows: &[Vec<String>], column: usize) -> usize {
    rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
}

/// One row for each figure that any of the stores has: its name, then the cells.
fn rows_of(columns: &[Figures]) -> Vec<Vec<String>> {
    let mut names: Vec<&String> = Vec::new();
    for name in columns.iter().flat_map(Figures::keys) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let cells = |name: &str| columns.iter().map(|figures| figures.get(name).map_or_else(String::new, cell)).collect();
    names.into_iter().map(|name| [vec![name.clone()], cells(name)].concat()).collect()
}

fn cell(figure: &Value) -> String {
    match figure.as_f64() {
        Some(number) if number >= 100.0 => format!("{number:.0}"),
        Some(number) if number >= 10.0 => format!("{number:.1}"),
        Some(number) => format!("{number:.2}"),
        None => figure.as_str().unwrap_or("").to_owned(),
    }
}

pub fn json(stores: &[String], parts: &[Part]) -> Value {
    let part = |(title, columns): &Part| {
        let by_store: serde_json::Map<String, Value> =
            stores.iter().cloned().zip(columns.iter().cloned().map(Value::Object)).collect();
        json!({ "scenario": title, "stores": by_store })
    };
    Value::Array(parts.iter().map(part).collect())
}

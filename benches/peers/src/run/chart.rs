//! A picture of the table: a self-contained SVG, as wide as a phone, for light and dark pages.

use std::fmt::Write;

use super::{
    report::{Part, Report, number},
    rounds::Spread,
};
use crate::spec::Job;

const WIDTH: f64 = 380.0;
const LEFT: f64 = 122.0;
const RIGHT: f64 = 304.0;
const ROW: f64 = 24.0;
const BAR: f64 = 14.0;

const STYLE: &str = "
  .page { fill: #ffffff; } text { fill: #1f2328; font: 13px system-ui, sans-serif; }
  .title { font-weight: 600; font-size: 14px; } .small { font-size: 11px; fill: #59636e; }
  .own { fill: #0a6ed1; } .other { fill: #afb8c1; } .spread, .floor { stroke: #59636e; }
  .floor { stroke-dasharray: 3 3; } .name-own { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; } text { fill: #e6edf3; } .small { fill: #9198a1; }
    .own { fill: #4c9aff; } .other { fill: #57606a; } .spread, .floor { stroke: #9198a1; }
  }";

/// A connection that costs less cannot be told from one that costs nothing.
const LEAST_KIB: f64 = 0.01;

/// One bar, and what the rounds differ by.
struct Bar {
    name: &'static str,
    own: bool,
    value: Spread,
}

struct Panel {
    title: String,
    unit: &'static str,
    bars: Vec<Bar>,
    /// Where the floor is, if it is the measure.
    floor: Option<f64>,
}

pub(crate) fn draw(report: &Report) -> String {
    let panels: Vec<Panel> = report.parts.iter().filter_map(panel).collect();
    let (mut body, mut y) = (String::new(), 24.0);
    text(&mut body, "title", 12.0, y, "The CPU of a delivered event");
    y += 18.0;
    text(&mut body, "small", 12.0, y, "server CPU, × a bare loop of joined writes; shorter is better");
    for panel in &panels {
        y = panel.draw(&mut body, y + 28.0);
    }
    y += 26.0;
    text(&mut body, "small", 12.0, y, &format!("{}, {}", report.date, short(&report.machine)));
    y += 14.0;
    text(&mut body, "small", 12.0, y, "medians of clean rounds; thin lines: least to greatest; log scale");
    if report.quick {
        y += 14.0;
        text(&mut body, "small", 12.0, y, "a quick look: no figure is to be believed");
    }
    let height = y + 14.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"Onlooker beside other servers\">\n<style>{STYLE}\n</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"8\"/>\n{body}</svg>\n"
    )
}

/// Works that others take part in; the rest are Onlooker's alone.
fn panel(part: &Part) -> Option<Panel> {
    let idle = part.work.entries.iter().any(|entry| matches!(entry.job, Job::Idle(_)));
    if !idle && !matches!(part.work.name, "a" | "a'" | "b" | "c") {
        return None;
    }
    let bars = part.work.entries.iter().enumerate().filter_map(|(number, entry)| {
        let value = part.spread_of(number, |sample| match idle {
            true => Some((sample.figures.connection_bytes / 1024.0).max(LEAST_KIB)),
            false => sample.ratio(|figures| figures.cpu_us),
        })?;
        Some(Bar { name: entry.label, own: entry.peer.is_onlooker(), value })
    });
    let mut bars: Vec<Bar> = bars.collect();
    bars.sort_by(|one, other| one.value.median.total_cmp(&other.value.median));
    let (unit, floor) = if idle { (" KiB", None) } else { ("", Some(1.0)) };
    let what = if idle { ", memory of each" } else { "" };
    let title = format!("{} · {}{what}", part.work.name, part.work.title);
    (!bars.is_empty()).then_some(Panel { title, unit, bars, floor })
}

impl Panel {
    /// Returns where it ends.
    fn draw(&self, body: &mut String, top: f64) -> f64 {
        text(body, "title", 12.0, top, &self.title);
        let scale = self.scale();
        let bottom = top + 8.0 + ROW * self.bars.len() as f64;
        for (number, bar) in self.bars.iter().enumerate() {
            self.bar(body, bar, top + 8.0 + ROW * number as f64, &scale);
        }
        if let Some(floor) = self.floor {
            line(body, "floor", [scale(floor), top + 6.0], [scale(floor), bottom]);
        }
        bottom
    }

    fn bar(&self, body: &mut String, bar: &Bar, y: f64, scale: &impl Fn(f64) -> f64) {
        let Spread { least, median, greatest } = bar.value;
        let (class, name_class) = if bar.own { ("own", "name-own") } else { ("other", "name") };
        let (middle, base) = (y + ROW / 2.0, y + ROW / 2.0 + 4.5);
        text(body, name_class, 12.0, base, bar.name);
        let (top, width) = (middle - BAR / 2.0, (scale(median) - LEFT).max(1.0));
        let _ = writeln!(
            body,
            "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>"
        );
        line(body, "spread", [scale(least), middle], [scale(greatest), middle]);
        let value = format!("{}{}", number(median), self.unit);
        text(body, "value", scale(greatest.max(median)) + 6.0, base, &value);
    }

    /// From a figure to its place, by its logarithm.
    fn scale(&self) -> impl Fn(f64) -> f64 + use<> {
        let ends = self.bars.iter().map(|bar| bar.value);
        let least = ends.clone().map(|value| value.least).chain(self.floor).fold(f64::INFINITY, f64::min) * 0.6;
        let greatest = ends.map(|value| value.greatest).chain(self.floor).fold(0.0, f64::max);
        let (least, range) = (least.ln(), (greatest.ln() - least.ln()).max(0.1));
        move |figure: f64| LEFT + (RIGHT - LEFT) * ((figure.ln() - least) / range).clamp(0.0, 1.0)
    }
}

fn text(body: &mut String, class: &str, x: f64, y: f64, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>");
}

fn line(body: &mut String, class: &str, from: [f64; 2], to: [f64; 2]) {
    let ([x1, y1], [x2, y2]) = (from, to);
    let _ = writeln!(body, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
}

/// What fits on one line.
fn short(words: &str) -> String {
    const MOST: usize = 52;
    if words.chars().count() <= MOST { words.to_owned() } else { words.chars().take(MOST - 1).chain(['…']).collect() }
}

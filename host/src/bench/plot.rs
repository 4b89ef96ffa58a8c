// SPDX-License-Identifier: Apache-2.0
//! A report as a picture: a percentile curve for every time, its stages as bars along it, other quantities as bars. Plain
//! SVG, readable on light and dark grounds, no script.

use std::fmt::Write as _;

use super::stats::float;
use super::{Report, Series, Unit};

const WIDTH_PX: f64 = 980.0;
/// Where the names end and the plots begin.
const LEFT_PX: f64 = 190.0;
/// Where plots end.
const RIGHT_PX: f64 = 700.0;
const CURVES_PX: f64 = 170.0;
const ROW_PX: f64 = 18.0;
/// What a panel has above it for its heading, and below it.
const HEAD_PX: f64 = 26.0;
const FOOT_PX: f64 = 30.0;
/// Told apart by people who see no red or no green too.
const COLORS: [&str; 8] = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#ee8866"];

/// The whole picture.
#[must_use]
pub fn svg(report: &Report) -> String {
    let mut page = Page { report, top: 64.0, body: String::new() };
    let mut times: Vec<&str> = Vec::new();
    for series in report.series.iter().filter(|series| series.unit == Unit::Us) {
        if !times.contains(&series.what.as_str()) {
            times.push(&series.what);
        }
    }
    for what in times {
        page.curves(what);
    }
    report.series.iter().for_each(|series| page.stages(series));
    for unit in [Unit::Kib, Unit::KibPerS, Unit::PerS] {
        page.bars(unit);
    }
    let (height, place) = (page.top, report.place());
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH_PX} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH_PX}\" height=\"{height:.0}\" fill=\"#ffffff\"/>\n"
    );
    for (y, line) in (0..).zip(std::iter::once(report.title.as_str()).chain(place.lines())) {
        out.push_str(&label(12.0, 20.0 + 16.0 * float(y), "start", line));
    }
    out + &page.body + "</svg>\n"
}

/// A picture in the making.
struct Page<'a> {
    report: &'a Report,
    /// Where the next panel begins.
    top: f64,
    body: String,
}

impl Page<'_> {
    fn put(&mut self, text: &str) {
        self.body.push_str(text);
    }

    fn color(&self, who: &str) -> &'static str {
        let mut names: Vec<&str> = Vec::new();
        for series in &self.report.series {
            if !names.contains(&series.who.as_str()) {
                names.push(&series.who);
            }
        }
        COLORS[names.iter().position(|name| *name == who).unwrap_or(0) % COLORS.len()]
    }

    fn figure(&self, unit: Unit, value: u64) -> String {
        format!("{:.2} {}", unit.shown(value), unit.name(self.report.clock))
    }

    fn heading(&mut self, text: &str) {
        self.top += HEAD_PX;
        self.put(&label(12.0, self.top - 10.0, "start", text));
    }

    /// All series of one time: how much of them lies below a value.
    fn curves(&mut self, what: &str) {
        let all = || self.report.series.iter().filter(|series| series.unit == Unit::Us && series.what == what);
        let values = || all().flat_map(|series| series.samples.iter().map(|sample| sample.value.max(1)));
        let (Some(least), Some(most)) = (values().min(), values().max()) else { return };
        let scale = Log::new(least, most);
        let series: Vec<&Series> = all().collect();
        self.heading(&format!("{}: share of runs that took no longer", what.replace('_', " ")));
        let (top, bottom) = (self.top, self.top + CURVES_PX);
        for percent in [0_u32, 25, 50, 75, 100] {
            let y = bottom - CURVES_PX * f64::from(percent) / 100.0;
            self.put(&line(LEFT_PX, y, RIGHT_PX, y));
            self.put(&label(LEFT_PX - 8.0, y + 4.0, "end", &format!("{percent} %")));
        }
        for us in scale.steps() {
            let x = scale.x(us);
            self.put(&line(x, top, x, bottom));
            self.put(&label(x, bottom + 14.0, "middle", &self.figure(Unit::Us, us)));
        }
        for (row, series) in (1..).zip(series) {
            let mut sorted: Vec<u64> = series.samples.iter().map(|sample| sample.value).collect();
            sorted.sort_unstable();
            let count = float(sorted.len() as u64);
            let mut points = String::new();
            for (done, us) in (1..).zip(&sorted) {
                let y = |done: u64| bottom - CURVES_PX * float(done) / count;
                // Writing to a string cannot fail.
                let _ = write!(points, "{0:.1},{1:.1} {0:.1},{2:.1} ", scale.x(*us), y(done - 1), y(done));
            }
            let color = self.color(&series.who);
            self.put(&format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.6\"/>\n",
                points.trim_end()
            ));
            let figures = series.figures();
            let text = format!("{}: {}", series.who, self.figure(Unit::Us, figures.p50));
            self.put(&swatch(RIGHT_PX + 8.0, top + ROW_PX * float(row) - 9.0, color));
            self.put(&label(RIGHT_PX + 22.0, top + ROW_PX * float(row), "start", &text));
        }
        self.top = bottom + FOOT_PX;
    }

    /// Where a series spends its time: each stage from the one before it.
    fn stages(&mut self, series: &Series) {
        let stages = series.stages();
        let Some(longest) = stages.iter().map(|(_, us)| *us).max().filter(|us| *us > 0) else { return };
        self.heading(&format!("{}, {}: its stages, p50", series.who, series.what.replace('_', " ")));
        let x = |us: u64| LEFT_PX + (RIGHT_PX - LEFT_PX) * float(us) / float(longest);
        let (mut before_us, color) = (0, self.color(&series.who));
        for (name, us) in stages {
            let (y, from, to) = (self.top, x(before_us), x(us));
            self.put(&bar(from, y, to - from, color));
            self.put(&label(LEFT_PX - 8.0, y + 11.0, "end", &name));
            let step = us - before_us;
            self.put(&label(
                to + 5.0,
                y + 11.0,
                "start",
                &format!("{} (+{:.2})", self.figure(Unit::Us, us), Unit::Us.shown(step)),
            ));
            self.top += ROW_PX;
            before_us = us;
        }
        self.top += FOOT_PX / 2.0;
    }

    /// The medians of one unit, and how far the samples reach.
    fn bars(&mut self, unit: Unit) {
        let series: Vec<&Series> = self.report.series.iter().filter(|series| series.unit == unit).collect();
        let Some(most) = series.iter().map(|series| series.figures().max).max().filter(|most| *most > 0) else {
            return;
        };
        self.heading(&format!("{}, p50; the line is from least to most", unit.name(self.report.clock)));
        let x = |value: u64| LEFT_PX + (RIGHT_PX - LEFT_PX) * float(value) / float(most);
        for series in series {
            let (y, figures, color) = (self.top, series.figures(), self.color(&series.who));
            self.put(&bar(LEFT_PX, y, x(figures.p50) - LEFT_PX, color));
            self.put(&format!(
                "<line x1=\"{:.1}\" y1=\"{2:.1}\" x2=\"{:.1}\" y2=\"{2:.1}\" stroke=\"#222222\"/>\n",
                x(figures.min),
                x(figures.max),
                y + 7.0
            ));
            self.put(&label(
                LEFT_PX - 8.0,
                y + 11.0,
                "end",
                &format!("{}, {}", series.who, series.what.replace('_', " ")),
            ));
            self.put(&label(x(figures.max) + 5.0, y + 11.0, "start", &self.figure(unit, figures.p50)));
            self.top += ROW_PX;
        }
        self.top += FOOT_PX / 2.0;
    }
}

/// A logarithmic axis over these microseconds.
struct Log {
    from: f64,
    to: f64,
}

impl Log {
    fn new(least: u64, most: u64) -> Self {
        let (from, to) = (float(least).ln(), float(most).ln());
        // A single value stands in the middle.
        if to - from < 0.1 { Self { from: from - 0.5, to: to + 0.5 } } else { Self { from, to } }
    }

    fn x(&self, us: u64) -> f64 {
        LEFT_PX + (RIGHT_PX - LEFT_PX) * (float(us.max(1)).ln() - self.from) / (self.to - self.from)
    }

    /// Round values on the axis, not too many of them.
    fn steps(&self) -> Vec<u64> {
        let inside = |us: &u64| (self.from..=self.to).contains(&float(*us).ln());
        let of = |digits: &'static [u64]| -> Vec<u64> {
            let powers = (0..12).map(|exponent| 10_u64.pow(exponent));
            powers.flat_map(|power| digits.iter().map(move |digit| digit * power)).filter(inside).collect()
        };
        let choices = [of(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), of(&[1, 2, 5]), of(&[1, 3]), of(&[1])];
        choices.into_iter().find(|steps| steps.len() <= 7).unwrap_or_default()
    }
}

fn label(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222222\">{}</text>\n", safe(text))
}

/// Text that cannot end its element.
pub(super) fn safe(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn line(x1: f64, y1: f64, x2: f64, y2: f64) -> String {
    format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#dddddd\"/>\n")
}

fn bar(x: f64, y: f64, width: f64, color: &str) -> String {
    format!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"14\" fill=\"{color}\"/>\n", width.max(1.0))
}

fn swatch(x: f64, y: f64, color: &str) -> String {
    format!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"10\" height=\"10\" fill=\"{color}\"/>\n")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn picture_is_whole_and_names_everybody() {
        let picture = svg(&report());
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        assert_eq!(picture.matches("<polyline").count(), 2);
        for part in ["midge: 22.00 ms", "qemu, old: 44.00 ms", "early", "late", "+21.99", "own memory", "0.88 MiB"] {
            assert!(picture.contains(part), "no `{part}`");
        }
        assert_eq!(picture.matches('<').count(), picture.matches('>').count());
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }

    #[test]
    fn text_cannot_break_the_picture() {
        assert!(label(0.0, 0.0, "end", "<script>&\"").contains("&lt;script&gt;&amp;&quot;"));
    }

    #[test]
    fn steps_are_round_and_few() {
        for (least, most) in [(1, 1), (9, 23), (900, 70_000), (1_400, 140_000), (1, 999_999_999)] {
            let steps = Log::new(least, most).steps();
            assert!(steps.len() <= 7, "{least} to {most}: {steps:?}");
            assert!(steps.iter().all(|step| step.to_string().trim_end_matches('0').len() <= 1), "{steps:?}");
        }
        assert_eq!(Log::new(900, 70_000).steps(), [1_000, 2_000, 5_000, 10_000, 20_000, 50_000]);
    }

    #[test]
    fn bench_without_runs_gives_a_picture_all_the_same() {
        let mut empty = report();
        empty.series.clear();
        assert!(svg(&empty).contains("</svg>"));
        empty.add(Series::new("midge", "zero", Unit::Us, [0]));
        empty.add(Series::new("midge", "none", Unit::Kib, [0]));
        assert!(!svg(&empty).contains("NaN"));
    }
}

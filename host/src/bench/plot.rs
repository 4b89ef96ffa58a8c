// SPDX-License-Identifier: Apache-2.0
//! The bench as a picture: every run a dot, p50 to p99 a bar, and Midge's stages along their time. Plain SVG,
//! readable on light and dark grounds, no script.

use std::fmt::Write;

use super::{BootReport, Clock, Series};

const WIDTH_PX: u64 = 860;
const LEFT_PX: u64 = 130;
const ROW_PX: u64 = 54;
const TOP_PX: u64 = 56;

/// The whole picture.
#[must_use]
pub fn svg(report: &BootReport) -> String {
    let longest = report.series.iter().map(last).max().unwrap_or(1).max(1);
    let scale = Scale { longest_us: longest + longest / 20, unit: report.clock.unit() };
    let stages = report.series.first().map(Series::stages).unwrap_or_default();
    let rows = u64::try_from(report.series.len()).unwrap_or(0);
    let stages_top = TOP_PX + rows * ROW_PX + 46;
    let height = stages_top + 20 * u64::try_from(stages.len()).unwrap_or(0) + 40;
    let by = if report.clock == Clock::Instructions { ", in millions of instructions (Mi)" } else { "" };
    let mut out = String::new();
    let mut put = |text: String| out.push_str(&text);
    put(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH_PX} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH_PX}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    ));
    put(label(
        12,
        22,
        "start",
        &format!("Cold boot to the guest's first words, n = {}, {} MiB{by}", report.runs, report.mem_mib),
    ));
    let machine = &report.machine;
    put(label(
        12,
        40,
        "start",
        &format!("{}, Linux {}, {}", machine.processor, machine.host_kernel, machine.kvm_modules.join(" + ")),
    ));
    put(grid(&scale, TOP_PX, TOP_PX + rows * ROW_PX));
    for (row, series) in (0..).zip(&report.series) {
        put(strip(&scale, series, TOP_PX + row * ROW_PX));
    }
    if !stages.is_empty() {
        put(label(12, stages_top - 8, "start", "Stages of midge, p50, from the monitor's start"));
    }
    let mut before_us = 0;
    for (row, (name, us)) in (0..).zip(&stages) {
        let (y, from, to) = (stages_top + row * 20, scale.x(before_us), scale.x(*us));
        put(format!(
            "<rect x=\"{from}\" y=\"{y}\" width=\"{}\" height=\"14\" fill=\"#4c78a8\"/>\n",
            (to - from).max(1)
        ));
        put(label(LEFT_PX - 8, y + 11, "end", name));
        put(label(to + 5, y + 11, "start", &scale.text(*us)));
        before_us = *us;
    }
    put("</svg>\n".to_owned());
    out
}

struct Scale {
    longest_us: u64,
    unit: &'static str,
}

impl Scale {
    fn x(&self, us: u64) -> u64 {
        LEFT_PX + us.min(self.longest_us) * (WIDTH_PX - LEFT_PX - 90) / self.longest_us
    }

    fn text(&self, us: u64) -> String {
        format!("{}.{:02} {}", us / 1000, us % 1000 / 10, self.unit)
    }

    /// A round step that gives four to ten lines.
    fn step_us(&self) -> u64 {
        let mut step = 1;
        while self.longest_us / step > 10 {
            step *= if step.to_string().starts_with('2') { 5 } else { 2 };
            step = if step.to_string().starts_with('4') { step / 4 * 5 } else { step };
        }
        step
    }
}

/// The latest value a series shows.
fn last(series: &Series) -> u64 {
    series.first_output().max.max(series.first_reply().map_or(0, |figures| figures.max))
}

fn label(x: u64, y: u64, anchor: &str, text: &str) -> String {
    let safe = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" fill=\"#222222\">{safe}</text>\n")
}

fn grid(scale: &Scale, top: u64, bottom: u64) -> String {
    let mut out = String::new();
    let step = scale.step_us();
    for line in 0..=scale.longest_us / step {
        let x = scale.x(line * step);
        // Writing to a string cannot fail.
        let _ = writeln!(out, "<line x1=\"{x}\" y1=\"{top}\" x2=\"{x}\" y2=\"{bottom}\" stroke=\"#dddddd\"/>");
        out.push_str(&label(x, bottom + 14, "middle", &scale.text(line * step)));
    }
    out
}

/// One contender: dots of all runs, the bar from p50 to p99, the median in figures.
fn strip(scale: &Scale, series: &Series, top: u64) -> String {
    let mut out = label(LEFT_PX - 8, top + 24, "end", series.name);
    let reply = series.first_reply();
    let figures = reply.unwrap_or_else(|| series.first_output());
    let color = if reply.is_some() { "#e45756" } else { "#72777f" };
    for (index, run) in series.runs.iter().enumerate() {
        let x = scale.x(run.first_reply_us.unwrap_or(run.first_output_us));
        let y = top + 10 + u64::try_from(index * 7 % 23).unwrap_or(0);
        let _ = writeln!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"1.6\" fill=\"{color}\" fill-opacity=\"0.55\"/>");
    }
    let (from, to) = (scale.x(figures.p50), scale.x(figures.p99));
    let width = (to - from).max(2);
    let _ = writeln!(out, "<rect x=\"{from}\" y=\"{}\" width=\"{width}\" height=\"6\" fill=\"{color}\"/>", top + 38);
    let event = if reply.is_some() { "first reply" } else { "first output" };
    out + &label(to + 6, top + 45, "start", &format!("{event} {}", scale.text(figures.p50)))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn picture_is_whole_and_names_everybody() {
        let picture = svg(&report());
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        assert_eq!(picture.matches("<circle").count(), 6);
        for part in ["midge", "qemu-microvm", "early", "late", "first reply 22.00 ms"] {
            assert!(picture.contains(part), "no `{part}`");
        }
        assert_eq!(picture.matches('<').count(), picture.matches('>').count());
    }

    #[test]
    fn text_cannot_break_the_picture() {
        assert!(label(0, 0, "end", "<script>&").contains("&lt;script&gt;&amp;"));
    }

    #[test]
    fn steps_are_round_and_few() {
        for longest_us in [1, 9, 23, 70_000, 140_000, 999_999, 12_345_678] {
            let step = Scale { longest_us, unit: "ms" }.step_us();
            assert!(longest_us / step <= 10, "{longest_us} in steps of {step}");
            assert!(matches!(step.to_string().trim_end_matches('0'), "1" | "2" | "5"), "{step}");
        }
    }

    #[test]
    fn bench_without_runs_gives_a_picture_all_the_same() {
        let mut empty = report();
        empty.series.iter_mut().for_each(|series| series.runs.clear());
        assert!(svg(&empty).contains("</svg>"));
    }
}

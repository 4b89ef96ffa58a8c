// SPDX-License-Identifier: Apache-2.0
//! A report as people read it: a table, what follows from it, where the time went, and what the words mean.

use std::fmt::{self, Display, Formatter};

use super::{Aim, Clock, Finding, Report, Series, Unit};

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.clock == Clock::Instructions {
            f.write_str(
                "in an emulated host, whose clock counts instructions: exits and page faults cost nothing in it\n",
            )?;
        }
        writeln!(f, "{}\n{}\n", self.title, self.place())?;
        let (who, what) = (self.width(|series| &series.who), self.width(|series| &series.what));
        let heading = ["p50", "p90", "p99", "max", "n"].map(|name| format!("{name:>9}")).join(" ");
        writeln!(f, "{:who$}  {:what$}  {:5} {heading}", "", "", "")?;
        for series in self.series.iter().filter(|series| series.unit != Unit::Count) {
            let (unit, figures) = (series.unit, series.figures());
            let shown =
                [figures.p50, figures.p90, figures.p99, figures.max].map(|value| format!("{:>9.2}", unit.shown(value)));
            let what_text = series.what.replace('_', " ");
            let (unit, values) = (unit.name(self.clock), shown.join(" "));
            writeln!(f, "{:who$}  {what_text:what$}  {unit:5} {values} {:>9}", series.who, figures.n)?;
        }
        self.fmt_counts(f)?;
        if !self.findings.is_empty() {
            writeln!(f)?;
        }
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        self.series.iter().try_for_each(|series| self.fmt_stages(f, series))?;
        writeln!(f)?;
        self.events.iter().try_for_each(|(name, meaning)| writeln!(f, "{}: {meaning}", name.replace('_', " ")))
    }
}

impl Report {
    /// What must be said beside a figure for anybody to believe it.
    #[must_use]
    pub fn place(&self) -> String {
        let Self { machine, load_at_start, .. } = self;
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
        format!(
            "{}, {} CPUs, load {load_at_start:.2} at the start, host Linux {}, {}\n\
             nx_huge_pages {}, transparent huge pages {}, cgroup v{}{}, HZ {}",
            machine.processor,
            machine.cpus,
            machine.host_kernel,
            machine.kvm_modules.join(" + "),
            or_unknown(&machine.nx_huge_pages),
            or_unknown(&machine.transparent_huge_pages),
            machine.cgroup_version,
            if machine.favordynmods { " favordynmods" } else { "" },
            or_unknown(&machine.hz.map(|hz| hz.to_string())),
        )
    }

    fn width(&self, of: impl Fn(&Series) -> &String) -> usize {
        self.series.iter().map(|series| of(series).chars().count()).max().unwrap_or(0)
    }

    /// Counters, a line for each who has some.
    fn fmt_counts(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let counts = || self.series.iter().filter(|series| series.unit == Unit::Count);
        let mut done: Vec<&str> = Vec::new();
        for series in counts() {
            if done.contains(&series.who.as_str()) {
                continue;
            }
            done.push(&series.who);
            let own = counts().filter(|other| other.who == series.who);
            let own: Vec<String> = own.map(|own| format!("{} {}", own.what, own.figures().p50)).collect();
            writeln!(f, "{}, counts, p50: {}", series.who, own.join(", "))?;
        }
        Ok(())
    }

    fn fmt_stages(&self, f: &mut Formatter<'_>, series: &Series) -> fmt::Result {
        let stages = series.stages();
        if stages.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\nstages of {}, {}: {} p50, and the step",
            series.who,
            series.what.replace('_', " "),
            self.clock.unit()
        )?;
        let mut before_us = 0;
        for (name, us) in stages {
            writeln!(f, "{:>10.3} {:>+9.3}  {name}", Unit::Us.shown(us), Unit::Us.shown(us.saturating_sub(before_us)))?;
            before_us = us;
        }
        Ok(())
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { text, value, aim } = self;
        write!(f, "{value:>9.3}  {text}")?;
        let (bound, is_met) = match aim {
            None => return Ok(()),
            Some(Aim::AtMost(limit)) => (format!("at most {limit}"), value <= limit),
            Some(Aim::AtLeast(limit)) => (format!("at least {limit}"), value >= limit),
        };
        write!(f, " (aim: {bound}: {})", if is_met { "met" } else { "missed" })
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn table_names_all_that_took_part_and_what_was_aimed_at() {
        let text = report().to_string();
        for part in [
            "a bench for tests",
            "nx_huge_pages",
            "load ",
            "22.00",
            "44.00",
            "first reply over qemu, old's (first output), p50 (aim: at most 0.4: missed)",
            "0.500",
            "midge, counts, p50: exits 2100",
            "stages of midge, first reply: ms p50",
            "+21.990  late",
            "start: the start",
        ] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
    }

    #[test]
    fn instructions_are_not_called_time() {
        let text = Report { clock: Clock::Instructions, ..report() }.to_string();
        assert!(text.contains("Mi p50") && !text.contains(" ms"), "{text}");
    }

    #[test]
    fn aims_are_met_up_to_the_limit() {
        let finding = |aim| Finding { text: "x".into(), value: 0.4, aim: Some(aim) }.to_string();
        assert!(finding(Aim::AtMost(0.4)).ends_with(": met)") && finding(Aim::AtMost(0.39)).ends_with(": missed)"));
        assert!(finding(Aim::AtLeast(0.4)).ends_with(": met)") && finding(Aim::AtLeast(0.41)).ends_with(": missed)"));
    }
}

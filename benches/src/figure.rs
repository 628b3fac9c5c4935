//! A figure: what was measured, how often, with which command, where, at which commit, and what the
//! measured code answered.

use std::fmt::Write as _;
use std::process::Command;

use serde::Serialize;

/// The spread of a figure over its repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these values; all zero where there are none.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or_default();
        Self { min: at(0), median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }
}

/// Where and with what figures are measured.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// The command line.
    pub command: String,
    /// Processor, cores, and how busy they were when the run began.
    pub machine: String,
    /// The commit that is checked out, marked where the tree has changes. It is the binary's only where the
    /// binary was built right before, as `cargo xtask bench` does.
    pub commit: String,
    /// How it was compiled.
    pub profile: &'static str,
}

impl Place {
    /// Here.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let load = read("/proc/loadavg").split(' ').next().unwrap_or("?").to_owned();
        let model = model.unwrap_or(std::env::consts::ARCH);
        let command: Vec<String> = std::env::args().skip(1).collect();
        Self {
            command: format!("cargo xtask bench {}", command.join(" ")).trim_end().to_owned(),
            machine: format!("{model}, {cores} cores, load {load}"),
            commit: commit(),
            profile: if cfg!(debug_assertions) { "dev" } else { "release" },
        }
    }
}

fn commit() -> String {
    let folder = env!("CARGO_MANIFEST_DIR");
    let described = Command::new("git").args(["-C", folder, "describe", "--always", "--dirty", "--abbrev=12"]).output();
    let text = described.ok().filter(|output| output.status.success());
    text.map_or_else(|| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Bench and variant.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// Over the repetitions.
    #[serde(flatten)]
    pub spread: Spread,
    /// Of latencies: one in a hundred took longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// How often it was measured.
    pub repetitions: usize,
    /// Names what was answered; absent where only its sums can be checked.
    pub result: Option<String>,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
}

impl Figure {
    /// The figure of these values.
    #[must_use]
    pub fn new(name: String, unit: &'static str, values: &[f64], result: Option<u64>, place: &Place) -> Self {
        let spread = Spread::of(values);
        let result = result.map(|hash| format!("{hash:016x}"));
        let repetitions = values.len();
        Self { name, value: spread.median, unit, spread, p99: None, repetitions, result, place: place.clone() }
    }

    /// The figure of many latencies in milliseconds, each a repetition of its own.
    #[must_use]
    pub fn latency(name: String, millis: &[f64], place: &Place) -> Self {
        Self { p99: percentile(millis, 99), ..Self::new(name, "ms", millis, None, place) }
    }
}

/// The smallest value that `percent` of all do not exceed; none of none.
fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied()
}

/// Figures as a person reads them.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for figure in figures {
        let Spread { min, median, max } = figure.spread;
        let p99 = figure.p99.map(|p99| format!("p99 {}", amount(p99)));
        let result = p99.as_deref().or(figure.result.as_deref()).unwrap_or("-");
        let name = &figure.name;
        let (min, median, max) = (amount(min), amount(median), amount(max));
        let _ = writeln!(
            text,
            "{name:width$}  {min:>11} / {median:>11} / {max:>11} {:<16} ×{}  {result}",
            figure.unit, figure.repetitions
        );
    }
    if let Some(figure) = figures.first() {
        let Place { command, machine, commit, profile } = &figure.place;
        let _ = writeln!(text, "min / median / max; {machine}; {profile} build of {commit}; {command}");
    }
    text
}

/// Thousands apart; three places below a hundred.
fn amount(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.3}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_names_the_middle_whatever_the_order() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(Spread::of(&[]), Spread { min: 0.0, median: 0.0, max: 0.0 });
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (values, expected) in [
            (&hundred[..], Some(99.0)),
            (&hundred[50..], Some(50.0)), // 1 to 50: the fiftieth is the first that 99 of 100 do not exceed
            (&[7.0][..], Some(7.0)),
            (&[][..], None),
        ] {
            assert_eq!(percentile(values, 99), expected);
        }
    }

    #[test]
    fn amounts_read_well() {
        let cases = [(0.5, "0.500"), (99.25, "99.250"), (100.0, "100"), (1234.4, "1,234"), (1_234_567.0, "1,234,567")];
        for (value, text) in cases {
            assert_eq!(amount(value), text);
        }
    }
}

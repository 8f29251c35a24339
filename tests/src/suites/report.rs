//! The table of runs, natively and in volumes side by side, and the verdict. It must not know how anything is run.

use std::fmt;

use super::{Difference, Known, Outcome, Place, Run, Suite, compare};

/// One run in the table.
#[derive(Clone, Debug)]
pub struct Line {
    suite: &'static str,
    place: Place,
    /// The run, or why there is none.
    run: Result<Run, String>,
    /// In what it differs from the native one, unexpectedly.
    differences: Vec<Difference>,
    /// In what it is known to differ.
    known: Vec<Difference>,
    /// What is listed as known and is not so any more.
    stale: Vec<String>,
}

impl Line {
    /// A run, compared with the native one where it is not that itself. Where there is no native one, nothing can be
    /// said to differ.
    pub fn new(
        suite: &Suite,
        place: Place,
        run: Result<Run, String>,
        native: Option<&Run>,
        known: &Known,
    ) -> Self {
        let (mut differences, mut listed, mut stale) = (Vec::new(), Vec::new(), Vec::new());
        if let (Ok(run), Some(native)) = (&run, native) {
            (listed, differences) = compare(&native.results, &run.results)
                .into_iter()
                .partition(|difference| known.has(suite.name, place.word(), &difference.case));
            stale = known.stale(suite.name, place.word(), &native.results, &run.results);
        }
        Self { suite: suite.name, place, run, differences, known: listed, stale }
    }

    /// Whether all is as it must be.
    pub fn is_well(&self) -> bool {
        self.run.as_ref().is_ok_and(|run| {
            self.differences.is_empty()
                && run.missed.unwrap_or(0) == 0
                && run.restored.as_ref().is_none_or(Vec::is_empty)
        })
    }

    fn cells(&self) -> [String; 10] {
        let [suite, place] = [self.suite, self.place.word()].map(str::to_owned);
        let Ok(run) = &self.run else {
            let none = || "-".to_owned();
            return [suite, place, none(), none(), none(), none(), none(), none(), none(), none()];
        };
        let count = |outcome| run.results.count(outcome).to_string();
        let compared = self.place != Place::Native;
        let only = |is: bool, text: String| if is { text } else { String::new() };
        let restored = run.restored.as_ref().map_or(String::new(), |differences| match differences.len() {
            0 => format!("yes, {} names", run.names),
            differing => format!("NO, {differing} of {} names", run.names),
        });
        [
            suite,
            place,
            count(Outcome::Pass),
            count(Outcome::Fail),
            count(Outcome::Skip),
            only(compared, self.differences.len().to_string()),
            only(compared, self.known.len().to_string()),
            run.missed.map_or(String::new(), |missed| missed.to_string()),
            restored,
            format!("{:.0}", run.took.as_secs_f64()),
        ]
    }

    /// What is not as it must be, and what is known, line by line.
    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let run = match &self.run {
            Ok(run) => run,
            Err(error) => return vec![format!("did not run: {error}")],
        };
        remarks
            .extend(self.differences.iter().take(SHOWN).map(|difference| format!("differs: {difference}")));
        if self.differences.len() > SHOWN {
            remarks.push(format!("differs: {} more", self.differences.len() - SHOWN));
        }
        remarks.extend(self.known.iter().map(|difference| format!("known: {difference}")));
        remarks.extend(self.stale.iter().map(|case| format!("stale in differences.txt: {case}")));
        remarks.extend(run.missed_names.iter().take(SHOWN).map(|line| format!("missed: {line}")));
        let restored = run.restored.iter().flatten();
        remarks.extend(restored.take(SHOWN).map(|difference| format!("restored: {difference}")));
        if !self.is_well() {
            remarks.push(format!("outputs: {}", run.outputs.display()));
        }
        remarks
    }
}

/// All runs so far.
#[derive(Clone, Debug, Default)]
pub struct Report(Vec<Line>);

impl Report {
    /// Adds a run.
    pub fn push(&mut self, line: Line) {
        self.0.push(line);
    }

    /// Whether all is as it must be.
    pub fn is_well(&self) -> bool {
        self.0.iter().all(Line::is_well)
    }
}

/// Lines of one kind that are shown of a run; all of them are in its outputs.
const SHOWN: usize = 40;

const HEAD: [&str; 10] = [
    "suite",
    "place",
    "pass",
    "fail",
    "skip",
    "differs from native",
    "known differences",
    "missed changes",
    "restored equal",
    "secs",
];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<[String; 10]> =
            std::iter::once(HEAD.map(str::to_owned)).chain(self.0.iter().map(Line::cells)).collect();
        let mut widths = [0; 10];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for (number, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "| {} |", cells.collect::<Vec<_>>().join(" | "))?;
            if number == 0 {
                writeln!(f, "|{}|", widths.map(|width| "-".repeat(width + 2)).join("|"))?;
            }
        }
        for line in &self.0 {
            for remark in line.remarks() {
                writeln!(f, "{} {}: {remark}", line.suite, line.place.word())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suites::{Results, SUITES};

    fn run(results: &str) -> Run {
        Run { results: Results::parse(results).unwrap(), ..Run::default() }
    }

    #[test]
    fn what_differs_is_named_and_is_not_well() {
        let [suite, ..] = &SUITES;
        let known = Known::parse(&format!("{} k both is so", suite.name), false).unwrap();
        let native = run("a pass\nb fail\nk pass\n");
        let same = Run { missed: Some(0), restored: Some(Vec::new()), ..native.clone() };
        let known_one = Run { results: Results::parse("a pass\nb fail\nk fail\n").unwrap(), ..same.clone() };
        let other = Run { results: Results::parse("a fail\nb fail\nk fail\n").unwrap(), ..same.clone() };
        let well = |run: Run| Line::new(suite, Place::Identity, Ok(run), Some(&native), &known).is_well();
        assert!(well(same.clone()) && well(known_one) && !well(other.clone()));
        assert!(!well(Run { missed: Some(1), ..same.clone() }));
        assert!(!well(Run { restored: Some(vec!["x: missing".into()]), ..same.clone() }));
        assert!(!Line::new(suite, Place::Native, Err("no".into()), None, &known).is_well());
        let mut report = Report::default();
        report.push(Line::new(suite, Place::Native, Ok(native.clone()), None, &known));
        report.push(Line::new(suite, Place::Translated, Ok(other), Some(&native), &known));
        let text = report.to_string();
        assert!(!report.is_well());
        assert!(
            text.contains("| differs from native |") && text.contains("pjdfstest translated: known: k:"),
            "{text}"
        );
        assert!(text.contains("pjdfstest translated: differs: a: natively pass, here fail"), "{text}");
    }
}

//! The table: what was measured, what was wanted, and whether it was reached. It must not know how anything is
//! measured.

use std::fmt;

/// What a figure must be.
#[derive(Clone, Copy)]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::Below(limit) => value < limit,
        }
    }

    fn text(self, unit: Unit) -> String {
        match self {
            Self::AtMost(limit) => format!("≤ {}", unit.text(limit)),
            Self::AtLeast(limit) => format!("≥ {}", unit.text(limit)),
            Self::Below(limit) => format!("< {}", unit.text(limit)),
        }
    }
}

/// How a figure is written.
#[derive(Clone, Copy)]
pub enum Unit {
    /// A ratio.
    Times,
    /// Nanoseconds, shown in what suits their size.
    Time,
    /// Bytes.
    Bytes,
    /// Bytes per second.
    Rate,
    /// A plain number.
    Number,
}

impl Unit {
    /// A value as it is written.
    pub fn text(self, value: f64) -> String {
        match self {
            Self::Times => format!("{value:.2}×"),
            Self::Time => match value {
                v if v < 1e3 => format!("{v:.0} ns"),
                v if v < 1e6 => format!("{:.2} µs", v / 1e3),
                v if v < 1e9 => format!("{:.2} ms", v / 1e6),
                v => format!("{:.2} s", v / 1e9),
            },
            Self::Bytes => match value {
                v if v < 1_048_576.0 => format!("{:.0} KiB", v / 1024.0),
                v => format!("{:.0} MiB", v / 1_048_576.0),
            },
            Self::Rate => format!("{:.0} MB/s", value / 1e6),
            Self::Number => format!("{value:.2}"),
        }
    }
}

/// One line of the table.
pub struct Row {
    cells: Vec<String>,
    target: String,
    met: Option<bool>,
}

impl Row {
    /// A line of a table with a head of its own: all but the target and the verdict.
    pub fn of(cells: Vec<String>) -> Self {
        Self { cells, target: String::new(), met: None }
    }

    /// A line that compares with native; `ratio` is not always the quotient of the two, since it is taken round by
    /// round.
    pub fn compared(what: &str, unit: Unit, native: f64, storeshim: f64, ratio: f64) -> Self {
        Self::of(vec![what.into(), unit.text(native), unit.text(storeshim), Unit::Times.text(ratio)])
    }

    /// A line without anything to compare with.
    pub fn alone(what: &str, unit: Unit, value: f64) -> Self {
        Self::of(vec![what.into(), String::new(), unit.text(value), String::new()])
    }

    /// The line with a target for `value`, which is what the target is about.
    pub fn wants(mut self, target: Target, unit: Unit, value: f64) -> Self {
        self.target = target.text(unit);
        self.met = Some(target.is_met(value));
        self
    }

    fn cells(&self) -> Vec<String> {
        let verdict = self.met.map_or("", |met| if met { "ok" } else { "missed" });
        self.cells.iter().cloned().chain([self.target.clone(), verdict.into()]).collect()
    }
}

/// The lines so far, and remarks below them.
pub struct Table {
    head: &'static [&'static str],
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Default for Table {
    fn default() -> Self {
        Self::new(&["what", "native", "storeshim", "ratio"])
    }
}

impl Table {
    /// A table with these columns, the target and the verdict.
    pub fn new(head: &'static [&'static str]) -> Self {
        Self { head, rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a line, and shows it at once: the whole takes minutes.
    pub fn push(&mut self, row: Row) {
        eprintln!("  {}", row.cells().join("  "));
        self.rows.push(row);
    }

    /// Adds a remark.
    pub fn note(&mut self, note: String) {
        eprintln!("  {note}");
        self.notes.push(note);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head: Vec<String> =
            self.head.iter().chain(&["target", ""]).map(|&cell| cell.to_owned()).collect();
        let mut widths = vec![0; head.len()];
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for (number, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "| {} |", cells.collect::<Vec<_>>().join(" | "))?;
            if number == 0 {
                writeln!(
                    f,
                    "|{}|",
                    widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("|")
                )?;
            }
        }
        let missed = self.rows.iter().filter(|row| row.met == Some(false)).count();
        let wanted = self.rows.iter().filter(|row| row.met.is_some()).count();
        writeln!(f, "\n{} of {wanted} targets met, {missed} missed.", wanted - missed)?;
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        Ok(())
    }
}

/// The middle of some values; zero where there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_target_is_called_missed() {
        let mut table = Table::default();
        table.push(Row::compared("a", Unit::Time, 100.0, 112.0, 1.12).wants(
            Target::AtMost(1.1),
            Unit::Times,
            1.12,
        ));
        table.push(Row::alone("b", Unit::Bytes, 2048.0).wants(Target::Below(204_800.0), Unit::Bytes, 2048.0));
        table.push(Row::alone("c", Unit::Rate, 3e6).wants(Target::AtLeast(0.8), Unit::Times, 0.8));
        table.push(Row::alone("d", Unit::Time, 2e6));
        let expected = "\
| what | native | storeshim | ratio | target    |        |
|------|--------|-----------|-------|-----------|--------|
| a    | 100 ns | 112 ns    | 1.12× | ≤ 1.10×   | missed |
| b    |        | 2 KiB     |       | < 200 KiB | ok     |
| c    |        | 3 MB/s    |       | ≥ 0.80×   | ok     |
| d    |        | 2.00 ms   |       |           |        |

2 of 3 targets met, 1 missed.
";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}

//! Findings, and how they are shown: for people, with colours on a terminal, or as JSON.

use std::fmt::Write;

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Good,
    /// Worth knowing; nothing is lost by it.
    Note,
    /// Something works less well, or only the audit sees it.
    Warning,
    /// It cannot be told.
    Unknown,
    /// Changes go unseen until an audit, or files in the mount are not found.
    Loss,
}

impl Severity {
    fn mark(self) -> char {
        match self {
            Self::Good => '✓',
            Self::Note => '·',
            Self::Warning => '!',
            Self::Unknown => '?',
            Self::Loss => '✗',
        }
    }

    /// The colour's number in an SGR sequence (ECMA-48).
    fn colour(self) -> u8 {
        match self {
            Self::Good => 32,
            Self::Note => 36,
            Self::Warning | Self::Unknown => 33,
            Self::Loss => 31,
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found: one sentence without a full stop.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// Findings about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Section {
    /// The thing.
    pub title: String,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Section {
    /// An empty section.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), findings: Vec::new() }
    }

    /// Adds a finding.
    pub fn add(&mut self, severity: Severity, text: impl Into<String>) {
        self.findings.push(Finding { severity, text: text.into(), advice: None });
    }

    /// Adds a finding and what to do about it.
    pub fn advise(&mut self, severity: Severity, text: impl Into<String>, advice: impl Into<String>) {
        self.findings.push(Finding { severity, text: text.into(), advice: Some(advice.into()) });
    }

    /// The worst that was found.
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Good)
    }
}

/// Everything that was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// In the order in which they are shown.
    pub sections: Vec<Section>,
}

impl Report {
    /// Exit status: 0 fine, 1 something is lost, 2 it cannot be told.
    pub fn status(&self) -> u8 {
        match self.sections.iter().map(Section::worst).max() {
            Some(Severity::Loss) => 1,
            Some(Severity::Unknown) => 2,
            _ => 0,
        }
    }

    /// For people. Writing to a string cannot fail, so the results are ignored.
    pub fn text(&self, colours: bool) -> String {
        let paint = |severity: Severity, text: &str| match colours {
            true => format!("\x1b[{}m{text}\x1b[0m", severity.colour()),
            false => text.to_owned(),
        };
        let mut out = String::new();
        for section in &self.sections {
            let mark = paint(section.worst(), &format!("[{}]", section.worst().mark()));
            let title =
                if colours { format!("\x1b[1m{}\x1b[0m", section.title) } else { section.title.clone() };
            let _ = writeln!(out, "{mark} {title}");
            for finding in &section.findings {
                let mark = paint(finding.severity, &finding.severity.mark().to_string());
                let _ = writeln!(out, "    {mark} {}", finding.text);
                if let Some(advice) = &finding.advice {
                    let _ = writeln!(out, "      → {advice}");
                }
            }
            out.push('\n');
        }
        let count = |severity: Severity| {
            let all = self.sections.iter().flat_map(|section| &section.findings);
            all.filter(|finding| finding.severity == severity).count()
        };
        let summary = match (count(Severity::Loss), count(Severity::Unknown), count(Severity::Warning)) {
            (0, 0, 0) => paint(Severity::Good, "No trouble found."),
            (0, 0, warnings) => {
                paint(Severity::Good, &format!("Nothing is lost; {}.", number(warnings, "warning")))
            }
            (0, unknown, _) => {
                paint(Severity::Unknown, &format!("{} cannot be told.", number(unknown, "thing")))
            }
            (losses, ..) => {
                let text =
                    format!("{} that the shim will not see or that does not work.", number(losses, "thing"));
                paint(Severity::Loss, &text)
            }
        };
        let _ = writeln!(out, "{summary}");
        out
    }
}

fn number(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_status_follow_the_worst() {
        let mut section = Section::new("ls");
        section.add(Severity::Good, "dynamic, glibc 2.36");
        let mut report = Report { sections: vec![section.clone()] };
        assert_eq!(report.status(), 0);
        assert_eq!(report.text(false), "[✓] ls\n    ✓ dynamic, glibc 2.36\n\nNo trouble found.\n");
        section.advise(Severity::Loss, "it is static", "use the audit");
        section.add(Severity::Unknown, "what");
        report.sections = vec![section];
        assert_eq!(report.status(), 1);
        let text = report.text(false);
        assert!(text.contains("    ✗ it is static\n      → use the audit\n"), "{text}");
        assert!(!text.contains('\x1b') && report.text(true).contains("\x1b[31m"));
    }
}

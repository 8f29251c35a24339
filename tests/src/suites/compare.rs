//! Results of a suite, case by case; in what two runs differ, and which differences are known. It must not know how a
//! suite is run.

use std::collections::BTreeMap;
use std::fmt;

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Pass,
    /// Otherwise.
    Fail,
    /// It was not tried.
    Skip,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Skip => "skip",
        })
    }
}

/// The outcome of every case of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results(BTreeMap<String, Outcome>);

impl Results {
    /// Reads lines `CASE pass|fail|skip`. A name that comes several times stands for several cases.
    ///
    /// # Errors
    /// The first line that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut cases = BTreeMap::new();
        for line in text.lines() {
            let outcome = match line.split_once(' ').map(|(_, word)| word) {
                Some("pass") => Outcome::Pass,
                Some("fail") => Outcome::Fail,
                Some("skip") => Outcome::Skip,
                _ => return Err(format!("not a line `CASE pass|fail|skip`: {line:?}")),
            };
            let name = line.split(' ').next().unwrap_or_default();
            let mut case = name.to_owned();
            for again in 2.. {
                if !cases.contains_key(&case) {
                    break;
                }
                case = format!("{name}#{again}");
            }
            cases.insert(case, outcome);
        }
        Ok(Self(cases))
    }

    /// Cases with this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.0.values().filter(|is| **is == outcome).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A case that ended otherwise than natively.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The case.
    pub case: String,
    /// How it ended natively; `None` where it did not come up.
    pub native: Option<Outcome>,
    /// How it ended here.
    pub here: Option<Outcome>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |outcome: Option<Outcome>| outcome.map_or("missing".to_owned(), |is| is.to_string());
        write!(f, "{}: natively {}, here {}", self.case, word(self.native), word(self.here))
    }
}

/// Every case in which `here` is not as `native`, in order.
pub fn compare(native: &Results, here: &Results) -> Vec<Difference> {
    let mut cases: Vec<&String> = native.0.keys().chain(here.0.keys()).collect();
    cases.sort();
    cases.dedup();
    cases
        .into_iter()
        .map(|case| Difference {
            case: case.clone(),
            native: native.0.get(case).copied(),
            here: here.0.get(case).copied(),
        })
        .filter(|difference| difference.native != difference.here)
        .collect()
}

/// Differences that are known, each with its reason: the lines `SUITE CASE PLACEMENT REASON…` of `differences.txt`.
#[derive(Clone, Debug, Default)]
pub struct Known(Vec<KnownLine>);

#[derive(Clone, Debug)]
struct KnownLine {
    suite: String,
    case: String,
    placement: String,
}

impl Known {
    /// Reads the file's text; `evicted`: as it holds where everything is evicted all the time.
    ///
    /// # Errors
    /// The first line that has no reason, or a placement that there is not.
    pub fn parse(text: &str, evicted: bool) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let known = lines.map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some(suite), Some(case), Some(placement), Some(_))
                    if matches!(placement.as_str(), "translated" | "identity" | "both" | "evicted") =>
                {
                    Ok(KnownLine { suite, case, placement })
                }
                _ => {
                    Err(format!("not a line `SUITE CASE translated|identity|both|evicted REASON`: {line:?}"))
                }
            }
        });
        let mut known = known.collect::<Result<Vec<KnownLine>, _>>()?;
        known.retain(|line| evicted || line.placement != "evicted");
        Ok(Self(known))
    }

    /// The file that goes with the suites.
    ///
    /// # Errors
    /// As [`Known::parse`].
    pub fn of_the_suites(evicted: bool) -> Result<Self, String> {
        Self::parse(include_str!("../../suites/differences.txt"), evicted)
    }

    /// Whether a difference is known.
    pub fn has(&self, suite: &str, placement: &str, case: &str) -> bool {
        self.of(suite, placement).any(|line| line.case == case)
    }

    /// Known differences that are none any more: the case came up, and ended as natively.
    pub fn stale(&self, suite: &str, placement: &str, native: &Results, here: &Results) -> Vec<String> {
        let ended_alike =
            |case: &String| native.0.get(case).is_some_and(|natively| here.0.get(case) == Some(natively));
        self.of(suite, placement).map(|line| line.case.clone()).filter(ended_alike).collect()
    }

    fn of<'a>(&'a self, suite: &'a str, placement: &'a str) -> impl Iterator<Item = &'a KnownLine> {
        let matches = move |line: &&KnownLine| {
            line.suite == suite && [placement, "both", "evicted"].contains(&line.placement.as_str())
        };
        self.0.iter().filter(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_otherwise_or_is_missing_differs() {
        let native = Results::parse("a pass\nb fail\nc skip\nd pass\nd fail\n").unwrap();
        assert_eq!(compare(&native, &native), []);
        assert_eq!((native.count(Outcome::Pass), native.count(Outcome::Fail)), (2, 2));
        let here = Results::parse("a fail\nb fail\nd pass\nd pass\ne pass\n").unwrap();
        let differing: Vec<String> = compare(&native, &here).iter().map(ToString::to_string).collect();
        assert_eq!(
            differing,
            [
                "a: natively pass, here fail",
                "c: natively skip, here missing",
                "d#2: natively fail, here pass",
                "e: natively missing, here pass"
            ]
        );
        assert!(Results::parse("a b pass\n").is_err());
    }

    #[test]
    fn known_differences_have_reasons_and_become_stale() {
        let known = Known::parse("# why\n\ns a both is so\ns b translated is so\n", false).unwrap();
        assert!(
            known.has("s", "identity", "a")
                && !known.has("s", "identity", "b")
                && !known.has("t", "both", "a")
        );
        let native = Results::parse("a pass\nb pass\n").unwrap();
        let here = Results::parse("a fail\nb pass\n").unwrap();
        assert_eq!(known.stale("s", "translated", &native, &here), ["b"]);
        assert_eq!(known.stale("s", "identity", &native, &here), [""; 0]);
        for (evicted, is_known) in [(true, true), (false, false)] {
            let known = Known::parse("s c evicted is so\n", evicted).unwrap();
            assert_eq!(known.has("s", "identity", "c"), is_known);
        }
        assert!(Known::parse("s a both\n", false).is_err(), "no reason");
        assert!(Known::parse("s a here is so\n", false).is_err());
        Known::of_the_suites(false).unwrap();
    }
}

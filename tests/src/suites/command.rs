//! What `cargo xtask suite` asks for: suites one after another, natively and in volumes, and the table at the end. It
//! must not know how a suite is run.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Known, Line, Options, Place, Report, Run, SUITES, Suite, named, prepare, run};

/// Which suites, where, and how much of them.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The suites, in this order.
    pub suites: Vec<&'static Suite>,
    /// Besides natively.
    pub places: Vec<Place>,
    /// How much.
    pub options: Options,
}

impl Asked {
    /// Reads `[--quick] [--native-only] [--only CASES] [--place translated|identity|broken] [NAME…]`; without a name it
    /// is all suites.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self {
            suites: Vec::new(),
            places: vec![Place::Translated, Place::Identity],
            options: Options::default(),
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => asked.options.quick = true,
                "--native-only" => asked.places.clear(),
                "--only" => asked.options.only = Some(words.next().ok_or("--only needs CASES")?),
                "--place" => {
                    let wanted = words.next().ok_or("--place needs a PLACE")?;
                    asked.places = vec![Place::Translated, Place::Identity, Place::Broken];
                    asked.places.retain(|place| place.word() == wanted);
                    if asked.places.is_empty() {
                        return Err(format!("a place is translated, identity or broken, not {wanted}"));
                    }
                }
                name => asked.suites.extend(
                    Some(named(name)).filter(|suites| !suites.is_empty()).ok_or_else(|| {
                        format!(
                            "there is no suite {name}; there are: {}",
                            SUITES.map(|suite| suite.name).join(" ")
                        )
                    })?,
                ),
            }
        }
        if asked.suites.is_empty() {
            asked.suites = SUITES.iter().collect();
        }
        Ok(asked)
    }

    /// Runs them. A suite that cannot be run is in the report as well, and the next one follows.
    ///
    /// # Errors
    /// The file of known differences is malformed.
    pub fn run(&self) -> Result<Report, String> {
        let known = Known::of_the_suites()?;
        let mut report = Report::default();
        for suite in &self.suites {
            eprintln!("{}: preparing", suite.name);
            if let Err(error) = prepare(suite) {
                report.push(Line::new(suite, Place::Native, Err(error), None, &known));
                continue;
            }
            let native = caught(suite, Place::Native, &self.options);
            let reference = native.as_ref().ok().cloned();
            report.push(Line::new(suite, Place::Native, native, None, &known));
            for place in &self.places {
                let here = caught(suite, *place, &self.options);
                report.push(Line::new(suite, *place, here, reference.as_ref(), &known));
            }
        }
        Ok(report)
    }
}

/// A run, which fails by a panic where the node misbehaves.
fn caught(suite: &Suite, place: Place, options: &Options) -> Result<Run, String> {
    eprintln!("{} {}: running", suite.name, place.word());
    let run = catch_unwind(AssertUnwindSafe(|| run(suite, place, options)));
    run.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(said.unwrap_or_else(|| "it panicked".into()))
    })
}

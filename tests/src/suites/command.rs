//! What `cargo xtask suite` asks for: suites one after another, natively and in volumes, and the table at the end. It
//! must not know how a suite is run.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Known, Line, Options, Place, Report, Run, SUITES, Suite, named, prepare, run};

/// The smallest cache that a mount takes, in bytes.
const CACHE_MIN: u64 = 1 << 20;

/// Which suites, where, and how much of them.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The suites, in this order.
    pub suites: Vec<&'static Suite>,
    /// Besides natively.
    pub places: Vec<Place>,
    /// How much.
    pub options: Options,
    /// With a cache of a tenth of the suite's data.
    pub cache_tenth: bool,
}

impl Asked {
    /// Reads `[--quick] [--cache-tenth] [--native-only] [--only CASES] [--place translated|identity|broken] [NAME…]`; without a name it
    /// is all suites.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self {
            suites: Vec::new(),
            places: vec![Place::Translated, Place::Identity],
            options: Options::default(),
            cache_tenth: false,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => asked.options.quick = true,
                "--cache-tenth" => asked.cache_tenth = true,
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
        let known = Known::of_the_suites(self.cache_tenth)?;
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
            let mut options = self.options.clone();
            if let Some(native) = reference.as_ref().filter(|_| self.cache_tenth) {
                let cache = (native.most_bytes / 10).max(CACHE_MIN);
                eprintln!("{}: a cache of {cache} bytes for {} of data", suite.name, native.most_bytes);
                options.cache = Some(cache);
            }
            for place in &self.places {
                let here = caught(suite, *place, &options);
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

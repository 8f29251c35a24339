//! Quick subsets of other people's test suites: in a volume they must end as natively, nothing may have been missed by
//! the intents, and the volume must come back as the tree was. `cargo xtask suite` runs the whole ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use storeshim_tests::suites::{self, Asked, Options, Place, compare, named};

/// What `cargo xtask suite` asks for, word by word.
const ASKED: &str = "STORESHIM_SUITE";

/// Runs the quick subset of every suite of a name, natively and in both placements.
#[track_caller]
fn holds(name: &str) {
    let asked = Asked::parse(["--quick", name].map(str::to_owned)).unwrap();
    let report = asked.run().unwrap();
    assert!(report.is_well(), "\n{report}");
    println!("{report}");
}

#[test]
#[ignore = "takes hours: see `cargo xtask suite`"]
fn whole() {
    let words = std::env::var(ASKED).unwrap_or_default();
    let asked = Asked::parse(words.split('\n').filter(|word| !word.is_empty()).map(str::to_owned)).unwrap();
    let report = asked.run().unwrap();
    println!("\n{report}");
    assert!(report.is_well(), "not all is as it must be: see the table");
}

#[test]
fn quick_pjdfstest() {
    holds("pjdfstest");
}

#[test]
fn quick_fsx() {
    holds("fsx");
}

#[test]
fn quick_stress_ng() {
    holds("stress-ng");
}

#[test]
fn quick_cpython() {
    holds("cpython");
}

/// On a mount whose cache is a tenth of its data, evicted all the time.
#[test]
fn quick_fsx_through_a_small_cache() {
    let asked = Asked::parse(["--quick", "--cache-tenth", "fsx"].map(str::to_owned)).unwrap();
    let report = asked.run().unwrap();
    assert!(report.is_well(), "\n{report}");
    println!("{report}");
}

#[test]
fn quick_users() {
    holds("users");
}

#[test]
fn quick_coreutils() {
    holds("coreutils");
}

/// Suites that could not fail would prove nothing: over a library that flips bits they must.
#[test]
fn canary_a_broken_layer_differs() {
    for (name, only) in [("pjdfstest", "chmod"), ("fsx", "1")] {
        let suite = named(name)[0];
        suites::prepare(suite).unwrap();
        let options = Options { quick: true, only: Some(only.into()), cache: None };
        let native = suites::run(suite, Place::Native, &options).unwrap();
        let broken = suites::run(suite, Place::Broken, &options).unwrap();
        assert_ne!(compare(&native.results, &broken.results), [], "{name} finds nothing wrong");
    }
}

//! Many runs, each from its seed. A run that violates an invariant prints its seed, from which it can be had again:
//!
//! ```text
//! BRIGADE_SEEDS=1234..1235 cargo test --lib node::sim::seeds -- --nocapture
//! BRIGADE_SEEDS=0..20000 cargo test --lib node::sim::seeds
//! BRIGADE_TELL=1 BRIGADE_SEEDS=1234..1235 cargo test --lib no_seed_violates -- --nocapture
//! ```
//!
//! The last tells all that each peer heard and did.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use crate::amounts::Span;
#[cfg(feature = "mutants")]
use crate::mutants::Mutant;
#[cfg(feature = "mutants")]
use crate::mutants::plant;
use crate::node::sim::scenario::Report;
use crate::node::sim::scenario::run;
use crate::node::sim::scenario::run_departures;
use crate::node::sim::scenario::run_lies;

/// The seeds that every change is held against.
const SEEDS: Range<u64> = 0..600;

/// Seeds that found bugs in the core, each with a story test of its own beside the machine that had it. What happens in a seed's run
/// changes with the scenario, so a seed says where a bug was found and the story what it was.
const FOUND: [(u64, &str); 6] = [
    (194, "a tail that looks back was not told of a token that only the driver had heard"),
    (22, "what was to be sent again ended with a frame of no rows"),
    (67, "a journal was forgotten between the promise to send it and the word to"),
    (882, "what the engine had when a stage was called was not counted, so the first frame was refused"),
    (4911, "what the driver heard in a newer chain was named for positions of an older one"),
    (3545, "an answer that had ended while its chain was mended leased the chain, and began anew"),
];

/// The seeds asked for, or the usual ones.
fn seeds() -> Range<u64> {
    let Ok(asked) = std::env::var("BRIGADE_SEEDS") else { return SEEDS };
    let (start, end) = asked.split_once("..").expect("seeds are given as 0..200");
    start.parse().expect("the first seed is a number")..end.parse().expect("the last seed is a number")
}

#[test]
fn no_seed_violates_an_invariant() {
    let (mut faults, mut lasted, mut mended) = (BTreeMap::<&str, u64>::new(), Span::ZERO, 0);
    let mut failed = String::new();
    for report in seeds().map(run) {
        lasted = lasted.plus(report.lasted);
        mended += report.mended;
        for (kind, count) in &report.faults {
            *faults.entry(kind).or_default() += count;
        }
        let Report { seed, violations, .. } = report;
        for violation in violations {
            let _ = writeln!(failed, "seed {seed}: {} at {}: {}", violation.invariant, violation.at.0, violation.what);
        }
    }

    assert!(failed.is_empty(), "{failed}");
    assert!(mended > 0 || seeds().count() < 10, "{faults:?}");
    println!("{lasted} of virtual time, {mended} chains mended, {faults:?}");
}

/// With two chains a lie is found, with three outvoted; and nobody honest is taken for a liar.
#[test]
fn no_seed_lets_a_lie_pass() {
    let (mut failed, mut caught) = (String::new(), 0);
    for report in seeds().step_by(4).map(run_lies) {
        caught += report.caught;
        for violation in report.violations {
            let (seed, at) = (report.seed, violation.at.0);
            let _ = writeln!(failed, "seed {seed}: {} at {at}: {}", violation.invariant, violation.what);
        }
    }

    assert!(failed.is_empty(), "{failed}");
    assert!(caught > 0 || seeds().count() < 40);
    println!("{caught} lies found");
}

/// Every planted bug is found by the usual seeds, and by an invariant.
#[cfg(feature = "mutants")]
#[test]
fn every_mutant_is_caught() {
    let mut table = String::new();
    let mut missed = Vec::new();
    let scenarios: [fn(u64) -> Report; 3] = [run, run_departures, run_lies];
    for mutant in Mutant::ALL {
        plant(Some(mutant));
        let runs = seeds().flat_map(|seed| scenarios.iter().map(move |scenario| scenario(seed)));
        let mut violated = runs.map(|report| (report.seed, report.violations));
        let caught = violated.find_map(|(seed, violations)| Some((seed, violations.into_iter().next()?)));
        plant(None);
        match caught {
            Some((seed, violation)) => {
                let _ = writeln!(table, "{mutant:?}: seed {seed}, {}: {}", violation.invariant, violation.what);
            }
            None => missed.push(mutant),
        }
    }

    println!("{table}");
    assert!(missed.is_empty(), "{missed:?} escaped; caught were\n{table}");
}

/// What is left of the seeds beside those faults that would excuse it: peers leave, and are free in time where others can take over.
#[test]
fn peers_that_are_asked_to_stop_lose_nothing_and_are_free_in_time() {
    let mut mended = 0;
    for seed in 0..80 {
        let report = run_departures(seed);
        assert_eq!(report.violations, [], "seed {seed}");
        mended += report.mended;
    }

    assert!(mended > 0);
}

#[test]
fn seeds_that_found_a_bug_find_it_no_more() {
    for (seed, bug) in FOUND {
        assert_eq!(run(seed).violations, [], "seed {seed}: {bug}");
    }
}

#[test]
fn one_seed_is_one_run() {
    for seed in [3, 7, 11] {
        assert_eq!(run(seed), run(seed));
    }
    assert_ne!(run(3).trace, run(7).trace);
}

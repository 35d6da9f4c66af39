//! The house keeps its floors: a module imports only from floors below it.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Modules by floor, lowest first. `main.rs` and `lib.rs` stand above all.
const FLOORS: [&[&str]; 7] = [
    &["ids", "units", "amounts", "shape", "elementary", "quantise", "mutants"],
    &["wire", "keys"],
    &["membership", "placement", "routing", "session", "scheduler", "ledger", "sampling", "swarm"],
    &["node"],
    &["os"],
    &["mesh", "engine", "weights", "store", "clock"],
    &["demo", "daemon", "config", "telemetry", "api", "cli"],
];

/// Floors whose modules are siblings that never import each other.
const STRANGERS: [usize; 2] = [2, 5];

/// Floors that are pure: no clock, no waiting, no I/O.
const PURE: [usize; 4] = [0, 1, 2, 3];

/// What pure floors never name.
const IMPURE: [&str; 9] =
    ["tokio", "libp2p", "candle_", "sled", "Instant::now", "SystemTime", ".await", "std::fs", "std::net"];

#[test]
fn floors_only_look_down() {
    for (height, floor) in FLOORS.iter().enumerate() {
        for (file, text) in floor.iter().flat_map(|module| sources(module)) {
            let seen = looks_up(&text, height);
            assert!(seen.is_none(), "{}: looks up at {}", file.display(), seen.unwrap_or_default());
        }
    }
}

#[test]
fn one_import_a_line_so_that_the_check_sees_all() {
    for (file, text) in FLOORS.concat().iter().flat_map(|module| sources(module)) {
        assert!(!text.contains("use crate::{"), "{}: one `use crate::module` a line", file.display());
    }
}

#[test]
fn siblings_of_decisions_and_hands_are_strangers() {
    for floor in STRANGERS.map(|height| FLOORS[height]) {
        for module in floor {
            for (file, text) in sources(module) {
                for sibling in floor.iter().filter(|sibling| *sibling != module) {
                    assert!(!names(&text, sibling), "{} names its sibling {sibling}", file.display());
                }
            }
        }
    }
}

#[test]
fn pure_floors_have_no_clock_no_waiting_and_no_hands() {
    for floor in PURE.map(|height| FLOORS[height]) {
        for (file, text) in floor.iter().flat_map(|module| sources(module)) {
            for word in IMPURE {
                let line = code_lines(&text).find(|line| line.contains(word));
                assert_eq!(line, None, "{} names {word}", file.display());
            }
        }
    }
}

#[test]
fn every_module_has_a_floor() {
    let listed = FLOORS.concat();
    for entry in fs::read_dir(root()).expect("src is readable") {
        let path = entry.expect("an entry of src is readable").path();
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        if ["lib", "main"].contains(&name.as_str()) {
            continue;
        }
        assert!(listed.contains(&name.as_str()), "module {name} stands on no floor");
    }
}

#[test]
fn no_module_name_begins_another() {
    let listed = FLOORS.concat();
    for module in &listed {
        for other in listed.iter().filter(|other| *other != module) {
            assert!(!other.starts_with(module), "{module} begins {other}: the text search would confuse them");
        }
    }
}

#[test]
fn a_planted_upward_import_is_seen() {
    assert_eq!(looks_up("use crate::mesh::Mesh;\n", 2), Some("mesh".to_owned()));
    assert_eq!(looks_up("//! Speaks of crate::mesh only.\nuse crate::ids::Token;\n", 2), None);
    assert!(names("use crate::store::Log;", "store"));
}

fn looks_up(text: &str, height: usize) -> Option<String> {
    FLOORS[height + 1..].concat().iter().find(|above| names(text, above)).map(|above| (*above).to_owned())
}

fn names(text: &str, module: &str) -> bool {
    code_lines(text).any(|line| line.contains(&format!("crate::{module}")))
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The Rust files of a top-level module, each with its text.
fn sources(module: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![root().join(format!("{module}.rs")), root().join(module)];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("a folder is readable").flatten().map(|entry| entry.path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") && path.is_file() {
            let text = fs::read_to_string(&path).expect("a source is readable");
            found.push((path, text));
        }
    }
    found
}

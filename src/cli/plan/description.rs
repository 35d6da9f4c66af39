//! A model described by its sizes, for plans of what the engine may not run.
//!
//! A JSON object; `testnet/deepseek-v3.json` is one:
//!
//! | name | what |
//! |---|---|
//! | `title`, `architecture` | for people |
//! | `format` | the most precise weights there are; plans go down from there |
//! | `context`, `vocab`, `hidden` | positions, token ids, elements of a hidden state |
//! | `pass` | elements that a pass keeps for each position (see [`Footprint::scratch`]) |
//! | `scores` | scores for each position and thread: query heads that share keys; 1 if not given |
//! | `units` | in order: `count` units alike, each of `parameters`, of which a position is multiplied with `active`, and of `kv` elements of keys and values for each position |
//!
//! The first unit is the embedding, of which `active` elements are looked up; the last makes logits.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::amounts::Bytes;
use crate::cli::plan::subject::Engine;
use crate::cli::plan::subject::Subject;
use crate::estimate::Footprint;
use crate::estimate::Scratch;
use crate::estimate::Unit;
use crate::placement::plan::Precision;
use crate::quantise;
use crate::shape::Architecture;
use crate::shape::KV_ELEMENT_BYTES;
use crate::shape::UnknownName;
use crate::shape::WeightFormat;

/// The most units of a description (arbitrary; the deepest public models have about 128 blocks).
const MAX_UNITS: u64 = 4_096;

/// The largest size that is read, of parameters of a unit and of everything else (arbitrary: a thousand times that of public models).
const MAX_SIZES: (u64, u64) = (1_000_000_000_000_000, 1 << 32);

/// Why a description cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DescriptionError {
    /// The system does not give it.
    #[error("cannot read {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is not JSON, or of another form.
    #[error("{}: {source}", path.display())]
    Form {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// A format that there is not.
    #[error("{}: {source}", path.display())]
    Format {
        path: PathBuf,
        #[source]
        source: UnknownName,
    },
    /// A number that no model has.
    #[error("{}: {what} is {got}, expected {expected}", path.display())]
    Number { path: PathBuf, what: String, expected: String, got: u64 },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    architecture: String,
    format: String,
    context: u32,
    vocab: u32,
    hidden: u64,
    pass: u64,
    #[serde(default = "one")]
    scores: u64,
    units: Vec<Units>,
    /// Where the numbers are from; for people.
    #[serde(default)]
    #[expect(dead_code, reason = "JSON has no comments")]
    sources: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Units {
    count: u64,
    parameters: u64,
    active: u64,
    #[serde(default)]
    kv: u64,
    /// What they are; for people.
    #[serde(default)]
    #[expect(dead_code, reason = "JSON has no comments")]
    what: String,
}

const fn one() -> u64 {
    1
}

/// Reads the description at `path`.
pub(super) fn read(path: &Path) -> Result<Subject, DescriptionError> {
    let text = fs::read_to_string(path).map_err(|source| DescriptionError::Io { path: path.to_owned(), source })?;
    let file: File =
        serde_json::from_str(&text).map_err(|source| DescriptionError::Form { path: path.to_owned(), source })?;
    file.check(path)?;
    let own: WeightFormat =
        file.format.parse().map_err(|source| DescriptionError::Format { path: path.to_owned(), source })?;
    Ok(file.subject(own))
}

impl File {
    fn check(&self, path: &Path) -> Result<(), DescriptionError> {
        let within = |what: String, got: u64, least: u64, most: u64| match (least..=most).contains(&got) {
            true => Ok(()),
            false => Err(DescriptionError::Number {
                path: path.to_owned(),
                what,
                expected: format!("{least} to {most}"),
                got,
            }),
        };
        let (most_parameters, most) = MAX_SIZES;
        within("context".to_owned(), self.context.into(), 1, most)?;
        within("vocab".to_owned(), self.vocab.into(), 1, most)?;
        for (what, got) in [("hidden", self.hidden), ("pass", self.pass), ("scores", self.scores)] {
            within(what.to_owned(), got, 1, most)?;
        }
        for (number, units) in self.units.iter().enumerate() {
            let of = |name: &str| format!("{name} of units[{number}]");
            within(of("count"), units.count, 1, MAX_UNITS)?;
            within(of("parameters"), units.parameters, 1, most_parameters)?;
            within(of("active"), units.active, 1, units.parameters)?;
            within(of("kv"), units.kv, 0, most)?;
        }
        let count = self.units.iter().map(|units| units.count).fold(0, u64::saturating_add);
        within("the number of units".to_owned(), count, 3, MAX_UNITS)
    }

    fn subject(&self, own: WeightFormat) -> Subject {
        let all = || self.units.iter().flat_map(|units| (0..units.count).map(move |_| units));
        let finer = |format: &WeightFormat| format.precision() < own.precision();
        let formats = std::iter::once(own).chain(quantise::TARGETS.into_iter().filter(finer));
        let precisions = formats.map(|format| Precision { format, footprint: self.footprint(format) }).collect();
        // An embedding is not multiplied with.
        let active = all().skip(1).map(|units| units.active).fold(0, u64::saturating_add);
        let runs = self.architecture.parse::<Architecture>().is_ok();
        Subject {
            title: self.title.clone(),
            id: None,
            architecture: self.architecture.clone(),
            engine: if runs { Engine::Runs } else { Engine::RunsNot },
            parameters: all().map(|units| units.parameters).fold(0, u64::saturating_add),
            active,
            context: self.context,
            precisions,
        }
    }

    /// As quantising does it, what makes logits is `Q6_K` at the least.
    fn footprint(&self, format: WeightFormat) -> Footprint {
        let all: Vec<&Units> = self.units.iter().flat_map(|units| (0..units.count).map(move |_| units)).collect();
        let last = all.len() - 1;
        let unit = |(number, units): (usize, &&Units)| {
            let format = if number == last { format.max_precision(WeightFormat::Q6K) } else { format };
            Unit {
                weights: bytes(format, units.parameters),
                active: bytes(format, units.active),
                position: Bytes(KV_ELEMENT_BYTES).times(units.kv),
                multiplications: if number == 0 { 0 } else { units.active },
            }
        };
        Footprint {
            units: all.iter().enumerate().map(unit).collect(),
            shared_ends: Bytes::ZERO,
            scratch: Scratch {
                row: Bytes(4).times(self.pass),
                scores: Bytes(4).times(self.scores),
                logits: Bytes(4).times(self.vocab.into()),
            },
            hidden: Bytes(4).times(self.hidden),
            vocab: self.vocab,
        }
    }
}

/// Bytes of so many elements, in whole blocks.
fn bytes(format: WeightFormat, elements: u64) -> Bytes {
    Bytes(format.block_bytes()).times(elements.div_ceil(format.block_elements()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOY: &str = r#"{
        "title": "toy", "architecture": "llama", "format": "F16",
        "context": 512, "vocab": 100, "hidden": 64, "pass": 1000,
        "units": [
            { "count": 1, "parameters": 6400, "active": 64 },
            { "count": 2, "parameters": 256000, "active": 25600, "kv": 32 },
            { "count": 1, "parameters": 6400, "active": 6400 }
        ]
    }"#;

    fn read_text(text: &str) -> Result<Subject, DescriptionError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.json");
        fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn bytes_follow_from_parameters_in_every_format() {
        let toy = read_text(TOY).unwrap();

        let formats: Vec<WeightFormat> = toy.precisions.iter().map(|precision| precision.format).collect();
        use WeightFormat::*;
        assert_eq!(formats, [F16, Q8_0, Q6K, Q5K, Q4K, Q4_0]);
        let units = &toy.precisions[5].footprint.units;
        assert_eq!((units[1].weights, units[1].active), (Bytes(256_000 / 32 * 18), Bytes(25_600 / 32 * 18)));
        assert_eq!(units[1].position, Bytes(64));
        assert_eq!(units[3].weights, Bytes(25 * 210), "the head is Q6_K at the least");
        assert_eq!((toy.parameters, toy.active), (524_800, 2 * 25_600 + 6_400));
        assert_eq!(toy.engine, Engine::Runs);
    }

    #[test]
    fn what_no_model_has_is_refused_by_name() {
        let with = |from: &str, to: &str| {
            assert!(TOY.contains(from), "{from}");
            read_text(&TOY.replacen(from, to, 1)).unwrap_err().to_string()
        };

        assert!(with("\"F16\"", "\"FP8\"").contains("unknown weight format \"FP8\""));
        assert!(with("\"active\": 25600", "\"active\": 256001").contains("active of units[1] is 256001"));
        assert!(with("\"count\": 2", "\"count\": 9999").contains("count of units[1]"));
        assert!(with("\"count\": 2", "\"count\": 0").contains("count of units[1] is 0, expected 1 to 4096"));
        assert!(with("\"vocab\": 100", "\"vocab\": 0").contains("vocab is 0"));
        assert!(with("\"vocab\": 100", "\"vocab\": -1").contains("line 3"));
        assert!(with("\"kv\"", "\"kvs\"").contains("unknown field `kvs`"));
        assert!(with("\"hidden\": 64,", "").contains("missing field `hidden`"));
        assert!(with("\"hidden\": 64", "\"hidden\": 99999999999").contains("hidden is 99999999999"));
    }
}

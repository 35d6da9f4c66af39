//! Models in several GGUF files, as llama.cpp splits them: `name-00001-of-00003.gguf` holds the metadata, and each part the data
//! of the tensors in its own table.

use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::weights::files::FileError;
use crate::weights::gguf::GgufError;
use crate::weights::gguf::GgufFile;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// Parts of one model; a hundred are a lot. Arbitrary.
const MAX_PARTS: u64 = 1_024;

/// Opens the parts that follow the first, which was opened from `path`, and joins them. A model in one file stays as it is.
pub(super) fn complete(mut first: GgufFile, path: &Path) -> Result<GgufFile, GgufError> {
    let count = first.unsigned(COUNT)?.unwrap_or(1);
    let number = first.unsigned(NUMBER)?.unwrap_or(0);
    if number > 0 {
        return Err(GgufError::NotFirst { part: number.saturating_add(1), count });
    }
    if count <= 1 {
        return Ok(first);
    }
    if count > MAX_PARTS {
        return Err(GgufError::TooMany { what: "parts of a model".to_owned(), limit: MAX_PARTS, got: count });
    }
    let named = parts(path).filter(|parts| parts.len() as u64 == count);
    let Some(paths) = named else {
        return Err(GgufError::PartName { path: path.to_owned(), count, expected: ending(1, count) });
    };
    for (part, path) in (2..).zip(&paths[1..]) {
        first.append(open(part, count, path)?)?;
    }
    let got = first.tensors().len() as u64;
    match first.unsigned(TENSORS)? {
        Some(expected) if expected != got => {
            Err(GgufError::Contradiction { part: 1, key: TENSORS, expected: got, got: expected })
        }
        _ => Ok(first),
    }
}

/// The paths of all parts of a model whose first part is at `path`, by their names; none if the name is not that of a first part.
pub(super) fn parts(path: &Path) -> Option<Vec<PathBuf>> {
    let name = path.file_name()?.to_str()?;
    let (_, end) = name.rsplit_once("-of-")?;
    let count: u64 = end.strip_suffix(".gguf")?.parse().ok()?;
    let stem = name.strip_suffix(&ending(1, count))?;
    let beside = |part| path.with_file_name(format!("{stem}{}", ending(part, count)));
    (1..=MAX_PARTS).contains(&count).then(|| (1..=count).map(beside).collect())
}

/// Checks that every part is there.
pub(super) fn check_there(parts: &[PathBuf]) -> Result<(), GgufError> {
    let Some(missing) = parts.iter().position(|part| !part.exists()) else { return Ok(()) };
    let source = FileError::on("open", &parts[missing])(io::ErrorKind::NotFound.into());
    Err(GgufError::MissingPart { part: missing as u64 + 1, count: parts.len() as u64, source })
}

/// How the name of a part ends.
fn ending(part: u64, count: u64) -> String {
    format!("-{part:05}-of-{count:05}.gguf")
}

fn open(part: u64, count: u64, path: &Path) -> Result<GgufFile, GgufError> {
    let file = GgufFile::open_alone(path).map_err(|error| broken(part, count, error))?;
    for (key, expected) in [(NUMBER, part - 1), (COUNT, count)] {
        let got = file.unsigned(key)?.unwrap_or_default();
        if got != expected {
            return Err(GgufError::Contradiction { part, key, expected, got });
        }
    }
    Ok(file)
}

fn broken(part: u64, count: u64, error: GgufError) -> GgufError {
    if let GgufError::Io(source) = error {
        return GgufError::MissingPart { part, count, source };
    }
    GgufError::BadPart { part, count, source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::shape::WeightFormat;
    use crate::weights::writer::GgufWriter;

    #[test]
    fn the_parts_of_a_model_are_one_file() {
        let folder = three(|own| own);

        let file = GgufFile::open(&part(&folder, 1)).unwrap();

        let names: Vec<&str> = file.tensors().map(|(name, _)| name).collect();
        assert_eq!(names, ["tensor.0", "tensor.1", "tensor.2"]);
        assert_eq!(file.tensor("tensor.2").unwrap().bytes, [2; 12]);
        assert_eq!(file.text("title").unwrap(), Some("in three parts"));
        let place = file.files().place("tensor.1").unwrap();
        assert_eq!((place.path, place.length), (Some(part(&folder, 2).as_path()), 12));
        let bytes = fs::read(part(&folder, 2)).unwrap();
        assert_eq!(bytes[place.offset as usize..][..12], [1; 12]);
    }

    #[test]
    fn another_part_than_the_first_is_refused() {
        let folder = three(|own| own);

        let error = GgufFile::open(&part(&folder, 2)).unwrap_err();

        assert!(matches!(error, GgufError::NotFirst { part: 2, count: 3 }), "{error}");
    }

    #[test]
    fn a_missing_or_broken_part_is_named() {
        let folder = three(|own| own);
        fs::remove_file(part(&folder, 3)).unwrap();
        let missing = GgufFile::open(&part(&folder, 1)).unwrap_err();
        fs::write(part(&folder, 3), b"GGUF").unwrap();
        let broken = GgufFile::open(&part(&folder, 1)).unwrap_err();

        assert!(matches!(missing, GgufError::MissingPart { part: 3, count: 3, .. }), "{missing}");
        assert!(matches!(broken, GgufError::BadPart { part: 3, count: 3, .. }), "{broken}");
    }

    #[test]
    fn a_renamed_first_part_says_what_its_name_should_be() {
        let folder = three(|own| own);
        let other = folder.path().join("model.gguf");
        fs::rename(part(&folder, 1), &other).unwrap();

        let error = GgufFile::open(&other).unwrap_err();

        assert!(error.to_string().ends_with("-00001-of-00003.gguf"), "{error}");
    }

    #[test]
    fn parts_that_contradict_each_other_are_refused() {
        let other_number = three(|own| if own == 1 { 2 } else { own });
        let twice = three(|own| own);
        fs::copy(part(&twice, 2), part(&twice, 3)).unwrap();
        let fewer = three(|own| own);
        let mut bytes = Vec::new();
        GgufWriter::new().number(COUNT, 3).number(NUMBER, 2).write_tables(&mut bytes).unwrap();
        fs::write(part(&fewer, 3), bytes).unwrap();
        let open = |folder: &TempDir| GgufFile::open(&part(folder, 1)).unwrap_err();

        assert!(matches!(open(&other_number), GgufError::Contradiction { part: 2, key: NUMBER, expected: 1, got: 2 }));
        assert!(matches!(open(&twice), GgufError::Contradiction { part: 3, key: NUMBER, expected: 2, got: 1 }));
        assert!(matches!(open(&fewer), GgufError::Contradiction { part: 1, key: TENSORS, expected: 2, got: 3 }));
    }

    #[test]
    fn a_count_beyond_reason_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model-00001-of-4000000000.gguf");
        let mut bytes = Vec::new();
        GgufWriter::new().number(COUNT, 4_000_000_000).write_tables(&mut bytes).unwrap();
        fs::write(&path, bytes).unwrap();

        assert!(matches!(GgufFile::open(&path), Err(GgufError::TooMany { got: 4_000_000_000, .. })));
        assert_eq!(parts(&path), None);
        assert_eq!(parts(Path::new("model-1-of-2.gguf")), None);
    }

    /// A model in three parts of one tensor each, of which each says that it is the part that `number` makes of its own.
    fn three(number: fn(u32) -> u32) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for own in 0..3 {
            let mut writer = GgufWriter::new();
            writer.number(COUNT, 3).number(TENSORS, 3).number(NUMBER, number(own)).text("title", "in three parts");
            writer.tensor(&format!("tensor.{own}"), WeightFormat::F32, &[3]);
            let mut bytes = Vec::new();
            writer.write_tables(&mut bytes).unwrap();
            GgufWriter::write_data(&mut bytes, [vec![own as u8; 12]]).unwrap();
            fs::write(part(&folder, own + 1), bytes).unwrap();
        }
        folder
    }

    fn part(folder: &TempDir, part: u32) -> PathBuf {
        folder.path().join(format!("model-{part:05}-of-00003.gguf"))
    }
}

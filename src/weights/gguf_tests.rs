use proptest::prelude::*;

use super::*;
use crate::weights::fixture::RandomModel;
use crate::weights::writer::GgufWriter;

#[test]
fn every_truncation_is_an_error() {
    let bytes = small();

    for length in 0..bytes.len() {
        let error = GgufFile::from_bytes(bytes[..length].to_vec()).unwrap_err();
        assert!(matches!(error, GgufError::Truncated { .. } | GgufError::Magic { .. }), "at {length}: {error}");
    }
    GgufFile::from_bytes(bytes).unwrap();
}

#[test]
fn a_truncated_tensor_says_how_many_bytes_were_expected() {
    let mut bytes = small();
    let whole = bytes.len() as u64;
    bytes.pop();

    let error = GgufFile::from_bytes(bytes).unwrap_err();

    let GgufError::Truncated { expected, got, .. } = error else { panic!("{error}") };
    assert_eq!((expected, got), (whole, whole - 1));
}

#[test]
fn metadata_and_tensors_are_found_by_name() {
    let file = GgufFile::from_bytes(small()).unwrap();

    assert_eq!(file.text("title").unwrap(), Some("a small one"));
    assert_eq!(file.unsigned("count").unwrap(), Some(7));
    assert_eq!(file.float("count").unwrap(), Some(7.0));
    assert_eq!(file.flag("yes").unwrap(), Some(true));
    assert_eq!(file.texts("words").unwrap(), Some(vec!["a".to_owned(), "".to_owned(), "cde".to_owned()]));
    assert_eq!(file.floats("numbers").unwrap(), Some(vec![-1.0, 5.0]));
    assert_eq!(file.text("absent").unwrap(), None);
    let view = file.tensor("second").unwrap();
    assert_eq!((view.format, view.dimensions, view.bytes.len()), (WeightFormat::Q8_0, [32, 2].as_slice(), 68));
    assert_eq!(file.tensor("first").unwrap().bytes, [1; 12]);
    assert!(file.tensor("third").is_none());
}

#[test]
fn a_value_of_another_type_is_named() {
    let file = GgufFile::from_bytes(small()).unwrap();

    let error = file.unsigned("title").unwrap_err();

    assert_eq!(error.to_string(), "the metadata key \"title\" should be a whole number of at least 0, got a text");
}

#[test]
fn other_files_and_versions_are_told_apart() {
    let with_version = |version: [u8; 4]| [MAGIC.as_slice(), &version, &[0; 16]].concat();

    assert!(matches!(GgufFile::from_static(b"PK\x03\x04").unwrap_err(), GgufError::Magic { .. }));
    let old = GgufFile::from_bytes(with_version([1, 0, 0, 0])).unwrap_err();
    assert!(matches!(old, GgufError::Version { got: 1 }));
    let big_endian = GgufFile::from_bytes(with_version([0, 0, 0, 3])).unwrap_err();
    assert!(matches!(big_endian, GgufError::BigEndian));
    assert_eq!(GgufFile::from_bytes(with_version([2, 0, 0, 0])).unwrap().tensors().len(), 0);
}

#[test]
fn a_format_that_is_not_read_is_named() {
    let row = table_row("x", &[256], 23, 0);

    let error = GgufFile::from_bytes(with_tables(&[row], 256)).unwrap_err();

    assert_eq!(error.to_string(), "tensor \"x\" is stored as IQ4_XS, which is not supported");
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let rows = [table_row("x", &[16], 0, 0), table_row("y", &[8], 0, 32)];

    let error = GgufFile::from_bytes(with_tables(&rows, 64)).unwrap_err();

    assert!(matches!(error, GgufError::Overlap { first, second } if (first.as_str(), second.as_str()) == ("x", "y")));
}

#[test]
fn misaligned_empty_ragged_doubled_and_endless_tensors_are_refused() {
    let error = |rows: &[Vec<u8>]| GgufFile::from_bytes(with_tables(rows, 64)).unwrap_err();

    assert!(matches!(error(&[table_row("x", &[1], 0, 8)]), GgufError::Misaligned { offset: 8, .. }));
    assert!(matches!(error(&[table_row("x", &[0], 0, 0)]), GgufError::Dimensions { .. }));
    assert!(matches!(error(&[table_row("x", &[], 0, 0)]), GgufError::Dimensions { .. }));
    assert!(matches!(error(&[table_row("x", &[33], 8, 0)]), GgufError::Dimensions { .. }));
    assert!(matches!(error(&[table_row("x", &[u64::MAX, 4], 0, 0)]), GgufError::Dimensions { .. }));
    assert!(matches!(error(&[table_row("x", &[1; 5], 0, 0)]), GgufError::TooMany { got: 5, .. }));
    let twice = [table_row("x", &[1], 0, 0), table_row("x", &[1], 0, 32)];
    assert!(matches!(error(&twice), GgufError::Duplicate { .. }));
    let far = table_row("x", &[1], 0, u64::MAX - 31);
    assert!(matches!(error(&[far]), GgufError::Truncated { .. }));
}

#[test]
fn counts_beyond_the_file_cost_nothing() {
    let count = |tensors: u64, entries: u64| {
        let bytes = [&MAGIC, &3_u32.to_le_bytes()[..], &tensors.to_le_bytes(), &entries.to_le_bytes()].concat();
        GgufFile::from_bytes(bytes).unwrap_err()
    };

    assert!(matches!(count(u64::MAX, 0), GgufError::TooMany { .. }));
    assert!(matches!(count(0, u64::MAX), GgufError::TooMany { .. }));
    assert!(matches!(count(0, 1), GgufError::Truncated { .. }));
    let mut endless_array = entry("words", 9);
    endless_array.extend_from_slice(&8_u32.to_le_bytes());
    endless_array.extend_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(with_entry(endless_array), GgufError::Truncated { .. }));
}

#[test]
fn arrays_nest_only_so_deep() {
    let mut nested = entry("nested", 9);
    for _ in 0..1000 {
        nested.extend_from_slice(&9_u32.to_le_bytes());
        nested.extend_from_slice(&1_u64.to_le_bytes());
    }

    assert!(matches!(with_entry(nested), GgufError::TooMany { limit: 4, .. }));
}

#[test]
fn a_file_on_disk_is_mapped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("small.gguf");
    std::fs::write(&path, small()).unwrap();

    let file = GgufFile::open(&path).unwrap();

    assert_eq!(file.bytes(), small());
    assert!(matches!(GgufFile::open(directory.path()), Err(GgufError::Io { .. } | GgufError::Truncated { .. })));
    assert!(
        matches!(GgufFile::open(&directory.path().join("none")), Err(GgufError::Io(error)) if error.action == "open")
    );
}

proptest! {
    /// Whatever the bytes are, the answer is a file or an error, and what a file hands out lies inside it.
    #[test]
    fn changed_bytes_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = small();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(file) = GgufFile::from_bytes(bytes) {
            let total: usize = file.tensors().map(|(_, view)| view.bytes.len()).sum();
            prop_assert!(total <= file.bytes().len());
            for (key, _) in file.metadata() {
                let _ = (file.texts(key).is_ok(), file.floats(key).is_ok(), file.unsigned(key).is_ok());
            }
        }
    }

    #[test]
    fn a_changed_model_is_read_or_refused_without_harm(
        changes in prop::collection::vec((0_usize..12_000, any::<u8>()), 1..4),
    ) {
        let mut bytes = RandomModel { blocks: 1, ..RandomModel::tiny() }.bytes();
        for (place, byte) in changes {
            bytes[place] = byte;
        }
        if let Ok(file) = GgufFile::from_bytes(bytes) {
            let _ = crate::weights::llama::shape(&file);
            if let Ok(vocabulary) = crate::weights::vocabulary::read_vocabulary(&file) {
                let _ = crate::weights::tokenizer::Tokenizer::new(vocabulary);
            }
        }
    }

    #[test]
    fn random_bytes_do_no_harm(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        let head = [MAGIC.as_slice(), &3_u32.to_le_bytes(), &1_u64.to_le_bytes(), &1_u64.to_le_bytes()].concat();

        let _ = GgufFile::from_bytes([head, tail].concat());
    }
}

/// A file with a value of each kind and two tensors.
fn small() -> Vec<u8> {
    let mut writer = GgufWriter::new();
    writer.text("title", "a small one").number("count", 7).float("ratio", 0.5).flag("yes", true);
    writer.texts("words", &["a", "", "cde"]).numbers("numbers", &[-1, 5]).floats("floats", &[1.0]);
    writer.tensor("first", WeightFormat::F32, &[3]).tensor("second", WeightFormat::Q8_0, &[32, 2]);
    let mut bytes = Vec::new();
    writer.write_tables(&mut bytes).unwrap();
    GgufWriter::write_data(&mut bytes, [vec![1; 12]]).unwrap();
    bytes.extend_from_slice(&[2; 68]);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn entry(key: &str, kind: u32) -> Vec<u8> {
    [text(key), kind.to_le_bytes().to_vec()].concat()
}

fn with_entry(entry: Vec<u8>) -> GgufError {
    let head = [&MAGIC, &3_u32.to_le_bytes()[..], &0_u64.to_le_bytes(), &1_u64.to_le_bytes()].concat();
    GgufFile::from_bytes([head, entry].concat()).unwrap_err()
}

fn table_row(name: &str, dimensions: &[u64], format: u32, offset: u64) -> Vec<u8> {
    let mut row = text(name);
    row.extend_from_slice(&(dimensions.len() as u32).to_le_bytes());
    row.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
    row.extend_from_slice(&format.to_le_bytes());
    row.extend_from_slice(&offset.to_le_bytes());
    row
}

fn with_tables(rows: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut bytes =
        [&MAGIC, &3_u32.to_le_bytes()[..], &(rows.len() as u64).to_le_bytes(), &0_u64.to_le_bytes()].concat();
    bytes.extend(rows.concat());
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    bytes
}

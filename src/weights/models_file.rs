//! `models.json`: the table of the catalogue on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::amounts::Bytes;
use crate::ids::ModelId;
use crate::weights::catalogue::CatalogueError;
use crate::weights::catalogue::Entry;
use crate::weights::catalogue::FileSet;
use crate::weights::catalogue::Place;
use crate::weights::catalogue::Stamp;
use crate::weights::durable;

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;

#[derive(Deserialize, Serialize)]
struct Table {
    version: u32,
    models: Vec<Row>,
}

#[derive(Deserialize, Serialize)]
struct Row {
    id: String,
    title: String,
    alias: Option<String>,
    units: u16,
    bytes: u64,
    weights: RowPlace,
    #[serde(default)]
    private: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(tag = "in", rename_all = "lowercase")]
enum RowPlace {
    File {
        path: PathBuf,
        length: u64,
        /// A text, because JSON's numbers don't hold nanoseconds.
        modified_ns: String,
    },
    Files {
        /// The first part of a GGUF, or a folder.
        root: PathBuf,
        files: Vec<RowFile>,
    },
    Program,
    Elsewhere,
}

#[derive(Deserialize, Serialize)]
struct RowFile {
    path: PathBuf,
    length: u64,
    modified_ns: String,
}

/// Reads the table; a file that is not there is an empty one.
pub(super) fn read(path: &Path) -> Result<BTreeMap<ModelId, Entry>, CatalogueError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => return Err(CatalogueError::Io { action: "read", path: path.to_owned(), source }),
    };
    let damaged = |reason: String| CatalogueError::Damaged { path: path.to_owned(), reason };
    let table: Table = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if table.version != VERSION {
        return Err(damaged(format!("expected version {VERSION}, got {}", table.version)));
    }
    let entries = table.models.into_iter().map(|row| entry(row).map(|entry| (entry.id, entry)));
    entries.collect::<Result<_, _>>().map_err(damaged)
}

/// Replaces the table.
pub(super) fn write(path: &Path, entries: &BTreeMap<ModelId, Entry>) -> Result<(), CatalogueError> {
    let table = Table { version: VERSION, models: entries.values().map(row).collect() };
    let io = |source| CatalogueError::Io { action: "write", path: path.to_owned(), source };
    // Fails on a path that is not Unicode; none such is imported.
    let mut bytes = serde_json::to_vec_pretty(&table).map_err(|error| io(error.into()))?;
    bytes.push(b'\n');
    durable::replace(&path.with_extension("json.new"), path, &bytes).map_err(io)
}

fn entry(row: Row) -> Result<Entry, String> {
    let weights = match row.weights {
        RowPlace::File { path, length, modified_ns } => Place::File(stamp(RowFile { path, length, modified_ns })?),
        RowPlace::Files { root, files } => {
            let files = files.into_iter().map(stamp).collect::<Result<_, _>>()?;
            Place::Files(FileSet { root, files })
        }
        RowPlace::Program => Place::Embedded,
        RowPlace::Elsewhere => Place::Elsewhere,
    };
    let id = row.id.parse().map_err(|error| format!("{error}"))?;
    let bytes = Bytes(row.bytes);
    Ok(Entry { id, title: row.title, alias: row.alias, units: row.units, bytes, weights, private: row.private })
}

fn stamp(file: RowFile) -> Result<Stamp, String> {
    let RowFile { path, length, modified_ns } = file;
    let modified = modified_ns.parse().map_err(|_| format!("\"{modified_ns}\" is no time"))?;
    Ok(Stamp { path, length, modified })
}

fn row_file(stamp: &Stamp) -> RowFile {
    RowFile { path: stamp.path.clone(), length: stamp.length, modified_ns: stamp.modified.to_string() }
}

fn row(entry: &Entry) -> Row {
    let weights = match &entry.weights {
        Place::File(stamp) => {
            let RowFile { path, length, modified_ns } = row_file(stamp);
            RowPlace::File { path, length, modified_ns }
        }
        Place::Files(FileSet { root, files }) => {
            RowPlace::Files { root: root.clone(), files: files.iter().map(row_file).collect() }
        }
        Place::Embedded => RowPlace::Program,
        Place::Elsewhere => RowPlace::Elsewhere,
    };
    Row {
        id: entry.id.to_string(),
        title: entry.title.clone(),
        alias: entry.alias.clone(),
        units: entry.units,
        bytes: entry.bytes.0,
        weights,
        private: entry.private,
    }
}

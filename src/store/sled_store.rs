//! The log in a sled database: one tree per network, named by the network's id.
//!
//! | key | value |
//! |---|---|
//! | `r`, number of the row (8, big-endian) | kind (1), checksum (8), the row's bytes |
//! | `i`, kind (1), requester (32), sequence (8, big-endian) | number of the row (8, big-endian) |
//!
//! Kinds: 0 an entry, 1 a proof of cheating (which has sequence 0 in its key: one is enough). Rows are numbered from 0
//! without a gap. The checksum is the beginning of the blake3 of kind, number and bytes.
//!
//! The database lies in the folder `rows`. After some damages sled begins anew without a word, and a peer that forgets
//! its own newest entry would fork its log; so a file `count-<network>` beside it says how many rows there were at
//! least: the number (8, little-endian) and its checksum (8).

use std::fs;
use std::io;
use std::io::ErrorKind;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use sled::Batch;
use sled::Db;
use sled::Tree;

use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::ledger::Fork;
use crate::ledger::Row;
use crate::store::LogStore;
use crate::store::Opened;
use crate::store::StoreError;
use crate::wire::credit::CreditEntry;

/// Memory that sled may use as a cache (arbitrary; rows are read once, at the start).
const CACHE_BYTES: u64 = 16 << 20;

/// How many damaged logs are kept aside before opening fails (arbitrary).
const MAX_SET_ASIDE: u32 = 1_000;

/// How long opening waits for the lock: sled's background tasks hold it for a moment after a database was closed
/// (measured: some milliseconds).
const LOCK_TRIES: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_millis(10);

const WRITTEN: &str = "written";

const ENTRY: u8 = 0;
const FORK: u8 = 1;
const CHECKSUM: usize = 8;

/// A [`LogStore`] in a folder of its own.
#[derive(Debug)]
pub struct SledStore {
    db: Db,
    tree: Tree,
    network: NetworkId,
    /// The number of the next row.
    next: u64,
    /// Where the number of rows is written down.
    count: PathBuf,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Sound,
    /// A write has failed: what is on disk is known only after opening again.
    Failed,
}

impl SledStore {
    /// Opens the log of `network` in the folder `path`, which is made if it is missing. A damaged folder is renamed to
    /// `<path>.damaged-N` and a new one begun.
    ///
    /// # Errors
    /// [`StoreError`] if there is no room, another process has it open, or the folder cannot be written.
    pub fn open(path: &Path, network: NetworkId) -> Result<(Self, Opened), StoreError> {
        match open_checked(path, network) {
            Ok(store) => Ok((store, Opened::Sound)),
            Err(StoreError::Damaged { reason }) => {
                let to = set_aside(path)?;
                Ok((open_checked(path, network)?, Opened::SetAside { to, reason }))
            }
            Err(fault) => Err(fault),
        }
    }

    fn has(&self, row: &Row) -> Result<bool, StoreError> {
        self.tree.contains_key(index_key(row)).map_err(|fault| from_sled(fault, "read"))
    }

    fn read(&self, kind: u8, bytes: &[u8]) -> Result<Row, StoreError> {
        let row = match kind {
            ENTRY => CreditEntry::decode(bytes, self.network).map(|entry| Row::Entry(Box::new(entry))),
            FORK => Fork::decode(bytes, self.network).map(|fork| Row::Fork(Box::new(fork))),
            kind => return Err(damaged(format!("a row of the unknown kind {kind}"))),
        };
        row.map_err(|fault| damaged(format!("a row does not hold: {fault}")))
    }
}

impl LogStore for SledStore {
    fn append(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        if self.state == State::Failed {
            return Err(StoreError::Failed);
        }
        let mut batch = Batch::default();
        let mut next = self.next;
        let mut added: Vec<Vec<u8>> = Vec::new();
        for row in rows {
            let index = index_key(row);
            if added.contains(&index) || self.has(row)? {
                continue;
            }
            batch.insert(row_key(next), row_value(next, row));
            batch.insert(&index[..], &next.to_be_bytes());
            added.push(index);
            next += 1;
        }
        self.state = State::Failed;
        guarded(WRITTEN, || {
            self.tree.apply_batch(batch)?;
            self.db.flush()
        })?;
        self.state = State::Sound;
        self.next = next;
        write_count(&self.count, next)
    }

    fn rows(&self) -> Box<dyn Iterator<Item = Result<Row, StoreError>> + '_> {
        let numbered = (0_u64..).zip(self.tree.scan_prefix(b"r"));
        Box::new(numbered.map(|(number, row)| {
            let (key, value) = row.map_err(|fault| from_sled(fault, "read"))?;
            let (kind, bytes) = check_row(number, &key, &value)?;
            self.read(kind, bytes)
        }))
    }

    fn entry(&self, requester: PeerKey, sequence: u64) -> Result<Option<CreditEntry>, StoreError> {
        let look_up = |key: &[u8]| self.tree.get(key).map_err(|fault| from_sled(fault, "read"));
        let Some(number) = look_up(&index_of(ENTRY, requester, sequence))? else {
            return Ok(None);
        };
        let number = <[u8; 8]>::try_from(&number[..]).map_err(|_| damaged("an index of the wrong length"))?;
        let number = u64::from_be_bytes(number);
        let key = row_key(number);
        let value = look_up(&key)?.ok_or_else(|| damaged("an index leads nowhere"))?;
        let (kind, bytes) = check_row(number, &key, &value)?;
        match self.read(kind, bytes)? {
            Row::Entry(entry) => Ok(Some(*entry)),
            Row::Fork(_) => Err(damaged("an index leads to a row of another kind")),
        }
    }
}

fn open_checked(path: &Path, network: NetworkId) -> Result<SledStore, StoreError> {
    fs::create_dir_all(path).map_err(|fault| from_io(fault, "opened"))?;
    let db = open_database(&path.join("rows"))?;
    let tree = guarded("opened", || db.open_tree(network.as_bytes()))?;
    let next = guarded("read", || Ok(count_sound_rows(&tree)))??;
    let count = path.join(format!("count-{network}"));
    let expected = read_count(&count)?;
    if next < expected {
        return Err(damaged(format!("expected at least {expected} rows, got {next}")));
    }
    Ok(SledStore { db, tree, network, next, count, state: State::Sound })
}

fn open_database(path: &Path) -> Result<Db, StoreError> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    for _ in 0..LOCK_TRIES {
        match guarded("opened", || config.open()) {
            // sled has no error of its own for this.
            Err(StoreError::Io { source, .. }) if source.to_string().contains("could not acquire lock") => {
                std::thread::sleep(LOCK_WAIT);
            }
            opened => return opened,
        }
    }
    Err(StoreError::InUse { path: path.to_owned() })
}

/// The number of rows that was last written down; 0 if there is none, or it was cut off in the writing.
fn read_count(path: &Path) -> Result<u64, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(fault) if fault.kind() == ErrorKind::NotFound => return Ok(0),
        Err(fault) => return Err(from_io(fault, "read")),
    };
    let parts = bytes.split_at_checked(8).filter(|(number, sum)| *sum == checksum(0, b'c', number));
    let number = parts.and_then(|(number, _)| number.try_into().ok());
    Ok(number.map_or(0, u64::from_le_bytes))
}

fn write_count(path: &Path, count: u64) -> Result<(), StoreError> {
    let number = count.to_le_bytes();
    let bytes = [number, checksum(0, b'c', &number)].concat();
    let write = || {
        let mut file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        file.write_all(&bytes)?;
        file.sync_data()
    };
    write().map_err(|fault| from_io(fault, WRITTEN))
}

/// Reads every row and its index, and checks that none is missing or changed.
fn count_sound_rows(tree: &Tree) -> Result<u64, StoreError> {
    let mut rows = 0;
    for row in tree.scan_prefix(b"r") {
        let (key, value) = row.map_err(|fault| from_sled(fault, "read"))?;
        check_row(rows, &key, &value)?;
        rows += 1;
    }
    let mut indices = 0_u64;
    for index in tree.scan_prefix(b"i") {
        index.map_err(|fault| from_sled(fault, "read"))?;
        indices += 1;
    }
    if rows != indices {
        return Err(damaged(format!("{rows} rows, but {indices} in the index")));
    }
    Ok(rows)
}

/// Kind and bytes of the row that should have this number.
fn check_row<'a>(number: u64, key: &[u8], value: &'a [u8]) -> Result<(u8, &'a [u8]), StoreError> {
    if key != row_key(number) {
        return Err(damaged(format!("row {number} is missing")));
    }
    let wrong = || damaged(format!("row {number} was changed"));
    let (&kind, rest) = value.split_first().ok_or_else(wrong)?;
    let (sum, bytes) = rest.split_at_checked(CHECKSUM).ok_or_else(wrong)?;
    if sum != checksum(number, kind, bytes) {
        return Err(wrong());
    }
    Ok((kind, bytes))
}

fn checksum(number: u64, kind: u8, bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[kind]).update(&number.to_be_bytes()).update(bytes);
    let mut sum = [0; CHECKSUM];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

fn row_key(number: u64) -> Vec<u8> {
    [b"r", &number.to_be_bytes()[..]].concat()
}

fn row_value(number: u64, row: &Row) -> Vec<u8> {
    let (kind, bytes) = match row {
        Row::Entry(entry) => (ENTRY, entry.encode()),
        Row::Fork(fork) => (FORK, fork.encode()),
    };
    [&[kind], &checksum(number, kind, &bytes)[..], &bytes].concat()
}

fn index_key(row: &Row) -> Vec<u8> {
    match row {
        Row::Entry(entry) => index_of(ENTRY, entry.header.author, entry.header.value.sequence),
        Row::Fork(fork) => index_of(FORK, fork.requester(), 0),
    }
}

fn index_of(kind: u8, requester: PeerKey, sequence: u64) -> Vec<u8> {
    [b"i", &[kind], &requester.as_bytes()[..], &sequence.to_be_bytes()].concat()
}

/// Moves a damaged folder to the first free name beside it.
fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let name = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        PathBuf::from(name)
    };
    let taken = || io::Error::new(ErrorKind::AlreadyExists, "too many damaged logs stand beside it");
    let free = (1..=MAX_SET_ASIDE).map(name).find(|to| !to.exists());
    let moved = free.ok_or_else(taken).and_then(|to| fs::rename(path, &to).map(|()| to));
    moved.map_err(|source| StoreError::NotSetAside { path: path.to_owned(), source })
}

/// Calls sled, which on some damages panics where it should report.
fn guarded<T>(doing: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|fault| from_sled(fault, doing)),
        Err(_) if doing == WRITTEN => Err(from_io(io::Error::other("the database gave up"), doing)),
        Err(_) => Err(damaged("the database gave up")),
    }
}

fn damaged(reason: impl Into<String>) -> StoreError {
    StoreError::Damaged { reason: reason.into() }
}

fn from_sled(fault: sled::Error, doing: &'static str) -> StoreError {
    match fault {
        sled::Error::Io(fault) => from_io(fault, doing),
        sled::Error::CollectionNotFound(_) => damaged("a collection is missing"),
        sled::Error::Unsupported(reason) | sled::Error::ReportableBug(reason) => damaged(reason),
        sled::Error::Corruption { at, .. } => damaged(format!("wrong bytes at {at:?}")),
    }
}

fn from_io(source: io::Error, doing: &'static str) -> StoreError {
    if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return StoreError::DiskFull;
    }
    if matches!(source.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) {
        return damaged(source.to_string());
    }
    StoreError::Io { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_from_damage() {
        let full = || io::Error::from(ErrorKind::StorageFull);
        let corruption = sled::Error::Corruption { at: None, bt: () };

        assert!(matches!(from_sled(sled::Error::Io(full()), WRITTEN), StoreError::DiskFull));
        assert!(matches!(from_io(full(), WRITTEN), StoreError::DiskFull));
        assert!(matches!(from_sled(corruption, "read"), StoreError::Damaged { .. }));
        assert!(matches!(guarded::<()>("read", || panic!("a damage")), Err(StoreError::Damaged { .. })));
        assert!(matches!(guarded::<()>(WRITTEN, || panic!("no room")), Err(StoreError::Io { doing: WRITTEN, .. })));
    }

    #[test]
    fn a_count_that_was_cut_off_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("count");

        assert_eq!(read_count(&path).unwrap(), 0);
        write_count(&path, 77).unwrap();
        write_count(&path, 78).unwrap();
        assert_eq!(read_count(&path).unwrap(), 78);
        fs::write(&path, &fs::read(&path).unwrap()[..12]).unwrap();
        assert_eq!(read_count(&path).unwrap(), 0);
    }
}

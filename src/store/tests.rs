use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::TempDir;

use super::*;
use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::ids::SessionId;
use crate::keys::Identity;
use crate::ledger::Fork;
use crate::ledger::Ledger;
use crate::units::UnitRange;
use crate::wire::credit::CreditLine;

fn network() -> NetworkId {
    NetworkId::of("store", None)
}

fn peer(seed: u8) -> PeerKey {
    Identity::generate([seed; 32]).peer()
}

/// A log of `length` entries, whose last is of the session `last`.
fn entries(requester: u8, length: usize, last: u8) -> Vec<CreditEntry> {
    let identity = Identity::generate([requester; 32]);
    let mut ledger = Ledger::new(identity.peer());
    let mut next = |place: usize| {
        let session = SessionId::new([if place + 1 == length { last } else { 0 }; 16]);
        let range = UnitRange::new(0, 3).unwrap();
        let lines = vec![CreditLine { stage: peer(99), range, work: Mflop(place as u64), difficulty: 1_000 }];
        let header = ledger.next_header(session, ModelId::new([2; 32]), Position(5), &lines).unwrap();
        let entry = CreditEntry::seal(&header, lines, &identity, network()).unwrap();
        let plan = ledger.plan(&entry).unwrap();
        ledger.commit(plan);
        entry
    };
    (0..length).map(&mut next).collect()
}

/// Interleaved logs of two requesters, and a proof.
fn rows() -> Vec<Row> {
    let (one, two) = (entries(1, 30, 7), entries(2, 30, 7));
    let proof = Fork::between(&one[29].header, &entries(1, 30, 8)[29].header).unwrap();
    let mixed = one.into_iter().zip(two).flat_map(|(one, two)| [two, one]);
    let entries = mixed.map(|entry| Row::Entry(Box::new(entry)));
    entries.chain([Row::Fork(Box::new(proof))]).collect()
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    (folder, path)
}

fn open(path: &Path) -> (SledStore, Opened) {
    SledStore::open(path, network()).unwrap()
}

fn all(store: &SledStore) -> Vec<Row> {
    store.rows().collect::<Result<_, _>>().unwrap()
}

/// A closed store that holds `rows`.
fn stored(rows: &[Row]) -> (TempDir, PathBuf) {
    let (folder, path) = folder();
    let (mut store, _) = open(&path);
    rows.chunks(7).for_each(|rows| store.append(rows).unwrap());
    (folder, path)
}

#[test]
fn a_reopened_store_has_the_same_rows_in_the_same_order() {
    let rows = rows();
    let (_folder, path) = stored(&rows[..40]);

    let (mut store, opened) = open(&path);
    assert_eq!((all(&store), opened), (rows[..40].to_vec(), Opened::Sound));
    store.append(&rows[40..]).unwrap();
    drop(store);

    assert_eq!(all(&open(&path).0), rows);
}

#[test]
fn a_row_is_stored_once() {
    let rows = rows();
    let (_folder, path) = folder();
    let (mut store, _) = open(&path);

    store.append(&[rows[0].clone(), rows[0].clone()]).unwrap();
    store.append(&rows).unwrap();
    store.append(&rows).unwrap();

    assert_eq!(all(&store), rows);
}

#[test]
fn an_entry_is_found_by_requester_and_number() {
    let (_folder, path) = stored(&rows());
    let (store, _) = open(&path);

    assert_eq!(store.entry(peer(2), 17).unwrap().as_ref(), entries(2, 30, 7).get(17));
    assert_eq!(store.entry(peer(2), 30).unwrap(), None);
    assert_eq!(store.entry(peer(3), 0).unwrap(), None);
}

#[test]
fn each_network_has_a_log_of_its_own() {
    let rows = rows();
    let (_folder, path) = stored(&rows);
    let elsewhere = NetworkId::of("elsewhere", None);

    let (store, opened) = SledStore::open(&path, elsewhere).unwrap();
    assert_eq!((all(&store), opened), (Vec::new(), Opened::Sound));
    drop(store);

    assert_eq!(all(&open(&path).0), rows);
}

#[test]
fn a_second_opening_is_refused_while_the_first_lasts() {
    let (_folder, path) = stored(&rows());
    let (store, _) = open(&path);

    let second = SledStore::open(&path, network());

    assert!(matches!(second, Err(StoreError::InUse { .. })), "{second:?}");
    assert_eq!(all(&store).len(), 61);
}

#[test]
fn a_file_in_the_place_of_the_folder_is_an_error() {
    let (_folder, path) = folder();
    fs::write(&path, b"not a folder").unwrap();

    assert!(matches!(SledStore::open(&path, network()), Err(StoreError::Io { doing: "opened", .. })));
}

#[test]
fn a_ledger_survives_a_restart() {
    let mut ledger = Ledger::new(peer(99));
    let (_folder, path) = folder();
    let (mut store, _) = open(&path);
    for entry in entries(1, 5, 7) {
        let plan = ledger.plan(&entry).unwrap();
        store.append(&plan.rows()).unwrap();
        ledger.commit(plan);
    }
    drop(store);

    let restored = Ledger::restore(peer(99), all(&open(&path).0));

    assert!(restored.balances().eq(ledger.balances()));
    assert_eq!(restored.balance(peer(1), peer(99)), Mflop(10));
}

#[test]
fn a_row_that_was_changed_or_removed_is_noticed() {
    let rows = rows();
    let damages: [fn(&sled::Tree); 4] = [
        |tree| tree.clear().unwrap(),
        |tree| {
            let key = [b"r", &5_u64.to_be_bytes()[..]].concat();
            let mut value = tree.get(&key).unwrap().unwrap().to_vec();
            value[100] ^= 1;
            tree.insert(key, value).unwrap();
        },
        |tree| drop(tree.remove([b"r", &5_u64.to_be_bytes()[..]].concat()).unwrap()),
        |tree| drop(tree.remove([b"r", &60_u64.to_be_bytes()[..]].concat()).unwrap()),
    ];
    for damage in damages {
        let (_folder, path) = stored(&rows);
        let db = open_when_free(&path.join("rows"));
        damage(&db.open_tree(network().as_bytes()).unwrap());
        drop(db);

        let (store, opened) = open(&path);

        assert!(matches!(opened, Opened::SetAside { .. }), "{opened:?}");
        assert_eq!(all(&store), []);
    }
}

#[test]
fn a_damaged_database_is_set_aside_and_a_new_one_begun() {
    let rows = rows();
    for (number, part) in [(1, 0.0), (2, 0.3), (3, 0.6)] {
        let (folder, path) = stored(&rows);
        for earlier in 1..number {
            fs::create_dir(folder.path().join(format!("log.damaged-{earlier}"))).unwrap();
        }
        overwrite(&path.join("rows/db"), part);

        let (mut store, opened) = open(&path);

        let Opened::SetAside { to, .. } = opened else { panic!("damage from {part} on was not noticed") };
        assert_eq!(to, folder.path().join(format!("log.damaged-{number}")));
        assert!(to.join("rows/db").exists());
        assert_eq!(all(&store), []);
        store.append(&rows).unwrap();
        drop(store);
        assert_eq!(all(&open(&path).0), rows);
    }
}

/// Writes over the used part of a file, from `part` of it on.
fn overwrite(file: &Path, part: f64) {
    let mut bytes = fs::read(file).unwrap();
    let used = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    let start = (used as f64 * part) as usize;
    bytes[start..=used].fill(0xa5);
    fs::write(file, bytes).unwrap();
}

/// sled lets go of its lock a moment after a database is closed; the store waits for it.
fn open_when_free(path: &Path) -> sled::Db {
    (0..1_000_000).find_map(|_| sled::open(path).ok()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn scattered_damage_is_noticed_or_harmless(places in vec((any::<Index>(), 1..=255_u8), 1..8), file in 0..3_usize) {
        let rows = rows();
        let (_folder, path) = stored(&rows);
        let database = path.join("rows");
        drop(open_when_free(&database));
        let mut files: Vec<_> = fs::read_dir(&database).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.is_file());
        files.sort();
        let file = &files[file % files.len()];
        let mut bytes = fs::read(file).unwrap();
        let used = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
        places.iter().for_each(|(place, change)| bytes[place.index(used)] ^= change);
        fs::write(file, bytes).unwrap();

        let (store, opened) = open(&path);

        let expected = if opened == Opened::Sound { rows } else { Vec::new() };
        prop_assert_eq!(all(&store), expected);
    }
}

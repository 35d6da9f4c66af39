use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::ids::NetworkId;
use crate::keys::Identity;
use crate::units::UnitRange;
use crate::wire::signed::Signed;

const ME: u8 = 0;

fn network() -> NetworkId {
    NetworkId::of("ledger", None)
}

fn identity(seed: u8) -> Identity {
    Identity::generate([seed + 1; 32])
}

fn peer(seed: u8) -> PeerKey {
    identity(seed).peer()
}

fn line(stage: PeerKey, work: u64) -> CreditLine {
    CreditLine { stage, range: UnitRange::new(0, 1).unwrap(), work: Mflop(work), difficulty: 1_000 }
}

fn model() -> ModelId {
    ModelId::new([1; 32])
}

/// The next entry of the ledger's own log, with `debts` as (stage, work).
fn write(ledger: &Ledger, identity: &Identity, debts: &[(u8, u64)]) -> CreditEntry {
    let lines: Vec<_> = debts.iter().map(|&(stage, work)| line(peer(stage), work)).collect();
    let session = SessionId::new([9; 16]);
    let header = ledger.next_header(session, model(), Position(7), &lines).unwrap();
    CreditEntry::seal(&header, lines, identity, network()).unwrap()
}

/// A whole log of one requester.
fn log_of(requester: u8, debts: &[Vec<(u8, u64)>]) -> Vec<CreditEntry> {
    let identity = identity(requester);
    let mut own = Ledger::new(identity.peer());
    let mut append = |debts: &Vec<_>| {
        let entry = write(&own, &identity, debts);
        take(&mut own, entry)
    };
    debts.iter().map(&mut append).collect()
}

fn take(ledger: &mut Ledger, entry: CreditEntry) -> CreditEntry {
    let plan = ledger.plan(&entry).unwrap();
    ledger.commit(plan);
    entry
}

fn simple_log(requester: u8, length: usize) -> Vec<CreditEntry> {
    log_of(requester, &vec![vec![(ME, 10), (5, 20)]; length])
}

/// Another entry in the place of the last one of `log`.
fn forked(requester: u8, log: &[CreditEntry]) -> CreditEntry {
    let mut own = Ledger::new(peer(requester));
    for entry in &log[..log.len() - 1] {
        take(&mut own, entry.clone());
    }
    write(&own, &identity(requester), &[(8, 1)])
}

fn ledger_with(entries: &[CreditEntry]) -> Ledger {
    let mut ledger = Ledger::new(peer(ME));
    for entry in entries {
        take(&mut ledger, entry.clone());
    }
    ledger
}

#[test]
fn a_requester_owes_the_sum_of_its_lines() {
    let ledger = ledger_with(&simple_log(1, 3));

    assert_eq!(ledger.balance(peer(1), peer(ME)), Mflop(30));
    assert_eq!(ledger.balance(peer(1), peer(5)), Mflop(60));
    assert_eq!(ledger.balance(peer(ME), peer(1)), Mflop(0));
    assert_eq!((ledger.owed_by(peer(1)), ledger.earned_by(peer(5))), (Mflop(90), Mflop(60)));
}

#[test]
fn nobody_owes_itself() {
    let ledger = ledger_with(&log_of(1, &[vec![(1, 500), (2, 3)]]));

    assert_eq!(ledger.balances().collect::<Vec<_>>(), [(peer(1), peer(2), Mflop(3))]);
    assert_eq!(ledger.entries().next().unwrap().header.value.total, Mflop(503));
}

#[test]
fn a_plan_changes_nothing_until_it_is_committed() {
    let mut ledger = Ledger::new(peer(ME));
    let entry = simple_log(1, 1).remove(0);

    let plan = ledger.plan(&entry).unwrap();

    assert_eq!(plan.rows(), [Row::Entry(Box::new(entry.clone()))]);
    assert_eq!(ledger.balance(peer(1), peer(ME)), Mflop(0));
    ledger.commit(plan.clone());
    ledger.commit(plan);
    assert_eq!(ledger.balance(peer(1), peer(ME)), Mflop(10));
    assert_eq!(ledger.plan(&entry), Ok(Plan::Known));
}

#[test]
fn the_own_log_is_a_chain() {
    let log = simple_log(ME, 3);
    let headers: Vec<_> = log.iter().map(|entry| entry.header.value).collect();
    let next = ledger_with(&log).next_header(SessionId::new([1; 16]), model(), Position(1), &[line(peer(3), 4)]);

    assert_eq!(headers[0].previous, [0; 32]);
    assert_eq!(headers[2].previous, headers[1].hash());
    assert_eq!(next.map(|next| (next.sequence, next.previous)), Ok((3, headers[2].hash())));
}

#[test]
fn a_peer_that_comes_late_is_paid_all_the_same() {
    let log = simple_log(1, 5);
    let mut ledger = ledger_with(&log[3..]);

    assert_eq!(ledger.balance(peer(1), peer(ME)), Mflop(20));
    for entry in &log[..3] {
        take(&mut ledger, entry.clone());
    }
    assert_eq!(ledger.balance(peer(1), peer(ME)), Mflop(50));
}

#[test]
fn an_entry_that_does_not_meet_its_neighbour_is_refused() {
    let log = simple_log(1, 3);
    let other = log_of(1, &[vec![(7, 1)], vec![(7, 1)], vec![(7, 2)]]);
    let broken = |sequence| Err(LedgerError::Broken { requester: peer(1), sequence });

    assert_eq!(ledger_with(&log[..2]).plan(&other[2]), broken(2));
    assert_eq!(ledger_with(&log[2..]).plan(&other[1]), broken(1));
}

#[test]
fn a_fork_is_found_whichever_comes_first_and_ends_the_log() {
    let log = simple_log(1, 3);
    let other = forked(1, &log);
    let proof = Fork::between(&log[2].header, &other.header).unwrap();

    for (first, second) in [(&log[2], &other), (&other, &log[2])] {
        let mut ledger = ledger_with(&[log[0].clone(), log[1].clone(), first.clone()]);
        let plan = ledger.plan(second).unwrap();
        assert_eq!(plan.rows(), [Row::Fork(Box::new(proof.clone()))]);
        ledger.commit(plan);
        assert_eq!(ledger.fork_of(peer(1)), Some(&proof));
        assert_eq!(ledger.plan(second), Err(LedgerError::Forked { requester: peer(1), sequence: 2 }));
        assert_eq!(ledger.plan(first), Ok(Plan::Known));
        assert_eq!(ledger.plan_fork(proof.clone()), Plan::Known);
    }
}

#[test]
fn a_proof_is_checked_by_anybody() {
    let log = simple_log(1, 1);
    let proof = Fork::between(&log[0].header, &forked(1, &log).header).unwrap();
    let bytes = proof.encode();
    let (first, second) = bytes.split_at(Fork::BYTES / 2);

    assert_eq!(Fork::decode(&bytes, network()), Ok(proof));
    assert!(Fork::decode(&bytes, NetworkId::of("elsewhere", None)).is_err());
    assert!(Fork::decode(&[second, first].concat(), network()).is_err());
    assert!(Fork::decode(&[first, first].concat(), network()).is_err());
    assert!(Fork::decode(&bytes[1..], network()).is_err());
}

#[test]
fn two_entries_of_one_log_are_no_fork() {
    let log = simple_log(1, 2);

    assert_eq!(Fork::between(&log[0].header, &log[1].header), None);
    assert_eq!(Fork::between(&log[0].header, &log[0].header), None);
    assert_eq!(Fork::between(&log[0].header, &simple_log(2, 1)[0].header), None);
}

#[test]
fn an_entry_too_old_for_memory_is_left_to_the_store() {
    let log = simple_log(1, 40);
    let ledger = ledger_with(&log);

    assert_eq!(ledger.plan(&log[39]), Ok(Plan::Known));
    assert_eq!(ledger.plan(&log[0]), Err(LedgerError::Old { requester: peer(1), sequence: 0 }));
}

#[test]
fn debts_that_cannot_be_counted_are_refused() {
    let mut ledger = ledger_with(&log_of(1, &[vec![(2, u64::MAX)]]));
    let log = log_of(1, &[vec![(2, u64::MAX)], vec![(3, 1)]]);
    take(&mut ledger, log[1].clone());
    let identity = identity(1);
    let own = ledger_with(&[]);
    let lines = vec![line(peer(2), 1)];
    let header = CreditHeader {
        requester: identity.peer(),
        sequence: 2,
        previous: log[1].header.value.hash(),
        lines: hash_lines(&lines),
        total: Mflop(1),
        ..log[1].header.value
    };

    let entry = CreditEntry::seal(&header, lines, &identity, network()).unwrap();

    assert_eq!(ledger.plan(&entry), Err(LedgerError::Overflow { requester: peer(1) }));
    let twice = [line(peer(2), u64::MAX), line(peer(3), 1)];
    let fault = own.next_header(SessionId::new([1; 16]), model(), Position(1), &twice);
    assert_eq!(fault, Err(LedgerError::Overflow { requester: peer(ME) }));
}

#[test]
fn a_log_of_holes_is_not_followed_for_ever() {
    let identity = identity(1);
    let mut ledger = Ledger::new(peer(ME));
    let at = |sequence: u64| {
        let lines = vec![line(peer(2), 1)];
        let header = CreditHeader {
            requester: identity.peer(),
            sequence,
            previous: [7; 32],
            session: SessionId::new([1; 16]),
            model: model(),
            positions: Position(1),
            lines: hash_lines(&lines),
            total: Mflop(1),
        };
        CreditEntry::seal(&header, lines, &identity, network()).unwrap()
    };

    for hole in 1..=64 {
        take(&mut ledger, at(2 * hole));
    }

    assert_eq!(ledger.plan(&at(130)), Err(LedgerError::Holes { requester: peer(1) }));
    assert_eq!(ledger.plan(&at(u64::MAX)), Err(LedgerError::Holes { requester: peer(1) }));
}

#[test]
fn strangers_fill_their_own_room_only() {
    let mut ledger = Ledger::new(peer(ME));
    let stranger = |place: usize| {
        let mut seed = [0xee; 32];
        seed[..8].copy_from_slice(&(place as u64).to_le_bytes());
        let identity = Identity::generate(seed);
        write(&Ledger::new(identity.peer()), &identity, &[(200, 1)])
    };

    for place in 0..STRANGERS.logs {
        take(&mut ledger, stranger(place));
    }

    let more = stranger(STRANGERS.logs);
    assert_eq!(ledger.plan(&more), Err(LedgerError::Full { requester: more.header.author }));
    take(&mut ledger, simple_log(1, 1).remove(0));
    take(&mut ledger, simple_log(ME, 1).remove(0));
    assert_eq!(ledger.entries().count(), MAX_RECENT);
}

#[test]
fn a_stranger_that_comes_to_owe_this_peer_changes_rooms() {
    let log = log_of(1, &[vec![(5, 1)], vec![(ME, 1), (6, 1)]]);
    let mut ledger = ledger_with(&log[..1]);
    assert_eq!(ledger.used[&Class::Stranger], Bounds { logs: 1, pairs: 1, entries: 1 });

    take(&mut ledger, log[1].clone());

    assert_eq!(ledger.used[&Class::Stranger], Bounds::default());
    assert_eq!(ledger.used[&Class::Debtor], Bounds { logs: 1, pairs: 3, entries: 2 });
}

#[test]
fn a_ledger_is_restored_from_its_rows() {
    let log = simple_log(1, 3);
    let other = forked(1, &log);
    let mut ledger = Ledger::new(peer(ME));
    let mut rows = Vec::new();
    for entry in log.iter().chain(&simple_log(ME, 2)).chain([&other]) {
        let plan = ledger.plan(entry).unwrap();
        rows.extend(plan.rows());
        ledger.commit(plan);
    }

    let restored = Ledger::restore(peer(ME), rows);

    assert!(restored.balances().eq(ledger.balances()));
    assert!(restored.entries().eq(ledger.entries()));
    assert!(restored.forks().eq(ledger.forks()));
    assert_eq!(restored.newest(peer(ME)), ledger.newest(peer(ME)));
}

/// Logs of three requesters: for each entry, its lines as (stage, work).
fn logs() -> impl Strategy<Value = Vec<Vec<Vec<(u8, u64)>>>> {
    vec(vec(vec((0..6_u8, 0..1_000_u64), 1..4), 1..5), 3)
}

fn entries_of(logs: &[Vec<Vec<(u8, u64)>>]) -> Vec<CreditEntry> {
    (0..).zip(logs).flat_map(|(requester, debts)| log_of(requester, debts)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn balances_do_not_depend_on_the_order(
        (entries, shuffled) in logs().prop_map(|logs| entries_of(&logs))
            .prop_flat_map(|entries| (Just(entries.clone()), Just(entries).prop_shuffle())),
    ) {
        prop_assert!(ledger_with(&entries).balances().eq(ledger_with(&shuffled).balances()));
    }

    #[test]
    fn what_is_owed_is_what_is_earned(logs in logs()) {
        let entries = entries_of(&logs);
        let ledger = ledger_with(&entries);
        let peers: BTreeSet<_> = (0..6).map(peer).collect();
        let signed = entries.iter().flat_map(|entry| entry.lines.iter().map(move |line| (entry, line)));
        let for_others = signed.filter(|(entry, line)| line.stage != entry.header.author);

        let owed: Mflop = peers.iter().map(|&peer| ledger.owed_by(peer)).sum();
        let earned: Mflop = peers.iter().map(|&peer| ledger.earned_by(peer)).sum();

        prop_assert_eq!(owed, earned);
        prop_assert_eq!(owed, for_others.map(|(_, line)| line.work).sum());
    }

    #[test]
    fn a_fork_anywhere_is_found_in_any_order(
        length in 1..6_usize, place in any::<proptest::sample::Index>(), fork_first: bool,
    ) {
        let log = simple_log(1, length);
        let place = place.index(length);
        let other = forked(1, &log[..=place]);
        let (first, second) = if fork_first { (&other, &log[place]) } else { (&log[place], &other) };
        let mut ledger = ledger_with(std::slice::from_ref(first));

        let plan = ledger.plan(second).unwrap();
        ledger.commit(plan);

        let headers: BTreeSet<_> = ledger.forks().flat_map(Fork::headers).map(Signed::to_bytes).collect();
        prop_assert_eq!(headers, BTreeSet::from([first.header.to_bytes(), second.header.to_bytes()]));
    }
}

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use expect_test::expect;
use proptest::prelude::*;

use super::*;

fn item(requester: u8, session: u8, kind: Kind, positions: u32, step: u64) -> Item {
    Item {
        key: StepKey {
            session: SessionId::new([session; 16]),
            range: UnitRange::whole(6).unwrap(),
            epoch: Epoch(0),
            step: Step(step),
        },
        requester: PeerKey::new([requester; 32]),
        class: Class::Other,
        kind,
        positions: Position(positions),
        enqueued: Time::ZERO,
    }
}

/// Each batch on lines of its own, and a line of dashes between them.
fn drain(scheduler: &mut Scheduler) -> String {
    let name = |taken: &Taken| {
        let Item { key, requester, kind, positions, .. } = taken.item;
        let session = key.session.as_bytes()[0];
        format!("{kind:?} of {} for {}, session {session} step {}\n", positions, requester.as_bytes()[0], key.step)
    };
    let batches = std::iter::from_fn(|| Some(scheduler.take_batch(0, Time::ZERO)).filter(|batch| !batch.is_empty()));
    batches.map(|batch| batch.iter().map(name).collect::<String>()).collect::<Vec<_>>().join("---\n")
}

fn budget(decodes: usize, positions: u32, beside_decodes: u32) -> SchedulerConfig {
    let budget = Budget { decodes, positions: Position(positions), beside_decodes: Position(beside_decodes) };
    SchedulerConfig { budget, ..SchedulerConfig::default() }
}

#[test]
fn all_decode_steps_go_first_and_prompts_get_less_of_a_batch_beside_them() {
    let mut scheduler = Scheduler::new(budget(2, 128, 32));
    scheduler.push(item(1, 1, Kind::Prefill, 64, 0)).unwrap();
    scheduler.push(item(1, 1, Kind::Prefill, 64, 1)).unwrap();
    for session in 2..5 {
        scheduler.push(item(2, session, Kind::Decode, 1, 9)).unwrap();
    }

    expect![[r#"
        Decode of 1 for 2, session 2 step 9
        Decode of 1 for 2, session 3 step 9
        Prefill of 32 for 1, session 1 step 0
        ---
        Decode of 1 for 2, session 4 step 9
        Prefill of 32 for 1, session 1 step 0
        ---
        Prefill of 64 for 1, session 1 step 1
    "#]]
    .assert_eq(&drain(&mut scheduler));
}

#[test]
fn a_batch_is_filled_with_the_prompts_of_several_sessions() {
    let mut scheduler = Scheduler::new(budget(8, 300, 64));
    for session in 1..4 {
        scheduler.push(item(session, session, Kind::Prefill, 128, 0)).unwrap();
        scheduler.push(item(session, session, Kind::Prefill, 128, 1)).unwrap();
    }

    expect![[r#"
        Prefill of 128 for 1, session 1 step 0
        Prefill of 128 for 2, session 2 step 0
        Prefill of 44 for 3, session 3 step 0
        ---
        Prefill of 84 for 3, session 3 step 0
        Prefill of 128 for 1, session 1 step 1
        Prefill of 88 for 2, session 2 step 1
        ---
        Prefill of 40 for 2, session 2 step 1
        Prefill of 128 for 3, session 3 step 1
    "#]]
    .assert_eq(&drain(&mut scheduler));
}

#[test]
fn requesters_take_turns_however_many_sessions_they_have() {
    let mut scheduler = Scheduler::new(budget(3, 128, 128));
    for session in 1..5 {
        scheduler.push(item(1, session, Kind::Decode, 1, 0)).unwrap();
    }
    scheduler.push(item(2, 9, Kind::Decode, 1, 0)).unwrap();
    scheduler.push(item(3, 8, Kind::Decode, 1, 0)).unwrap();

    expect![[r#"
        Decode of 1 for 1, session 1 step 0
        Decode of 1 for 2, session 9 step 0
        Decode of 1 for 3, session 8 step 0
        ---
        Decode of 1 for 1, session 2 step 0
        Decode of 1 for 1, session 3 step 0
        Decode of 1 for 1, session 4 step 0
    "#]]
    .assert_eq(&drain(&mut scheduler));
}

#[test]
fn long_chunks_and_short_ones_get_the_same_positions() {
    // One step a batch, or the short ones could not follow each other.
    let mut scheduler = Scheduler::new(budget(1, 128, 128));
    for step in 0..20 {
        scheduler.push(item(1, 1, Kind::Prefill, 512, step)).unwrap();
        scheduler.push(item(2, 2, Kind::Prefill, 128, step)).unwrap();
    }

    let mut served: BTreeMap<PeerKey, u32> = BTreeMap::new();
    while served.values().sum::<u32>() < 4_096 {
        for taken in scheduler.take_batch(0, Time::ZERO) {
            *served.entry(taken.item.requester).or_default() += taken.item.positions.0;
        }
    }

    assert_eq!(served.into_values().collect::<Vec<_>>(), [2_048, 2_048]);
}

#[test]
fn a_turn_goes_on_from_batch_to_batch() {
    let mut scheduler = Scheduler::new(budget(1, 32, 32));
    scheduler.push(item(1, 1, Kind::Prefill, 512, 0)).unwrap();
    scheduler.push(item(2, 2, Kind::Prefill, 512, 0)).unwrap();

    let batches = (0..16).flat_map(|_| scheduler.take_batch(0, Time::ZERO));
    let whose: Vec<u8> = batches.map(|taken| taken.item.requester.as_bytes()[0]).collect();

    assert_eq!(whose, [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 2, 2, 2, 2]);
}

#[test]
fn a_step_does_not_overtake_the_steps_of_its_own_stage() {
    let mut scheduler = Scheduler::new(SchedulerConfig::default());
    scheduler.push(item(1, 1, Kind::Prefill, 64, 0)).unwrap();
    scheduler.push(item(1, 1, Kind::Decode, 1, 1)).unwrap();
    scheduler.push(item(1, 2, Kind::Decode, 1, 0)).unwrap();

    expect![[r#"
        Decode of 1 for 1, session 2 step 0
        Prefill of 64 for 1, session 1 step 0
        ---
        Decode of 1 for 1, session 1 step 1
    "#]]
    .assert_eq(&drain(&mut scheduler));
}

#[test]
fn a_full_queue_says_whose_bound_was_met() {
    let mut scheduler = Scheduler::new(SchedulerConfig { capacity: 3, per_requester: 2, ..SchedulerConfig::default() });
    scheduler.push(item(1, 1, Kind::Decode, 1, 0)).unwrap();
    scheduler.push(item(1, 1, Kind::Prefill, 1, 1)).unwrap();

    assert_eq!(scheduler.push(item(1, 2, Kind::Decode, 1, 0)), Err(Full::Requester { per_requester: 2 }));
    scheduler.push(item(2, 3, Kind::Decode, 1, 0)).unwrap();
    assert_eq!(scheduler.push(item(3, 4, Kind::Decode, 1, 0)), Err(Full::Queue { capacity: 3 }));
    assert_eq!(scheduler.len(), 3);
}

#[test]
fn waiting_is_counted_from_when_the_step_came() {
    let mut scheduler = Scheduler::new(SchedulerConfig::default());
    scheduler.push(Item { enqueued: Time(100), ..item(1, 1, Kind::Decode, 1, 0) }).unwrap();

    let waited: Vec<Span> = scheduler.take_batch(0, Time(350)).into_iter().map(|taken| taken.waited).collect();
    assert_eq!(waited, [Span(250)]);
    assert!(scheduler.is_empty());
}

#[test]
fn the_rest_of_a_cut_step_waits_in_its_place_until_it_is_taken_or_removed() {
    let mut scheduler = Scheduler::new(budget(1, 100, 100));
    let (session, stage) = (SessionId::new([1; 16]), UnitRange::whole(6).unwrap());
    scheduler.push(item(1, 1, Kind::Prefill, 250, 0)).unwrap();

    scheduler.take_batch(0, Time::ZERO);
    assert!(scheduler.holds(session, stage));
    assert_eq!((scheduler.len(), scheduler.positions()), (1, Position(150)));
    scheduler.take_batch(0, Time::ZERO);
    assert_eq!(scheduler.remove(session), 1);

    assert!(!scheduler.holds(session, stage));
    assert_eq!(scheduler.take_batch(0, Time::ZERO), []);
}

#[test]
fn prompts_get_less_of_a_batch_also_while_a_reader_is_between_two_steps() {
    let mut scheduler = Scheduler::new(budget(8, 512, 64));
    scheduler.push(item(1, 1, Kind::Prefill, 300, 0)).unwrap();

    let positions: Vec<Position> =
        scheduler.take_batch(1, Time::ZERO).into_iter().map(|taken| taken.item.positions).collect();

    assert_eq!(positions, [Position(64)]);
}

#[test]
fn a_batch_waits_a_moment_for_readers_and_not_if_all_are_there() {
    let mut scheduler = Scheduler::new(SchedulerConfig::default());
    let (idle, pass) = (Time(1_000), Span::millis(32));
    assert_eq!(scheduler.due(idle, pass, 2), None);

    scheduler.push(Item { enqueued: Time(5_000), ..item(1, 1, Kind::Decode, 1, 0) }).unwrap();
    assert_eq!(scheduler.due(idle, pass, 1), Some(Time(5_000)));
    assert_eq!(scheduler.due(idle, pass, 2), Some(Time(7_000)));
    assert_eq!(scheduler.due(Time(6_000), pass, 2), Some(Time(8_000)));
    // Not for long, and not for less than a timer can tell.
    assert_eq!(scheduler.due(idle, Span::seconds(1), 2), Some(Time(9_000)));
    assert_eq!(scheduler.due(idle, Span::millis(15), 2), Some(Time(5_000)));
    scheduler.push(Item { enqueued: Time(5_500), ..item(1, 2, Kind::Decode, 1, 0) }).unwrap();
    assert_eq!(scheduler.due(idle, pass, 2), Some(Time(5_000)));

    scheduler.take_batch(2, Time(6_000));
    assert_eq!(scheduler.due(idle, pass, 2), None);
}

fn of(class: Class, item: Item) -> Item {
    Item { class, ..item }
}

#[test]
fn own_work_goes_first_then_that_of_trusted_peers_and_whoever_is_last_gets_its_part() {
    let mut scheduler = Scheduler::new(budget(8, 64, 64));
    for session in 1..10 {
        scheduler.push(of(Class::Other, item(3, session, Kind::Decode, 1, 0))).unwrap();
        scheduler.push(of(Class::Own, item(1, 20 + session, Kind::Decode, 1, 0))).unwrap();
    }
    scheduler.push(of(Class::Trusted, item(2, 15, Kind::Decode, 1, 0))).unwrap();

    let whose = |batch: Vec<Taken>| batch.iter().map(|taken| taken.item.requester.as_bytes()[0]).collect::<Vec<_>>();
    assert_eq!(whose(scheduler.take_batch(0, Time::ZERO)), [1, 1, 1, 1, 1, 1, 2, 3]);
    assert_eq!(whose(scheduler.take_batch(0, Time::ZERO)), [1, 1, 1, 3, 3, 3, 3, 3]);
    assert_eq!(whose(scheduler.take_batch(0, Time::ZERO)), [3, 3, 3]);
}

#[test]
fn an_own_prompt_has_the_batch_but_for_the_others_part_and_all_that_they_leave() {
    let mut scheduler = Scheduler::new(budget(8, 128, 128));
    scheduler.push(of(Class::Other, item(3, 3, Kind::Prefill, 10, 0))).unwrap();
    scheduler.push(of(Class::Other, item(4, 4, Kind::Prefill, 500, 0))).unwrap();
    scheduler.push(of(Class::Own, item(1, 1, Kind::Prefill, 200, 0))).unwrap();

    expect![[r#"
        Prefill of 112 for 1, session 1 step 0
        Prefill of 10 for 3, session 3 step 0
        Prefill of 6 for 4, session 4 step 0
        ---
        Prefill of 88 for 1, session 1 step 0
        Prefill of 40 for 4, session 4 step 0
        ---
        Prefill of 128 for 4, session 4 step 0
        ---
        Prefill of 128 for 4, session 4 step 0
        ---
        Prefill of 128 for 4, session 4 step 0
        ---
        Prefill of 70 for 4, session 4 step 0
    "#]]
    .assert_eq(&drain(&mut scheduler));
}

/// What happens to a queue.
#[derive(Clone, Debug)]
enum Deed {
    Push { requester: u8, session: u8, kind: Kind, positions: u32 },
    TakeBatch,
    Remove { session: u8 },
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let kind = prop_oneof![Just(Kind::Decode), Just(Kind::Prefill)];
    let push = (0..4_u8, 0..3_u8, kind, 0..700_u32).prop_map(|(requester, session, kind, positions)| Deed::Push {
        requester,
        session: requester * 3 + session,
        kind,
        positions,
    });
    let remove = (0..12_u8).prop_map(|session| Deed::Remove { session });
    proptest::collection::vec(prop_oneof![5 => push, 4 => Just(Deed::TakeBatch), 1 => remove], 1..200)
}

proptest! {
    /// Against a list: nothing is lost, doubled or taken after its removal; stages keep their order; counts agree.
    #[test]
    fn every_step_is_taken_once_in_its_stages_order_or_removed(
        deeds in deeds(), decodes in 1..4_usize, positions in 1..600_u32, beside in 1..100_u32,
    ) {
        let config = budget(decodes, positions, beside);
        let mut scheduler = Scheduler::new(SchedulerConfig { capacity: 40, per_requester: 20, ..config });
        let mut model: Vec<Item> = Vec::new();
        for (step, deed) in (0..).zip(deeds) {
            match deed {
                Deed::Push { requester, session, kind, positions } => {
                    let class = Class::ALL[usize::from(requester) % Class::ALL.len()];
                    let item = of(class, item(requester, session, kind, positions, step));
                    let own = model.iter().filter(|other| other.requester == item.requester).count();
                    let room = model.len() < 40 && own < 20;
                    prop_assert_eq!(scheduler.push(item).is_ok(), room);
                    if room {
                        model.push(item);
                    }
                }
                Deed::TakeBatch => {
                    let batch = scheduler.take_batch(0, Time::ZERO);
                    prop_assert_eq!(batch.is_empty(), model.is_empty());
                    let (mut stages, mut decoded, mut prefilled) = (BTreeSet::new(), 0, 0);
                    for Taken { item: taken, .. } in batch {
                        prop_assert!(stages.insert(taken.key.session), "one step of a stage");
                        let first = model.iter().position(|other| other.key.session == taken.key.session);
                        let waiting = &mut model[first.unwrap()];
                        prop_assert_eq!(taken.key, waiting.key);
                        waiting.positions = waiting.positions.minus(taken.positions);
                        match taken.kind {
                            Kind::Decode => decoded += 1,
                            Kind::Prefill => prefilled += taken.positions.0,
                        }
                        if waiting.positions == Position::ZERO {
                            model.remove(first.unwrap());
                        } else {
                            prop_assert_eq!(taken.kind, Kind::Prefill, "decode steps are whole");
                        }
                    }
                    prop_assert!(decoded <= decodes, "{} decode steps", decoded);
                    prop_assert!(prefilled <= positions.max(beside), "{} positions", prefilled);
                }
                Deed::Remove { session } => {
                    let session = SessionId::new([session; 16]);
                    let before = model.len();
                    model.retain(|other| other.key.session != session);
                    prop_assert_eq!(scheduler.remove(session), before - model.len());
                }
            }
            prop_assert_eq!(scheduler.len(), model.len());
            let positions: Position = model.iter().map(|item| item.positions).sum();
            prop_assert_eq!(scheduler.positions(), positions);
        }
    }

    /// However the others push, a step is taken within a number of batches that the bounds give.
    #[test]
    fn no_step_starves(kind in prop_oneof![Just(Kind::Decode), Just(Kind::Prefill)], crowd in 1..6_u8, chunk in 1..512_u32) {
        let mut scheduler = Scheduler::new(budget(2, 128, 32));
        let flood = |scheduler: &mut Scheduler, step: u64| {
            for requester in 0..crowd {
                // The crowd keeps decode and prefill steps waiting in ever new sessions.
                let _ = scheduler.push(item(requester, 2 * requester, Kind::Decode, 1, step));
                let _ = scheduler.push(item(requester, 2 * requester + 1, Kind::Prefill, chunk, step));
            }
        };
        flood(&mut scheduler, 0);
        flood(&mut scheduler, 1);
        let positions = if kind == Kind::Decode { 1 } else { chunk };
        scheduler.push(item(99, 99, kind, positions, 0)).unwrap();

        // Everybody else may go first with a turn of the lane for each turn of this step, at 32 positions or 2 steps a batch.
        let rounds = u64::from(chunk).div_ceil(PREFILL_TURN) + 1;
        let batches = (u64::from(crowd) + 1) * rounds * (PREFILL_TURN + 512).div_ceil(32);
        let mut left = positions;
        for step in 0..batches {
            let batch = scheduler.take_batch(0, Time::ZERO);
            let own = batch.iter().filter(|taken| taken.item.requester == PeerKey::new([99; 32]));
            left -= own.map(|taken| taken.item.positions.0).sum::<u32>();
            if left == 0 {
                break;
            }
            flood(&mut scheduler, step + 2);
        }
        prop_assert_eq!(left, 0, "not taken within {} batches", batches);
    }

    /// However much own work there is, others' steps are taken within a number of batches that their part gives.
    #[test]
    fn own_work_starves_nobody(kind in prop_oneof![Just(Kind::Decode), Just(Kind::Prefill)], chunk in 1..512_u32) {
        let mut scheduler = Scheduler::new(budget(16, 128, 32));
        let flood = |scheduler: &mut Scheduler, step: u64| {
            for session in 0..40 {
                let kind = if session < 20 { Kind::Decode } else { Kind::Prefill };
                let _ = scheduler.push(of(Class::Own, item(1, session, kind, if session < 20 { 1 } else { 300 }, step)));
            }
        };
        flood(&mut scheduler, 0);
        let positions = if kind == Kind::Decode { 1 } else { chunk };
        scheduler.push(item(99, 99, kind, positions, 0)).unwrap();

        // Of 32 positions or 16 steps an eighth.
        let mut left = positions;
        for step in 0..u64::from(positions.div_ceil(4)) {
            let batch = scheduler.take_batch(0, Time::ZERO);
            let others = batch.iter().filter(|taken| taken.item.class == Class::Other);
            left -= others.map(|taken| taken.item.positions.0).sum::<u32>();
            flood(&mut scheduler, step + 1);
        }
        prop_assert_eq!(left, 0);
    }
}

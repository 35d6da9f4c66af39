use std::collections::BTreeMap;

use expect_test::expect;
use proptest::prelude::*;

use super::*;

fn item(requester: u8, session: u8, kind: Kind, positions: u32, step: u64) -> Item {
    Item {
        key: StepKey {
            session: SessionId::new([session; 16]),
            stage: StageIndex(0),
            epoch: Epoch(0),
            step: Step(step),
        },
        requester: PeerKey::new([requester; 32]),
        kind,
        positions: Position(positions),
        enqueued: Time::ZERO,
    }
}

fn drain(scheduler: &mut Scheduler) -> String {
    let name = |taken: Taken| {
        let Item { key, requester, kind, positions, .. } = taken.item;
        let session = key.session.as_bytes()[0];
        format!("{kind:?} of {} for {}, session {session} step {}\n", positions, requester.as_bytes()[0], key.step)
    };
    std::iter::from_fn(|| scheduler.pop(Time::ZERO)).map(name).collect()
}

#[test]
fn decode_goes_first_and_prefill_is_not_starved() {
    let mut scheduler = Scheduler::new(SchedulerConfig { decodes_per_prefill: 2, ..SchedulerConfig::default() });
    scheduler.push(item(1, 1, Kind::Prefill, 64, 0)).unwrap();
    scheduler.push(item(1, 1, Kind::Prefill, 64, 1)).unwrap();
    for session in 2..7 {
        scheduler.push(item(2, session, Kind::Decode, 1, 9)).unwrap();
    }

    expect![[r#"
        Decode of 1 for 2, session 2 step 9
        Decode of 1 for 2, session 3 step 9
        Prefill of 64 for 1, session 1 step 0
        Decode of 1 for 2, session 4 step 9
        Decode of 1 for 2, session 5 step 9
        Prefill of 64 for 1, session 1 step 1
        Decode of 1 for 2, session 6 step 9
    "#]]
    .assert_eq(&drain(&mut scheduler));
}

#[test]
fn requesters_take_turns_however_many_sessions_they_have() {
    let mut scheduler = Scheduler::new(SchedulerConfig::default());
    for session in 1..5 {
        scheduler.push(item(1, session, Kind::Decode, 1, 0)).unwrap();
    }
    scheduler.push(item(2, 9, Kind::Decode, 1, 0)).unwrap();
    scheduler.push(item(3, 8, Kind::Decode, 1, 0)).unwrap();

    expect![[r#"
        Decode of 1 for 1, session 1 step 0
        Decode of 1 for 2, session 9 step 0
        Decode of 1 for 3, session 8 step 0
        Decode of 1 for 1, session 2 step 0
        Decode of 1 for 1, session 3 step 0
        Decode of 1 for 1, session 4 step 0
    "#]]
    .assert_eq(&drain(&mut scheduler));
}

#[test]
fn long_chunks_and_short_ones_get_the_same_positions() {
    let mut scheduler = Scheduler::new(SchedulerConfig::default());
    for step in 0..20 {
        scheduler.push(item(1, 1, Kind::Prefill, 512, step)).unwrap();
        scheduler.push(item(2, 2, Kind::Prefill, 128, step)).unwrap();
    }

    let mut served: BTreeMap<PeerKey, u32> = BTreeMap::new();
    for _ in 0..20 {
        let taken = scheduler.pop(Time::ZERO).unwrap();
        *served.entry(taken.item.requester).or_default() += taken.item.positions.0;
    }

    assert_eq!(served.into_values().collect::<Vec<_>>(), [2_048, 2_048]);
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

    assert_eq!(scheduler.pop(Time(350)).map(|taken| taken.waited), Some(Span(250)));
    assert!(scheduler.is_empty());
}

/// What happens to a queue.
#[derive(Clone, Debug)]
enum Deed {
    Push { requester: u8, session: u8, kind: Kind, positions: u32 },
    Pop,
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
    proptest::collection::vec(prop_oneof![5 => push, 4 => Just(Deed::Pop), 1 => remove], 1..200)
}

proptest! {
    /// Against a list: nothing is lost, doubled or taken after its removal; stages keep their order; counts agree.
    #[test]
    fn every_step_is_taken_once_in_its_stages_order_or_removed(deeds in deeds()) {
        let mut scheduler = Scheduler::new(SchedulerConfig { capacity: 40, per_requester: 20, decodes_per_prefill: 3 });
        let mut model: Vec<Item> = Vec::new();
        for (step, deed) in (0..).zip(deeds) {
            match deed {
                Deed::Push { requester, session, kind, positions } => {
                    let item = item(requester, session, kind, positions, step);
                    let own = model.iter().filter(|other| other.requester == item.requester).count();
                    let room = model.len() < 40 && own < 20;
                    prop_assert_eq!(scheduler.push(item).is_ok(), room);
                    if room {
                        model.push(item);
                    }
                }
                Deed::Pop => {
                    let taken = scheduler.pop(Time::ZERO).map(|taken| taken.item);
                    prop_assert_eq!(taken.is_some(), !model.is_empty());
                    let Some(taken) = taken else { continue };
                    let first = model.iter().position(|other| other.key.session == taken.key.session);
                    prop_assert_eq!(first.map(|index| model.remove(index)), Some(taken));
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

    /// However the others push, a step is taken within a number of turns that the bounds give.
    #[test]
    fn no_step_starves(kind in prop_oneof![Just(Kind::Decode), Just(Kind::Prefill)], crowd in 1..6_u8, chunk in 1..512_u32) {
        let mut scheduler = Scheduler::new(SchedulerConfig { decodes_per_prefill: 4, ..SchedulerConfig::default() });
        let flood = |scheduler: &mut Scheduler, step: u64| {
            for requester in 0..crowd {
                // The crowd keeps a decode and a prefill step waiting in ever new sessions.
                scheduler.push(item(requester, 2 * requester, Kind::Decode, 1, step)).unwrap();
                scheduler.push(item(requester, 2 * requester + 1, Kind::Prefill, chunk, step)).unwrap();
            }
        };
        flood(&mut scheduler, 0);
        flood(&mut scheduler, 1);
        let waiting = item(99, 99, kind, chunk, 0);
        scheduler.push(waiting).unwrap();

        let rounds = u64::from(chunk).div_ceil(PREFILL_TURN).max(u64::from(chunk) * u64::from(kind == Kind::Decode));
        let turns = (u64::from(crowd) + 1) * (rounds + 1) * 5 * (512 / u64::from(chunk).min(128) + 1);
        let mut taken = false;
        for step in 0..turns {
            taken |= scheduler.pop(Time::ZERO).is_some_and(|popped| popped.item == waiting);
            if taken {
                break;
            }
            if scheduler.len() < 2_000 {
                let requester = u8::try_from(step % u64::from(crowd)).unwrap();
                let _ = scheduler.push(item(requester, 2 * requester, Kind::Decode, 1, step + 2));
                let _ = scheduler.push(item(requester, 2 * requester + 1, Kind::Prefill, chunk, step + 2));
            }
        }
        prop_assert!(taken, "not taken within {turns} turns");
    }
}

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU32;

use proptest::prelude::*;

use super::*;

/// More work than is done on one thread only.
const MUCH: usize = usize::MAX;

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
}

#[test]
fn every_task_is_done_once_however_many_threads_and_tasks_there_are() {
    for threads in [1, 2, 3, 8] {
        let pool = pool(threads);
        for tasks in [0, 1, 2, 7, 1_000] {
            let done: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();

            pool.run(tasks, &|thread, number| {
                assert!(thread < threads);
                done[number].fetch_add(1, Ordering::Relaxed);
            });

            assert!(done.iter().all(|times| times.load(Ordering::Relaxed) == 1), "{tasks} tasks, {threads} threads");
        }
    }
}

#[test]
fn many_dispatches_in_a_row_lose_nothing() {
    let pool = pool(3);
    let sum = AtomicUsize::new(0);

    for round in 0..20_000 {
        pool.run(1 + round % 5, &|_, number| {
            sum.fetch_add(number + 1, Ordering::Relaxed);
        });
    }

    // Rounds of 1 to 5 tasks add 1, 3, 6, 10 and 15.
    assert_eq!(sum.into_inner(), 4_000 * 35);
}

#[test]
fn sleeping_workers_are_woken() {
    let pool = pool(2);
    let met = std::sync::Barrier::new(2);
    for _ in 0..3 {
        while pool.shared.sleepers.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }

        // Both tasks must run at the same time, so the sleeper has to come.
        pool.run(2, &|_, _| {
            met.wait();
        });
    }
}

#[test]
fn one_thread_never_does_two_tasks_at_a_time() {
    let pool = pool(4);
    let busy: Vec<AtomicBool> = (0..4).map(|_| AtomicBool::new(false)).collect();

    pool.run(2_000, &|thread, _| {
        assert!(!busy[thread].swap(true, Ordering::SeqCst));
        hint::spin_loop();
        busy[thread].store(false, Ordering::SeqCst);
    });
}

#[test]
fn a_panic_is_carried_to_the_caller_and_the_pool_lives_on() {
    let pool = pool(3);
    for culprit in [0, 17, 99] {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|_, number| assert!(number != culprit, "task {number} is broken"));
        }));

        let message = panicked.unwrap_err().downcast::<String>().unwrap();
        assert_eq!(*message, format!("task {culprit} is broken"));
        let done = AtomicUsize::new(0);
        pool.run(100, &|_, _| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 100);
    }
}

#[test]
fn a_panic_on_another_thread_is_carried_too() {
    let pool = pool(2);
    let met = std::sync::Barrier::new(2);

    let panicked = catch_unwind(AssertUnwindSafe(|| {
        pool.run(2, &|thread, _| {
            met.wait();
            assert_eq!(thread, 0, "the worker is broken");
        });
    }));

    assert!(panicked.is_err());
}

#[test]
fn a_task_that_gets_hold_of_its_pool_is_refused() {
    thread_local! {
        static POOL: Pool = Pool::alone();
    }

    let nested = catch_unwind(|| POOL.with(|pool| pool.run(1, &|_, _| POOL.with(|pool| pool.run(1, &|_, _| ())))));

    assert!(nested.is_err());
    POOL.with(|pool| pool.run(1, &|_, _| ()));
}

#[test]
fn dropping_a_pool_ends_its_threads() {
    let pool = pool(4);
    let shared = Arc::downgrade(&pool.shared);
    pool.run(8, &|_, _| ());

    drop(pool);

    // Each thread held one.
    assert_eq!(shared.strong_count(), 0);
}

#[test]
fn every_thread_keeps_denormals() {
    let pool = pool(3);

    pool.run(1_000, &|_, _| assert!(float_control::is_canonical()));
}

#[test]
fn chunks_are_the_whole_and_numbered_in_order() {
    let pool = pool(3);
    let mut data = vec![0; 1_003];

    pool.for_each_chunk(&mut data, 10, MUCH, |number, chunk| chunk.fill(number));

    assert!(data.iter().enumerate().all(|(index, number)| index / 10 == *number));
    pool.for_each_chunk(&mut [0_u8; 0], 10, MUCH, |_, _| panic!("there is no chunk"));
}

#[test]
fn little_work_stays_with_the_caller() {
    let pool = pool(3);
    let caller = thread::current().id();
    let mut data = vec![0; 100];

    pool.for_each_chunk(&mut data, 1, 100, |_, _| assert_eq!(thread::current().id(), caller));
}

proptest! {
    /// Each element of each grid is written once, by the tile that says it has it.
    #[test]
    fn tiles_cover_their_grids_without_overlap(
        heights in prop::collection::vec(0..4_usize, 1..5),
        widths in prop::array::uniform2(1..40_usize),
        columns in 1..50_usize,
    ) {
        let pool = pool(2);
        let cuts: Vec<usize> = std::iter::once(0).chain(heights.iter().scan(0, |sum, rows| {
            *sum += rows;
            Some(*sum)
        })).collect();
        let rows = cuts[cuts.len() - 1];
        let mut data = widths.map(|width| vec![(usize::MAX, 0, 0); rows * width]);
        let [first, second] = &mut data;
        let mut seen = vec![BTreeSet::new(); 2];
        {
            let mut grids =
                [Grid::new(first, widths[0], &cuts, columns), Grid::new(second, widths[1], &cuts, columns)];
            pool.for_each_tile_with(&mut seen, &mut grids, MUCH, |own, grid, mut tile| {
                own.insert((grid, tile.rows().start, tile.columns().start));
                for row in tile.rows() {
                    for (column, element) in tile.columns().zip(tile.row(row)) {
                        assert_eq!(element.0, usize::MAX);
                        *element = (grid, row, column);
                    }
                }
            });
        }

        for (grid, (data, width)) in data.iter().zip(widths).enumerate() {
            for (index, element) in data.iter().enumerate() {
                prop_assert_eq!(*element, (grid, index / width, index % width));
            }
        }
    }
}

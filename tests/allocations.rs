//! A decode step allocates nothing once the buffers have grown, nor when a page of keys and values opens. In a binary of its own, since it counts what every thread
//! allocates.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use brigade::amounts::Position;
use brigade::engine::pool::Pool;
use brigade::engine::stage::BatchStep;
use brigade::engine::stage::SessionState;
use brigade::engine::stage::StageInput;
use brigade::engine::stage::StageModel;
use brigade::engine::stage::WantLogits;
use brigade::engine::workspace::StageView;
use brigade::engine::workspace::Workspace;
use brigade::ids::Token;
use brigade::shape::WeightFormat;
use brigade::units::UnitRange;
use brigade::weights::fixture::RandomModel;
use brigade::weights::gguf::GgufFile;
use brigade::weights::llama;

/// Allocations of all threads.
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is done by the system's allocator; counting changes nothing of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Steps before and while counting, which take each session over the end of its first page of keys and values.
const WARM_UP: usize = 55;
const COUNTED: usize = 20;

#[test]
fn twenty_decode_steps_of_three_sessions_allocate_nothing_even_where_a_page_opens() {
    for &format in WeightFormat::ALL {
        // Wide enough that products are shared between threads.
        let random = RandomModel { width: 512, feed_forward: 1_024, format, ..RandomModel::tiny() };
        let file = GgufFile::from_bytes(random.bytes()).unwrap();
        let shape = llama::shape(&file).unwrap();
        let whole = UnitRange::whole(shape.units()).unwrap();
        let model = StageModel::load(shape, whole, &file, &mut |_| {}).unwrap();
        let mut workspace = Workspace::new(Pool::new(NonZeroUsize::new(2).unwrap()).unwrap());
        let mut sessions = [(); 3].map(|()| model.open(whole, Position(128), &[]).unwrap());
        for token in 0..WARM_UP {
            decode(&model, &mut sessions, &mut workspace, token);
        }

        let (mut within, mut between) = (0, 0);
        for token in 0..COUNTED {
            within += counted(|| decode(&model, &mut sessions, &mut workspace, token));
            between += counted(|| sessions.iter_mut().for_each(|session| model.make_room(session, &mut workspace)));
        }

        assert_eq!(within, 0, "{format}");
        assert!(between >= sessions.len(), "each session opens a page");
        assert_eq!(sessions[2].length(), Position((WARM_UP + COUNTED) as u32));
    }
}

/// How often `work` allocates.
fn counted(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    work();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

fn decode(model: &StageModel, sessions: &mut [SessionState; 3], workspace: &mut Workspace, token: usize) {
    let tokens = [Token(token as u32)];
    let mut steps = sessions.each_mut().map(|session| {
        let first = session.length();
        BatchStep { session, input: StageInput::Tokens(&tokens), first, want: WantLogits::LastRow }
    });
    let outcomes = model.forward_batch(&mut steps, workspace);
    for index in 0..outcomes.len() {
        assert!(matches!(outcomes.of(index), Ok(StageView::Logits(_))));
    }
}

//! What this peer holds of one model: its own decision, from what the others say they hold.
//!
//! [`Placement`] is told what the others hold ([`Event::Seen`]) and how its own loads went; it answers with
//! [`Decision`]s, to be performed in order, and [`Placement::holdings`] says what to put into the profile.

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::units::UnitRange;
use crate::wire::profile::Holding;
use crate::wire::profile::HoldingState;

/// What placement is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// What the others say, all of them at once: live, reachable peers that are not about to leave.
    Seen(Vec<Other>),
    /// A range asked for with [`Decision::Load`] can be leased.
    Loaded(UnitRange),
    /// A range asked for with [`Decision::Load`] could not be loaded.
    LoadFailed(UnitRange),
    /// A range named by [`Decision::Unload`] is out of memory.
    Unloaded(UnitRange),
    /// Time has passed.
    Ticked,
}

/// What another peer says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// The peer.
    pub peer: PeerKey,
    /// Its holdings, in whatever state; those of other models are ignored.
    pub holdings: Vec<Holding>,
    /// Memory that it has left.
    pub memory_free: Bytes,
}

/// What is to be done. In order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Say in the profile that this range is intended ([`Placement::holdings`] has it).
    Announce(UnitRange),
    /// Take the intent back out of the profile.
    Withdraw(UnitRange),
    /// Load the range and answer [`Event::Loaded`] or [`Event::LoadFailed`].
    Load(UnitRange),
    /// Take no new leases on the range, let running sessions end, drop it, answer [`Event::Unloaded`].
    Unload(UnitRange),
}

/// What holding a model's units costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The model.
    pub model: ModelId,
    /// Bytes of each unit: weights, and what is reserved for its keys and values.
    pub unit_bytes: Vec<Bytes>,
    /// Bytes that the first and the last unit share, counted once where both are held (a tied embedding).
    pub shared_ends: Bytes,
    /// Bytes that any holding needs besides, once: scratch and journals.
    pub reserve: Bytes,
}

/// What this peer offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Memory for units of this model.
    pub budget: Bytes,
    /// Units that may be held, if limited.
    pub max_units: Option<u16>,
    /// The range that the user asked for; it never moves.
    pub pinned: Option<UnitRange>,
}

/// Why this peer can hold nothing of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotServe {
    /// Not even the smallest unit fits.
    #[error("the smallest unit needs {expected}, got {got}")]
    NothingFits {
        /// Bytes that the smallest unit needs.
        expected: Bytes,
        /// The budget.
        got: Bytes,
    },
    /// The pinned range does not fit.
    #[error("units {range} need {expected}, got {got}")]
    PinnedTooLarge {
        /// The range.
        range: UnitRange,
        /// Bytes that it needs.
        expected: Bytes,
        /// The budget.
        got: Bytes,
    },
    /// The pinned range exceeds the model, or the cap on units.
    #[error("units {range} were asked for, of a model of {units}, at most {at_most} at a peer")]
    PinnedOutside {
        /// The range.
        range: UnitRange,
        /// Units of the model.
        units: u16,
        /// Units that this peer may hold.
        at_most: u16,
    },
}

/// The pace of decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementConfig {
    /// How long a newcomer listens before it chooses.
    pub listen: Span,
    /// The part of the listening that differs from peer to peer, at most.
    pub listen_spread: Span,
    /// The least time between an intent and its load: time for others' intents to arrive.
    pub settle: Span,
    /// Added to it per rank among those who would act.
    pub slot: Span,
    /// How long a unit must be without holder before one that already serves acts.
    pub grace: Span,
    /// How much longer one waits that must move for it.
    pub move_delay: Span,
    /// How long another's intent counts without being followed by a load.
    pub intent_expires: Span,
    /// How long another's load counts without being followed by readiness.
    pub load_expires: Span,
    /// How long a peer stays before it may move for gain alone.
    pub dwell: Span,
    /// The least gain of the bottleneck for which it moves, in percent.
    pub gain_percent: u64,
}

/// One peer's placement of one model.
#[derive(Clone, Debug)]
pub struct Placement {}

impl Placement {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`CannotServe`] if nothing, or not the pinned range, fits the offer.
    pub fn new(
        me: PeerKey,
        needs: Needs,
        offer: Offer,
        config: PlacementConfig,
        now: Time,
    ) -> Result<Self, CannotServe> {
        todo!("{me} {needs:?} {offer:?} {config:?} {now:?}")
    }

    /// Advances by one event. The caller performs the decisions in order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Decision> {
        todo!("{event:?} {now:?}")
    }

    /// What this peer holds, is loading or intends to, ascending: for its profile.
    pub fn holdings(&self) -> Vec<(UnitRange, HoldingState)> {
        todo!()
    }

    /// When to come back with [`Event::Ticked`], if nothing else happens.
    pub fn next_deadline(&self) -> Option<Time> {
        todo!()
    }
}

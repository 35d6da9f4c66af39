//! What may go wrong, and what makes it right again.

use crate::amounts::Span;
use crate::ids::PeerKey;
use crate::node::sim::agenda::Life;

/// Something that befalls hosts or the network between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::node) enum Fault {
    /// The process is gone.
    Crash(PeerKey),
    /// The process will be gone at the next entry that it has to store.
    CrashAtStore(PeerKey, Moment),
    /// A process that is gone is started again, with what is on its disk.
    Restart(PeerKey),
    /// The process stands still; its connections stay.
    Freeze(PeerKey),
    /// It goes on.
    Thaw(PeerKey),
    /// Its engine does not come back; the process goes on.
    Hang(PeerKey),
    /// The engine comes back with what it had.
    Unhang(PeerKey),
    /// The connection breaks and is made again.
    Break(PeerKey, PeerKey),
    /// Nothing comes through from the first to the second.
    Cut(PeerKey, PeerKey),
    /// It does again.
    Mend(PeerKey, PeerKey),
    /// The connection over which nothing came through for long is given up.
    GiveUp(PeerKey, PeerKey),
    /// Computing and hearing take so many times as long.
    Slow(PeerKey, u64),
    /// The process is asked to stop: it goes when nobody needs it any more.
    Leave(PeerKey),
    /// The process that was asked to stop in this life of its goes now, come what may.
    Depart(PeerKey, Life),
}

/// What befalls a stage of a chain that an answer is on its way through, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) struct Blow {
    pub(super) kind: BlowKind,
    pub(super) lasts: Span,
}

/// The ways in which a stage is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum BlowKind {
    /// Its process dies, and is started again.
    Crash,
    /// Its process stands still.
    Freeze,
    /// Its engine does not come back for a while.
    Hang,
    /// Its connection to the next stage breaks.
    Break,
    /// Nothing comes through to the next stage.
    Cut,
    /// Its connection to the requester breaks.
    BreakControl,
    /// It is slow.
    Slow,
    /// Its process is asked to stop, and is started again when it has.
    Leave,
}

/// When a process dies that is storing an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::node) enum Moment {
    /// Before it is on the disk.
    BeforeWrite,
    /// When it is on the disk, and nobody was told.
    AfterWrite,
}

impl Fault {
    /// Its kind, for the tables.
    pub(in crate::node) const fn kind(self) -> &'static str {
        match self {
            Self::Crash(_) => "crash",
            Self::CrashAtStore(..) => "crash while storing",
            Self::Restart(_) => "restart",
            Self::Freeze(_) => "freeze",
            Self::Thaw(_) => "thaw",
            Self::Hang(_) => "stuck engine",
            Self::Unhang(_) => "engine back",
            Self::Break(..) => "broken connection",
            Self::Cut(..) => "cut direction",
            Self::Mend(..) => "mended direction",
            Self::GiveUp(..) => "given up connection",
            Self::Slow(_, 1) => "usual pace",
            Self::Slow(..) => "slow peer",
            Self::Leave(_) => "leave",
            Self::Depart(..) => "end of patience",
        }
    }
}

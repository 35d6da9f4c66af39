//! What is to happen, in the order in which it does.

use std::collections::BTreeMap;

use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::node::io::GenerateSpec;
use crate::node::io::Input;
use crate::node::io::StreamInput;
use crate::node::sim::fault::Blow;
use crate::node::sim::fault::Fault;
use crate::node::sim::network::End;
use crate::wire::credit::CreditEntry;

/// Counts the lives of one peer: a process that is started again remembers nothing but its disk.
pub(super) type Life = u64;

/// Something that is to happen.
#[derive(Debug)]
pub(super) enum Event {
    /// A host is told something, if it still lives that life.
    Tell(PeerKey, Life, Input),
    /// A host is told something in whatever life it lives.
    Meet(PeerKey, Input),
    /// A message comes out of a stream, if the end is still there.
    Arrive(End, StreamInput),
    /// An entry is on the disk.
    Written(PeerKey, Life, Box<CreditEntry>),
    /// A user asks for an answer.
    Ask(PeerKey, Box<GenerateSpec>),
    /// Something goes wrong with a chain that an answer is on its way through.
    Strike(Blow),
    /// Something goes wrong, or right again.
    Befall(Fault),
}

/// What is to happen.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    queue: BTreeMap<(Time, u64), Event>,
    scheduled: u64,
}

impl Agenda {
    /// Events of one moment happen in the order in which they were scheduled.
    pub(super) fn schedule(&mut self, at: Time, event: Event) {
        self.queue.insert((at, self.scheduled), event);
        self.scheduled += 1;
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.queue.first_key_value().map(|(&(at, _), _)| at)
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        self.queue.pop_first().map(|(_, event)| event)
    }
}

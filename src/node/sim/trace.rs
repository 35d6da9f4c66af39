//! A hash of all that happened, so that a run can be told from another; with `BRIGADE_TELL` set, the whole story of it.

use std::fmt::Debug;
use std::fmt::Write;
use std::sync::LazyLock;

use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::node::io::Delivery;
use crate::node::io::EngineInput;
use crate::node::io::Input;
use crate::node::io::StreamInput;
use crate::node::sim::chance::mix;

/// The hash so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::node) struct Trace(u64);

impl Trace {
    pub(super) fn note(&mut self, now: Time, happened: &impl Debug) {
        self.0 = mix(self.0 ^ now.0);
        let written = write!(Sink(self), "{happened:?}");
        written.expect("a sink takes everything");
    }
}

/// The most of one line of a story (arbitrary: rows of hidden states are of no interest).
const MAX_LINE: usize = 600;

/// Prints what happened, if the story was asked for.
pub(super) fn tell(now: Time, whose: PeerKey, happened: &impl Debug) {
    static ASKED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("BRIGADE_TELL").is_some());
    if *ASKED {
        println!("{:>12} {whose:?} {:.MAX_LINE$}", now.0, format!("{happened:?}"));
    }
}

struct Sink<'a>(&'a mut Trace);

impl Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for chunk in text.as_bytes().chunks(8) {
            self.0.0 = mix(chunk.iter().fold(self.0.0, |sum, &byte| sum.rotate_left(8) ^ u64::from(byte)));
        }
        Ok(())
    }
}

/// What an input is, without the bulk of it.
pub(super) fn tag(input: &Input) -> (u8, u64) {
    match input {
        Input::Submit { request, .. } => (0, request.0),
        Input::Cancel(request) => (1, request.0),
        Input::Conclude(request) => (2, request.0),
        Input::ModelKnown(_) => (3, 0),
        Input::Given(..) => (60, 0),
        Input::Serve { .. } => (4, 0),
        Input::PeerUp(peer) | Input::PeerDown(peer) | Input::RoundTrip(peer, _) => (5, u64::from(peer.as_bytes()[0])),
        Input::Gossip(_) => (6, 0),
        Input::Stream(stream, event) => (10 + kind(event), stream.0),
        Input::Engine(EngineInput::Stepped { end, .. }) => (7, end.0.into()),
        Input::Engine(_) => (8, 0),
        Input::EntryStored(_) | Input::EntryNotStored(_) | Input::Drain | Input::Tick => (9, 0),
    }
}

fn kind(event: &StreamInput) -> u8 {
    match event {
        StreamInput::Opened => 0,
        StreamInput::OpenFailed(_) => 1,
        StreamInput::ControlArrived(_) => 2,
        StreamInput::HopArrived(..) => 3,
        StreamInput::ToStage(_) => 4,
        StreamInput::FromStage(_) => 5,
        StreamInput::Forward(_) => 6,
        StreamInput::Back(_) => 7,
        StreamInput::Closed(_) => 8,
    }
}

pub(super) fn delivered(request: RequestId, delivery: &Delivery) -> (u64, u32) {
    let what = match delivery {
        Delivery::Token { token, .. } => token.0,
        Delivery::Started(..) => u32::MAX,
        Delivery::Finished(_) => u32::MAX - 1,
        Delivery::Failed(_) => u32::MAX - 2,
        Delivery::Waiting(_) => u32::MAX - 3,
        Delivery::Mended(_) => u32::MAX - 4,
        Delivery::Caught(_) => u32::MAX - 5,
    };
    (request.0, what)
}

//! Faults that a test lets befall this peer at a moment of an answer. Compiled with the feature `faults` only, which is for tests.
//!
//! A fault waits for the step of a position, and strikes once: before the engine computes it, after that and before anything
//! of it is sent, or after the next stage took it up. Whoever armed it can then do to a process that stands still what it wants.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;

use crate::amounts::Position;
use crate::daemon::actor::Daemon;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::ids::Step;
use crate::ids::StreamId;
use crate::ids::Token;
use crate::node::io::Action;
use crate::node::io::CloseCause;
use crate::node::io::EngineAction;
use crate::node::io::EngineInput;
use crate::node::io::Input;
use crate::node::io::OpenFailure;
use crate::node::io::Outgoing;
use crate::node::io::StageStep;
use crate::node::io::StepInput;
use crate::node::io::StepOutput;
use crate::node::io::StreamInput;
use crate::os;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;

/// The most faults that wait at once.
const MAX_ARMED: usize = 16;

/// A fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When it strikes.
    pub moment: Moment,
    /// At the step of this position, or the first one behind it.
    pub position: u32,
    /// What happens.
    pub act: Act,
}

/// A moment of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// The engine has not got it.
    BeforeApply,
    /// The engine has done it, and nothing of it was sent.
    AfterApply,
    /// The next stage has taken it up.
    AfterSend,
}

/// What happens at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// The process stands still, until the system lets it go on.
    Stop,
    /// The process stands still; when it goes on, the hop to the next stage is closed, and none to or from that peer is opened
    /// any more.
    Cut,
    /// What was computed is passed on changed, from then on.
    Lie,
    /// The engine does not come back with the step; the process goes on. Before it is applied only.
    Hang,
}

/// The faults that wait, and what they need to know.
#[derive(Debug, Default)]
pub(super) struct Faults {
    armed: Vec<Fault>,
    /// The hops that this peer opened.
    hops: BTreeMap<StreamId, (PeerKey, SessionId)>,
    /// Peers to and from which no hop is opened.
    cut: BTreeSet<PeerKey>,
    /// What strikes when a step was taken up.
    awaited: Option<(StreamId, Step, Fault)>,
    liar: bool,
}

impl Faults {
    /// Takes these faults in place of all others, and makes good what was cut.
    pub(super) fn arm(&mut self, mut faults: Vec<Fault>) {
        faults.truncate(MAX_ARMED);
        *self = Self { armed: faults, hops: std::mem::take(&mut self.hops), ..Self::default() };
    }

    fn strikes(&mut self, moment: Moment, end: Position) -> Option<Fault> {
        let due = |fault: &Fault| fault.moment == moment && fault.position < end.0;
        let index = self.armed.iter().position(due)?;
        Some(self.armed.remove(index))
    }
}

impl Daemon {
    /// Lets faults befall what the node is about to hear; what it hears.
    pub(super) fn suffer_input(&mut self, mut input: Input) -> Vec<Input> {
        let mut heard = Vec::new();
        if let Input::Engine(EngineInput::Stepped { key, end, output, .. }) = &mut input {
            if let Some(fault) = self.faults.strikes(Moment::AfterApply, *end) {
                heard = self.strike(fault, key.session);
            }
            if self.faults.liar {
                falsify(output);
            }
        } else if let Input::Stream(stream, StreamInput::Back(HopBack::Taken(step))) = &input {
            let awaited = self.faults.awaited.take_if(|(of, sent, _)| of == stream && *sent <= *step);
            if let Some((_, _, fault)) = awaited
                && let Some(&(_, session)) = self.faults.hops.get(stream)
            {
                heard = self.strike(fault, session);
            }
        } else if let Input::Stream(stream, StreamInput::HopArrived(peer, _)) = &input
            && self.faults.cut.contains(peer)
        {
            self.streams.close(*stream);
            return Vec::new();
        }
        heard.push(input);
        heard
    }

    /// Lets faults befall what is about to be done; what the node hears of that, and whether it is still to be done.
    pub(super) fn suffer_action(&mut self, action: &Action) -> (Vec<Input>, bool) {
        if let Action::OpenHop(stream, peer, open) = action {
            if self.faults.cut.contains(peer) {
                let refused = StreamInput::OpenFailed(OpenFailure::Unreachable);
                return (vec![Input::Stream(*stream, refused)], false);
            }
            self.faults.hops.insert(*stream, (*peer, open.session));
        } else if let Action::Close(stream) = action {
            self.faults.hops.remove(stream);
        } else if let Action::Engine(EngineAction::Steps(steps)) = action {
            let mut struck = steps.iter().filter_map(|step| {
                let fault = self.faults.strikes(Moment::BeforeApply, end(step, self.bridge.width(step.key)))?;
                Some((fault, step.key.session))
            });
            if let Some((fault, session)) = struck.next() {
                return (self.strike(fault, session), fault.act != Act::Hang);
            }
        } else if let Action::Send(stream, Outgoing::Forward(message)) = action {
            let (end, step) = sent(message);
            if let Some(fault) = self.faults.strikes(Moment::AfterSend, end) {
                self.faults.awaited = Some((*stream, step, fault));
            }
        }
        (Vec::new(), true)
    }

    fn strike(&mut self, fault: Fault, session: SessionId) -> Vec<Input> {
        tracing::warn!(?fault, "a fault strikes");
        match fault.act {
            Act::Stop => {
                stand_still();
                Vec::new()
            }
            Act::Lie => {
                self.faults.liar = true;
                Vec::new()
            }
            Act::Hang => Vec::new(),
            Act::Cut => {
                stand_still();
                self.cut(session)
            }
        }
    }

    /// Closes the session's hops that this peer opened, and keeps their other ends from it.
    fn cut(&mut self, session: SessionId) -> Vec<Input> {
        let hops = self.faults.hops.iter().filter(|(_, (_, of))| *of == session);
        let hops: Vec<(StreamId, PeerKey)> = hops.map(|(&stream, &(peer, _))| (stream, peer)).collect();
        let mut heard = Vec::new();
        for (stream, peer) in hops {
            self.faults.hops.remove(&stream);
            self.faults.cut.insert(peer);
            self.streams.close(stream);
            heard.push(Input::Stream(stream, StreamInput::Closed(CloseCause::Lost)));
        }
        heard
    }
}

/// Lets the process stand still, so that whoever armed the fault sees that it strikes and can do what it wants.
fn stand_still() {
    if let Err(error) = os::stop_this_process() {
        tracing::error!(%error, "the process cannot stand still");
    }
}

/// Changes one bit of what was computed.
fn falsify(output: &mut StepOutput) {
    match output {
        StepOutput::Hidden(payload) => {
            let mut changed = payload.to_vec();
            if let Some(last) = changed.last_mut() {
                *last ^= 1;
            }
            *payload = changed.into();
        }
        StepOutput::Sampled { token, .. } => *token = Token(token.0 ^ 1),
        StepOutput::Nothing => {}
    }
}

/// The position after a step's last row, at a stage of that width.
fn end(step: &StageStep, width: u32) -> Position {
    let rows = match &step.input {
        StepInput::Tokens(tokens) => tokens.len() as u64,
        StepInput::Hidden(payload, dtype) => payload.len() as u64 / dtype.row_bytes(width).max(1),
    };
    step.first.plus(Position(u32::try_from(rows).unwrap_or(u32::MAX)))
}

/// The position after what a message carries, and its step.
fn sent(message: &HopForward) -> (Position, Step) {
    match message {
        HopForward::Frame(frame) => (frame.header.first.plus(Position(frame.header.count)), frame.header.step),
        HopForward::Token(frame) => (frame.position.plus(Position(1)), frame.step),
    }
}

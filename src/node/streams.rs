//! Whose a stream is, and the way of what happens on it.

use crate::amounts::Time;
use crate::ids::RequestId;
use crate::ids::StreamId;
use crate::node::Node;
use crate::node::io::Action;
use crate::node::io::CloseCause;
use crate::node::io::OpenFailure;
use crate::node::io::Outgoing;
use crate::node::io::StageKey;
use crate::node::io::StreamInput;
use crate::wire::control::FromStage;
use crate::wire::control::StageFailure;
use crate::wire::control::ToStage;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;
use crate::wire::hop::HopRefusal;

/// Whose a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A control stream to one of the stages of an own request.
    Request(RequestId),
    /// A control stream on which no offer came yet.
    Caller,
    /// The control stream of a leased stage.
    Control(StageKey),
    /// The hop that a leased stage opened.
    Downstream(StageKey),
    /// The hop from a leased stage's upstream neighbour.
    Upstream(StageKey),
    /// A hop whose lease was not offered yet.
    EarlyHop,
}

impl Node {
    /// What happens on a stream that is not known any more is ignored.
    pub(super) fn on_stream(&mut self, stream: StreamId, event: StreamInput, now: Time) {
        match event {
            StreamInput::ControlArrived(peer) => self.on_caller(stream, peer, now),
            StreamInput::HopArrived(peer, open) => self.on_hop(stream, peer, open, now),
            StreamInput::Opened => self.on_opened(stream, now),
            StreamInput::OpenFailed(failure) => self.on_open_failed(stream, failure, now),
            StreamInput::ToStage(message) => self.on_to_stage(stream, message, now),
            StreamInput::FromStage(message) => self.on_from_stage(stream, message, now),
            StreamInput::Forward(message) => self.on_forward(stream, message, now),
            StreamInput::Back(message) => self.on_back(stream, message, now),
            StreamInput::Closed(cause) => self.on_closed(stream, cause, now),
        }
    }

    pub(super) fn send(&mut self, stream: StreamId, message: Outgoing) {
        if self.owners.contains_key(&stream) {
            self.actions.push(Action::Send(stream, message));
        }
    }

    pub(super) fn close(&mut self, stream: StreamId) {
        if self.owners.remove(&stream).is_some() {
            self.actions.push(Action::Close(stream));
        }
    }

    fn on_to_stage(&mut self, stream: StreamId, message: ToStage, now: Time) {
        match (self.owners.get(&stream).copied(), message) {
            (Some(Owner::Caller), ToStage::Offer(offer)) => self.on_offer(stream, *offer, now),
            (
                Some(Owner::Caller),
                ToStage::Feed(_) | ToStage::Ping(_) | ToStage::Settle(_) | ToStage::Reconfigure(_) | ToStage::Resume(_),
            ) => {
                self.send(stream, Outgoing::FromStage(FromStage::Failed(StageFailure::BadRequest)));
                self.dismiss_caller(stream);
            }
            (Some(Owner::Control(key)), ToStage::Reconfigure(newer)) => self.on_reconfigure(key, *newer, now),
            (Some(Owner::Control(key)), message) => {
                self.with_stage(key, now, |stage| stage.on_control(message, now));
            }
            (Some(Owner::Request(_) | Owner::Downstream(_) | Owner::Upstream(_) | Owner::EarlyHop) | None, _) => {}
        }
    }

    fn on_from_stage(&mut self, stream: StreamId, message: FromStage, now: Time) {
        if let Some(Owner::Request(request)) = self.owners.get(&stream).copied() {
            self.with_request(request, now, |replicas, _| replicas.on_message(stream, message, now));
        }
    }

    fn on_forward(&mut self, stream: StreamId, message: HopForward, now: Time) {
        match self.owners.get(&stream).copied() {
            Some(Owner::Upstream(key)) => self.with_stage(key, now, |stage| stage.on_forward(message)),
            // Nothing may be sent before the hop was answered.
            Some(Owner::EarlyHop) => self.refuse_early(stream, HopRefusal::UnknownSession),
            Some(Owner::Request(_) | Owner::Caller | Owner::Control(_) | Owner::Downstream(_)) | None => {}
        }
    }

    fn on_back(&mut self, stream: StreamId, message: HopBack, now: Time) {
        if let Some(Owner::Downstream(key)) = self.owners.get(&stream).copied() {
            self.with_stage(key, now, |stage| stage.on_back(message));
        }
    }

    /// What was queued meanwhile is on its way.
    fn on_opened(&mut self, stream: StreamId, now: Time) {
        if let Some(Owner::Request(request)) = self.owners.get(&stream).copied() {
            self.with_request(request, now, |replicas, _| replicas.on_opened(stream, now));
        }
    }

    fn on_open_failed(&mut self, stream: StreamId, failure: OpenFailure, now: Time) {
        match self.owners.remove(&stream) {
            Some(Owner::Request(request)) => {
                self.with_request(request, now, |replicas, _| replicas.on_open_failed(stream, failure, now));
            }
            Some(Owner::Downstream(key)) => self.with_stage(key, now, |stage| stage.on_downstream_lost()),
            // Those arrived, so they were open.
            Some(Owner::Caller | Owner::Control(_) | Owner::Upstream(_) | Owner::EarlyHop) | None => {}
        }
    }

    fn on_closed(&mut self, stream: StreamId, cause: CloseCause, now: Time) {
        match self.owners.remove(&stream) {
            Some(Owner::Request(request)) => {
                self.with_request(request, now, |replicas, _| replicas.on_closed(stream, cause, now));
            }
            Some(Owner::Control(key)) => self.with_stage(key, now, |stage| stage.on_control_closed()),
            Some(Owner::Downstream(key)) => self.with_stage(key, now, |stage| stage.on_downstream_lost()),
            Some(Owner::Upstream(key)) => self.with_stage(key, now, |stage| match cause {
                CloseCause::Malformed => stage.on_upstream_malformed(),
                CloseCause::Finished | CloseCause::Lost | CloseCause::Overflow => stage.on_upstream_lost(),
            }),
            Some(Owner::Caller | Owner::EarlyHop) => self.stages.forget(stream),
            None => {}
        }
    }
}

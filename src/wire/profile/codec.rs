//! A profile's door: protobuf, cut to what a gossip message may hold.

use prost::Message;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::ids::BootSeq;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::keys::Domain;
use crate::shape::WeightFormat;
use crate::wire::bad::BadMessage;
use crate::wire::bad::array;
use crate::wire::bad::at_most;
use crate::wire::bad::printable;
use crate::wire::bad::protobuf;
use crate::wire::bad::range;
use crate::wire::bad::short;
use crate::wire::bad::within;
use crate::wire::profile::Device;
use crate::wire::profile::DeviceKind;
use crate::wire::profile::Holding;
use crate::wire::profile::HoldingState;
use crate::wire::profile::MAX_ARITHMETIC;
use crate::wire::profile::MAX_DEVICES;
use crate::wire::profile::MAX_FORMATS;
use crate::wire::profile::MAX_HOLDINGS;
use crate::wire::profile::MAX_PROFILE;
use crate::wire::profile::MAX_ROUND_TRIPS;
use crate::wire::profile::MAX_STORED;
use crate::wire::profile::MAX_VALID_FOR;
use crate::wire::profile::Profile;
use crate::wire::profile::RoundTrip;
use crate::wire::profile::Stored;
use crate::wire::proto;
use crate::wire::same_names;
use crate::wire::signed::SignedBody;

impl SignedBody for Profile {
    const DOMAIN: Domain = Domain::Profile;
    const MAX_BODY: usize = MAX_PROFILE;

    fn decode_body(body: &[u8]) -> Result<Self, BadMessage> {
        Self::decode(body)
    }

    fn encode_body(&self) -> bytes::Bytes {
        self.encode()
    }

    fn author(&self) -> PeerKey {
        self.peer
    }
}

impl Profile {
    /// Reads a profile and checks all of it. Formats, devices and holdings of kinds that this build does not know are
    /// left out.
    ///
    /// # Errors
    /// [`BadMessage`] with the first fault found.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadMessage> {
        protobuf::<proto::Profile>("Profile", MAX_PROFILE, bytes)?.try_into()
    }

    /// The bytes that are signed, at most [`MAX_PROFILE`]: as long as there are more, the last round trip is left out,
    /// then the last device, then the last range of stored weights, then the last holding.
    pub fn encode(&self) -> bytes::Bytes {
        let mut message = proto::Profile::from(self);
        while message.encoded_len() > MAX_PROFILE {
            let shortened = message.round_trips.pop().is_some()
                || message.devices.pop().is_some()
                || message.stored.pop().is_some()
                || message.holdings.pop().is_some();
            if !shortened {
                break;
            }
        }
        message.encode_to_vec().into()
    }
}

impl TryFrom<proto::Profile> for Profile {
    type Error = BadMessage;

    fn try_from(message: proto::Profile) -> Result<Self, BadMessage> {
        at_most("profile devices", message.devices.len(), MAX_DEVICES)?;
        at_most("profile formats", message.formats.len(), MAX_FORMATS)?;
        at_most("profile holdings", message.holdings.len(), MAX_HOLDINGS)?;
        at_most("profile round trips", message.round_trips.len(), MAX_ROUND_TRIPS)?;
        at_most("profile stored weights", message.stored.len(), MAX_STORED)?;
        let memory = Bytes(message.memory);
        Ok(Self {
            peer: PeerKey::new(array("profile peer", &message.peer)?),
            order: BootSeq { boot: message.boot, seq: message.seq },
            valid_for: within("profile validity", Span(message.valid_for_micros), Span::ZERO..=MAX_VALID_FOR)?,
            memory,
            memory_free: within("profile free memory", Bytes(message.memory_free), Bytes::ZERO..=memory)?,
            cores: short("profile cores", message.cores)?,
            cpu_features: message.cpu_features,
            devices: message.devices.iter().filter_map(device).collect(),
            formats: message.formats.iter().copied().filter_map(WeightFormat::from_code).collect(),
            arithmetic: printable("profile arithmetic", message.arithmetic, MAX_ARITHMETIC)?,
            holdings: message.holdings.iter().filter_map(|one| holding(one).transpose()).collect::<Result<_, _>>()?,
            sessions: short("profile sessions", message.sessions)?,
            queue: Span(message.queue_micros),
            round_trips: message.round_trips.iter().map(round_trip).collect::<Result<_, _>>()?,
            draining: message.draining,
            stored: message.stored.iter().map(stored).collect::<Result<_, _>>()?,
        })
    }
}

fn device(device: &proto::Device) -> Option<Device> {
    let kind = DeviceKind::from_code(device.kind).ok()?;
    Some(Device { kind, memory: Bytes(device.memory) })
}

/// The holding, or `None` if its state is one that this build does not know.
fn holding(holding: &proto::Holding) -> Result<Option<Holding>, BadMessage> {
    let model = ModelId::new(array("holding model", &holding.model)?);
    let range = range(holding.start, holding.end)?;
    let state = HoldingState::from_code(holding.state).ok();
    Ok(state.map(|state| Holding { model, range, state, per_unit: Span(holding.per_unit_micros) }))
}

fn stored(stored: &proto::Stored) -> Result<Stored, BadMessage> {
    let model = ModelId::new(array("stored model", &stored.model)?);
    Ok(Stored { model, range: range(stored.start, stored.end)? })
}

fn round_trip(round_trip: &proto::RoundTrip) -> Result<RoundTrip, BadMessage> {
    Ok(RoundTrip { neighbour: array("round trip neighbour", &round_trip.neighbour)?, span: Span(round_trip.micros) })
}

impl From<&Profile> for proto::Profile {
    fn from(profile: &Profile) -> Self {
        Self {
            peer: profile.peer.as_bytes().to_vec().into(),
            boot: profile.order.boot,
            seq: profile.order.seq,
            valid_for_micros: profile.valid_for.0,
            memory: profile.memory.0,
            memory_free: profile.memory_free.0,
            cores: profile.cores.into(),
            cpu_features: profile.cpu_features,
            devices: profile.devices.iter().map(Into::into).collect(),
            formats: profile.formats.iter().map(|format| format.code()).collect(),
            arithmetic: profile.arithmetic.clone(),
            holdings: profile.holdings.iter().map(Into::into).collect(),
            sessions: profile.sessions.into(),
            queue_micros: profile.queue.0,
            round_trips: profile.round_trips.iter().map(Into::into).collect(),
            draining: profile.draining,
            stored: profile.stored.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Device> for proto::Device {
    fn from(device: &Device) -> Self {
        Self { kind: device.kind.code(), memory: device.memory.0 }
    }
}

impl From<&Holding> for proto::Holding {
    fn from(holding: &Holding) -> Self {
        Self {
            model: holding.model.as_bytes().to_vec().into(),
            start: holding.range.start().into(),
            end: holding.range.end().into(),
            state: holding.state.code(),
            per_unit_micros: holding.per_unit.0,
        }
    }
}

impl From<&Stored> for proto::Stored {
    fn from(stored: &Stored) -> Self {
        Self {
            model: stored.model.as_bytes().to_vec().into(),
            start: stored.range.start().into(),
            end: stored.range.end().into(),
        }
    }
}

impl From<&RoundTrip> for proto::RoundTrip {
    fn from(round_trip: &RoundTrip) -> Self {
        Self { neighbour: round_trip.neighbour.to_vec().into(), micros: round_trip.span.0 }
    }
}

same_names!(DeviceKind, "device kind": Cpu Cuda Metal);
same_names!(HoldingState, "holding state": Intended Loading Ready);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Identity;
    use crate::wire::samples;
    use crate::wire::signed::Signed;

    #[test]
    fn the_largest_usual_profile_keeps_all_its_holdings() {
        let profile = Profile { holdings: vec![samples::holding(); MAX_HOLDINGS], ..samples::profile() };

        let read = Profile::decode(&profile.encode()).unwrap();

        assert_eq!(read.holdings, profile.holdings);
        assert!(read.round_trips.len() < profile.round_trips.len());
    }

    #[test]
    fn a_profile_of_the_largest_numbers_still_fits() {
        let identity = Identity::generate([3; 32]);
        let holding = Holding { per_unit: Span(u64::MAX), ..samples::holding() };
        let worst = Profile {
            peer: identity.peer(),
            order: BootSeq { boot: u64::MAX, seq: u64::MAX },
            valid_for: MAX_VALID_FOR,
            memory: Bytes(u64::MAX),
            memory_free: Bytes(u64::MAX),
            cores: u16::MAX,
            cpu_features: u32::MAX,
            devices: vec![Device { kind: DeviceKind::Cuda, memory: Bytes(u64::MAX) }; MAX_DEVICES],
            formats: WeightFormat::ALL.to_vec(),
            arithmetic: "a".repeat(MAX_ARITHMETIC),
            holdings: vec![holding; MAX_HOLDINGS],
            sessions: u16::MAX,
            queue: Span(u64::MAX),
            round_trips: vec![RoundTrip { neighbour: [9; 8], span: Span(u64::MAX) }; MAX_ROUND_TRIPS],
            draining: true,
            stored: vec![Stored { model: holding.model, range: holding.range }; MAX_STORED],
        };

        let sealed = Signed::seal(&worst, &identity, samples::network()).unwrap();

        assert!(sealed.body.len() <= MAX_PROFILE);
        assert!(sealed.value.holdings.len() >= 6 && sealed.value.draining);
        assert_eq!(Signed::open(&sealed.to_bytes(), samples::network()), Ok(sealed));
    }

    #[test]
    fn what_a_newer_peer_adds_is_passed_over() {
        let mut message = proto::Profile::from(&samples::profile());
        message.formats.push(9_999);
        message.devices.push(proto::Device { kind: 77, memory: 1 });
        message.holdings[0].state = 55;

        let read = Profile::try_from(message).unwrap();

        assert_eq!(read, Profile { holdings: Vec::new(), ..samples::profile() });
    }

    #[test]
    fn free_memory_is_part_of_memory() {
        let profile = Profile { memory_free: Bytes(9), memory: Bytes(8), ..samples::profile() };

        assert_eq!(Profile::decode(&profile.encode()), Err(BadMessage::OutOfRange { field: "profile free memory" }));
    }
}

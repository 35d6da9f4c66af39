//! What is gossiped: one envelope for the three kinds of signed record.

use prost::Message;

use crate::ids::NetworkId;
use crate::wire::bad::protobuf;
use crate::wire::bad::required;
use crate::wire::card::ModelCard;
use crate::wire::credit::CreditEntry;
use crate::wire::profile::Profile;
use crate::wire::proto;
use crate::wire::proto::gossip::Kind;
use crate::wire::signed::BadRecord;
use crate::wire::signed::Signed;

/// A verified record from gossip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gossip {
    /// A peer's statement about itself.
    Profile(Signed<Profile>),
    /// A peer's statement about a model.
    Card(Signed<ModelCard>),
    /// A line of a peer's credit log.
    Credit(CreditEntry),
}

impl Gossip {
    /// The most bytes of a gossip message, envelope included.
    pub const MAX: usize = 16 << 10;

    /// Reads a message and checks all of it, its signature in `network` included.
    ///
    /// # Errors
    /// [`BadRecord`] with the first fault found.
    pub fn decode(bytes: &[u8], network: NetworkId) -> Result<Self, BadRecord> {
        let message: proto::Gossip = protobuf("Gossip", Self::MAX, bytes)?;
        Ok(match required("gossip", message.kind)? {
            Kind::Profile(record) => Self::Profile(Signed::open(&record, network)?),
            Kind::Card(record) => Self::Card(Signed::open(&record, network)?),
            Kind::Credit(entry) => Self::Credit(CreditEntry::decode(&entry, network)?),
        })
    }

    /// The bytes for another peer's [`decode`](Self::decode).
    pub fn encode(&self) -> bytes::Bytes {
        let kind = match self {
            Self::Profile(record) => Kind::Profile(record.to_bytes()),
            Self::Card(record) => Kind::Card(record.to_bytes()),
            Self::Credit(entry) => Kind::Credit(entry.encode()),
        };
        proto::Gossip { kind: Some(kind) }.encode_to_vec().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Identity;
    use crate::wire::bad::BadMessage;
    use crate::wire::credit::MAX_LINES;
    use crate::wire::samples;

    #[test]
    fn a_record_is_relayed_byte_for_byte() {
        let message = samples::gossip_profile().encode();

        let read = Gossip::decode(&message, samples::network()).unwrap();

        assert_eq!(read.encode(), message);
    }

    #[test]
    fn a_record_of_another_network_or_kind_is_refused() {
        let Gossip::Card(card) = samples::gossip_card() else { panic!("the sample is a card") };
        let as_profile = proto::Gossip { kind: Some(Kind::Profile(card.to_bytes())) }.encode_to_vec();
        let elsewhere = NetworkId::of("elsewhere", None);

        let fault = Gossip::decode(&samples::gossip_card().encode(), elsewhere);

        assert!(matches!(fault, Err(BadRecord::Signature(_))));
        assert!(Gossip::decode(&as_profile, samples::network()).is_err());
    }

    #[test]
    fn only_the_author_can_seal() {
        let other = Identity::generate([99; 32]);

        let fault = Signed::seal(&samples::profile(), &other, samples::network());

        assert_eq!(fault, Err(BadRecord::Author { expected: other.peer(), got: samples::profile().peer }));
    }

    #[test]
    fn the_longest_entry_fits_and_more_is_refused_by_size() {
        let longest = Gossip::Credit(samples::entry(MAX_LINES)).encode();

        assert!(longest.len() <= Gossip::MAX);
        assert!(Gossip::decode(&longest, samples::network()).is_ok());
        assert!(matches!(
            Gossip::decode(&vec![0; Gossip::MAX + 1], samples::network()),
            Err(BadRecord::Body(BadMessage::TooLarge { .. }))
        ));
    }
}

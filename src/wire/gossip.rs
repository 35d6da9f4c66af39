//! What is gossiped: profiles, model cards, credit entries.

use crate::wire::card::ModelCard;
use crate::wire::credit::CreditEntry;
use crate::wire::profile::Profile;
use crate::wire::signed::Signed;

/// A gossiped record, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gossip {
    /// What a peer has and can do.
    Profile(Signed<Profile>),
    /// A model that a peer knows.
    Card(Signed<ModelCard>),
    /// What a requester owes.
    Credit(CreditEntry),
}

//! What a lease is about: an offer, checked against the model and the receiver's place in it.

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::Epoch;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::StageIndex;
use crate::session::ending::Ending;
use crate::session::step::StageKey;
use crate::shape::ModelShape;
use crate::shape::WireDtype;
use crate::units::Chain;
use crate::units::UnitRange;
use crate::wire::control::Begins;
use crate::wire::control::Commits;
use crate::wire::control::DeclineReason;
use crate::wire::control::Offer;
use crate::wire::control::Reconfigure;
use crate::wire::control::TailOffer;
use crate::wire::hop::HopOpen;

/// The shortest and the longest lease that is given without a `Ping` (arbitrary: a few missed pings; a forgotten
/// session's memory comes back within a minute).
const EXPIRY: (Span, Span) = (Span::seconds(3), Span::seconds(60));

/// The terms of a lease. Can only be made of an offer that fits.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Names the stage in the engine.
    pub key: StageKey,
    /// Its place in the chain.
    pub stage: StageIndex,
    /// The chain's version.
    pub epoch: Epoch,
    /// Who asked; the only one who may control the session.
    pub requester: PeerKey,
    /// The model of the session.
    pub model: ModelId,
    /// The model whose weights the stage computes with.
    pub weights: ModelId,
    /// Its hyper-parameters.
    pub shape: ModelShape,
    /// Every stage.
    pub chain: Chain,
    /// The units that are served.
    pub range: UnitRange,
    /// Positions that the session may use.
    pub budget: Position,
    /// How long the lease lasts without a `Ping`.
    pub expires_after: Span,
    /// What the tail samples with; at the tail only.
    pub sampling: Option<TailOffer>,
    /// Whether the session begins with this chain.
    pub begins: Begins,
    /// Whether the stage commits itself to what it receives and sends.
    pub commits: Commits,
    /// Unit boundaries at which hidden states are rounded. Those inside the stage are the engine's.
    pub rounding: Vec<(u16, WireDtype)>,
    /// The dtype in which hidden states come.
    pub dtype_in: WireDtype,
    /// The dtype in which hidden states go.
    pub dtype_out: WireDtype,
}

impl Terms {
    /// Checks an offer that `requester` made to `me`.
    ///
    /// # Errors
    /// `BadOffer` if it disagrees with the model, with itself or with who `me` is.
    pub fn of(offer: Offer, requester: PeerKey, me: PeerKey, shape: ModelShape) -> Result<Self, DeclineReason> {
        let stage = offer.chain.stage(offer.stage).ok_or(DeclineReason::BadOffer)?;
        let tail = offer.stage == offer.chain.tail();
        let fits = offer.chain.units() == shape.units()
            && stage.peer == me
            && offer.budget.0 >= 2
            && offer.budget.0 <= shape.context
            && offer.sampling.is_some() == tail
            && offer.sampling.as_ref().is_none_or(|sampling| sampling_fits(sampling, offer.budget, offer.begins));
        if !fits {
            return Err(DeclineReason::BadOffer);
        }
        Ok(Self {
            key: StageKey { session: offer.session, range: stage.range },
            stage: offer.stage,
            epoch: offer.epoch,
            requester,
            model: offer.model,
            weights: offer.weights,
            shape,
            range: stage.range,
            budget: offer.budget,
            expires_after: offer.expires_after.clamp(EXPIRY.0, EXPIRY.1),
            dtype_in: dtype_at(&offer.rounding, stage.range.start()),
            dtype_out: dtype_at(&offer.rounding, stage.range.end()),
            rounding: offer.rounding,
            begins: offer.begins,
            commits: offer.commits,
            sampling: offer.sampling,
            chain: offer.chain,
        })
    }

    /// Takes the stage's place in a newer chain. `None` if it has none there; the terms are as before.
    pub fn rejoin(&mut self, newer: Reconfigure) -> Option<()> {
        let me = self.peer(self.stage);
        let place = newer.chain.stage(newer.stage)?;
        let fits = place.peer == me && place.range == self.range && newer.chain.units() == self.chain.units();
        fits.then_some(())?;
        (self.epoch, self.stage, self.chain) = (newer.epoch, newer.stage, newer.chain);
        Some(())
    }

    /// The index of the stage whose hop comes here: the one before, or the tail for the driver.
    pub fn upstream(&self) -> StageIndex {
        self.stage.0.checked_sub(1).map_or(self.chain.tail(), StageIndex)
    }

    /// The index of the stage that this one's hop goes to: the next, or the driver for the tail.
    pub fn downstream(&self) -> StageIndex {
        if self.stage == self.chain.tail() { StageIndex(0) } else { StageIndex(self.stage.0 + 1) }
    }

    /// A neighbour's peer.
    pub fn peer(&self, neighbour: StageIndex) -> PeerKey {
        self.chain.stage(neighbour).expect("a neighbour's index lies in the chain: it was computed from it").peer
    }

    /// Bytes of all that the stage may have to send again. The tail sends tokens only, and these the requester has.
    pub fn journal(&self) -> Bytes {
        let rows = if self.stage == self.chain.tail() { 0 } else { u64::from(self.budget.0) };
        Bytes(self.dtype_out.row_bytes(self.shape.width)).times(rows)
    }

    /// The first message of this stage's own hop.
    pub fn hop(&self) -> HopOpen {
        HopOpen { session: self.key.session, epoch: self.epoch, from: self.stage, to: self.downstream() }
    }

    /// When the tail ends the generation.
    pub fn ending(&self) -> Option<Ending> {
        self.sampling.as_ref().map(|sampling| Ending {
            prompt_length: sampling.prompt_length,
            max_tokens: sampling.max_tokens,
            end_of_generation: sampling.end_of_generation.clone(),
            budget: self.budget,
        })
    }
}

fn sampling_fits(sampling: &TailOffer, budget: Position, begins: Begins) -> bool {
    let history = sampling.history.len() as u64;
    let prompt = u64::from(sampling.prompt_length.0);
    let needed = sampling.parameters.looks_back();
    let fits = match begins {
        Begins::Here => history == prompt || (history == 0 && !needed),
        Begins::Earlier => (prompt..u64::from(budget.0)).contains(&history) || (history == 0 && !needed),
    };
    prompt >= 1
        && sampling.prompt_length < budget
        && sampling.max_tokens >= 1
        && sampling.end_of_generation.is_sorted()
        && fits
}

fn dtype_at(rounding: &[(u16, WireDtype)], unit: u16) -> WireDtype {
    rounding.iter().find(|(boundary, _)| *boundary == unit).map_or(WireDtype::F32, |&(_, dtype)| dtype)
}

//! The door of an offer and its parts.

use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::Epoch;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Token;
use crate::shape::WireDtype;
use crate::units::Chain;
use crate::units::Stage;
use crate::wire::bad::BadMessage;
use crate::wire::bad::array;
use crate::wire::bad::ascending;
use crate::wire::bad::at_most;
use crate::wire::bad::paired;
use crate::wire::bad::positive;
use crate::wire::bad::range;
use crate::wire::bad::required;
use crate::wire::bad::short;
use crate::wire::bad::within;
use crate::wire::control::Begins;
use crate::wire::control::Commits;
use crate::wire::control::MAX_BIAS;
use crate::wire::control::MAX_END_OF_GENERATION;
use crate::wire::control::MAX_LEASE;
use crate::wire::control::MAX_LOGPROBS;
use crate::wire::control::Offer;
use crate::wire::control::Reconfigure;
use crate::wire::control::SamplingParameters;
use crate::wire::control::TailOffer;
use crate::wire::proto;
use crate::wire::same_names;

same_names!(WireDtype, "dtype": F32 F16);

impl TryFrom<proto::Offer> for Offer {
    type Error = BadMessage;

    fn try_from(offer: proto::Offer) -> Result<Self, BadMessage> {
        let chain = chain(&offer.chain)?;
        let stage = StageIndex(short("offer stage", offer.stage)?);
        if chain.stage(stage).is_none() {
            return Err(BadMessage::OutOfRange { field: "offer stage" });
        }
        match (&offer.sampling, stage == chain.tail()) {
            (Some(_), true) | (None, false) => {}
            (None, true) => return Err(BadMessage::Missing { field: "offer sampling" }),
            (Some(_), false) => return Err(BadMessage::Unexpected { field: "offer sampling" }),
        }
        let expires_after = Span(offer.expires_after_micros);
        let model = ModelId::new(array("offer model", &offer.model)?);
        let weights =
            if offer.weights.is_empty() { model } else { ModelId::new(array("offer weights", &offer.weights)?) };
        Ok(Self {
            session: SessionId::new(array("offer session", &offer.session)?),
            epoch: Epoch(offer.epoch),
            model,
            weights,
            rounding: rounding(&offer.rounding, chain.units())?,
            chain,
            stage,
            budget: within("offer budget", Position(offer.budget), Position(1)..=Position(u32::MAX))?,
            expires_after: within("offer expiry", expires_after, Span(1)..=MAX_LEASE)?,
            sampling: offer.sampling.map(TryInto::try_into).transpose()?,
            begins: if offer.rejoins { Begins::Earlier } else { Begins::Here },
            commits: if offer.commits { Commits::Yes } else { Commits::No },
        })
    }
}

impl From<&Offer> for proto::Offer {
    fn from(offer: &Offer) -> Self {
        let rounding =
            |&(boundary, dtype): &(u16, WireDtype)| proto::Rounding { boundary: boundary.into(), dtype: dtype.code() };
        let weights = if offer.weights == offer.model { &[][..] } else { offer.weights.as_bytes() };
        Self {
            session: offer.session.as_bytes().to_vec().into(),
            epoch: offer.epoch.0,
            model: offer.model.as_bytes().to_vec().into(),
            weights: weights.to_vec().into(),
            chain: stages(&offer.chain),
            stage: offer.stage.0.into(),
            rounding: offer.rounding.iter().map(rounding).collect(),
            budget: offer.budget.0,
            expires_after_micros: offer.expires_after.0,
            sampling: offer.sampling.as_ref().map(Into::into),
            rejoins: offer.begins == Begins::Earlier,
            commits: offer.commits == Commits::Yes,
        }
    }
}

impl TryFrom<proto::Reconfigure> for Reconfigure {
    type Error = BadMessage;

    fn try_from(reconfigure: proto::Reconfigure) -> Result<Self, BadMessage> {
        let chain = chain(&reconfigure.chain)?;
        let stage = StageIndex(short("offer stage", reconfigure.stage)?);
        if chain.stage(stage).is_none() {
            return Err(BadMessage::OutOfRange { field: "offer stage" });
        }
        Ok(Self { epoch: Epoch(reconfigure.epoch), chain, stage, known: Position(reconfigure.known) })
    }
}

impl From<&Reconfigure> for proto::Reconfigure {
    fn from(reconfigure: &Reconfigure) -> Self {
        Self {
            epoch: reconfigure.epoch.0,
            chain: stages(&reconfigure.chain),
            stage: reconfigure.stage.0.into(),
            known: reconfigure.known.0,
        }
    }
}

fn stages(chain: &Chain) -> Vec<proto::Stage> {
    let stage =
        |stage: &Stage| proto::Stage { peer: stage.peer.as_bytes().to_vec().into(), end: stage.range.end().into() };
    chain.stages().iter().map(stage).collect()
}

/// Each stage begins where the one before it ended, so only empty stages and a wrong number of them can be wrong.
fn chain(stages: &[proto::Stage]) -> Result<Chain, BadMessage> {
    at_most("offer chain", stages.len(), Chain::MAX_STAGES)?;
    let mut start = 0;
    let mut tiled = Vec::with_capacity(stages.len());
    for stage in stages {
        let peer = PeerKey::new(array("stage peer", &stage.peer)?);
        tiled.push(Stage { peer, range: range(start, stage.end)? });
        start = stage.end;
    }
    Ok(Chain::new(tiled, short("offer chain", start)?)?)
}

fn rounding(list: &[proto::Rounding], units: u16) -> Result<Vec<(u16, WireDtype)>, BadMessage> {
    const FIELD: &str = "offer rounding";
    at_most(FIELD, list.len(), usize::from(units))?;
    let read = |one: &proto::Rounding| {
        let boundary = short(FIELD, one.boundary)?;
        within(FIELD, boundary, 1..=units.saturating_sub(1))?;
        Ok((boundary, WireDtype::from_code(one.dtype)?))
    };
    let rounding = list.iter().map(read).collect::<Result<Vec<_>, BadMessage>>()?;
    ascending(FIELD, &rounding, |one| one.0)?;
    Ok(rounding)
}

impl TryFrom<proto::TailOffer> for TailOffer {
    type Error = BadMessage;

    fn try_from(tail: proto::TailOffer) -> Result<Self, BadMessage> {
        at_most("end of generation", tail.end_of_generation.len(), MAX_END_OF_GENERATION)?;
        ascending("end of generation", &tail.end_of_generation, |&token| token)?;
        let (expected, got) = (u64::from(tail.prompt_length), tail.history.len() as u64);
        if got != 0 && got < expected {
            return Err(BadMessage::Length { field: "sampling history", expected, got });
        }
        Ok(Self {
            parameters: required("sampling parameters", tail.parameters)?.try_into()?,
            prompt_length: within("prompt length", Position(tail.prompt_length), Position(1)..=Position(u32::MAX))?,
            history: tail.history.into_iter().map(Token).collect(),
            max_tokens: within("max tokens", tail.max_tokens, 1..=u32::MAX)?,
            end_of_generation: tail.end_of_generation.into_iter().map(Token).collect(),
        })
    }
}

impl From<&TailOffer> for proto::TailOffer {
    fn from(tail: &TailOffer) -> Self {
        Self {
            parameters: Some((&tail.parameters).into()),
            prompt_length: tail.prompt_length.0,
            history: tail.history.iter().map(|token| token.0).collect(),
            max_tokens: tail.max_tokens,
            end_of_generation: tail.end_of_generation.iter().map(|token| token.0).collect(),
        }
    }
}

impl TryFrom<proto::SamplingParameters> for SamplingParameters {
    type Error = BadMessage;

    fn try_from(parameters: proto::SamplingParameters) -> Result<Self, BadMessage> {
        at_most("logit bias", parameters.bias_tokens.len(), MAX_BIAS)?;
        let tokens = parameters.bias_tokens.into_iter().map(Token).collect();
        let logit_bias = paired("logit bias", tokens, parameters.bias_values)?;
        ascending("logit bias", &logit_bias, |bias| bias.0)?;
        for &(_, bias) in &logit_bias {
            within("logit bias", bias, -100.0..=100.0)?;
        }
        let logprobs =
            parameters.logprobs.map(|count| within("logprobs", count, 0..=MAX_LOGPROBS as u32)).transpose()?;
        let (top_p, repetition) = (parameters.top_p, parameters.repetition_penalty);
        Ok(Self {
            temperature: within("temperature", parameters.temperature, 0.0..=100.0)?,
            top_k: parameters.top_k,
            top_p: within("top-p", positive("top-p", top_p)?, 0.0..=1.0)?,
            min_p: within("min-p", parameters.min_p, 0.0..=1.0)?,
            repetition_penalty: within("repetition penalty", positive("repetition penalty", repetition)?, 0.0..=10.0)?,
            frequency_penalty: within("frequency penalty", parameters.frequency_penalty, -2.0..=2.0)?,
            presence_penalty: within("presence penalty", parameters.presence_penalty, -2.0..=2.0)?,
            penalty_window: parameters.penalty_window,
            logit_bias,
            logprobs: logprobs.and_then(|count| u8::try_from(count).ok()),
            seed: parameters.seed,
        })
    }
}

impl From<&SamplingParameters> for proto::SamplingParameters {
    fn from(parameters: &SamplingParameters) -> Self {
        let (bias_tokens, bias_values) = parameters.logit_bias.iter().map(|(token, bias)| (token.0, *bias)).unzip();
        Self {
            temperature: parameters.temperature,
            top_k: parameters.top_k,
            top_p: parameters.top_p,
            min_p: parameters.min_p,
            repetition_penalty: parameters.repetition_penalty,
            frequency_penalty: parameters.frequency_penalty,
            presence_penalty: parameters.presence_penalty,
            penalty_window: parameters.penalty_window,
            bias_tokens,
            bias_values,
            logprobs: parameters.logprobs.map(u32::from),
            seed: parameters.seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::ToStage;
    use crate::wire::samples;

    fn refused(change: impl FnOnce(&mut Offer)) -> bool {
        let mut offer = samples::offer();
        change(&mut offer);
        ToStage::decode(&ToStage::Offer(Box::new(offer)).encode(), samples::network()).is_err()
    }

    fn refused_sampling(change: impl FnOnce(&mut SamplingParameters)) -> bool {
        refused(|offer| change(&mut offer.sampling.as_mut().unwrap().parameters))
    }

    #[test]
    fn an_offer_agrees_with_its_own_chain() {
        assert!(!refused(|_| {}));
        assert!(refused(|offer| offer.stage = StageIndex(9)));
        assert!(refused(|offer| offer.budget = Position(0)));
        assert!(refused(|offer| offer.expires_after = Span(0)));
        assert!(refused(|offer| offer.expires_after = Span(MAX_LEASE.0 + 1)));
    }

    #[test]
    fn only_the_tail_learns_how_to_sample() {
        assert!(refused(|offer| offer.sampling = None));
        assert!(refused(|offer| offer.stage = StageIndex(0)));
        assert!(!refused(|offer| (offer.stage, offer.sampling) = (StageIndex(0), None)));
    }

    #[test]
    fn rounding_is_at_inner_boundaries_in_order() {
        assert!(!refused(|offer| offer.rounding = vec![(1, WireDtype::F16), (6, WireDtype::F32)]));
        assert!(refused(|offer| offer.rounding = vec![(0, WireDtype::F16)]));
        assert!(refused(|offer| offer.rounding = vec![(7, WireDtype::F16)]));
        assert!(refused(|offer| offer.rounding = vec![(3, WireDtype::F16), (3, WireDtype::F16)]));
    }

    #[test]
    fn a_stage_of_nothing_or_too_many_stages_are_no_chain() {
        let stage = |end| proto::Stage { peer: vec![1; 32].into(), end };

        assert!(chain(&[stage(2), stage(7)]).is_ok());
        assert!(chain(&[]).is_err());
        assert!(chain(&[stage(2), stage(2)]).is_err());
        assert!(chain(&[stage(3), stage(2)]).is_err());
        assert!(chain(&[stage(1 << 16)]).is_err());
        assert!(chain(&(1..=256).map(stage).collect::<Vec<_>>()).is_ok());
        assert!(chain(&(1..=257).map(stage).collect::<Vec<_>>()).is_err());
    }

    #[test]
    fn sampling_numbers_are_finite_and_in_range() {
        for bad in [f32::NAN, f32::INFINITY, -1.0, 100.5] {
            assert!(refused_sampling(|parameters| parameters.temperature = bad), "{bad}");
        }
        for bad in [f32::NAN, 0.0, -0.5, 1.5] {
            assert!(refused_sampling(|parameters| parameters.top_p = bad), "{bad}");
        }
        for bad in [f32::NAN, -0.1, 1.1] {
            assert!(refused_sampling(|parameters| parameters.min_p = bad), "{bad}");
        }
        for bad in [f32::NAN, 0.0, 10.5] {
            assert!(refused_sampling(|parameters| parameters.repetition_penalty = bad), "{bad}");
        }
        for bad in [f32::NAN, -2.5, 2.5] {
            assert!(refused_sampling(|parameters| parameters.frequency_penalty = bad), "{bad}");
            assert!(refused_sampling(|parameters| parameters.presence_penalty = bad), "{bad}");
        }
        assert!(refused_sampling(|parameters| parameters.logprobs = Some(21)));
        assert!(!refused_sampling(|parameters| parameters.logprobs = Some(0)));
    }

    #[test]
    fn biases_rise_by_token_and_are_few_and_small() {
        let bias = |count: u32, value| (0..count).map(|token| (Token(token), value)).collect::<Vec<_>>();

        assert!(!refused_sampling(|parameters| parameters.logit_bias = bias(MAX_BIAS as u32, -100.0)));
        assert!(refused_sampling(|parameters| parameters.logit_bias = bias(MAX_BIAS as u32 + 1, 1.0)));
        assert!(refused_sampling(|parameters| parameters.logit_bias = bias(1, 100.5)));
        assert!(refused_sampling(|parameters| parameters.logit_bias = bias(1, f32::NAN)));
        assert!(refused_sampling(|parameters| parameters.logit_bias = vec![(Token(2), 1.0), (Token(1), 1.0)]));
    }

    #[test]
    fn history_is_the_whole_prompt_and_what_followed_or_nothing() {
        let history = |count| {
            move |offer: &mut Offer| {
                let sampling = offer.sampling.as_mut().unwrap();
                sampling.prompt_length = Position(3);
                sampling.history = vec![Token(1); count];
            }
        };

        assert!(!refused(history(0)) && !refused(history(3)) && !refused(history(4)));
        assert!(refused(history(1)) && refused(history(2)));
        assert!(refused(|offer| offer.sampling.as_mut().unwrap().end_of_generation = vec![Token(2), Token(2)]));
        assert!(refused(|offer| offer.sampling.as_mut().unwrap().max_tokens = 0));
    }
}

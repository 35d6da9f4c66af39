//! What the commands and their peer say to each other, under `/brigade/v1`. Not for other programs: it may change
//! with any version.

use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::amounts::Span;
use crate::api::error::ApiError;
use crate::api::fields::in_range;
use crate::api::request::MAX_BIASES;
use crate::api::request::check_stops;
use crate::api::request::min_quant;
use crate::config::MAX_PATIENCE;
use crate::config::settings::TrustSetting;
use crate::daemon::handle::ChatMessage;
use crate::daemon::handle::GenerateRequest;
use crate::daemon::handle::GenerationEvent;
use crate::daemon::handle::ModelChange;
use crate::daemon::handle::Prompt;
use crate::daemon::views::MendedView;
use crate::daemon::views::SummaryView;
use crate::ids::Token;
use crate::node::io::Redundancy;
use crate::shape::WireDtype;
use crate::wire::control::SamplingParameters;

/// Asks for an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateBody {
    /// Id, unique prefix or alias.
    pub model: Option<String>,
    /// What to continue.
    pub prompt: PromptBody,
    /// How to choose.
    pub sampling: SamplingBody,
    /// New tokens at most.
    pub max_tokens: Option<u32>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// The dtype of hidden states between stages.
    pub wire: WireBody,
    /// Which peers the prompt may go to; the peer's own setting if not given.
    pub trust: Option<TrustSetting>,
    /// Seconds that it may wait for a lost stage's place to be taken; the peer's own setting if not given.
    #[serde(default)]
    pub patience: Option<u32>,
    /// How many chains of different peers compute the answer; one if not given.
    #[serde(default)]
    pub redundancy: Option<u32>,
    /// The coarsest format that weights may have; any if not given.
    #[serde(default)]
    pub min_quant: Option<String>,
}

/// What to continue.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptBody {
    /// A conversation.
    Chat(Vec<MessageBody>),
    /// Text without a template.
    Raw(String),
}

/// A message of a conversation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MessageBody {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// The dtype of hidden states between stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum WireBody {
    /// Lossless.
    F32,
    /// Half the bytes, rounded.
    F16,
}

/// How to choose the next token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingBody {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is all.
    pub top_k: u32,
    /// 1 is all.
    pub top_p: f32,
    /// 0 is all.
    pub min_p: f32,
    /// 1 is none.
    pub repetition_penalty: f32,
    /// 0 is none.
    pub frequency_penalty: f32,
    /// 0 is none.
    pub presence_penalty: f32,
    /// Token ids with what is added to their logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many top log-probabilities to report.
    pub logprobs: Option<u8>,
    /// The seed; drawn at random if not given.
    pub seed: Option<u64>,
}

/// What happens to an answer; the data of a server-sent event.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventBody {
    /// A chain is leased.
    Started {
        /// The model's id.
        model: String,
        /// Per stage the peer's key and its units.
        chain: Vec<(String, String)>,
    },
    /// More text.
    Text {
        /// The text.
        text: String,
        /// The tokens that it stands for.
        tokens: Vec<TokenBody>,
    },
    /// A stage is lost and nobody can take its place yet.
    Waiting {
        /// Why, for people.
        message: String,
    },
    /// The answer goes on in another chain.
    Mended {
        /// What was lost, and the chain.
        mended: MendedView,
    },
    /// The answer is complete.
    Finished {
        /// The end of it.
        summary: Box<SummaryView>,
    },
    /// It ended early and is not complete.
    Failed {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// Units that no peer serves.
        missing_units: Vec<String>,
    },
}

/// A token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenBody {
    /// Its id.
    pub id: u32,
    /// Its log-probability, if asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub logprob: Option<f32>,
}

/// Asks for a file to be imported.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportBody {
    /// The file, as the peer's machine names it: an absolute path.
    pub path: PathBuf,
}

/// Asks for something to be done to a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeBody {
    /// Id, unique prefix or alias.
    pub model: String,
    /// What.
    pub change: ModelChange,
}

/// Asks what a model is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescribeBody {
    /// Id, unique prefix, alias or title.
    pub model: String,
}

/// What a model is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DescribedBody {
    /// Its id.
    pub id: String,
    /// Its title.
    pub title: String,
    /// Its manifest's encoding, in base 64.
    pub manifest: String,
}

/// An invite.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InviteBody {
    /// The token.
    pub invite: String,
}

impl GenerateBody {
    /// Checks every number. `random_seed` is the seed where none is given.
    pub(crate) fn checked(self, random_seed: u64) -> Result<GenerateRequest, ApiError> {
        check_stops(&self.stop)?;
        if self.max_tokens == Some(0) {
            return Err(ApiError::invalid("max_tokens", "max_tokens must be at least 1"));
        }
        let patience = self.patience.map(|seconds| Span::seconds(seconds.into()));
        if patience > Some(Span::seconds(MAX_PATIENCE.into())) {
            return Err(ApiError::invalid("patience", format!("patience must be at most {MAX_PATIENCE} seconds")));
        }
        Ok(GenerateRequest {
            model: self.model,
            prompt: self.prompt.into(),
            parameters: self.sampling.checked(random_seed)?,
            max_tokens: self.max_tokens,
            stop: self.stop,
            wire: match self.wire {
                WireBody::F32 => WireDtype::F32,
                WireBody::F16 => WireDtype::F16,
            },
            trust: self.trust.map(Into::into),
            patience,
            redundancy: redundancy(self.redundancy)?,
            min_quant: self.min_quant.as_deref().map(min_quant).transpose()?,
        })
    }
}

fn redundancy(chains: Option<u32>) -> Result<Redundancy, ApiError> {
    let Some(chains) = chains else { return Ok(Redundancy::NONE) };
    let redundancy = u8::try_from(chains).ok().and_then(Redundancy::new);
    let bad = || ApiError::invalid("redundancy", format!("redundancy must be an integer of 1 to {}", Redundancy::MOST));
    redundancy.ok_or_else(bad)
}

impl From<PromptBody> for Prompt {
    fn from(body: PromptBody) -> Self {
        match body {
            PromptBody::Raw(text) => Self::Raw(text),
            PromptBody::Chat(messages) => Self::Chat(
                messages
                    .into_iter()
                    .map(|message| ChatMessage { role: message.role, content: message.content })
                    .collect(),
            ),
        }
    }
}

impl SamplingBody {
    fn checked(self, random_seed: u64) -> Result<SamplingParameters, ApiError> {
        if self.logprobs.is_some_and(|top| top > 20) {
            return Err(ApiError::invalid("logprobs", "logprobs must be at most 20"));
        }
        let mut logit_bias = self.logit_bias;
        logit_bias.sort_by_key(|(token, _)| *token);
        if logit_bias.len() > MAX_BIASES || logit_bias.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(ApiError::invalid(
                "logit_bias",
                format!("logit_bias names up to {MAX_BIASES} tokens, each once"),
            ));
        }
        let logit_bias = logit_bias
            .into_iter()
            .map(|(token, bias)| Ok((Token(token), in_range("logit_bias", bias, -100.0..=100.0)?)))
            .collect::<Result<_, ApiError>>()?;
        Ok(SamplingParameters {
            temperature: in_range("temperature", self.temperature, 0.0..=100.0)?,
            top_k: self.top_k,
            top_p: in_range("top_p", self.top_p, 0.0..=1.0)?.max(f32::MIN_POSITIVE),
            min_p: in_range("min_p", self.min_p, 0.0..=1.0)?,
            repetition_penalty: in_range("repetition_penalty", self.repetition_penalty, 0.01..=10.0)?,
            frequency_penalty: in_range("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?,
            presence_penalty: in_range("presence_penalty", self.presence_penalty, -2.0..=2.0)?,
            logit_bias,
            logprobs: self.logprobs,
            seed: self.seed.unwrap_or(random_seed),
            ..SamplingParameters::default()
        })
    }
}

impl EventBody {
    /// The event of an answer by `model`.
    pub(crate) fn of(event: GenerationEvent, model: &str) -> Self {
        match event {
            GenerationEvent::Started(chain) => Self::Started { model: model.to_owned(), chain },
            GenerationEvent::Text { text, tokens } => {
                let tokens = tokens.iter().map(|token| TokenBody { id: token.id.0, logprob: token.logprob }).collect();
                Self::Text { text, tokens }
            }
            GenerationEvent::Waiting(failure) => Self::Waiting { message: failure.to_string() },
            GenerationEvent::Mended(mended) => Self::Mended { mended },
            GenerationEvent::Finished(summary) => Self::Finished { summary },
            GenerationEvent::Failed(error) => Self::failed(error.into()),
        }
    }

    pub(crate) fn failed(error: ApiError) -> Self {
        Self::Failed { code: error.code.to_owned(), message: error.message, missing_units: error.missing }
    }
}

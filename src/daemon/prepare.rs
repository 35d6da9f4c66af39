//! From a request for text to what the node takes: model, tokens, limits.

use std::sync::Arc;

use crate::amounts::Span;
use crate::clock;
use crate::daemon::handle::ChatMessage;
use crate::daemon::handle::GenerateError;
use crate::daemon::handle::GenerateRequest;
use crate::daemon::handle::Prompt;
use crate::daemon::library::Known;
use crate::daemon::library::Library;
use crate::daemon::library::LibraryError;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::Token;
use crate::mesh::Mesh;
use crate::node::io::GenerateFailure;
use crate::node::io::GenerateSpec;
use crate::node::io::ModelFacts;
use crate::node::io::Trust;
use crate::weights::chat::AddGenerationPrompt;
use crate::weights::chat::Message;
use crate::weights::tokenizer::EncodeOptions;
use crate::weights::tokenizer::Tokenizer;

/// A model as the mesh knows it, before its manifest is at hand.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) model: ModelId,
    /// What its announcers call it.
    pub(super) title: String,
    /// Who can send its manifest.
    pub(super) sources: Vec<PeerKey>,
}

/// What this peer does where a request doesn't say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// Which peers prompts may go to.
    pub(super) trust: Trust,
    /// How long an answer waits for a lost stage's place to be taken.
    pub(super) patience: Span,
}

/// A request that can be submitted.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) facts: Arc<ModelFacts>,
    /// The models that can take its place, if they are held.
    pub(super) derived: Arc<[Arc<ModelFacts>]>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) spec: GenerateSpec,
    pub(super) stop: Vec<String>,
}

/// Fetches what is missing, applies the template and tokenizes.
pub(super) async fn prepare(
    library: Library,
    mesh: Mesh,
    chosen: Chosen,
    request: GenerateRequest,
    policy: Policy,
) -> Result<Prepared, GenerateError> {
    let fetched = library.known_or_fetched(&mesh, chosen.model, &chosen.title, &chosen.sources).await;
    let known = fetched.map_err(refused)?;
    // Long prompts take long to tokenize.
    let worked = tokio::task::spawn_blocking(move || assemble(known, request, policy)).await;
    worked.map_err(|error| GenerateError::Prompt(format!("the prompt could not be tokenized: {error}")))?
}

fn refused(error: LibraryError) -> GenerateError {
    match error {
        LibraryError::Nobody { .. } | LibraryError::Refused(_) => GenerateError::Fetch(error.to_string()),
        LibraryError::Catalogue(_) | LibraryError::Vocabulary(_) | LibraryError::Template(_) => {
            GenerateError::Model(error.to_string())
        }
    }
}

fn assemble(known: Known, request: GenerateRequest, policy: Policy) -> Result<Prepared, GenerateError> {
    let Known { facts, derived, tokenizer, template } = known;
    let prompt = match request.prompt {
        Prompt::Chat(messages) => {
            let messages: Vec<Message> = messages.into_iter().map(message).collect();
            let now = Some(clock::unix_seconds());
            let rendered = template.render(&tokenizer, &messages, AddGenerationPrompt::Yes, now);
            rendered.map_err(|error| GenerateError::Prompt(error.to_string()))?.tokens(&tokenizer)
        }
        Prompt::Raw(text) => tokenizer.encode(&text, EncodeOptions::RAW),
        Prompt::Tokens(tokens) => tokens,
    };
    check(&prompt, &facts)?;
    let context = facts.shape.context;
    let length = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
    let spec = GenerateSpec {
        model: facts.id,
        parameters: request.parameters,
        max_tokens: max_tokens(length, request.max_tokens, context)?,
        end_of_generation: tokenizer.vocabulary().end_of_generation.clone(),
        wire: request.wire,
        trust: request.trust.unwrap_or(policy.trust),
        patience: request.patience.unwrap_or(policy.patience),
        redundancy: request.redundancy,
        min_quant: request.min_quant,
        prompt,
    };
    Ok(Prepared { facts, derived, tokenizer, spec, stop: request.stop })
}

fn message(message: ChatMessage) -> Message {
    Message { role: message.role, content: message.content }
}

fn check(prompt: &[Token], facts: &ModelFacts) -> Result<(), GenerateError> {
    if prompt.is_empty() {
        return Err(GenerateError::Prompt("the prompt is empty".to_owned()));
    }
    match prompt.iter().find(|token| token.0 >= facts.shape.vocab) {
        Some(token) => Err(GenerateError::Prompt(format!(
            "token {token} is outside of the model's vocabulary of {} tokens",
            facts.shape.vocab
        ))),
        None => Ok(()),
    }
}

/// New tokens at most: what was asked for, or what the context leaves.
fn max_tokens(prompt: u32, asked: Option<u32>, context: u32) -> Result<u32, GenerateError> {
    let left = context.saturating_sub(prompt);
    let wanted = asked.unwrap_or(left).max(1);
    if wanted > left {
        return Err(GenerateFailure::TooLong { prompt, max_tokens: wanted, context }.into());
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_the_answer_may_fill_the_context() {
        assert_eq!(max_tokens(10, None, 512).unwrap(), 502);
        assert_eq!(max_tokens(10, Some(20), 512).unwrap(), 20);
    }

    #[test]
    fn a_prompt_and_answer_beyond_the_context_are_refused_with_both_figures() {
        let error = max_tokens(500, Some(20), 512).unwrap_err();

        let text = "prompt (500 tokens) + max_tokens (20) exceed the model's context of 512";
        assert_eq!(error.to_string(), text);
        assert!(max_tokens(512, None, 512).is_err());
    }
}

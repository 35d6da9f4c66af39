//! The handle on a running peer: what the API and the commands can ask of it.

use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::amounts::Span;
use crate::daemon::describe::Description;
use crate::daemon::views::ChangedView;
use crate::daemon::views::CreditsView;
use crate::daemon::views::FoundLieView;
use crate::daemon::views::ImportedView;
use crate::daemon::views::MendedView;
use crate::daemon::views::Metrics;
use crate::daemon::views::ModelView;
use crate::daemon::views::PeersView;
use crate::daemon::views::StatusView;
use crate::daemon::views::SummaryView;
use crate::ids::Token;
use crate::keys::invite::BadInvite;
use crate::node::io::GenerateFailure;
use crate::node::io::Redundancy;
use crate::node::io::Trust;
use crate::shape::WeightFormat;
use crate::shape::WireDtype;
use crate::wire::control::SamplingParameters;

/// Commands waiting for the daemon's loop. Callers wait on the reply, so this bounds callers, not bytes.
pub(crate) const COMMAND_CAPACITY: usize = 64;

/// Events of one generation waiting for its reader; a reader that falls further behind is cancelled.
pub(crate) const GENERATION_CAPACITY: usize = 1024;

/// A running peer.
#[derive(Clone, Debug)]
pub struct Peer {
    pub(crate) commands: mpsc::Sender<Command>,
}

/// A request for text, its parameters checked by type.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Id, unique prefix, alias, or `None` for the only (or the first covered) model.
    pub model: Option<String>,
    /// What to continue.
    pub prompt: Prompt,
    /// How to choose.
    pub parameters: SamplingParameters,
    /// New tokens at most; `None` is what the context leaves.
    pub max_tokens: Option<u32>,
    /// Texts that end the answer; none of them is shown.
    pub stop: Vec<String>,
    /// The dtype of hidden states between stages.
    pub wire: WireDtype,
    /// Which peers may see the prompt; `None` is the configuration's.
    pub trust: Option<Trust>,
    /// How long it may wait for a lost stage's place to be taken; `None` is the configuration's.
    pub patience: Option<Span>,
    /// How many chains of different peers compute the answer.
    pub redundancy: Redundancy,
    /// The coarsest format that weights may have, if not any.
    pub min_quant: Option<WeightFormat>,
}

/// What to continue.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// A conversation, put through the model's chat template.
    Chat(Vec<ChatMessage>),
    /// Text as it is; BOS as the model says.
    Raw(String),
    /// Token ids as they are.
    Tokens(Vec<Token>),
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// An answer under way. Dropping it cancels the session everywhere.
#[derive(Debug)]
pub struct Generation {
    /// The id of the model that answers.
    pub model: String,
    /// What happens; ends with `Finished` or `Failed`. If it ends without either, the peer has stopped.
    pub events: mpsc::Receiver<GenerationEvent>,
}

/// What happens to an answer.
#[derive(Clone, Debug)]
pub enum GenerationEvent {
    /// A chain is leased: per stage the peer's key and its units.
    Started(Vec<(String, String)>),
    /// More text. Never part of a stop string, never half a character.
    Text {
        /// The text, may be empty where a token completes no character.
        text: String,
        /// Tokens that it stands for, with log-probabilities if asked for.
        tokens: Vec<TokenView>,
    },
    /// A stage is lost and nobody can take its place, for this reason; it is waited for.
    Waiting(GenerateFailure),
    /// The answer goes on in another chain.
    Mended(MendedView),
    /// The answer is complete.
    Finished(Box<SummaryView>),
    /// It ended early and is not complete.
    Failed(GenerateError),
}

/// A token as it is shown.
#[derive(Clone, Debug)]
pub struct TokenView {
    /// Its id.
    pub id: Token,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural log-probability, if asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens at its place with their bytes, best first.
    pub top: Vec<(Token, Vec<u8>, f32)>,
}

/// Why there is no (complete) answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GenerateError {
    /// The name names no model, or several.
    #[error("{0}")]
    Model(String),
    /// The prompt cannot be used: a template that fails, an empty prompt, an unknown token.
    #[error("{0}")]
    Prompt(String),
    /// The manifest or the vocabulary could not be had from any peer.
    #[error("the manifest or vocabulary of the model could not be fetched: {0}")]
    Fetch(String),
    /// The generation failed.
    #[error("{0}")]
    Failed(#[from] GenerateFailure),
    /// The reader was too slow.
    #[error("the reader of the answer fell too far behind")]
    SlowReader,
    /// The peer has stopped.
    #[error("the peer has stopped")]
    Stopped,
}

/// Why a file could not be imported.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be used; the text names the file and the fault.
    #[error("{0}")]
    Refused(String),
    /// The peer has stopped.
    #[error("the peer has stopped")]
    Stopped,
}

/// What is to be done to a model of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelChange {
    /// Forget it, with what came of it from other peers. An imported file stays where it is.
    Remove,
    /// Hash what is here of it, and fetch again what is damaged.
    Verify,
    /// Give it only to peers on the allow-list, or to everybody again.
    Private(bool),
}

/// Why nothing was done to a model.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeError {
    /// It cannot be done; the text says why.
    #[error("{0}")]
    Refused(String),
    /// The peer has stopped.
    #[error("the peer has stopped")]
    Stopped,
}

/// Why there is no invite.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// The network or an address of this peer does not go into one.
    #[error("no invite can be made: {0}")]
    Bad(#[from] BadInvite),
    /// The peer has stopped.
    #[error("the peer has stopped")]
    Stopped,
}

/// The peer has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer has stopped")]
pub struct Stopped;

/// What the handle asks the daemon's loop.
#[derive(Debug)]
pub(crate) enum Command {
    /// Begin an answer.
    Generate(Box<GenerateRequest>, oneshot::Sender<Result<Generation, GenerateError>>),
    /// Import a file.
    Import(PathBuf, oneshot::Sender<Result<ImportedView, ImportError>>),
    /// Do something to the model of that name.
    Change(String, ModelChange, oneshot::Sender<Result<ChangedView, ChangeError>>),
    Describe(String, oneshot::Sender<Result<Description, GenerateError>>),
    /// Listings.
    Status(oneshot::Sender<StatusView>),
    /// Who holds what.
    Peers(oneshot::Sender<PeersView>),
    /// Models known.
    Models(oneshot::Sender<Vec<ModelView>>),
    /// Balances and entries.
    Credits(oneshot::Sender<CreditsView>),
    Lies(oneshot::Sender<Vec<FoundLieView>>),
    /// Figures.
    Metrics(oneshot::Sender<Metrics>),
    /// An invite to this peer's network.
    Invite(oneshot::Sender<Result<String, InviteError>>),
    /// Leave.
    Stop(oneshot::Sender<()>),
    /// Faults to come.
    #[cfg(feature = "faults")]
    Faults(Vec<crate::daemon::faults::Fault>, oneshot::Sender<()>),
}

impl Peer {
    /// Begins an answer: resolves the model, applies the template, tokenizes, plans and leases a chain.
    ///
    /// # Errors
    /// [`GenerateError`] if it cannot begin; a failure after that is the generation's last event.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Generate(Box::new(request), reply);
        self.commands.send(command).await.map_err(|_| GenerateError::Stopped)?;
        answer.await.map_err(|_| GenerateError::Stopped)?
    }

    /// Imports a GGUF file into this peer's catalogue. Takes as long as hashing the file.
    ///
    /// # Errors
    /// [`ImportError`] naming the file and the fault.
    pub async fn import(&self, file: PathBuf) -> Result<ImportedView, ImportError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Import(file, reply)).await.map_err(|_| ImportError::Stopped)?;
        answer.await.map_err(|_| ImportError::Stopped)?
    }

    /// Does something to a model of this peer's catalogue, by id, beginning of an id, or alias. Verifying takes as long as hashing it.
    ///
    /// # Errors
    /// [`ChangeError`] if there is no such model, or it cannot be done.
    pub async fn change(&self, name: String, change: ModelChange) -> Result<ChangedView, ChangeError> {
        self.ask(|reply| Command::Change(name, change, reply)).await.map_err(|Stopped| ChangeError::Stopped)?
    }

    /// What a model is, by id, beginning of an id, alias, or a title that one model alone has; fetched from others if they have to be asked.
    ///
    /// # Errors
    /// [`GenerateError`] if there is no such model, or nobody sends what it is.
    pub async fn describe(&self, name: String) -> Result<Description, GenerateError> {
        self.ask(|reply| Command::Describe(name, reply)).await.map_err(|Stopped| GenerateError::Stopped)?
    }

    /// How this peer is.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn status(&self) -> Result<StatusView, Stopped> {
        self.ask(Command::Status).await
    }

    /// Who holds what, and whether each model is covered.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn peers(&self) -> Result<PeersView, Stopped> {
        self.ask(Command::Peers).await
    }

    /// The models known here or heard of.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn models(&self) -> Result<Vec<ModelView>, Stopped> {
        self.ask(Command::Models).await
    }

    /// Balances and entries.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn credits(&self) -> Result<CreditsView, Stopped> {
        self.ask(Command::Credits).await
    }

    /// Lies that were found in this peer's own answers, the oldest first.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn lies(&self) -> Result<Vec<FoundLieView>, Stopped> {
        self.ask(Command::Lies).await
    }

    /// Figures for monitoring.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn metrics(&self) -> Result<Metrics, Stopped> {
        self.ask(Command::Metrics).await
    }

    /// An invite token that lets its reader join this peer's network through this peer.
    ///
    /// # Errors
    /// [`InviteError`] if an address of this peer is none that an invite can hold.
    pub async fn invite(&self) -> Result<String, InviteError> {
        self.ask(Command::Invite).await.map_err(|Stopped| InviteError::Stopped)?
    }

    /// Leaves the mesh and stops; returns when everything is freed and flushed.
    ///
    /// # Errors
    /// [`Stopped`] if it already had.
    pub async fn stop(&self) -> Result<(), Stopped> {
        self.ask(Command::Stop).await
    }

    /// Lets these faults befall the peer, and no others.
    ///
    /// # Errors
    /// [`Stopped`].
    #[cfg(feature = "faults")]
    pub async fn faults(&self, faults: Vec<crate::daemon::faults::Fault>) -> Result<(), Stopped> {
        self.ask(|reply| Command::Faults(faults, reply)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}

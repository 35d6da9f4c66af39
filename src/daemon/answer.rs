//! One answer under way: from the node's deliveries to text that can be shown.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::amounts::Time;
use crate::clock::Clock;
use crate::daemon::handle::GenerateError;
use crate::daemon::handle::GenerationEvent;
use crate::daemon::handle::TokenView;
use crate::daemon::replicas;
use crate::daemon::replicas::Computed;
use crate::daemon::views::MendedView;
use crate::daemon::views::StageView;
use crate::daemon::views::SummaryView;
use crate::ids::RequestId;
use crate::ids::Token;
use crate::node::io::Delivery;
use crate::node::io::Finish;
use crate::node::io::Input;
use crate::node::io::Mended;
use crate::session::text::Shown;
use crate::session::text::TextAssembler;
use crate::units::Chain;
use crate::units::Stage;
use crate::weights::tokenizer::Tokenizer;
use crate::wire::control::TailFinish;
use crate::wire::control::TokenLogprobs;

/// What an answer's task works with.
pub(super) struct Answer {
    pub(super) request: RequestId,
    pub(super) computed: Computed,
    pub(super) prompt_tokens: u32,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) text: TextAssembler,
    pub(super) deliveries: mpsc::Receiver<Delivery>,
    pub(super) events: mpsc::Sender<GenerationEvent>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) clock: Clock,
    pub(super) submitted: Time,
}

/// What was seen of the answer so far.
#[derive(Default)]
struct Progress {
    chain: Option<Chain>,
    leased: Time,
    first: Option<Time>,
    last: Time,
    /// Tokens that are not wholly shown yet.
    waiting: Vec<TokenView>,
    /// Tokens wholly shown.
    shown: usize,
    ending: Ending,
    /// The chains that took the place of broken ones.
    mended: Vec<MendedView>,
}

/// Whether a stop string was found.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Ending {
    #[default]
    Open,
    StopString,
}

/// Whether to go on.
enum Then {
    Wait,
    End,
}

impl Answer {
    /// Runs until the answer has ended or its reader has gone, which cancels it.
    pub(super) async fn run(mut self) {
        let mut progress = Progress::default();
        loop {
            let delivery = tokio::select! {
                delivery = self.deliveries.recv() => delivery,
                () = self.events.closed() => {
                    self.tell(Input::Cancel(self.request)).await;
                    return;
                }
            };
            let Some(delivery) = delivery else {
                // The daemon gave up on it: its queue was full, or the peer has stopped.
                let _ = self.events.send(GenerationEvent::Failed(GenerateError::SlowReader)).await;
                return;
            };
            if let Then::End = self.take(&mut progress, delivery).await {
                return;
            }
        }
    }

    async fn take(&mut self, progress: &mut Progress, delivery: Delivery) -> Then {
        match delivery {
            Delivery::Started(chain, weights) => {
                self.computed.weights = Some(weights);
                let named = names(chain.stages());
                progress.leased = self.clock.now();
                progress.last = progress.leased;
                progress.chain = Some(chain);
                self.show(GenerationEvent::Started(named)).await
            }
            Delivery::Waiting(failure) => {
                tracing::warn!(request = %self.request, %failure, "the answer waits");
                self.show(GenerationEvent::Waiting(failure)).await
            }
            Delivery::Mended(mended) => self.mended(progress, mended).await,
            Delivery::Caught(lie) => {
                let suspects = replicas::stages(&lie.suspects);
                let (position, certainty) = (lie.position, lie.certainty);
                tracing::warn!(request = %self.request, suspects, %position, ?certainty, "peers computed different things");
                Then::Wait
            }
            Delivery::Token { token, logprobs, .. } => self.token(progress, token, logprobs).await,
            Delivery::Finished(finish) => {
                self.flush(progress).await;
                let summary = self.summary(progress, &finish);
                self.show(GenerationEvent::Finished(Box::new(summary))).await;
                Then::End
            }
            Delivery::Failed(failure) => {
                self.flush(progress).await;
                self.show(GenerationEvent::Failed(failure.into())).await;
                Then::End
            }
        }
    }

    async fn mended(&self, progress: &mut Progress, mended: Mended) -> Then {
        let Mended { chain, lost, known, took } = mended;
        let view = MendedView {
            lost: names(&lost),
            chain: names(chain.stages()),
            known: known.0,
            mending_micros: took.0,
            pause_micros: 0,
        };
        tracing::info!(request = %self.request, %took, lost = lost.len(), "the answer goes on in another chain");
        progress.chain = Some(chain);
        progress.mended.push(view.clone());
        self.show(GenerationEvent::Mended(view)).await
    }

    async fn token(&mut self, progress: &mut Progress, token: Token, logprobs: Option<TokenLogprobs>) -> Then {
        let now = self.clock.now();
        if let Some(mended) = progress.mended.last_mut().filter(|mended| mended.pause_micros == 0) {
            mended.pause_micros = now.since(progress.last).0;
        }
        progress.first.get_or_insert(now);
        progress.last = now;
        if progress.ending == Ending::StopString || self.tokenizer.ends_generation(token) {
            return Then::Wait;
        }
        let view = self.view(token, logprobs);
        let shown = self.text.push(&view.bytes);
        progress.waiting.push(view);
        if matches!(shown, Shown::Stopped { .. }) {
            progress.ending = Ending::StopString;
            self.tell(Input::Conclude(self.request)).await;
        }
        self.shown(progress, shown).await
    }

    /// Shows what was withheld, unless it was because of a stop string.
    async fn flush(&mut self, progress: &mut Progress) {
        if progress.ending == Ending::Open {
            let rest = self.text.finish();
            self.shown(progress, rest).await;
        }
    }

    async fn shown(&self, progress: &mut Progress, shown: Shown) -> Then {
        let (Shown::Text { text, tokens } | Shown::Stopped { text, tokens }) = shown;
        let whole = tokens.saturating_sub(progress.shown).min(progress.waiting.len());
        let tokens: Vec<TokenView> = progress.waiting.drain(..whole).collect();
        progress.shown += whole;
        if text.is_empty() && tokens.is_empty() {
            return Then::Wait;
        }
        self.show(GenerationEvent::Text { text, tokens }).await
    }

    async fn show(&self, event: GenerationEvent) -> Then {
        if self.events.send(event).await.is_ok() {
            return Then::Wait;
        }
        self.tell(Input::Cancel(self.request)).await;
        Then::End
    }

    async fn tell(&self, input: Input) {
        // A daemon that has stopped has freed everything.
        let _ = self.inputs.send(input).await;
    }

    fn view(&self, id: Token, logprobs: Option<TokenLogprobs>) -> TokenView {
        let piece = |token| self.tokenizer.piece(token).into_owned();
        let (logprob, top) = match logprobs {
            Some(TokenLogprobs { chosen, top }) => {
                (Some(chosen), top.into_iter().map(|(token, value)| (token, piece(token), value)).collect())
            }
            None => (None, Vec::new()),
        };
        TokenView { id, bytes: piece(id), logprob, top }
    }

    fn summary(&self, progress: &Progress, finish: &Finish) -> SummaryView {
        let stop = progress.ending == Ending::StopString || finish.reason == TailFinish::EndOfGeneration;
        let first = progress.first.unwrap_or(progress.leased);
        SummaryView {
            model: self.computed.model.to_string(),
            finish_reason: if stop { "stop" } else { "length" }.to_owned(),
            prompt_tokens: self.prompt_tokens,
            completion_tokens: u32::try_from(progress.shown).unwrap_or(u32::MAX),
            chain: self.stages(progress, finish),
            replicas: finish.replicas.iter().map(|report| replicas::view(&self.computed, report)).collect(),
            lies: finish.lies.iter().map(replicas::lie).collect(),
            lease_micros: progress.leased.since(self.submitted).0,
            first_token_micros: first.since(self.submitted).0,
            decode_micros: progress.last.since(first).0,
            mended: progress.mended.clone(),
        }
    }

    /// The stages that the answer came through: with redundancy those of the chain that leads at the end.
    fn stages(&self, progress: &Progress, finish: &Finish) -> Vec<StageView> {
        let lead = finish.replicas.first().map(|report| &report.chain);
        let stages = lead.or(progress.chain.as_ref()).map_or(&[][..], Chain::stages);
        replicas::stage_views(&self.computed, stages, &finish.stages, &finish.owed)
    }
}

/// Per stage the peer's key and its units.
fn names(stages: &[Stage]) -> Vec<(String, String)> {
    stages.iter().map(|stage| (stage.peer.to_string(), stage.range.to_string())).collect()
}

//! `brigade ask` and `brigade chat`.

use std::io::BufRead;
use std::path::Path;

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::api::internal::EventBody;
use crate::api::internal::GenerateBody;
use crate::api::internal::MessageBody;
use crate::api::internal::PromptBody;
use crate::api::internal::SamplingBody;
use crate::api::internal::WireBody;
use crate::cli::Interrupted;
use crate::cli::access::Access;
use crate::cli::access::ReachArgs;
use crate::cli::client::Client;
use crate::cli::client::Events;
use crate::cli::output;
use crate::cli::privacy;
use crate::config::settings::TrustSetting;
use crate::daemon::views::LieView;
use crate::daemon::views::MendedView;
use crate::daemon::views::ReplicaView;
use crate::daemon::views::StageView;
use crate::daemon::views::SummaryView;
use crate::os;

/// What both commands take.
#[derive(Clone, Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Model to ask: an id, a unique prefix of at least 8 characters, an alias, or a GGUF file. By default the one that
    /// the mesh serves.
    #[arg(long, short, value_name = "ID|FILE")]
    model: Option<String>,
    /// New tokens at most. By default what the model's context leaves.
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Text that ends the answer and is not shown. May be given up to 4 times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Which peers the prompt may go to: known or open. By default as the peer is set up.
    #[arg(long, value_enum, value_name = "known|open", hide_possible_values = true)]
    trust: Option<TrustSetting>,
    /// Seconds that the answer may wait for a lost peer's place to be taken; 0 gives up at once. By default as the peer is
    /// set up.
    #[arg(long, value_name = "SECONDS")]
    patience: Option<u32>,
    /// How hidden states travel between peers: f32 (lossless) or f16 (half the bytes).
    #[arg(long, value_enum, default_value = "f32", value_name = "f32|f16", hide_possible_values = true)]
    wire: WireBody,
    /// How many chains of different peers compute the answer: 2 finds a peer that computes something else, 3 outvotes it,
    /// and both go on at once when a peer is lost.
    #[arg(long, default_value_t = 1, value_name = "1|2|3", value_parser = clap::value_parser!(u32).range(1..=3))]
    redundancy: u32,
    /// The coarsest weights that may compute the answer: F16, Q8_0, Q6_K, Q5_K, Q4_K, Q4_0 and so on. By default the most precise that
    /// the mesh has a chain of.
    #[arg(long, value_name = "FORMAT")]
    min_quant: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    reach: ReachArgs,
}

/// How the next token is chosen.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "How tokens are chosen")]
pub(crate) struct SamplingArgs {
    /// Boldness: 0 always takes the most probable token, 1 follows the model's probabilities.
    #[arg(long, short, value_name = "T", default_value_t = 0.8)]
    temperature: f32,
    /// Only the K most probable tokens; 0 is all.
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: u32,
    /// Only the most probable tokens that together reach this probability; 1 is all.
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Only tokens at least this fraction as probable as the most probable; 0 is all.
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    min_p: f32,
    /// Makes tokens of the last 64 less probable; 1 is off.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Lowers tokens by this for each time they were generated; 0 is off.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Lowers tokens by this if they were generated at all; 0 is off.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Adds a bias to a token's logit. May be given several times.
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f32)>,
    /// Makes the answer repeatable: the same seed, the same answer. Drawn at random by default.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// What `brigade ask` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct AskArgs {
    /// What to ask. `-` reads it from the standard input.
    #[arg(allow_hyphen_values = true)]
    prompt: String,
    /// Continue the prompt as it is, without the model's chat template. The prompt itself is printed first, so that
    /// the output is the whole text.
    #[arg(long)]
    raw: bool,
    /// Print one JSON object when the answer is complete: text, tokens, model, finish_reason, usage (prompt_tokens,
    /// completion_tokens), chain (per stage: peer, units, weights, quantisation, positions, hop_payload_bytes, hop_frames,
    /// busy_micros, owed_mflop), timings (lease_micros, first_token_micros, decode_micros), mended (per time
    /// that it went on without a lost peer: lost, chain, known, mending_micros, pause_micros); with --redundancy also replicas
    /// (each with chain, fate and tokens) and lies (each with suspects, certainty, position and signed commitments).
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    generate: GenerateArgs,
}

/// The JSON form of an answer. Its names are stable.
#[derive(Debug, Serialize)]
struct AnswerView {
    text: String,
    tokens: Vec<u32>,
    model: String,
    finish_reason: String,
    usage: UsageView,
    chain: Vec<StageView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    replicas: Vec<ReplicaView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lies: Vec<LieView>,
    timings: TimingsView,
    mended: Vec<MendedView>,
}

#[derive(Debug, Serialize)]
struct UsageView {
    prompt_tokens: u32,
    completion_tokens: u32,
}

#[derive(Debug, Serialize)]
struct TimingsView {
    lease_micros: u64,
    first_token_micros: u64,
    decode_micros: u64,
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) summary: SummaryView,
}

/// Whether text is shown as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// Each piece at once.
    Pieces,
    /// Nothing; the caller shows the end.
    Nothing,
}

/// Asks once.
pub(crate) async fn ask(root: &Path, args: AskArgs) -> anyhow::Result<()> {
    let text = prompt_text(&args.prompt)?;
    if args.raw && args.generate.system.is_some() {
        bail!("--system needs the chat template, which --raw leaves out");
    }
    let generate = &args.generate;
    let access = Access::open(root, &generate.reach, generate.model.as_deref(), generate.trust).await?;
    privacy::say_once(root);
    let prompt =
        if args.raw { PromptBody::Raw(text.clone()) } else { PromptBody::Chat(opening(generate, Some(text.clone()))) };
    let asked = tokio::select! {
        asked = ask_through(&access, &args, prompt, &text) => asked,
        asked = os::shutdown_requested() => asked.map_err(Into::into).and(Err(Interrupted.into())),
    };
    access.close().await;
    asked
}

async fn ask_through(access: &Access, args: &AskArgs, prompt: PromptBody, text: &str) -> anyhow::Result<()> {
    let model = access.ready(args.generate.model.as_deref()).await?;
    let body = args.generate.body(model, prompt);
    let show = if args.json { Show::Nothing } else { Show::Pieces };
    let before = if args.raw { text } else { "" };
    let answered = answer(&access.client, &body, show, before).await;
    if !args.json {
        return answered.map(|_| ());
    }
    let Answered { text, tokens, summary } = answered?;
    output::json(&AnswerView {
        text,
        tokens,
        model: summary.model,
        finish_reason: summary.finish_reason,
        usage: UsageView { prompt_tokens: summary.prompt_tokens, completion_tokens: summary.completion_tokens },
        chain: summary.chain,
        replicas: summary.replicas,
        lies: summary.lies,
        timings: TimingsView {
            lease_micros: summary.lease_micros,
            first_token_micros: summary.first_token_micros,
            decode_micros: summary.decode_micros,
        },
        mended: summary.mended,
    })
}

/// Asks, and gives back the answer once it is complete. `before` is shown in front of it.
pub(crate) async fn answer(client: &Client, body: &GenerateBody, show: Show, before: &str) -> anyhow::Result<Answered> {
    let mut events = client.generate(body).await?;
    if show == Show::Nothing {
        return follow(&mut events, show).await;
    }
    output::piece(before)?;
    let answered = follow(&mut events, show).await;
    // Also before an error: whatever was shown of the answer ends its line.
    output::line("")?;
    answered
}

async fn follow(events: &mut Events, show: Show) -> anyhow::Result<Answered> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    loop {
        match events.next().await? {
            Some(EventBody::Started { .. }) => {}
            Some(EventBody::Text { text: more, tokens: new }) => {
                if show == Show::Pieces {
                    output::piece(&more)?;
                }
                text.push_str(&more);
                tokens.extend(new.iter().map(|token| token.id));
            }
            Some(EventBody::Waiting { message }) => output::note(format!("waiting: {message}")),
            Some(EventBody::Mended { mended }) => output::note(goes_on(&mended)),
            Some(EventBody::Finished { summary }) => return Ok(Answered { text, tokens, summary: *summary }),
            Some(EventBody::Failed { message, .. }) => bail!("the answer is not complete: {message}"),
            None => bail!("the answer is not complete: the connection to the peer ended"),
        }
    }
}

fn goes_on(mended: &MendedView) -> String {
    let lost: Vec<String> =
        mended.lost.iter().map(|(peer, units)| format!("peer {} ({units})", output::short(peer))).collect();
    format!("going on without {}", lost.join(", "))
}

/// Talks to and fro until the input ends.
pub(crate) async fn chat(root: &Path, args: GenerateArgs) -> anyhow::Result<()> {
    let access = Access::open(root, &args.reach, args.model.as_deref(), args.trust).await?;
    privacy::say_once(root);
    let talked = talk(&access, &args).await;
    access.close().await;
    talked
}

async fn talk(access: &Access, args: &GenerateArgs) -> anyhow::Result<()> {
    let model = tokio::select! {
        model = access.ready(args.model.as_deref()) => model?,
        asked = os::shutdown_requested() => return asked.map_err(Into::into).and(Err(Interrupted.into())),
    };
    output::note("Type a line to say it, /reset to begin anew, /exit or Ctrl-D to leave. Ctrl-C stops an answer.");
    let mut lines = lines_of_input();
    let mut messages = opening(args, None);
    loop {
        output::piece("> ")?;
        let line = tokio::select! {
            line = lines.recv() => line,
            asked = os::shutdown_requested() => { asked?; None }
        };
        match line.as_deref().map(str::trim) {
            None | Some("/exit" | "/quit" | "/bye") => return Ok(()),
            Some("") => continue,
            Some("/reset") => messages = opening(args, None),
            Some(said) => {
                messages.push(MessageBody { role: "user".to_owned(), content: said.to_owned() });
                reply(access, args, model.clone(), &mut messages).await?;
            }
        }
    }
}

/// Lets the model reply. Where there is no complete reply, what was said is taken back and can be said again.
async fn reply(
    access: &Access,
    args: &GenerateArgs,
    model: Option<String>,
    messages: &mut Vec<MessageBody>,
) -> anyhow::Result<()> {
    let body = args.body(model, PromptBody::Chat(messages.clone()));
    let answered = tokio::select! {
        answered = answer(&access.client, &body, Show::Pieces, "") => answered,
        asked = os::shutdown_requested() => asked.map_err(Into::into).and(Err(Interrupted.into())),
    };
    match answered {
        Ok(answered) => messages.push(MessageBody { role: "assistant".to_owned(), content: answered.text }),
        Err(error) => {
            messages.pop();
            output::note(format!("error: {error}"));
        }
    }
    Ok(())
}

/// The lines of the standard input. Reading them cannot be interrupted, so a thread of its own does it.
fn lines_of_input() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}

fn prompt_text(prompt: &str) -> anyhow::Result<String> {
    if prompt == "-" { Ok(std::io::read_to_string(std::io::stdin())?) } else { Ok(prompt.to_owned()) }
}

fn opening(args: &GenerateArgs, question: Option<String>) -> Vec<MessageBody> {
    let message = |role: &str, content: &String| MessageBody { role: role.to_owned(), content: content.clone() };
    let system = args.system.iter().map(|text| message("system", text));
    system.chain(question.iter().map(|text| message("user", text))).collect()
}

impl GenerateArgs {
    fn body(&self, model: Option<String>, prompt: PromptBody) -> GenerateBody {
        GenerateBody {
            model,
            prompt,
            sampling: self.sampling.body(),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            wire: self.wire,
            trust: self.trust,
            patience: self.patience,
            redundancy: (self.redundancy > 1).then_some(self.redundancy),
            min_quant: self.min_quant.clone(),
        }
    }
}

impl SamplingArgs {
    fn body(&self) -> SamplingBody {
        SamplingBody {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.clone(),
            logprobs: None,
            seed: self.seed,
        }
    }
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(token, bias)| Some((token.parse().ok()?, bias.parse().ok()?)));
    parsed.ok_or_else(|| format!("expected a token id and a bias such as 42=-1.5, got \"{text}\""))
}

//! `brigade demo`.

use std::time::Duration;

use clap::Args;

use crate::amounts::Bytes;
use crate::api::internal::GenerateBody;
use crate::api::internal::MessageBody;
use crate::api::internal::PromptBody;
use crate::api::internal::SamplingBody;
use crate::api::internal::WireBody;
use crate::cli::Interrupted;
use crate::cli::ask;
use crate::cli::ask::Show;
use crate::cli::output;
use crate::cli::output::Waiting;
use crate::cli::swarm;
use crate::cli::swarm::Life;
use crate::cli::swarm::Plan;
use crate::cli::swarm::Swarm;
use crate::daemon::views::PeersView;
use crate::daemon::views::StageView;
use crate::daemon::views::SummaryView;
use crate::demo;
use crate::os;

/// How many peers share the model.
const STAGES: u16 = 3;

/// How long the peers get to agree on who holds what.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much the model may say.
const MAX_TOKENS: u32 = 200;

/// What is asked where nothing is given.
const PROMPT: &str = "Tell me a story.";

/// What `brigade demo` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct DemoArgs {
    /// What to ask the small model. It tells stories and answers questions about them.
    prompt: Option<String>,
}

/// Runs a mesh of four processes, asks it, and shows what everybody did.
pub(crate) async fn demo(args: DemoArgs) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("brigade-demo-").tempdir()?;
    let plan = Plan {
        folder: folder.path().to_owned(),
        peers: usize::from(STAGES) + 1,
        // As few as three can hold, so that nobody holds all and nobody can be spared.
        units_per_peer: Some(swarm::units(demo::NAME)?.div_ceil(STAGES)),
        model: demo::NAME.to_owned(),
        threads: 1,
        life: Life::WithParent,
    };
    let shown = tokio::select! {
        shown = show(plan, args.prompt.as_deref().unwrap_or(PROMPT)) => shown,
        // What was started is dropped with the other future, and is killed by that.
        asked = os::shutdown_requested() => asked.map_err(Into::into).and(Err(Interrupted.into())),
    };
    swarm::gone(folder.path()).await;
    shown
}

async fn show(plan: Plan, prompt: &str) -> anyhow::Result<()> {
    let waiting =
        Waiting::saying("starting four peers on this machine: no coordinator, only one address to begin with");
    let mut swarm = Swarm::start(plan).await?;
    drop(waiting);
    let shown = ask_and_tell(&mut swarm, prompt).await;
    swarm.stop().await;
    shown
}

async fn ask_and_tell(swarm: &mut Swarm, prompt: &str) -> anyhow::Result<()> {
    let model = swarm.covered(PATIENCE).await?;
    let peers: PeersView = swarm.client().get("peers").await?;
    output::line(format!("{} ({} units), shared by peers that found each other:", model.title, model.units))?;
    for (index, member) in swarm.members().iter().enumerate() {
        let view = peers.peers.iter().find(|peer| peer.peer == member.run.peer);
        let held: Vec<&str> = view.iter().flat_map(|peer| &peer.holdings).map(|held| held.units.as_str()).collect();
        let held = if held.is_empty() { "nothing, and asks".to_owned() } else { format!("units {}", held.join(", ")) };
        output::line(format!(
            "  peer {index}  {}  process {:<7} holds {held}",
            output::short(&member.run.peer),
            member.run.pid
        ))?;
    }
    output::line(format!("\n> {prompt}"))?;
    let answered = ask::answer(&swarm.client(), &body(model.id, prompt), Show::Pieces, "").await?;
    tell(swarm, &answered.summary)
}

fn body(model: String, prompt: &str) -> GenerateBody {
    GenerateBody {
        model: Some(model),
        prompt: PromptBody::Chat(vec![MessageBody { role: "user".to_owned(), content: prompt.to_owned() }]),
        sampling: SamplingBody {
            temperature: 0.5,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
            seed: None,
        },
        max_tokens: Some(MAX_TOKENS),
        stop: Vec::new(),
        wire: WireBody::F32,
        trust: None,
        redundancy: None,
    }
}

fn tell(swarm: &Swarm, summary: &SummaryView) -> anyhow::Result<()> {
    let last = summary.chain.len().saturating_sub(1);
    let rows: Vec<Vec<String>> =
        summary.chain.iter().enumerate().map(|(index, stage)| row(swarm, stage, index == last)).collect();
    let headings = ["stage", "units", "positions", "in the engine", "sent on", "in frames", "peer 0 owes"];
    output::line(format!("\n{}", output::table(&headings, &rows)))?;
    let tokens = summary.completion_tokens;
    let each = summary.decode_micros.checked_div(u64::from(tokens.saturating_sub(1))).unwrap_or(0);
    output::line(format!(
        "\n{} tokens read, {tokens} written; the first after {}, then one every {}",
        summary.prompt_tokens,
        output::micros(summary.first_token_micros),
        output::micros(each),
    ))?;
    Ok(())
}

fn row(swarm: &Swarm, stage: &StageView, is_last: bool) -> Vec<String> {
    let reported = |text: Option<String>| text.unwrap_or_else(|| "not reported".to_owned());
    let sent = match stage.hop_payload_bytes {
        Some(0) if is_last => Some("tokens only".to_owned()),
        bytes => bytes.map(|bytes| Bytes(bytes).to_string()),
    };
    vec![
        swarm::label(swarm.members(), &stage.peer),
        stage.units.clone(),
        reported(stage.positions.map(|positions| positions.to_string())),
        reported(stage.busy_micros.map(output::micros)),
        reported(sent),
        reported(stage.hop_frames.map(|frames| frames.to_string())),
        format!("{} MFLOP", stage.owed_mflop),
    ]
}

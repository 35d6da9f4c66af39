//! `brigade demo`.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use clap::ValueEnum;

use crate::amounts::Bytes;
use crate::api::internal::EventBody;
use crate::api::internal::GenerateBody;
use crate::api::internal::MessageBody;
use crate::api::internal::PromptBody;
use crate::api::internal::SamplingBody;
use crate::api::internal::WireBody;
use crate::cli::Interrupted;
use crate::cli::ask;
use crate::cli::ask::Answered;
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
use crate::os::Ending;
use crate::units::UnitRange;

/// How many peers share the model.
const STAGES: u16 = 3;

/// How long the peers get to agree on who holds what.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much the model may say.
const MAX_TOKENS: u32 = 200;

/// Tokens that a reader has seen when a stage is killed.
const KILL_AFTER: usize = 8;

/// What is asked where nothing is given.
const PROMPT: &str = "Tell me a story.";

/// What `brigade demo` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct DemoArgs {
    /// What to ask the small model. It tells stories and answers questions about them.
    prompt: Option<String>,
    /// Let every part be held twice, and kill a peer in mid-sentence: the driver (first stage), a middle one, the tail, or
    /// any by chance. Succeeds only if the answer is the one of an undisturbed run.
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "any", value_name = "driver|middle|tail", hide_possible_values = true)]
    kill: Option<Victim>,
}

/// Which stage is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Victim {
    Driver,
    Middle,
    Tail,
    Any,
}

/// Runs a mesh of processes, asks it, and shows what everybody did.
pub(crate) async fn demo(args: DemoArgs) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("brigade-demo-").tempdir()?;
    let units = swarm::units(demo::NAME)?;
    // Where one is to be killed, every part is held twice, by peers that are told which.
    let pinned = if args.kill.is_some() { [parts(units), parts(units)].concat() } else { Vec::new() };
    let plan = Plan {
        folder: folder.path().to_owned(),
        peers: pinned.len().max(usize::from(STAGES)) + 1,
        // As few as three can hold, so that nobody holds all and nobody can be spared.
        units_per_peer: Some(units.div_ceil(STAGES)),
        pinned,
        model: demo::NAME.to_owned(),
        threads: 1,
        life: Life::WithParent,
    };
    let shown = tokio::select! {
        shown = show(plan, args.prompt.as_deref().unwrap_or(PROMPT), args.kill) => shown,
        // What was started is dropped with the other future, and is killed by that.
        asked = os::shutdown_requested() => asked.map_err(Into::into).and(Err(Interrupted.into())),
    };
    swarm::gone(folder.path()).await;
    shown
}

/// A model's units in as many parts as there are stages.
fn parts(units: u16) -> Vec<UnitRange> {
    let cut = |stage: u16| (stage * units).div_ceil(STAGES);
    (0..STAGES).filter_map(|stage| UnitRange::new(cut(stage), cut(stage + 1)).ok()).collect()
}

async fn show(plan: Plan, prompt: &str, kill: Option<Victim>) -> anyhow::Result<()> {
    let peers = plan.peers;
    let waiting = Waiting::saying(format!(
        "starting {peers} peers on this machine: no coordinator, only one address to begin with"
    ));
    let mut swarm = Swarm::start(plan).await?;
    drop(waiting);
    let shown = ask_and_tell(&mut swarm, prompt, kill).await;
    swarm.stop().await;
    shown
}

async fn ask_and_tell(swarm: &mut Swarm, prompt: &str, kill: Option<Victim>) -> anyhow::Result<()> {
    let model = swarm.covered(PATIENCE).await?;
    if kill.is_some() {
        swarm.covered_twice(&model, PATIENCE).await?;
    }
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
    match kill {
        None => {
            let body = body(model.id, prompt, None);
            let answered = ask::answer(&swarm.client(), &body, Show::Pieces, "").await?;
            tell(swarm, &answered.summary)
        }
        Some(victim) => kill_and_tell(swarm, &body(model.id, prompt, Some(getrandom::u64()?)), victim).await,
    }
}

/// Asks twice with one seed: with a stage that is killed, and without.
async fn kill_and_tell(swarm: &Swarm, body: &GenerateBody, victim: Victim) -> anyhow::Result<()> {
    let (answered, killed) = answer_and_kill(swarm, body, victim).await?;
    let undisturbed = ask::answer(&swarm.client(), body, Show::Nothing, "").await?;
    tell(swarm, &answered.summary)?;
    let Some(mended) = answered.summary.mended.first() else {
        bail!("the answer was complete before the killed peer was missed");
    };
    let place = swarm::label(swarm.members(), &killed.peer);
    output::line(format!(
        "\n{place} ({}, units {}) was killed after {} tokens. The reader waited {} for the next one: {} positions were\n\
         sent again, or computed again where nobody had kept them, and the others went on where they were.",
        killed.role,
        killed.units,
        killed.tokens,
        output::micros(mended.pause_micros),
        mended.known,
    ))?;
    if answered.text != undisturbed.text {
        bail!("the text is not that of an undisturbed run:\n{}", undisturbed.text);
    }
    output::line("The text is that of an undisturbed run, letter for letter.")?;
    Ok(())
}

/// Who was killed, and when.
struct Killed {
    peer: String,
    units: String,
    role: &'static str,
    tokens: usize,
}

/// Follows an answer, and kills a stage of it in mid-sentence.
async fn answer_and_kill(swarm: &Swarm, body: &GenerateBody, victim: Victim) -> anyhow::Result<(Answered, Killed)> {
    let mut events = swarm.client().generate(body).await?;
    let (mut text, mut tokens) = (String::new(), 0);
    let (mut stages, mut killed) = (Vec::new(), None);
    loop {
        match events.next().await? {
            Some(EventBody::Started { chain, .. }) => stages = chain,
            Some(EventBody::Text { text: more, tokens: new }) => {
                output::piece(&more)?;
                text.push_str(&more);
                tokens += new.len();
                if tokens >= KILL_AFTER && killed.is_none() {
                    killed = Some(kill(swarm, &stages, victim, tokens)?);
                }
            }
            Some(EventBody::Waiting { .. } | EventBody::Mended { .. }) => {}
            Some(EventBody::Finished { summary }) => {
                output::line("")?;
                let Some(killed) = killed else { bail!("the answer was complete after {tokens} tokens") };
                return Ok((Answered { text, tokens: Vec::new(), summary: *summary }, killed));
            }
            Some(EventBody::Failed { message, .. }) => bail!("the answer is not complete: {message}"),
            None => bail!("the answer is not complete: the connection to the peer ended"),
        }
    }
}

fn kill(swarm: &Swarm, stages: &[(String, String)], victim: Victim, tokens: usize) -> anyhow::Result<Killed> {
    let last = stages.len().saturating_sub(1);
    let by_chance = usize::try_from(getrandom::u32()?)?;
    let index = match victim {
        Victim::Driver => 0,
        Victim::Middle if last < 2 => bail!("a chain of {} stages has no middle one", stages.len()),
        Victim::Middle => 1 + by_chance % (last - 1),
        Victim::Tail => last,
        Victim::Any => by_chance % stages.len().max(1),
    };
    let Some((peer, units)) = stages.get(index).cloned() else { bail!("the answer began without a chain") };
    let Some(member) = swarm.members().iter().find(|member| member.run.peer == peer) else {
        bail!("peer {} is none of this mesh", output::short(&peer));
    };
    os::end_process(member.run.pid, Ending::Killed)?;
    let role = match index {
        0 => "the driver",
        index if index == last => "the tail",
        _ => "a middle stage",
    };
    Ok(Killed { peer, units, role, tokens })
}

fn body(model: String, prompt: &str, seed: Option<u64>) -> GenerateBody {
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
            seed,
        },
        max_tokens: Some(MAX_TOKENS),
        stop: Vec::new(),
        wire: WireBody::F32,
        trust: None,
        // Without a seed nobody is killed, and nobody can be spared, so there is nothing to wait for.
        patience: seed.is_none().then_some(0),
        redundancy: None,
        min_quant: None,
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

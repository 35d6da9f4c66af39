//! `brigade models`, `peers`, `credits`, `lies` and `status`.

use std::path::Path;

use anyhow::bail;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::amounts::Bytes;
use crate::cli::client;
use crate::cli::client::Client;
use crate::cli::output;
use crate::cli::output::short;
use crate::daemon::views::CreditsView;
use crate::daemon::views::FoundLieView;
use crate::daemon::views::HoldingView;
use crate::daemon::views::ModelView;
use crate::daemon::views::PeersView;
use crate::daemon::views::StatusView;

/// How a listing is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Fetches a listing from the running peer and shows it.
async fn list<T: Serialize + DeserializeOwned>(
    root: &Path,
    name: &str,
    form: Form,
    text: impl Fn(&T) -> String,
) -> anyhow::Result<()> {
    let listing: T = running(root).await?.get(name).await?;
    match form {
        Form::Json => output::json(&listing),
        Form::Text => Ok(output::line(text(&listing))?),
    }
}

/// The peer that runs on the data directory.
pub(crate) async fn running(root: &Path) -> anyhow::Result<Client> {
    match client::find(root).await? {
        Some(client) => Ok(client),
        None => bail!("no peer runs on {}: `brigade up` starts one, --data-dir names another", root.display()),
    }
}

pub(crate) async fn models(root: &Path, form: Form) -> anyhow::Result<()> {
    list(root, "models", form, |models: &Vec<ModelView>| models_text(models)).await
}

pub(crate) async fn peers(root: &Path, form: Form) -> anyhow::Result<()> {
    list(root, "peers", form, peers_text).await
}

pub(crate) async fn credits(root: &Path, form: Form) -> anyhow::Result<()> {
    list(root, "credits", form, credits_text).await
}

pub(crate) async fn lies(root: &Path, form: Form) -> anyhow::Result<()> {
    list(root, "lies", form, |lies: &Vec<FoundLieView>| lies_text(lies)).await
}

pub(crate) async fn status(root: &Path, form: Form) -> anyhow::Result<()> {
    list(root, "status", form, status_text).await
}

fn models_text(models: &[ModelView]) -> String {
    if models.is_empty() {
        return "No model is known here. `brigade import FILE.gguf` adds one.".to_owned();
    }
    let rows: Vec<Vec<String>> = models
        .iter()
        .map(|model| {
            vec![
                short(&model.id),
                model.alias.clone().unwrap_or_default(),
                model.title.clone(),
                model.architecture.clone(),
                model.quantisation.clone(),
                Bytes(model.bytes).to_string(),
                memory(model.memory_bytes),
                model.units.to_string(),
                model.context.to_string(),
                on_disk(model),
                model.holding.join(" "),
                cover(model.covered, &model.missing),
            ]
        })
        .collect();
    let headings = [
        "model",
        "alias",
        "title",
        "family",
        "format",
        "size",
        "in memory",
        "units",
        "context",
        "on disk",
        "held here",
        "covered",
    ];
    output::table(&headings, &rows)
}

/// What holding all of a model takes; nothing while only its title is known.
fn memory(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { Bytes(bytes).to_string() }
}

/// The units on this machine's disk.
fn on_disk(model: &ModelView) -> String {
    let stored = if model.stored.is_empty() { "nothing".to_owned() } else { model.stored.join(" ") };
    if model.private { format!("{stored} (private)") } else { stored }
}

fn peers_text(view: &PeersView) -> String {
    let rows: Vec<Vec<String>> = view
        .peers
        .iter()
        .map(|peer| {
            let amount = |bytes: Option<u64>| bytes.map_or_else(String::new, |bytes| Bytes(bytes).to_string());
            vec![
                format!("{}{}", short(&peer.peer), if peer.this { " (this)" } else { "" }),
                peer.round_trip_micros.map_or_else(|| connection(peer.this, peer.connected), output::micros),
                peer.cores.map_or_else(String::new, |cores| cores.to_string()),
                amount(peer.memory_bytes),
                peer.sessions.map_or_else(String::new, |sessions| sessions.to_string()),
                holdings(&peer.holdings, peer.draining),
            ]
        })
        .collect();
    let peers = output::table(&["peer", "round trip", "cores", "memory", "sessions", "holds"], &rows);
    let covers: Vec<Vec<String>> = view
        .models
        .iter()
        .map(|model| {
            let covered = cover(model.covered, &model.missing);
            vec![short(&model.model), model.title.clone(), model.units.to_string(), covered]
        })
        .collect();
    if covers.is_empty() {
        return format!("{peers}\n\nNo model is known here.");
    }
    format!("{peers}\n\n{}", output::table(&["model", "title", "units", "covered"], &covers))
}

fn connection(this: bool, connected: bool) -> String {
    match (this, connected) {
        (true, _) => String::new(),
        (false, true) => "connected".to_owned(),
        (false, false) => "away".to_owned(),
    }
}

fn holdings(holdings: &[HoldingView], draining: bool) -> String {
    let held = holdings.iter().map(|held| {
        let speed = match held.micros_per_unit {
            0 => String::new(),
            micros => format!(", {} a unit", output::micros(micros)),
        };
        let state = if held.state == "ready" { String::new() } else { format!(" {}", held.state) };
        let precision = match (&held.source, &held.quantisation) {
            (Some(_), Some(quantisation)) => format!(" as {quantisation}"),
            (None, _) | (_, None) => String::new(),
        };
        let model = held.source.as_ref().unwrap_or(&held.model);
        format!("{} {}{precision}{state}{speed}", short(model), held.units)
    });
    let leaving = draining.then(|| "leaving".to_owned());
    let all = held.chain(leaving).collect::<Vec<_>>().join("; ");
    if all.is_empty() { "nothing".to_owned() } else { all }
}

fn cover(covered: bool, missing: &[String]) -> String {
    if covered { "yes".to_owned() } else { format!("no: units {} are missing", missing.join(", ")) }
}

fn credits_text(view: &CreditsView) -> String {
    let mut text = format!("earned {} MFLOP, owed {} MFLOP", view.earned_mflop, view.owed_mflop);
    if !view.balances.is_empty() {
        let rows: Vec<Vec<String>> = view
            .balances
            .iter()
            .map(|balance| vec![short(&balance.peer), balance.earned_mflop.to_string(), balance.owed_mflop.to_string()])
            .collect();
        text += &format!("\n\n{}", output::table(&["peer", "owes us (MFLOP)", "we owe (MFLOP)"], &rows));
    }
    if !view.entries.is_empty() {
        let rows = view.entries.iter().flat_map(|entry| {
            entry.lines.iter().map(|line| {
                vec![
                    short(&entry.requester),
                    entry.sequence.to_string(),
                    short(&entry.session),
                    entry.positions.to_string(),
                    short(&line.peer),
                    line.units.clone(),
                    line.mflop.to_string(),
                ]
            })
        });
        let headings = ["requester", "entry", "session", "positions", "owed to", "units", "MFLOP"];
        text += &format!("\n\n{}", output::table(&headings, &rows.collect::<Vec<_>>()));
    }
    for key in &view.forks {
        text += &format!("\n\n{} signed two entries of one number: it cheats", short(key));
    }
    text
}

fn lies_text(lies: &[FoundLieView]) -> String {
    if lies.is_empty() {
        return "No lie was found. Answers are compared where `--redundancy 2` or `3` asks for it.".to_owned();
    }
    let row = |FoundLieView { found, lie }: &FoundLieView| {
        let suspects = lie.suspects.iter().map(|(peer, units)| format!("{} ({units})", short(peer)));
        vec![
            found.to_string(),
            lie.position.to_string(),
            lie.certainty.replace('_', " "),
            suspects.collect::<Vec<_>>().join(", "),
        ]
    };
    output::table(&["found at", "position", "certainty", "suspects"], &lies.iter().map(row).collect::<Vec<_>>())
}

fn status_text(view: &StatusView) -> String {
    let kind = if view.private { "private" } else { "open" };
    let none = || "none".to_owned();
    let addresses = |list: &[String]| if list.is_empty() { none() } else { list.join("\n              ") };
    let held = holdings(&view.holdings, false);
    let fetching = view.fetching.iter().map(|fetch| {
        let (had, wanted) = (Bytes(fetch.had_bytes), Bytes(fetch.wanted_bytes));
        format!("{} {}: {had} of {wanted}", short(&fetch.model), fetch.units)
    });
    let fetching = addresses(&fetching.collect::<Vec<_>>());
    [
        ("peer", view.peer.clone()),
        ("network", format!("{} ({kind})", view.network)),
        ("version", view.version.clone()),
        ("up for", format!("{} s", view.uptime_seconds)),
        ("listening", addresses(&view.listening)),
        ("announced", addresses(&view.announced)),
        ("reachable", view.reachability.clone()),
        ("connected", format!("{} peers", view.connected)),
        ("memory", format!("{} offered, {} free", Bytes(view.memory_bytes), Bytes(view.memory_free_bytes))),
        ("threads", view.threads.to_string()),
        ("holds", held),
        ("fetching", fetching),
        ("sessions", format!("{} served, {} own requests", view.sessions, view.requests)),
    ]
    .map(|(name, value)| format!("{name:<12}  {value}"))
    .join("\n")
}

//! Weights that come from other peers: only what is needed, whoever dies meanwhile, and nothing that is wrong.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use brigade::units::UnitRange;
use brigade::weights::catalogue::Catalogue;
use brigade::weights::fixture::RandomModel;
use brigade::wire::manifest::Manifest;
use serde_json::Value;
use serde_json::json;

use super::STORY;
use super::answer_of_one;
use super::new_network;
use super::units;
use crate::support::Home;
use crate::support::Peer;
use crate::support::folder;
use crate::support::text;
use crate::support::wait_for;

const TOKENS: &str = "24";

/// What is sent besides the weights: outlines, and pieces that were asked for twice.
const OVERHEAD: f64 = 1.05;

/// 18 units, about 90 MB: several tensors of each block have several pieces.
fn model() -> RandomModel {
    RandomModel { blocks: 16, width: 256, feed_forward: 1_536, vocab: 2_048, context: 1_024, ..RandomModel::tiny() }
}

/// A network, a file with a model, and what is known of it.
pub(crate) struct House {
    folder: tempfile::TempDir,
    invite: String,
    file: PathBuf,
    pub(crate) manifest: Manifest,
}

impl House {
    fn build() -> Self {
        Self::of(&model())
    }

    pub(crate) fn of(model: &RandomModel) -> Self {
        let folder = folder();
        let invite = new_network(&folder.path().join("network"));
        let file = folder.path().join("model.gguf");
        model.write(&file).unwrap();
        let mut catalogue = Catalogue::open(&folder.path().join("known")).unwrap();
        let manifest = catalogue.import(&file, |_| ()).unwrap().manifest;
        Self { folder, invite, file, manifest }
    }

    pub(crate) fn id(&self) -> String {
        self.manifest.id().to_string()
    }

    fn root(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A peer that has the file, and serves nothing of it.
    fn shelf(&self, name: &str) -> Peer {
        let root = self.root(name);
        Home(root.clone()).run(&["import", self.file.to_str().unwrap()]).success();
        Peer::up(&root, &["--invite", &self.invite, "--no-serve"])
    }

    /// A peer that has the file.
    pub(crate) fn importer(&self, name: &str, args: &[&str]) -> Peer {
        let file = self.file.to_str().unwrap();
        Peer::up(&self.root(name), &[&["--invite", &self.invite, "--model", file], args].concat())
    }

    /// A peer that knows the model's id and a neighbour.
    pub(crate) fn newcomer(&self, name: &str, neighbour: &Peer, args: &[&str]) -> Peer {
        let id = self.id();
        let known = ["--invite", &self.invite, "--join", &neighbour.address, "--model", &id];
        Peer::up(&self.root(name), &[&known[..], args].concat())
    }

    /// Bytes of the weights that a peer holds.
    fn bytes_of(&self, held: &Held) -> u64 {
        self.bytes_beside(held, &Held::new())
    }

    /// Bytes of the weights that a peer holds now, without those of the units that it held before.
    fn bytes_beside(&self, now: &Held, before: &Held) -> u64 {
        let tensors = |held: &Held| {
            let ranges = held.iter().map(|&(start, end)| UnitRange::new(start, end).unwrap());
            let tensors = ranges.flat_map(|range| self.manifest.tensors_of(range));
            tensors.map(|tensor| (tensor.hash, tensor.bytes.0)).collect::<BTreeMap<_, _>>()
        };
        let old = tensors(before);
        tensors(now).into_iter().filter(|(tensor, _)| !old.contains_key(tensor)).map(|(_, bytes)| bytes).sum()
    }
}

/// Ranges of units.
type Held = BTreeSet<(u16, u16)>;

/// The ranges that a peer is ready to serve, if it is ready and nothing is on its way.
fn ready(peer: &Peer) -> Option<Held> {
    let status = peer.home.json(&["status", "--json"]);
    let holdings = status["holdings"].as_array()?;
    let ranges = holdings.iter().map(|holding| {
        let units = text(&holding["units"]);
        let (start, end) = units.split_once("..")?;
        (holding["state"] == "ready").then(|| (start.parse().unwrap(), end.parse().unwrap()))
    });
    ranges.collect::<Option<BTreeSet<_>>>().filter(|ranges| !ranges.is_empty())
}

fn fetched(peer: &Peer) -> u64 {
    peer.figure("brigade_weights_received_bytes_total")
}

fn sent(peer: &Peer) -> u64 {
    peer.figure("brigade_weights_sent_bytes_total")
}

fn answer(home: &Home) -> Value {
    home.ask(STORY, TOKENS)
}

#[test]
fn newcomers_fetch_only_what_they_serve_and_the_importer_may_leave() {
    let house = House::build();
    let whole = answer_of_one(house.file.to_str().unwrap(), TOKENS);
    let importer = house.shelf("importer");
    let cap = ["--units-per-peer", "7"];
    let mut holders: Vec<Peer> =
        (0..4).map(|index| house.newcomer(&format!("holder{index}"), &importer, &cap)).collect();

    let held: Vec<Held> =
        holders.iter().map(|holder| wait_for("a newcomer serves what it fetched", || ready(holder))).collect();
    importer.home.wait_until_covered();
    let needed: u64 = held.iter().map(|ranges| house.bytes_of(ranges)).sum();
    let given = sent(&importer) + holders.iter().map(sent).sum::<u64>();
    assert!(given >= needed, "{given} bytes were sent, {needed} are needed: {held:?}");
    assert!(given as f64 <= OVERHEAD * needed as f64, "{given} bytes were sent for {needed}: {held:?}");

    // What nobody else holds is lost with its holder, until another one has moved.
    let lost = holders.remove(lonely(&held));
    let left: Vec<Held> = holders.iter().map(|holder| ready(holder).unwrap()).collect();
    let before: u64 = holders.iter().map(fetched).sum();
    drop(lost);
    wait_for("a unit is missing", || importer.home.missing().filter(|missing| !missing.is_empty()));
    importer.home.wait_until_covered();
    let moved: Vec<Held> =
        holders.iter().map(|holder| wait_for("whoever moved has settled", || ready(holder))).collect();
    let needed: u64 = moved.iter().zip(&left).map(|(now, before)| house.bytes_beside(now, before)).sum();
    let came = holders.iter().map(fetched).sum::<u64>() - before;
    assert!(came >= needed && came as f64 <= OVERHEAD * needed as f64, "{came} of {needed}: {left:?}, {moved:?}");

    importer.down();
    let known = ["--invite", &house.invite, "--join", &holders[0].address, "--no-serve"];
    let asker = Peer::up(&house.root("asker"), &known);
    asker.home.wait_until_covered();
    let split = answer(&asker.home);
    assert_eq!((&split["text"], units(&split).len() > 1), (&whole["text"], true), "{split}");
    assert_eq!(fetched(&asker), 0, "who only asks needs no weights");
}

/// The first holder of units that no other one holds.
fn lonely(held: &[Held]) -> usize {
    let units = |held: &Held| held.iter().flat_map(|&(start, end)| start..end).collect::<BTreeSet<u16>>();
    let is_lonely = |index: &usize| {
        let others = held.iter().enumerate().filter(|(other, _)| other != index);
        let others: BTreeSet<u16> = others.flat_map(|(_, held)| units(held)).collect();
        !units(&held[*index]).is_subset(&others)
    };
    (0..held.len()).find(is_lonely).expect("four peers of a third each do not all stand twice")
}

#[test]
fn a_download_goes_on_without_a_source_and_after_its_own_death() {
    let house = House::build();
    let limit = ["--upload-limit", "6MiB"];
    let mut first = house.importer("first", &limit);
    let second = house.importer("second", &[&limit[..], &["--join", &first.address]].concat());
    let pinned = ["--units", "0..18", "--join", &second.address];
    let mut newcomer = house.newcomer("newcomer", &first, &pinned);
    let all = house.manifest.total_bytes().0;

    wait_for("a part is there", || (fetched(&newcomer) > all / 5).then_some(()));
    first.kill();
    wait_for("more is there, from the other", || (fetched(&newcomer) > all / 2).then_some(()));
    let before = fetched(&newcomer);
    newcomer.kill();
    let newcomer = house.newcomer("newcomer", &second, &pinned);
    wait_for("everything is there", || ready(&newcomer));

    let after = fetched(&newcomer);
    assert!(before + after <= (OVERHEAD * all as f64) as u64, "{before} and {after} of {all}");
    assert!(verified(&newcomer.home).is_empty());
    assert_eq!(answer(&newcomer.home)["text"], answer(&second.home)["text"]);
}

#[test]
fn what_a_disk_damaged_reaches_nobody_and_is_healed() {
    let house = House::build();
    let importer = house.importer("importer", &["--upload-limit", "20MiB"]);
    let holder = house.newcomer("holder", &importer, &["--units", "0..18"]);
    wait_for("the holder serves what it fetched", || ready(&holder));
    let damaged = damage(&holder.home.0.join("tensors"));
    assert!(damaged > 16, "{damaged}");

    let newcomer = house.newcomer("newcomer", &holder, &["--units", "0..18"]);
    wait_for("the newcomer serves what it fetched", || ready(&newcomer));

    assert!(sent(&holder) > 0, "the holder was a source");
    assert!(verified(&newcomer.home).is_empty(), "nothing wrong was taken");
    let log = fs::read_to_string(newcomer.home.0.join("peer.log")).unwrap();
    assert!(!log.contains("sent wrong weights"), "the holder noticed it first: {log}");
    // What nobody asked it for is found by looking.
    verified(&holder.home);
    let all = house.manifest.tensors.iter().map(|tensor| tensor.hash).collect::<BTreeSet<_>>().len();
    wait_for("everything is healed", || {
        let found = verification(&holder.home, &house.id());
        (found["damaged"] == json!([]) && found["right"].as_u64()? as usize >= all).then_some(())
    });
    let log = fs::read_to_string(holder.home.0.join("peer.log")).unwrap();
    assert!(log.contains("whole again"), "{log}");
    assert_eq!(answer(&newcomer.home)["text"], answer(&importer.home)["text"]);
}

#[test]
fn weights_are_given_to_whom_their_owner_likes() {
    let house = House::build();
    let friend = house.root("friend");
    let stranger = Home(house.root("stranger"));
    // Its key is made when it first starts.
    let key = Peer::up(&friend, &["--invite", &house.invite, "--no-serve"]).key.clone();
    let importer = house.importer("importer", &["--allow", &key]);
    let made_private = importer.home.run(&["models", "private", "model", "on"]).success();
    assert!(made_private.contains("--allow"), "{made_private}");

    let refused = house.newcomer("stranger", &importer, &["--units", "0..2"]);
    wait_for("a stranger is told nothing", || {
        let log = fs::read_to_string(refused.home.0.join("peer.log")).unwrap();
        log.contains("could not be described").then_some(())
    });
    let notices = stranger.json(&["status", "--json"])["notices"].to_string();
    assert!(notices.contains("no peer has described it"), "{notices}");
    assert_eq!(fetched(&refused), 0);
    refused.down();
    let allowed = house.newcomer("friend", &importer, &["--units", "0..2"]);
    wait_for("a friend serves what it fetched", || ready(&allowed));

    importer.home.run(&["models", "private", "model", "off"]).success();
    let refused = house.newcomer("stranger", &importer, &["--units", "0..2"]);
    wait_for("a stranger serves what it fetched", || ready(&refused));

    // What came can be removed once it is not served any more.
    let held = stranger.run(&["models", "rm", &house.id()]).failure();
    assert!(held.contains("serves"), "{held}");
    refused.down();
    let removed = stranger.run(&["models", "rm", &house.id()]).success();
    assert!(removed.contains("free again"), "{removed}");
    assert_eq!(damage(&stranger.0.join("tensors")), 0);
}

/// The tensors of the only model that are damaged, by the peer's own account.
fn verified(home: &Home) -> Vec<String> {
    let models = home.json(&["models", "--json"]);
    let models = models.as_array().unwrap();
    let id = text(&models.iter().find(|model| model["title"] == "random weights").unwrap()["id"]);
    verification(home, &id)["damaged"].as_array().unwrap().iter().map(text).collect()
}

fn verification(home: &Home, id: &str) -> Value {
    home.json(&["models", "verify", id, "--json"])
}

/// Changes a byte of each tensor of at least a piece, and says how many there are.
fn damage(tensors: &Path) -> usize {
    let mut damaged = 0;
    let folders = fs::read_dir(tensors).unwrap().map(|entry| entry.unwrap().path());
    let is_whole = |folder: &PathBuf| folder.file_name().is_some_and(|name| name.len() == 2);
    for file in folders.filter(is_whole).flat_map(|folder| fs::read_dir(folder).unwrap()) {
        let path = file.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if bytes.len() >= 1 << 20 {
            bytes[777] ^= 1;
            fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    damaged
}

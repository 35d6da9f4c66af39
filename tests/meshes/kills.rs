//! Stages that die, freeze or are cut off at chosen moments of an answer, while another peer holds the same units: the reader gets
//! every token, once, and the very ones of an undisturbed run.
//!
//! No moment is hit by waiting a while: a fault (`brigade::daemon::faults`) lets a stage stand still at the step of a position,
//! and what befalls it then befalls it there.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use brigade::amounts::Span;
use brigade::amounts::Time;
use brigade::clock::Clock;
use brigade::daemon::faults::Act;
use brigade::daemon::faults::Fault;
use brigade::daemon::faults::Moment;
use brigade::demo;
use rustix::process::Pid;
use rustix::process::Signal;
use serde_json::Value;
use serde_json::json;

use crate::new_network;
use crate::support::Ended;
use crate::support::Peer;
use crate::support::Running;
use crate::support::folder;
use crate::support::text;
use crate::support::wait_for;
use crate::units;
use crate::wait_until_all_are_connected;

/// The three stages of every chain.
pub(crate) const RANGES: [&str; 3] = ["0..3", "3..6", "6..8"];

/// Frames that a stage may send before the next one takes one up, and positions of each: what may be computed twice.
const WINDOW: u64 = 4;
const CHUNK: u64 = 128;

/// Positions that a chain may compute before it hears that there is enough.
const OVERSHOOT: u64 = 32;

/// How long a stage is frozen.
const FROZEN: Span = Span::seconds(30);

/// Ten times the pause that is aimed at after a death, and after a freeze.
const LONGEST_PAUSE: [Span; 2] = [Span::seconds(30), Span::seconds(60)];

/// What befalls a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// The process is killed.
    Kill,
    /// The process stands still for half a minute, and then goes on where it was.
    Freeze,
    /// Its hop to the next stage is closed, and no other to that peer can be opened.
    Cut,
    /// Its engine does not come back any more; the process lives and answers.
    Hang,
}

/// When it befalls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Prefill,
    FirstToken,
    MidStream,
    LastToken,
}

const MOMENTS: [When; 4] = [When::Prefill, When::FirstToken, When::MidStream, When::LastToken];

/// What is asked, and what the undisturbed answer is.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    args: Vec<String>,
    pub(crate) answer: Value,
}

impl Question {
    /// Asks a mesh that nothing befalls.
    pub(crate) fn ask(mesh: &Mesh, args: Vec<String>) -> Self {
        let answer = serde_json::from_str(&mesh.start(&args).end().success()).unwrap();
        // Where round trips were measured on a busy machine, the two holders of a range may share it.
        let is_part = |stage: &String| RANGES.iter().any(|range| within(stage, range));
        assert!(units(&answer).iter().all(is_part), "{answer}");
        Self { args, answer }
    }

    pub(crate) fn usage(&self, name: &str) -> u32 {
        u32::try_from(self.answer["usage"][name].as_u64().unwrap()).unwrap()
    }

    /// How many positions every stage computes of the answer. Where a stop string ends it, a few more may be on their way.
    fn positions(&self) -> u64 {
        let all = u64::from(self.usage("prompt_tokens") + self.usage("completion_tokens"));
        all + if self.answer["finish_reason"] == "stop" { OVERSHOOT } else { 0 }
    }

    /// The fault that lets a stage stand still then.
    pub(crate) fn fault(&self, when: When, act: Act) -> Fault {
        let (prompt, new) = (self.usage("prompt_tokens"), self.usage("completion_tokens"));
        let (moment, position) = match when {
            When::Prefill => (Moment::BeforeApply, prompt / 2),
            When::FirstToken => (Moment::AfterApply, prompt - 1),
            When::MidStream => (Moment::AfterSend, prompt + new / 2),
            When::LastToken => (Moment::BeforeApply, prompt + new - 2),
        };
        Fault { moment, position, act }
    }
}

/// Whether units are among others.
fn within(units: &str, others: &str) -> bool {
    let [units, others] = [units, others].map(|range| {
        let (start, end) = range.split_once("..").unwrap();
        start.parse::<u16>().unwrap()..end.parse::<u16>().unwrap()
    });
    others.start <= units.start && units.end <= others.end
}

/// A peer that asks, and others that serve, each range by several.
pub(crate) struct Mesh {
    folder: tempfile::TempDir,
    invite: String,
    /// What every serving peer is started with.
    args: Vec<String>,
    pub(crate) requester: Peer,
    pub(crate) holders: Vec<Holder>,
    clock: Clock,
}

pub(crate) struct Holder {
    root: PathBuf,
    range: &'static str,
    pub(crate) peer: Peer,
}

impl Mesh {
    pub(crate) fn up(spares: usize, args: &[&str]) -> Self {
        let folder = folder();
        let root = folder.path().join("requester");
        let invite = new_network(&root);
        let requester = Peer::up(&root, &["--invite", &invite, "--no-serve"]);
        let args = args.iter().map(ToString::to_string).collect();
        let mut mesh = Self { folder, invite, args, requester, holders: Vec::new(), clock: Clock::start() };
        for copy in 0..=spares {
            for range in RANGES {
                let root = mesh.folder.path().join(format!("{range}-{copy}"));
                let peer = mesh.serve(&root, range);
                mesh.holders.push(Holder { root, range, peer });
            }
        }
        mesh.wait_until_all_are_ready();
        mesh
    }

    fn serve(&self, root: &Path, range: &str) -> Peer {
        let known = ["--invite", &self.invite, "--join", &self.requester.address];
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        Peer::up(root, &[&known[..], &["--model", demo::NAME, "--units", range], &args].concat())
    }

    /// Waits until all peers are connected to each other, and the one that asks knows that each other one is ready.
    pub(crate) fn wait_until_all_are_ready(&self) {
        let peers: Vec<&Peer> = self.holders.iter().map(|holder| &holder.peer).chain([&self.requester]).collect();
        wait_until_all_are_connected(&peers);
        wait_for("every peer is ready", || {
            let peers = self.requester.home.json(&["peers", "--json"]);
            let ready = |holder: &Holder| {
                let peers = peers["peers"].as_array().unwrap();
                let peer = peers.iter().find(|peer| peer["peer"] == holder.peer.key.as_str());
                peer.is_some_and(|peer| {
                    let held = peer["holdings"].as_array().unwrap();
                    peer["connected"] == true
                        && held.iter().any(|held| held["units"] == holder.range && held["state"] == "ready")
                })
            };
            self.holders.iter().all(ready).then_some(())
        });
    }

    pub(crate) fn start(&self, args: &[String]) -> Running {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Running::start(self.requester.home.command(&[&["ask", "--raw", "--json"], &args[..]].concat()))
    }

    pub(crate) fn holders_of(&self, range: &str) -> Vec<usize> {
        (0..self.holders.len()).filter(|&index| self.holders[index].range == range).collect()
    }

    /// Lets faults wait for whoever serves a range.
    fn arm(&self, range: &str, faults: &[Fault]) {
        for index in self.holders_of(range) {
            self.holders[index].peer.post("faults", &json!(faults));
        }
    }

    /// Waits until one of a range's holders stands still, and disarms the others.
    pub(crate) fn struck(&self, range: &str) -> usize {
        let holders = self.holders_of(range);
        let struck = wait_for(&format!("a holder of {range} stands still"), || {
            holders.iter().copied().find(|&index| is_stopped(self.holders[index].peer.pid()))
        });
        for index in holders.into_iter().filter(|&index| index != struck) {
            disarm(&self.holders[index].peer);
        }
        struck
    }

    /// The holder of a range that has a session.
    fn busy(&self, range: &str) -> usize {
        let busy = |&index: &usize| self.holders[index].peer.figure("brigade_sessions") > 0;
        self.holders_of(range).into_iter().find(busy).expect("a range of the chain has a holder with a session")
    }

    pub(crate) fn restart(&mut self, index: usize) {
        let (root, range) = (self.holders[index].root.clone(), self.holders[index].range);
        self.holders[index].peer = self.serve(&root, range);
    }

    /// How many sessions each living holder has, how many leases it has given, and how many ranges it has loaded.
    fn figures(&self) -> BTreeMap<String, [u64; 3]> {
        let figures = ["brigade_sessions", "brigade_leases_total", "brigade_loads_total"];
        let living = self.holders.iter().filter(|holder| state(holder.peer.pid()).is_some_and(|state| state != 'T'));
        living.map(|holder| (holder.peer.key.clone(), figures.map(|name| holder.peer.figure(name)))).collect()
    }

    pub(crate) fn wait_until_nobody_holds_a_session(&self) {
        wait_for("every session is freed", || {
            let free = |holder: &Holder| holder.peer.figure("brigade_sessions") == 0;
            self.holders.iter().all(free).then_some(())
        });
    }

    fn now(&self) -> Time {
        self.clock.now()
    }
}

fn is_stopped(pid: u32) -> bool {
    state(pid) == Some('T')
}

/// The letter of a process' state: field 3 of proc_pid_stat(5). `None` if there is no such process.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Takes a peer's faults away. Where two holders of a range share it, both are struck; the other one goes on.
pub(crate) fn disarm(peer: &Peer) {
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| peer.post("faults", &json!([])));
        wait_for("a peer has no faults any more", || {
            if is_stopped(peer.pid()) {
                thaw(peer.pid());
            }
            asked.is_finished().then_some(())
        });
    });
}

/// Lets a process that stands still go on.
fn thaw(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
}

pub(crate) fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(ToString::to_string).collect()
}

/// Greedy and sampled answers to a short and a long prompt. The sampled ones end at a stop string; it stands across the token at
/// which the stream is cut in its middle.
fn questions(mesh: &Mesh) -> Vec<Question> {
    let long = "Once upon a time there was a dog named Max who lived in a big house by the sea. ".repeat(18);
    let mut questions = Vec::new();
    for prompt in ["Once upon a time there was a dog", &long] {
        questions.push(Question::ask(mesh, strings(&["--temperature", "0", "--max-tokens", "40", prompt])));
        let chance = ["--temperature", "0.8", "--repetition-penalty", "1.1", "--seed", "7"];
        let with =
            |tokens: &str| Question::ask(mesh, strings(&[&chance[..], &["--max-tokens", tokens, prompt]].concat()));
        let (before, whole) = (text(&with("20").answer["text"]), text(&with("40").answer["text"]));
        let stop = stop_across(&whole, before.len());
        questions.push(Question::ask(
            mesh,
            strings(&[&chance[..], &["--max-tokens", "60", "--stop", &stop, prompt]].concat()),
        ));
    }
    let lengths: Vec<u32> = questions.iter().map(|question| question.usage("prompt_tokens")).collect();
    assert!(lengths[0] < 16 && lengths[2] > 350, "{lengths:?}");
    questions
}

/// A text around a place that stands nowhere before it.
fn stop_across(whole: &str, place: usize) -> String {
    let places: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
    let middle = places.iter().position(|&at| at >= place).unwrap();
    (2..middle)
        .map(|reach| &whole[places[middle - reach]..places[(middle + reach).min(places.len() - 1)]])
        .find(|stop| whole.find(stop).is_some_and(|at| at < place && place < at + stop.len()))
        .expect("some text around the place is the first of its kind")
        .to_owned()
}

/// The answer is whole, and the undisturbed one.
pub(crate) fn check(question: &Question, ended: Ended, told: &str) -> Value {
    let err = ended.err.clone();
    let answer: Value = serde_json::from_str(&ended.success()).unwrap();
    for part in ["text", "tokens", "finish_reason", "usage"] {
        assert_eq!(answer[part], question.answer[part], "{told}: {part}\n{err}");
    }
    answer
}

fn pauses(answer: &Value) -> Vec<u64> {
    let mended = answer["mended"].as_array().unwrap();
    mended.iter().map(|mended| mended["pause_micros"].as_u64().unwrap()).collect()
}

/// Lets one blow befall one stage of an answer; the pause, and who was struck.
fn strike(mesh: &mut Mesh, question: &Question, role: usize, when: When, blow: Blow) -> (Vec<u64>, usize) {
    let told = format!("{blow:?} of {} at {when:?}, {:?}", RANGES[role], question.args);
    let stop = question.fault(when, Act::Stop);
    let faults = match blow {
        Blow::Kill | Blow::Freeze => vec![stop],
        Blow::Cut => vec![question.fault(when, Act::Cut)],
        // At the step after the one at which it stood still.
        Blow::Hang => {
            vec![stop, Fault { moment: Moment::BeforeApply, position: stop.position + 1, act: Act::Hang }]
        }
    };
    mesh.arm(RANGES[role], &faults);
    let asked = mesh.start(&question.args);
    let struck = mesh.struck(RANGES[role]);
    let before = mesh.figures();
    match blow {
        Blow::Kill => mesh.holders[struck].peer.kill(),
        Blow::Cut | Blow::Hang => thaw(mesh.holders[struck].peer.pid()),
        Blow::Freeze => {}
    }
    let answer = check(question, asked.end(), &told);

    let pauses = pauses(&answer);
    // Whether the last stage's last token finds its way to the first one makes no difference any more.
    let ends = blow == Blow::Cut && role == 2 && when == When::LastToken;
    assert!(!pauses.is_empty() || ends, "{told}: {answer}");
    let longest = LONGEST_PAUSE[usize::from(matches!(blow, Blow::Freeze | Blow::Hang))];
    check_pauses(&pauses, longest, &told);
    check_window(question, when, &check_survivors(mesh, &answer, &before, &told), &told);
    (pauses, struck)
}

/// How many positions may be computed twice: those of the frames that were on their way.
const fn window(when: When) -> u64 {
    match when {
        When::Prefill | When::FirstToken => WINDOW * CHUNK,
        When::MidStream | When::LastToken => WINDOW,
    }
}

/// Survivors computed no more twice than was on its way.
fn check_window(question: &Question, when: When, survivors: &[(String, u64)], told: &str) {
    for (range, positions) in survivors {
        let twice = positions.saturating_sub(question.positions());
        assert!(twice <= window(when), "{told}: {range} computed {twice} positions twice");
    }
}

fn check_pauses(pauses: &[u64], longest: Span, told: &str) {
    assert!(pauses.iter().all(|pause| *pause <= longest.0), "{told}: {pauses:?}");
}

/// Whoever was in the chain before and after kept its lease and its weights; how many positions each of them computed in all.
fn check_survivors(mesh: &Mesh, answer: &Value, before: &BTreeMap<String, [u64; 3]>, told: &str) -> Vec<(String, u64)> {
    let after = mesh.figures();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let lost: Vec<Value> = list(&answer["mended"]).iter().flat_map(|mended| list(&mended["lost"])).collect();
    let chain = list(&answer["chain"]);
    let mut survivors = Vec::new();
    for stage in &chain {
        let (key, range) = (text(&stage["peer"]), text(&stage["units"]));
        let is_once = chain.iter().filter(|other| other["peer"] == key.as_str()).count() == 1;
        let was_there = before.get(&key).is_some_and(|figures| figures[0] > 0);
        if is_once && was_there && !lost.iter().any(|lost| lost[0] == key.as_str()) {
            let figures = [after[&key], before[&key]].map(|figures| [figures[1], figures[2]]);
            assert_eq!(figures[0], figures[1], "{told}: {range} has another lease or other weights: {answer}");
            survivors.push((range, stage["positions"].as_u64().unwrap()));
        }
    }
    survivors
}

fn report(what: &str, mut pauses: Vec<u64>) -> String {
    pauses.sort_unstable();
    let at = |part: usize| Span(pauses[(pauses.len() - 1) * part / 2]);
    format!("{what}: {} pauses, half of them at most {}, the worst {}", pauses.len(), at(1), at(2))
}

#[test]
fn an_answer_goes_on_whichever_stage_is_killed_at_whatever_moment() {
    let mut mesh = Mesh::up(1, &[]);
    let questions = questions(&mesh);
    let mut pauses = Vec::new();
    for question in &questions {
        for when in MOMENTS {
            for role in 0..RANGES.len() {
                let (paused, struck) = strike(&mut mesh, question, role, when, Blow::Kill);
                pauses.extend(paused);
                mesh.restart(struck);
                mesh.wait_until_all_are_ready();
            }
        }
    }
    println!("{}", report("killed", pauses));
    mesh.wait_until_nobody_holds_a_session();
}

#[test]
fn an_answer_goes_round_a_hop_that_is_cut_at_whatever_moment() {
    let mut mesh = Mesh::up(1, &[]);
    let questions = questions(&mesh);
    let mut pauses = Vec::new();
    for (turn, when) in MOMENTS.into_iter().enumerate() {
        for role in 0..RANGES.len() {
            let question = &questions[(turn + role) % questions.len()];
            let (paused, struck) = strike(&mut mesh, question, role, when, Blow::Cut);
            pauses.extend(paused);
            mesh.holders[struck].peer.post("faults", &json!([]));
        }
    }
    println!("{}", report("cut off", pauses));
    mesh.wait_until_nobody_holds_a_session();
}

#[test]
fn an_answer_goes_on_without_a_stage_that_stands_still_and_what_thaws_lets_go() {
    let mut mesh = Mesh::up(1, &[]);
    let questions = questions(&mesh);
    let mut pauses = Vec::new();
    for (turn, when) in MOMENTS.into_iter().enumerate() {
        let mut frozen = Vec::new();
        for role in 0..RANGES.len() {
            let question = &questions[(turn + role) % questions.len()];
            let (paused, struck) = strike(&mut mesh, question, role, when, Blow::Freeze);
            pauses.extend(paused);
            frozen.push((mesh.now().after(FROZEN), mesh.holders[struck].peer.pid()));
        }
        for (until, pid) in frozen {
            std::thread::sleep(Duration::from_micros(until.since(mesh.now()).0));
            thaw(pid);
        }
        mesh.wait_until_nobody_holds_a_session();
        mesh.wait_until_all_are_ready();
    }
    println!("{}", report("frozen", pauses));
}

#[test]
fn an_answer_goes_on_without_a_stage_whose_engine_does_not_come_back() {
    let mut mesh = Mesh::up(1, &[]);
    let question = Question::ask(&mesh, strings(&["--temperature", "0", "--max-tokens", "40", "Once upon a time"]));
    let mut pauses = Vec::new();
    for role in 0..RANGES.len() {
        let (paused, struck) = strike(&mut mesh, &question, role, When::MidStream, Blow::Hang);
        pauses.extend(paused);
        let status = mesh.holders[struck].peer.home.json(&["status", "--json"]);
        assert!(status["notices"].to_string().contains("the engine"), "{status}");
        mesh.holders[struck].peer.kill();
        mesh.restart(struck);
        mesh.wait_until_all_are_ready();
    }
    println!("{}", report("stuck", pauses));
    mesh.wait_until_nobody_holds_a_session();
}

#[test]
fn an_answer_survives_two_stages_at_once_and_the_death_of_what_takes_a_place() {
    let mut mesh = Mesh::up(1, &[]);
    let questions = questions(&mesh);
    let question = &questions[3];
    let mut pauses = Vec::new();
    for (one, other) in [(0, 1), (1, 2), (2, 0)] {
        let told = format!("{} and {}", RANGES[one], RANGES[other]);
        mesh.arm(RANGES[one], &[question.fault(When::MidStream, Act::Stop)]);
        let asked = mesh.start(&question.args);
        let struck = mesh.struck(RANGES[one]);
        let also = mesh.busy(RANGES[other]);
        let before = mesh.figures();
        mesh.holders[struck].peer.kill();
        mesh.holders[also].peer.kill();
        let answer = check(question, asked.end(), &told);
        let paused = self::pauses(&answer);
        check_pauses(&paused, LONGEST_PAUSE[0], &told);
        check_window(question, When::MidStream, &check_survivors(&mesh, &answer, &before, &told), &told);
        pauses.extend(paused);
        mesh.restart(struck);
        mesh.restart(also);
        mesh.wait_until_all_are_ready();
    }
    for range in RANGES {
        let fault = Fault { moment: Moment::BeforeApply, ..question.fault(When::MidStream, Act::Stop) };
        mesh.arm(range, &[fault]);
        let asked = mesh.start(&question.args);
        let holders = mesh.holders_of(range);
        let (mut killed, mut before) = (Vec::new(), BTreeMap::new());
        while killed.len() < holders.len() {
            let struck = wait_for("the next one stands still", || {
                let next = holders.iter().filter(|index| !killed.contains(*index));
                next.copied().find(|&index| is_stopped(mesh.holders[index].peer.pid()))
            });
            if killed.is_empty() {
                before = mesh.figures();
            }
            mesh.holders[struck].peer.kill();
            killed.push(struck);
        }
        // Nobody holds the range any more, until one comes back. The others keep what they have.
        let waiting = mesh.figures();
        let kept = before.iter().filter(|(key, figures)| figures[0] > 0 && waiting.contains_key(*key));
        let kept: Vec<_> = kept.map(|(key, figures)| (figures, &waiting[key])).collect();
        assert!(kept.len() >= 2 && kept.iter().all(|(before, waiting)| before == waiting), "{range}: {kept:?}");
        mesh.restart(killed[0]);
        let ended = asked.end();
        assert!(ended.err.contains("waiting: ") && ended.err.contains(range), "{}", ended.err);
        check(question, ended, &format!("{range} twice"));
        mesh.restart(killed[1]);
        mesh.wait_until_all_are_ready();
    }
    println!("{}", report("two at once", pauses));
    mesh.wait_until_nobody_holds_a_session();
}

#[test]
fn an_answer_is_the_same_where_nothing_is_kept_to_be_sent_again() {
    let mut mesh = Mesh::up(1, &["--journal-memory", "1KiB"]);
    let questions = questions(&mesh);
    let mut pauses = Vec::new();
    for (turn, when) in MOMENTS.into_iter().enumerate() {
        for role in 0..RANGES.len() {
            let question = &questions[(turn + role) % questions.len()];
            let told = format!("{} at {when:?} without journals", RANGES[role]);
            mesh.arm(RANGES[role], &[question.fault(when, Act::Stop)]);
            let asked = mesh.start(&question.args);
            let struck = mesh.struck(RANGES[role]);
            let before = mesh.figures();
            mesh.holders[struck].peer.kill();
            let answer = check(question, asked.end(), &told);
            let paused = self::pauses(&answer);
            check_pauses(&paused, LONGEST_PAUSE[0], &told);
            // All before the lost stage computes again what it has forgotten.
            check_survivors(&mesh, &answer, &before, &told);
            pauses.extend(paused);
            mesh.restart(struck);
            mesh.wait_until_all_are_ready();
        }
    }
    println!("{}", report("killed, without journals", pauses));
}

#[test]
fn what_an_asking_peer_held_is_freed_when_it_dies() {
    let mut mesh = Mesh::up(0, &[]);
    let question = Question::ask(&mesh, strings(&["--temperature", "0", "--max-tokens", "40", "Once upon a time"]));
    mesh.arm(RANGES[1], &[question.fault(When::MidStream, Act::Stop)]);
    let _asked = mesh.start(&question.args);
    let struck = mesh.struck(RANGES[1]);

    mesh.requester.kill();
    thaw(mesh.holders[struck].peer.pid());

    mesh.wait_until_nobody_holds_a_session();
}

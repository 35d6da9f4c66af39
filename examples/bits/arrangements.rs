//! Every way to arrange a computation that must not matter: instructions, threads, chunks of the prompt, company in the batch,
//! cuts of the model.
//!
//! Sessions that read in different chunks keep each other company, so that one run looks at several of them at once: the product
//! is whole, and costs half.

use std::num::NonZeroUsize;

use brigade::amounts::Position;
use brigade::engine::canonical::simd::InstructionSet;
use brigade::engine::error::LoadError;
use brigade::engine::payload::to_payload;
use brigade::engine::pool::Pool;
use brigade::engine::source::TensorSource;
use brigade::engine::stage::BatchStep;
use brigade::engine::stage::SessionState;
use brigade::engine::stage::StageInput;
use brigade::engine::stage::StageModel;
use brigade::engine::stage::StageOutput;
use brigade::engine::stage::WantLogits;
use brigade::engine::workspace::StageView;
use brigade::engine::workspace::Workspace;
use brigade::ids::Token;
use brigade::shape::ModelShape;
use brigade::shape::WireDtype;
use brigade::units::UnitRange;

/// How a prompt is cut into steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunks {
    /// In one.
    Whole,
    /// 1, 2, 3 … tokens.
    Odd,
    /// Token by token.
    Single,
}

impl Chunks {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Whole, Self::Odd, Self::Single];

    /// The chunks of `tokens`.
    fn of(self, tokens: &[Token]) -> Vec<Vec<Token>> {
        let mut rest = tokens;
        let mut chunks = Vec::new();
        for number in 1.. {
            if rest.is_empty() {
                break;
            }
            let length = match self {
                Self::Whole => rest.len(),
                Self::Odd => number,
                Self::Single => 1,
            };
            let (chunk, left) = rest.split_at(length.min(rest.len()));
            chunks.push(chunk.to_vec());
            rest = left;
        }
        chunks
    }
}

/// Who is in a batch together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Company {
    /// The sessions that are looked at, by how they read.
    pub(crate) readers: &'static [Chunks],
    /// Sessions in every pass; those that are not looked at say other things.
    pub(crate) batch: usize,
}

impl Company {
    /// Every way to read, alone and in batches of 2, 5 and 16.
    pub(crate) const ALL: [Self; 7] = [
        Self { readers: &[Chunks::Whole], batch: 1 },
        Self { readers: &[Chunks::Odd], batch: 1 },
        Self { readers: &[Chunks::Single], batch: 1 },
        Self { readers: &[Chunks::Whole, Chunks::Odd], batch: 2 },
        Self { readers: &[Chunks::Single], batch: 2 },
        Self { readers: &Chunks::ALL, batch: 5 },
        Self { readers: &Chunks::ALL, batch: 16 },
    ];
}

/// The ways to cut a model of so many units: not at all, every cut into two, several into three.
pub(crate) fn cuts(units: u16) -> Vec<Vec<u16>> {
    let twos = (1..units).map(|cut| vec![cut]);
    let threes = (1..units - 1).step_by(2).map(|first| vec![first, first + (units - first) / 2]);
    std::iter::once(Vec::new()).chain(twos).chain(threes).collect()
}

/// A model cut into stages that hold no more than their units.
#[derive(Debug)]
pub(crate) struct Chain(Vec<StageModel>);

impl Chain {
    /// Loads the stages.
    ///
    /// - `cuts`: the units before which the model is cut, ascending
    pub(crate) fn load(shape: ModelShape, source: &dyn TensorSource, cuts: &[u16]) -> Result<Self, LoadError> {
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([shape.units()]);
        let load = |(start, end)| {
            let range = UnitRange::new(start, end).expect("cuts ascend");
            StageModel::load(shape, range, source, &mut |_| {})
        };
        starts.zip(ends).map(load).collect::<Result<_, _>>().map(Self)
    }

    /// Opens a session on each stage.
    pub(crate) fn open(&self) -> Session {
        let open = |stage: &StageModel| stage.open(stage.range(), Position(stage.shape().context), &[]);
        Session(self.0.iter().map(|stage| open(stage).expect("a stage covers itself")).collect())
    }

    /// Token ids of the model.
    fn vocabulary(&self) -> usize {
        self.0.first().map_or(1, |stage| stage.shape().vocab as usize)
    }
}

/// A session: what each stage keeps of it.
#[derive(Debug)]
pub(crate) struct Session(Vec<SessionState>);

impl Session {
    fn rewind(&mut self, length: usize) {
        self.0.iter_mut().for_each(|stage| stage.rewind(Position(length as u32)));
    }

    fn cache_hashes(&self) -> Vec<[u8; 32]> {
        self.0.iter().filter_map(SessionState::cache_hashes).flatten().collect()
    }
}

/// What computes: threads with these instructions.
pub(crate) fn workspace(set: InstructionSet, threads: usize) -> Workspace {
    let threads = NonZeroUsize::new(threads).expect("there is a thread");
    Workspace::with(Pool::new(threads).expect("threads can be started"), set)
}

/// What must be the same in every arrangement, as bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    /// The logits after the prompt and after each generated token.
    pub(crate) logits: Vec<Vec<u32>>,
    /// The hash of the keys and values of each block at the end.
    pub(crate) caches: Vec<[u8; 32]>,
}

/// What is read in every arrangement, by each reader another text, and what the plainest arrangement makes of it.
#[derive(Debug)]
pub(crate) struct Subject {
    texts: [Vec<Token>; 3],
    logits: usize,
    expected: [Trace; 3],
}

impl Subject {
    /// Reads in the plainest arrangement: one thread, one chunk, alone, uncut.
    ///
    /// - `texts`: one for each of [`Chunks::ALL`]
    /// - `logits`: rows of logits to compare, the first after the text
    pub(crate) fn new(uncut: &Chain, set: InstructionSet, texts: [Vec<Token>; 3], logits: usize) -> Self {
        let mut workspace = workspace(set, 1);
        let expected = texts.each_ref().map(|text| {
            let mut readers = [Reader::new(Chunks::Whole, text, logits)];
            run(uncut, &mut workspace, &mut readers, &mut [&mut uncut.open()]);
            readers.into_iter().find_map(|reader| reader.trace).expect("a run ends with a trace")
        });
        Self { texts, logits, expected }
    }

    /// Bits of logits and caches that are compared in each arrangement.
    pub(crate) fn bits(&self) -> usize {
        let [Trace { logits, caches }, ..] = &self.expected;
        32 * logits.iter().map(Vec::len).sum::<usize>() + 256 * caches.len()
    }
}

/// A chain with its sessions, which are rewound and used again for every company.
#[derive(Debug)]
pub(crate) struct Stand<'a> {
    subject: &'a Subject,
    chain: Chain,
    /// One for each of [`Chunks::ALL`].
    readers: [Session; 3],
    strangers: Vec<Session>,
}

impl<'a> Stand<'a> {
    /// Opens the sessions.
    ///
    /// - `before`: positions of the texts that are read here, in one chunk and by the fastest instructions
    pub(crate) fn new(subject: &'a Subject, chain: Chain, before: usize) -> Self {
        let largest = Company::ALL.iter().map(|company| company.batch - company.readers.len()).max();
        let strangers = (0..largest.unwrap_or(0)).map(|_| chain.open()).collect();
        let mut readers = Chunks::ALL.map(|_| chain.open());
        let mut workspace = workspace(InstructionSet::best(), 2);
        for (session, text) in readers.iter_mut().zip(&subject.texts).filter(|_| before > 0) {
            let said = Said { tokens: text[..before].to_vec(), want: WantLogits::None };
            pass(&chain, &mut workspace, &mut [session], &[said], 0);
        }
        Self { subject, chain, readers, strangers }
    }

    /// Lets every reader read in each of these companies; returns how many found the bits that were expected, and who did not.
    ///
    /// - `from`: for each of [`Chunks::ALL`] where reading begins, so that a long text costs no more than its end; what comes
    ///   before was read earlier
    pub(crate) fn check(
        &mut self,
        workspace: &mut Workspace,
        companies: &[Company],
        from: [usize; 3],
    ) -> (usize, Vec<(Chunks, Company)>) {
        let (mut same, mut different) = (0, Vec::new());
        for company in companies.iter().copied() {
            let found = self.traces(company, workspace, from);
            for ((chunks, expected), found) in Chunks::ALL.into_iter().zip(&self.subject.expected).zip(found) {
                match found {
                    None => {}
                    Some(found) if found == *expected => same += 1,
                    Some(_) => different.push((chunks, company)),
                }
            }
        }
        (same, different)
    }

    /// What those that read find, for each of [`Chunks::ALL`].
    fn traces(&mut self, company: Company, workspace: &mut Workspace, from: [usize; 3]) -> [Option<Trace>; 3] {
        let Self { subject, chain, readers, strangers } = self;
        let reads = |chunks: &Chunks| company.readers.contains(chunks);
        let texts = Chunks::ALL.into_iter().zip(&subject.texts).zip(from).filter(|((chunks, _), _)| reads(chunks));
        let mut reading: Vec<Reader> =
            texts.map(|((chunks, text), from)| Reader::new(chunks, &text[from..], subject.logits)).collect();
        readers.iter_mut().zip(from).for_each(|(session, from)| session.rewind(from));
        strangers.iter_mut().for_each(|session| session.rewind(0));
        let present =
            readers.iter_mut().zip(Chunks::ALL).filter(|(_, chunks)| reads(chunks)).map(|(session, _)| session);
        let mut sessions: Vec<&mut Session> = present.chain(strangers).take(company.batch).collect();
        run(chain, workspace, &mut reading, &mut sessions);
        let mut found = reading.into_iter().map(|reader| reader.trace);
        Chunks::ALL.map(|chunks| if reads(&chunks) { found.next().flatten() } else { None })
    }
}

/// Lets the readers read and then generate greedily until each has its trace. Who has it says what strangers say.
///
/// - `sessions`: the readers', and then those of strangers
pub(crate) fn run(chain: &Chain, workspace: &mut Workspace, readers: &mut [Reader], sessions: &mut [&mut Session]) {
    for number in 0.. {
        if readers.iter().all(|reader| reader.trace.is_some()) {
            break;
        }
        let mut say = |who: usize| {
            let said = readers.get_mut(who).and_then(Reader::say);
            said.unwrap_or_else(|| strange(chain, who, number))
        };
        let said: Vec<Said> = (0..sessions.len()).map(&mut say).collect();
        let heard = pass(chain, workspace, sessions, &said, number);
        for ((reader, session), heard) in readers.iter_mut().zip(&*sessions).zip(heard) {
            reader.hear(&heard, session);
        }
    }
}

/// What a session feeds in a pass.
struct Said {
    tokens: Vec<Token>,
    want: WantLogits,
}

/// A session that is looked at.
#[derive(Debug)]
pub(crate) struct Reader {
    /// The steps to come, the next one last.
    steps: Vec<Vec<Token>>,
    /// Rows of logits that make a trace.
    wanted: usize,
    logits: Vec<Vec<u32>>,
    /// The tokens that were generated and fed.
    pub(crate) generated: Vec<Token>,
    /// What was found, at the end.
    pub(crate) trace: Option<Trace>,
}

impl Reader {
    /// - `logits`: rows of logits to compare, the first after the text
    pub(crate) fn new(chunks: Chunks, text: &[Token], logits: usize) -> Self {
        let mut steps = chunks.of(text);
        steps.reverse();
        Self { steps, wanted: logits, logits: Vec::new(), generated: Vec::new(), trace: None }
    }

    /// The next step; logits are wanted from the last of the text on.
    fn say(&mut self) -> Option<Said> {
        let tokens = self.steps.pop()?;
        let want = if self.steps.is_empty() { WantLogits::LastRow } else { WantLogits::None };
        Some(Said { tokens, want })
    }

    /// Takes the logits after its step, and decides on the next one.
    fn hear(&mut self, heard: &StageOutput, session: &Session) {
        let StageOutput::Logits(logits) = heard else { return };
        if self.trace.is_some() {
            return;
        }
        self.logits.push(logits.iter().map(|value| value.to_bits()).collect());
        if self.logits.len() < self.wanted {
            self.generated.push(argmax(logits));
            self.steps.push(vec![argmax(logits)]);
        } else {
            self.trace = Some(Trace { logits: std::mem::take(&mut self.logits), caches: session.cache_hashes() });
        }
    }
}

/// What a stranger says: a token, and now and then two; of every second it wants to hear the logits.
fn strange(chain: &Chain, who: usize, number: usize) -> Said {
    let vocabulary = chain.vocabulary();
    let count = if (who + number).is_multiple_of(5) { 2 } else { 1 };
    let tokens = (0..count).map(|at| Token(((who * 31 + number * 7 + at) % vocabulary) as u32)).collect();
    let want = if (who + number).is_multiple_of(2) { WantLogits::LastRow } else { WantLogits::None };
    Said { tokens, want }
}

/// Takes one step of every session through all stages; returns what each comes to at the end.
///
fn pass(
    chain: &Chain,
    workspace: &mut Workspace,
    sessions: &mut [&mut Session],
    said: &[Said],
    number: usize,
) -> Vec<StageOutput> {
    let company = sessions.len();
    // Who is looked at is not always the first of the batch.
    let turn = number % company;
    let mut came: Vec<StageOutput> = Vec::new();
    for (index, stage) in chain.0.iter().enumerate() {
        let hidden = |output: &StageOutput| match output {
            StageOutput::Hidden(hidden) => to_payload(hidden, WireDtype::F32),
            StageOutput::Logits(_) | StageOutput::Nothing => unreachable!("only the last stage has the head"),
        };
        let payloads: Vec<_> = came.iter().map(hidden).collect();
        let steps = sessions.iter_mut().zip(said).enumerate().map(|(who, (session, said))| {
            let session = &mut session.0[index];
            let first = session.length();
            let input = match payloads.get(who) {
                None => StageInput::Tokens(&said.tokens),
                Some(payload) => StageInput::Payload(payload, WireDtype::F32),
            };
            BatchStep { session, input, first, want: said.want }
        });
        let mut steps: Vec<BatchStep<'_>> = steps.collect();
        steps.rotate_left(turn);
        let outcomes = stage.forward_batch(&mut steps, workspace);
        let output = |who: usize| outcomes.of((who + company - turn) % company).map(StageView::to_output);
        came = (0..company).map(output).collect::<Result<_, _>>().expect("steps fit");
    }
    came
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> Token {
    let best = logits.iter().enumerate().rev().max_by(|(_, a), (_, b)| a.total_cmp(b));
    Token(best.map_or(0, |(index, _)| index) as u32)
}

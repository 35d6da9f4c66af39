//! What a stage received and sent, as hashes by position, so that it can commit itself to it, and a rewind forgets what came after.

use crate::amounts::Position;
use crate::ids::RowsHash;
use crate::ids::Token;
use crate::session::stage::Effect;
use crate::session::stage::Flight;
use crate::session::stage::LeasedStage;
use crate::session::step::StepInput;
use crate::wire::commitment::COMMIT_EVERY;
use crate::wire::commitment::Commitment;
use crate::wire::hop::Sample;

/// The hash of the rows up to each position.
#[derive(Debug, Default)]
struct Trail(Vec<RowsHash>);

/// Both sides of a stage.
#[derive(Debug, Default)]
pub(super) struct Trails {
    received: Trail,
    sent: Trail,
}

impl Trail {
    /// Takes rows from `first` on. Those that it has from there on are forgotten: they come again.
    fn extend<'a>(&mut self, first: Position, rows: impl Iterator<Item = &'a [u8]>) {
        self.truncate(first);
        // Rows behind a gap hash to nothing that another could say as well.
        if self.0.len() == first.0 as usize {
            let mut hash = self.0.last().copied().unwrap_or(RowsHash::NOTHING);
            self.0.extend(rows.map(|row| {
                hash = hash.then(row);
                hash
            }));
        }
    }

    fn truncate(&mut self, end: Position) {
        self.0.truncate(end.0 as usize);
    }

    /// What the rows before `end` hash to.
    fn until(&self, end: Position) -> Option<RowsHash> {
        self.0.get((end.0 as usize).checked_sub(1)?).copied()
    }
}

impl LeasedStage {
    /// Takes note of what a step is computed from.
    pub(super) fn note_received(&mut self, first: Position, input: &StepInput) {
        let row = self.terms.dtype_in.row_bytes(self.terms.shape.width).max(1) as usize;
        let Some(trails) = &mut self.trails else { return };
        match input {
            StepInput::Hidden(payload, _) => trails.received.extend(first, payload.chunks(row)),
            StepInput::Tokens(tokens) => {
                let ids: Vec<[u8; 4]> = tokens.iter().map(|token| token.0.to_le_bytes()).collect();
                trails.received.extend(first, ids.iter().map(|id| &id[..]));
            }
        }
    }

    /// Takes note of what was computed for the next stage.
    pub(super) fn note_sent(&mut self, first: Position, payload: &[u8]) {
        let row = self.terms.dtype_out.row_bytes(self.terms.shape.width).max(1) as usize;
        if let Some(trails) = &mut self.trails {
            trails.sent.extend(first, payload.chunks(row));
        }
    }

    /// Forgets what comes again.
    pub(super) fn rewind_trails(&mut self, keep: Position) {
        if let Some(trails) = &mut self.trails {
            trails.received.truncate(keep);
            trails.sent.truncate(keep);
        }
    }

    /// Commits itself to a step that is done, and to the positions in it at which every stage does. `sampled` is the tail's.
    pub(super) fn commit(&mut self, flight: &Flight, sampled: Option<Token>) {
        let Some(trails) = &self.trails else { return };
        let end = flight.first.plus(Position(flight.count));
        let next = (flight.first.0 / COMMIT_EVERY + 1).saturating_mul(COMMIT_EVERY);
        let usual = (next..=end.0).step_by(COMMIT_EVERY as usize).map(Position);
        let last = (flight.sample == Sample::LastRow && !end.0.is_multiple_of(COMMIT_EVERY)).then_some(end);
        let commitment = |at: Position| {
            let sent = match sampled {
                Some(token) if at == end => RowsHash::NOTHING.then_token(token),
                Some(_) | None if self.is_tail() => RowsHash::NOTHING,
                Some(_) | None => trails.sent.until(at)?,
            };
            Some(Commitment {
                peer: self.terms.peer(self.terms.stage),
                session: self.terms.key.session,
                epoch: flight.epoch,
                model: self.terms.weights,
                range: self.terms.range,
                end: at,
                received: trails.received.until(at)?,
                sent,
            })
        };
        let made: Vec<Commitment> = usual.chain(last).filter_map(commitment).collect();
        self.effects.extend(made.into_iter().map(|made| Effect::Commit(self.control, Box::new(made))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amounts::Span;
    use crate::ids::StageIndex;
    use crate::session::stage::tests::ALL;
    use crate::session::stage::tests::UP;
    use crate::session::stage::tests::frame;
    use crate::session::stage::tests::header;
    use crate::session::stage::tests::hidden;
    use crate::session::stage::tests::offered_with;
    use crate::session::step::StepOutput;
    use crate::wire::control::Commits;
    use crate::wire::hop::FrameHeader;
    use crate::wire::hop::HopBack;

    fn rows(values: &[u8]) -> impl Iterator<Item = &[u8]> {
        values.chunks(1)
    }

    fn committing(stage: u16) -> LeasedStage {
        let mut leased = offered_with(stage, |offer| offer.commits = Commits::Yes);
        leased.on_back(HopBack::Opened);
        let upstream = leased.terms.upstream();
        leased.on_upstream(UP, upstream, leased.terms.peer(upstream)).unwrap();
        leased
    }

    fn committed(effects: &[Effect]) -> Vec<Commitment> {
        let of = |effect: &Effect| if let Effect::Commit(_, made) = effect { Some(**made) } else { None };
        effects.iter().filter_map(of).collect()
    }

    /// Computes what a frame brings; what the stage commits itself to.
    fn step(stage: &mut LeasedStage, header: FrameHeader) -> Vec<Commitment> {
        stage.on_forward(frame(header));
        let mut made = Vec::new();
        while stage.take(ALL).is_some() {
            let end = header.first.plus(Position(header.count));
            made.extend(committed(&stage.on_stepped(end, hidden(header.count), Span(1))));
            stage.on_back(HopBack::Taken(header.step));
        }
        made
    }

    #[test]
    fn a_trail_is_the_same_however_its_rows_came_and_forgets_those_that_come_again() {
        let (mut one, mut other) = (Trail::default(), Trail::default());
        one.extend(Position(0), rows(&[1, 2, 3, 4]));
        other.extend(Position(0), rows(&[1, 2]));
        other.extend(Position(2), rows(&[9, 9, 9]));
        assert_ne!(one.until(Position(4)), other.until(Position(4)));

        other.extend(Position(2), rows(&[3, 4]));

        assert_eq!(one.until(Position(4)), other.until(Position(4)));
        assert_eq!(other.until(Position(5)), None);
        assert_eq!(other.until(Position(0)), None);
    }

    #[test]
    fn rows_behind_a_gap_are_not_committed_to() {
        let mut trail = Trail::default();
        trail.extend(Position(3), rows(&[1]));

        assert_eq!(trail.until(Position(4)), None);
    }

    #[test]
    fn a_stage_commits_itself_at_every_chunk_and_where_the_tail_samples() {
        let mut stage = committing(1);
        let chunks = step(&mut stage, header(0, 0, 300));
        let end = step(&mut stage, FrameHeader { sample: Sample::LastRow, ..header(1, 300, 2) });

        let ends = |made: &[Commitment]| made.iter().map(|made| made.end.0).collect::<Vec<_>>();
        assert_eq!(ends(&chunks), [128, 256]);
        assert_eq!(ends(&end), [302]);
        assert_eq!(end[0].range, stage.terms.range);
        assert_eq!(end[0].peer, stage.terms.peer(StageIndex(1)));
    }

    #[test]
    fn a_stage_that_was_not_asked_says_nothing() {
        let mut stage = crate::session::stage::tests::running(1);

        assert_eq!(step(&mut stage, header(0, 0, 300)), []);
    }

    #[test]
    fn the_tail_commits_itself_to_the_token_alone() {
        let mut tail = committing(2);
        let last = FrameHeader { stage: StageIndex(2), sample: Sample::LastRow, ..header(0, 0, 300) };
        tail.on_forward(frame(last));
        tail.take(ALL).unwrap();

        let sampled = StepOutput::Sampled { token: Token(7), logprobs: None };
        let made = committed(&tail.on_stepped(Position(300), sampled, Span(1)));

        let sent: Vec<_> = made.iter().map(|made| (made.end.0, made.sent)).collect();
        let (nothing, token) = (RowsHash::NOTHING, RowsHash::NOTHING.then_token(Token(7)));
        assert_eq!(sent, [(128, nothing), (256, nothing), (300, token)]);
    }
}

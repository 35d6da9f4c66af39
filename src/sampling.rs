//! Choosing the next token: a pure function of logits, parameters, position and history, the same on every machine.
//!
//! The order is llama.cpp's:
//!
//! 1. logit bias, then repetition, frequency and presence penalties;
//! 2. temperature 0 ends here with the largest logit (ties to the lower id);
//! 3. top-k, top-p and min-p, in this order, on probabilities at temperature 1 among what is left;
//! 4. temperature;
//! 5. one draw by inverse distribution function over the candidates by descending logit, ties to the lower id.
//!
//! Log-probabilities are reported of the model's own distribution: raw logits, before all of the above.
//!
//! **Why it is the same everywhere.** A candidate's weight `exp(logit − largest)` is computed by an `exp` of our own, which uses only
//! additions and multiplications in a fixed order, and is then rounded down to a multiple of 2⁻⁴⁰. Sums of weights are
//! sums of integers and so do not depend on an order. (What is 2⁴⁰ times less probable than the best is never drawn.)
//! The random number is Philox4x32-10 of seed and position, so that a token can be checked without those before it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::amounts::Position;
use crate::elementary::exp;
use crate::elementary::ln;
use crate::ids::Token;
use crate::wire::control::SamplingParameters;
use crate::wire::control::TokenLogprobs;

/// Chooses the token at `position`.
///
/// - `logits`: one per token id; −∞ marks an impossible token
/// - `position`: of the token to be chosen, from 0 at the start of the prompt
/// - `history`: what was fed so far; may be empty if no parameter looks back
///
/// # Errors
/// [`SampleError`] if the logits give no distribution.
pub fn sample(
    logits: &[f32],
    parameters: &SamplingParameters,
    position: Position,
    history: &History,
) -> Result<Choice, SampleError> {
    check(logits)?;
    let adjusted = adjust(logits, parameters, history);
    let token = if parameters.temperature == 0.0 {
        best(&adjusted)
    } else {
        draw(&adjusted, parameters, random(parameters.seed, position))
    };
    let logprobs = parameters.logprobs.map(|top| report(logits, token, usize::from(top)));
    Ok(Choice { token, logprobs })
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: Token,
    /// Log-probabilities, if the parameters ask for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why logits give no distribution to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// A logit is not a number or +∞.
    #[error("the logit of token {token} is not finite")]
    NonFinite {
        /// The first such token.
        token: Token,
    },
    /// There are no logits, or all are −∞.
    #[error("none of {tokens} tokens is possible")]
    NothingPossible {
        /// How many logits there were.
        tokens: usize,
    },
}

/// The tokens of a session that penalties look back at, with the new ones counted as they come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    tokens: Vec<Token>,
    prompt: usize,
    new: BTreeMap<Token, u32>,
}

impl History {
    /// The history of a session that begins with `prompt`.
    pub fn new(prompt: Vec<Token>) -> Self {
        Self { prompt: prompt.len(), tokens: prompt, new: BTreeMap::new() }
    }

    /// Adds a generated token.
    pub fn push(&mut self, token: Token) {
        self.tokens.push(token);
        *self.new.entry(token).or_default() += 1;
    }

    /// Forgets generated tokens so that at most `count` of them are left. The prompt stays.
    pub fn keep_new(&mut self, count: usize) {
        self.tokens.truncate(self.prompt.saturating_add(count));
        self.new.clear();
        for &token in &self.tokens[self.prompt..] {
            *self.new.entry(token).or_default() += 1;
        }
    }

    /// Prompt and generated tokens, in order.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The generated tokens, in order.
    pub fn new_tokens(&self) -> &[Token] {
        &self.tokens[self.prompt..]
    }
}

fn check(logits: &[f32]) -> Result<(), SampleError> {
    let bad = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY);
    if let Some(index) = bad {
        return Err(SampleError::NonFinite { token: token(index) });
    }
    if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
        return Err(SampleError::NothingPossible { tokens: logits.len() });
    }
    Ok(())
}

fn token(index: usize) -> Token {
    Token(u32::try_from(index).unwrap_or(u32::MAX))
}

/// Bias and penalties. A finite logit stays finite.
fn adjust<'a>(logits: &'a [f32], parameters: &SamplingParameters, history: &History) -> Cow<'a, [f32]> {
    if parameters.logit_bias.is_empty() && !parameters.looks_back() {
        return Cow::Borrowed(logits);
    }
    let mut adjusted = logits.to_vec();
    let mut change = |token: Token, change: &dyn Fn(f32) -> f32| {
        if let Some(logit) = adjusted.get_mut(token.0 as usize).filter(|logit| logit.is_finite()) {
            *logit = change(*logit).clamp(f32::MIN, f32::MAX);
        }
    };
    for &(token, bias) in &parameters.logit_bias {
        change(token, &|logit| logit + bias);
    }
    if parameters.repetition_penalty != 1.0 {
        let penalty = parameters.repetition_penalty;
        for token in seen(history.tokens(), parameters.penalty_window) {
            change(token, &|logit| if logit > 0.0 { logit / penalty } else { logit * penalty });
        }
    }
    for (&token, &count) in &history.new {
        let penalty = parameters.frequency_penalty * count as f32 + parameters.presence_penalty;
        change(token, &|logit| logit - penalty);
    }
    Cow::Owned(adjusted)
}

/// The different tokens among the last `window`; 0 is all.
fn seen(tokens: &[Token], window: u32) -> Vec<Token> {
    let window = if window == 0 { tokens.len() } else { tokens.len().min(window as usize) };
    let mut last = tokens[tokens.len() - window..].to_vec();
    last.sort_unstable();
    last.dedup();
    last
}

/// The largest logit's token, ties to the lower id.
fn best(logits: &[f32]) -> Token {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    token(best)
}

/// Cuts, tempers and draws. `logits` has at least one that is not −∞, and `random` is uniform over all 64 bits.
fn draw(logits: &[f32], parameters: &SamplingParameters, random: u64) -> Token {
    let mut candidates = Candidates::of(logits);
    candidates.keep_top_k(parameters.top_k as usize);
    candidates.keep_top_p(f64::from(parameters.top_p));
    candidates.keep_min_p(f64::from(parameters.min_p));

    let temperature = f64::from(parameters.temperature);
    let largest = candidates.largest();
    let weigh = |candidate: &Candidate| weight(candidate.logit, largest, temperature);
    let total: u64 = candidates.all.iter().map(weigh).sum();
    let target = scale(random, total);
    let mut passed = 0;
    let found = candidates.descending(|candidate| {
        passed += weigh(candidate);
        passed > target
    });
    candidates.all[found].token
}

/// `random / 2⁶⁴ × total`, rounded down: uniform over `0..total`.
fn scale(random: u64, total: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    logit: f32,
    token: Token,
}

/// Best first: by descending logit, ties by ascending id. Logits are never NaN here.
fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Possible tokens, of which the first `ranked` are the best ones in rank order. The rest is ranked only when needed,
/// since sorting a vocabulary of 128 k costs more than a draw, and a draw mostly ends within the best few.
struct Candidates {
    all: Vec<Candidate>,
    ranked: usize,
}

impl Candidates {
    /// How many are ranked first; each further round ranks eight times as many (measured as cheap; not critical).
    const FIRST_ROUND: usize = 64;

    fn of(logits: &[f32]) -> Self {
        let possible = |(index, &logit): (usize, &f32)| {
            // Adding zero makes −0 and 0 equal for the total order.
            (logit > f32::NEG_INFINITY).then(|| Candidate { logit: logit + 0.0, token: token(index) })
        };
        Self { all: logits.iter().enumerate().filter_map(possible).collect(), ranked: 0 }
    }

    fn rank_first(&mut self, count: usize) {
        let count = count.min(self.all.len());
        if count <= self.ranked {
            return;
        }
        let rest = &mut self.all[self.ranked..];
        let wanted = count - self.ranked;
        if wanted < rest.len() {
            rest.select_nth_unstable_by(wanted - 1, rank);
        }
        rest[..wanted].sort_unstable_by(rank);
        self.ranked = count;
    }

    /// The index of the first candidate, best first, for which `enough` holds, or else of the last.
    fn descending(&mut self, mut enough: impl FnMut(&Candidate) -> bool) -> usize {
        let mut round = Self::FIRST_ROUND;
        for index in 0..self.all.len() {
            if index >= self.ranked {
                self.rank_first(round);
                round = round.saturating_mul(8);
            }
            if index < self.ranked && enough(&self.all[index]) {
                return index;
            }
        }
        self.all.len() - 1
    }

    fn largest(&self) -> f32 {
        self.all.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max)
    }

    fn keep(&mut self, count: usize) {
        self.all.truncate(count);
        self.ranked = self.ranked.min(count);
    }

    fn keep_top_k(&mut self, k: usize) {
        if k > 0 && k < self.all.len() {
            self.rank_first(k);
            self.keep(k);
        }
    }

    /// Keeps the fewest best whose probabilities sum to at least `p`.
    fn keep_top_p(&mut self, p: f64) {
        if p >= 1.0 {
            return;
        }
        let largest = self.largest();
        let total: u64 = self.all.iter().map(|candidate| weight(candidate.logit, largest, 1.0)).sum();
        let wanted = p * total as f64;
        let mut kept = 0;
        let last = self.descending(|candidate| {
            kept += weight(candidate.logit, largest, 1.0);
            kept as f64 >= wanted
        });
        self.keep(last + 1);
    }

    /// Keeps those at least `p` times as probable as the best.
    fn keep_min_p(&mut self, p: f64) {
        if p <= 0.0 {
            return;
        }
        let largest = self.largest();
        let least = p * WEIGHT_ONE;
        // The kept ones are a prefix in rank order, so what was ranked stays ranked.
        self.all.retain(|candidate| weight(candidate.logit, largest, 1.0) as f64 >= least);
        self.ranked = self.ranked.min(self.all.len());
    }
}

/// The weight of the best candidate. 2⁴⁰ leaves room for the sum over 2²⁴ candidates in 64 bits.
const WEIGHT_ONE: f64 = (1_u64 << 40) as f64;

/// `exp((logit − largest) / temperature)` in units of 2⁻⁴⁰, rounded down; at most 2⁴⁰.
fn weight(logit: f32, largest: f32, temperature: f64) -> u64 {
    (exp((f64::from(logit) - f64::from(largest)) / temperature) * WEIGHT_ONE) as u64
}

fn report(logits: &[f32], chosen: Token, top: usize) -> TokenLogprobs {
    let mut candidates = Candidates::of(logits);
    let largest = candidates.largest();
    let total: u64 = candidates.all.iter().map(|candidate| weight(candidate.logit, largest, 1.0)).sum();
    let normaliser = f64::from(largest) + ln(total as f64 / WEIGHT_ONE);
    let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
    candidates.rank_first(top);
    let top = candidates.all.iter().take(top).map(|candidate| (candidate.token, logprob(candidate.logit))).collect();
    TokenLogprobs { chosen: logprob(logits[chosen.0 as usize]), top }
}

/// 64 uniform bits for a seed and a position.
fn random(seed: u64, position: Position) -> u64 {
    let [a, b, _, _] = philox([position.0, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
    u64::from(a) << 32 | u64::from(b)
}

/// Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), §3.3.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const ROUNDS: usize = 10;
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..ROUNDS {
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn greedy_takes_the_largest_and_of_equals_the_lowest_id() {
        let choice = sample(&[0.5, 2.0, -1.0, 2.0], &greedy(), Position(3), &History::default());

        assert_eq!(choice, Ok(Choice { token: Token(1), logprobs: None }));
    }

    #[test]
    fn logits_without_a_distribution_are_a_typed_error() {
        let infinite = f32::INFINITY;
        let fault = |logits: &[f32]| sample(logits, &greedy(), Position(0), &History::default()).unwrap_err();

        assert_eq!(fault(&[0.0, f32::NAN]), SampleError::NonFinite { token: Token(1) });
        assert_eq!(fault(&[infinite, 0.0]), SampleError::NonFinite { token: Token(0) });
        assert_eq!(fault(&[-infinite, -infinite]), SampleError::NothingPossible { tokens: 2 });
        assert_eq!(fault(&[]), SampleError::NothingPossible { tokens: 0 });
    }

    #[test]
    fn an_impossible_token_is_never_drawn() {
        let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0];

        for position in 0..1_000 {
            assert!(matches!(drawn(&logits, &warm(1.0), position), Token(1 | 3)));
        }
    }

    #[test]
    fn draws_follow_the_tempered_distribution() {
        const DRAWS: u32 = 20_000;
        let logits = [1.0_f32, 0.0, 2.0, -1.0];
        let temperature = 0.7;
        let weights = logits.map(|logit| (f64::from(logit) / temperature).exp());
        let total: f64 = weights.iter().sum();
        let mut counts = [0_u32; 4];

        for position in 0..DRAWS {
            counts[drawn(&logits, &warm(temperature as f32), position).0 as usize] += 1;
        }

        for (count, weight) in counts.iter().zip(weights) {
            let expected = f64::from(DRAWS) * weight / total;
            // Five standard deviations of a Poisson count.
            assert!((f64::from(*count) - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
    }

    #[test]
    fn cuts_apply_before_temperature_in_llama_cpps_order() {
        // Probabilities at temperature 1: 0.5, 0.25, 0.125, 0.125.
        let logits = [8.0_f32, 4.0, 2.0, 2.0].map(f32::ln);
        let seen = |parameters: &SamplingParameters| -> Vec<u32> {
            let mut tokens: Vec<u32> = (0..400).map(|position| drawn(&logits, parameters, position).0).collect();
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        };
        let hot = SamplingParameters { temperature: 100.0, ..greedy() };

        assert_eq!(seen(&hot), [0, 1, 2, 3]);
        assert_eq!(seen(&SamplingParameters { top_k: 3, ..hot.clone() }), [0, 1, 2]);
        assert_eq!(seen(&SamplingParameters { top_p: 0.6, ..hot.clone() }), [0, 1]);
        assert_eq!(seen(&SamplingParameters { min_p: 0.4, ..hot.clone() }), [0, 1]);
        // Among the first two, the best alone already has 2/3.
        assert_eq!(seen(&SamplingParameters { top_k: 2, top_p: 0.6, ..hot }), [0]);
    }

    #[test]
    fn repetition_looks_at_the_window_and_the_others_at_new_tokens() {
        let mut history = History::new(vec![Token(0), Token(1)]);
        history.push(Token(2));
        history.push(Token(2));
        let logits = [4.0, -4.0, 4.0, 4.0];
        let adjusted = |parameters: SamplingParameters| adjust(&logits, &parameters, &history).into_owned();

        let repetition = SamplingParameters { repetition_penalty: 2.0, penalty_window: 3, ..greedy() };
        assert_eq!(adjusted(repetition.clone()), [4.0, -8.0, 2.0, 4.0]);
        assert_eq!(adjusted(SamplingParameters { penalty_window: 0, ..repetition }), [2.0, -8.0, 2.0, 4.0]);
        let counted = SamplingParameters { frequency_penalty: 0.5, presence_penalty: 0.25, ..greedy() };
        assert_eq!(adjusted(counted), [4.0, -4.0, 2.75, 4.0]);
        let biased = SamplingParameters { logit_bias: vec![(Token(3), 1.5), (Token(9), 1.0)], ..greedy() };
        assert_eq!(adjusted(biased), [4.0, -4.0, 4.0, 5.5]);
    }

    #[test]
    fn a_rewound_history_is_as_if_the_tokens_never_came() {
        let mut history = History::new(vec![Token(7)]);
        history.push(Token(1));
        let short = history.clone();
        history.push(Token(2));
        history.push(Token(1));

        history.keep_new(1);

        assert_eq!(history, short);
        assert_eq!(history.new_tokens(), [Token(1)]);
    }

    #[test]
    fn log_probabilities_are_of_the_raw_logits() {
        let logits = [8.0_f32, 4.0, 2.0, 2.0].map(f32::ln);
        let bias = vec![(Token(3), 50.0)];
        let parameters = SamplingParameters { logprobs: Some(2), logit_bias: bias, ..warm(0.3) };

        let choice = sample(&logits, &parameters, Position(0), &History::default()).unwrap();

        let logprobs = choice.logprobs.unwrap();
        assert_eq!(choice.token, Token(3));
        assert!((logprobs.chosen - 0.125_f32.ln()).abs() < 1e-6);
        assert_eq!(logprobs.top.iter().map(|(token, _)| token.0).collect::<Vec<_>>(), [0, 1]);
        assert!((logprobs.top[1].1 - 0.25_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_generator_gives_the_published_answers() {
        // Random123's known answers for philox4x32-10.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let answer = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), answer);
    }

    #[test]
    fn the_same_draw_today_and_tomorrow() {
        let logits: Vec<f32> = (0..512).map(|index| ((index * 37) % 101) as f32 / 25.0).collect();
        let parameters = SamplingParameters { seed: 42, top_p: 0.9, ..warm(0.8) };

        let tokens: Vec<u32> = (0..6).map(|position| drawn(&logits, &parameters, position).0).collect();

        expect_test::expect!["[510, 45, 193, 488, 139, 38]"].assert_eq(&format!("{tokens:?}"));
    }

    proptest! {
        #[test]
        fn one_candidate_is_the_greedy_choice(logits in logits(), seed: u64, position: u32) {
            let top_k = SamplingParameters { top_k: 1, seed, ..warm(1.5) };
            let top_p = SamplingParameters { top_p: 1e-9, seed, ..warm(1.5) };
            let min_p = SamplingParameters { top_k: 1, min_p: 1.0, seed, ..warm(1.5) };

            let expected = drawn(&logits, &greedy(), position);

            for parameters in [top_k, top_p, min_p] {
                prop_assert_eq!(drawn(&logits, &parameters, position), expected);
            }
        }

        #[test]
        fn ranking_in_rounds_draws_as_a_full_sort_would(
            logits in logits(), seed: u64, top_k in 0..300_u32, top_p in 0.01..1.2_f32, min_p in -0.2..0.5_f32,
        ) {
            let (top_p, min_p) = (top_p.min(1.0), min_p.max(0.0));
            let parameters = SamplingParameters { top_k, top_p, min_p, seed, ..warm(1.1) };

            prop_assert_eq!(drawn(&logits, &parameters, 5), draw_by_full_sort(&logits, &parameters, random(seed, Position(5))));
        }
    }

    /// The order as the module's docs state it, without any shortcut.
    fn draw_by_full_sort(logits: &[f32], parameters: &SamplingParameters, random: u64) -> Token {
        let mut all = Candidates::of(logits).all;
        all.sort_by(rank);
        if parameters.top_k > 0 {
            all.truncate(parameters.top_k as usize);
        }
        let weigh = |all: &[Candidate], temperature: f64| -> Vec<u64> {
            all.iter().map(|candidate| weight(candidate.logit, all[0].logit, temperature)).collect()
        };
        let weights = weigh(&all, 1.0);
        let wanted = f64::from(parameters.top_p) * weights.iter().sum::<u64>() as f64;
        let mut sum = 0;
        if parameters.top_p < 1.0 {
            let kept = weights.iter().take_while(|weight| {
                let before = sum;
                sum += **weight;
                (before as f64) < wanted
            });
            let kept = kept.count();
            all.truncate(kept);
        }
        let least = f64::from(parameters.min_p) * WEIGHT_ONE;
        all.retain(|candidate| {
            weight(candidate.logit, logits.iter().copied().fold(f32::MIN, f32::max), 1.0) as f64 >= least
        });
        let weights = weigh(&all, f64::from(parameters.temperature));
        let mut target = scale(random, weights.iter().sum());
        for (candidate, weight) in all.iter().zip(weights) {
            if target < weight {
                return candidate.token;
            }
            target -= weight;
        }
        unreachable!("the target is below the sum");
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec((-40..40_i32).prop_map(|step| step as f32 / 4.0), 1..700)
    }

    fn drawn(logits: &[f32], parameters: &SamplingParameters, position: u32) -> Token {
        sample(logits, parameters, Position(position), &History::default()).unwrap().token
    }

    fn greedy() -> SamplingParameters {
        SamplingParameters::default()
    }

    fn warm(temperature: f32) -> SamplingParameters {
        SamplingParameters { temperature, ..greedy() }
    }
}

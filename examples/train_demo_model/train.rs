//! The training loop: AdamW over shards that two threads work through. Shards are summed in order,
//! so neither the number of threads nor their timing reaches the weights.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use candle_core::Device;
use candle_core::Error;
use candle_core::Result;
use candle_core::Tensor;
use candle_core::safetensors;

use super::bpe::Bpe;
use super::chat::Stage;
use super::data::Lesson;
use super::model::Model;
use super::model::Parameter;
use super::model::parameters;
use super::ops::View;
use super::ops::cross_entropy;
use super::random::Random;
use super::start::initial_values;

/// Shards of one step; each is summed before the next.
const SHARDS: usize = 4;
/// Tokens of a shard, at least.
const SHARD_TOKENS: usize = 750;
/// Threads at work.
const THREADS: usize = 2;
/// The highest learning rate, held from warm-up to decay.
const RATE: f32 = 1e-3;
/// Steps in which the rate rises from nothing.
const WARM_UP: usize = 30;
/// Steps in which the rate falls to nothing, at the end.
const DECAY: usize = 2000;
/// How fast the running means of the gradient and of its square forget.
const MEMORY: (f32, f32) = (0.9, 0.98);
/// What matrices lose per step, times the rate.
const WEIGHT_DECAY: f32 = 0.05;
/// Gradients longer than this are shortened to it.
const LONGEST_GRADIENT: f64 = 1.0;

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Weighted mean loss before the step.
    pub(crate) loss: f32,
    /// Length of the gradient before clipping.
    pub(crate) gradient: f64,
    /// Tokens seen.
    pub(crate) tokens: usize,
}

/// Weights with the state of their optimiser.
#[derive(Clone, Debug)]
pub(crate) struct Trainer {
    seed: u64,
    steps: usize,
    step: usize,
    parameters: Vec<Parameter>,
    values: Vec<Vec<f32>>,
    means: Vec<Vec<f32>>,
    squares: Vec<Vec<f32>>,
}

/// The sum over one or more shards.
struct Gradient {
    values: Vec<Vec<f32>>,
    loss: f32,
    weight: f32,
    tokens: usize,
}

impl Trainer {
    /// Starts a run of `steps` steps from fresh weights.
    pub(crate) fn new(vocabulary: usize, seed: u64, steps: usize) -> Self {
        let values = initial_values(vocabulary, seed);
        let zeros: Vec<Vec<f32>> = values.iter().map(|values| vec![0.0; values.len()]).collect();
        Self { seed, steps, step: 0, parameters: parameters(vocabulary), values, means: zeros.clone(), squares: zeros }
    }

    /// Takes one step.
    pub(crate) fn advance(&mut self, bpe: &Bpe) -> Result<Progress> {
        let model = Model::new(bpe.size(), &self.values)?;
        let gradient = self.gradient(&model, bpe)?;
        let mean = 1.0 / gradient.weight;
        let squares = gradient.values.iter().flatten().map(|value| f64::from(value * mean).powi(2));
        let length = squares.sum::<f64>().sqrt();
        let clip = (LONGEST_GRADIENT / length).min(1.0) as f32;
        self.update(&gradient.values, mean * clip);
        self.step += 1;
        Ok(Progress { loss: gradient.loss * mean, gradient: length, tokens: gradient.tokens })
    }

    /// Steps taken so far.
    pub(crate) fn step(&self) -> usize {
        self.step
    }

    /// Whether all steps are taken.
    pub(crate) fn is_done(&self) -> bool {
        self.step >= self.steps
    }

    /// The weights, in the order of [`parameters`].
    pub(crate) fn values(&self) -> &[Vec<f32>] {
        &self.values
    }

    /// Writes everything that is needed to go on, beside `path` first.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = HashMap::new();
        for (kind, all) in [("values", &self.values), ("means", &self.means), ("squares", &self.squares)] {
            for (parameter, values) in self.parameters.iter().zip(all) {
                let tensor = Tensor::from_slice(values, parameter.shape.as_slice(), &Device::Cpu)?;
                tensors.insert(format!("{kind}.{}", parameter.name), tensor);
            }
        }
        tensors.insert("step".to_owned(), Tensor::new(self.step as i64, &Device::Cpu)?);
        let aside = path.with_extension("part");
        safetensors::save(&tensors, &aside)?;
        std::fs::rename(aside, path)?;
        Ok(())
    }

    /// Goes on where [`Self::save`] left off.
    pub(crate) fn restore(&mut self, path: &Path) -> Result<()> {
        let tensors = safetensors::load(path, &Device::Cpu)?;
        let tensor = |name: &str| tensors.get(name).ok_or_else(|| Error::Msg(format!("checkpoint lacks {name}")));
        for (kind, all) in [("values", &mut self.values), ("means", &mut self.means), ("squares", &mut self.squares)] {
            for (parameter, values) in self.parameters.iter().zip(all) {
                *values = tensor(&format!("{kind}.{}", parameter.name))?.flatten_all()?.to_vec1()?;
            }
        }
        self.step = tensor("step")?.to_scalar::<i64>()?.unsigned_abs() as usize;
        Ok(())
    }

    fn gradient(&self, model: &Model, bpe: &Bpe) -> Result<Gradient> {
        let next = AtomicUsize::new(0);
        let slots: Vec<Mutex<Option<Result<Gradient>>>> = (0..SHARDS).map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    loop {
                        let shard = next.fetch_add(1, Ordering::Relaxed);
                        let Some(slot) = slots.get(shard) else { break };
                        let gradient = self.shard(shard, model, bpe);
                        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(gradient);
                    }
                });
            }
        });
        let mut total: Option<Gradient> = None;
        for slot in slots {
            let gradient = slot.into_inner().unwrap_or_else(PoisonError::into_inner);
            let gradient = gradient.ok_or_else(|| Error::Msg("a shard has no gradient".to_owned()))??;
            total = Some(match total {
                Some(total) => total.plus(&gradient),
                None => gradient,
            });
        }
        total.ok_or_else(|| Error::Msg("a step has no shards".to_owned()))
    }

    fn shard(&self, shard: usize, model: &Model, bpe: &Bpe) -> Result<Gradient> {
        let mut random = Random::stream(self.seed, (1 << 32) + (self.step * SHARDS + shard) as u64);
        let lesson = Lesson::draw(bpe, &mut random, Stage::at(self.step), SHARD_TOKENS);
        let weight = lesson.weight();
        let tokens = lesson.batch.tokens.len();
        let loss = cross_entropy(&model.forward(&lesson.batch)?, lesson.targets)?;
        let gradients = loss.backward()?;
        let of = |var: &candle_core::Var| {
            let gradient = gradients.get(var).ok_or_else(|| Error::Msg("a weight has no gradient".to_owned()))?;
            Ok(View::of(gradient).values()?.to_vec())
        };
        let values = model.vars().iter().map(of).collect::<Result<_>>()?;
        Ok(Gradient { values, loss: loss.to_scalar()?, weight, tokens })
    }

    fn update(&mut self, gradient: &[Vec<f32>], scale: f32) {
        let count = self.step + 1;
        let rate = self.rate();
        let unbias = |memory: f32| 1.0 / (1.0 - memory.powi(count as i32));
        let (unbias_mean, unbias_square) = (unbias(MEMORY.0), unbias(MEMORY.1));
        for (index, parameter) in self.parameters.iter().enumerate() {
            let decay = if parameter.is_matrix() { 1.0 - rate * WEIGHT_DECAY } else { 1.0 };
            let state = self.means[index].iter_mut().zip(&mut self.squares[index]);
            for ((value, gradient), (mean, square)) in self.values[index].iter_mut().zip(&gradient[index]).zip(state) {
                let gradient = gradient * scale;
                *mean = MEMORY.0 * *mean + (1.0 - MEMORY.0) * gradient;
                *square = MEMORY.1 * *square + (1.0 - MEMORY.1) * gradient * gradient;
                let step = *mean * unbias_mean / ((*square * unbias_square).sqrt() + 1e-8);
                *value = *value * decay - rate * step;
            }
        }
    }

    /// The learning rate of the step to take: up, level, down. A run may be lengthened before its
    /// decay begins without changing what was learnt so far.
    fn rate(&self) -> f32 {
        let up = (self.step + 1) as f32 / WARM_UP as f32;
        let down = (self.steps - self.step) as f32 / DECAY.min(self.steps) as f32;
        RATE * up.min(down).min(1.0)
    }
}

impl Gradient {
    fn plus(mut self, other: &Self) -> Self {
        for (total, values) in self.values.iter_mut().zip(&other.values) {
            total.iter_mut().zip(values).for_each(|(total, value)| *total += value);
        }
        Self {
            loss: self.loss + other.loss,
            weight: self.weight + other.weight,
            tokens: self.tokens + other.tokens,
            values: self.values,
        }
    }
}

//! The model as one GGUF file, in the form of llama.cpp's `llama` architecture.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use candle_core::Device;
use candle_core::Error;
use candle_core::Result;
use candle_core::Tensor;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file;
use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::gguf_file::Value;

use super::bpe::BEGIN;
use super::bpe::Bpe;
use super::bpe::END;
use super::bpe::PAD;
use super::bpe::SPECIALS;
use super::model::BLOCKS;
use super::model::CONTEXT;
use super::model::FEED_FORWARD;
use super::model::HEADS;
use super::model::HIDDEN;
use super::model::ROPE_BASE;
use super::model::parameters;
use super::ops::NORM_EPSILON;

/// The chat template, in the Jinja dialect of model files.
pub(crate) const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    {{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// In which form matrices are written; norms are always written as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// 8 bits per value and a scale for each 32: what is shipped.
    Q8,
    /// As trained.
    Full,
}

/// Writes the model to `path`, whole or not at all.
pub(crate) fn write(path: &Path, bpe: &Bpe, values: &[Vec<f32>], precision: Precision) -> Result<()> {
    let mut tensors = Vec::new();
    for (parameter, values) in parameters(bpe.size()).iter().zip(values) {
        let tensor = Tensor::from_slice(values, parameter.shape.as_slice(), &Device::Cpu)?;
        let dtype = match precision {
            Precision::Q8 if parameter.is_matrix() => GgmlDType::Q8_0,
            Precision::Q8 | Precision::Full => GgmlDType::F32,
        };
        let mut start = 0;
        for (name, rows) in file_names(&parameter.name, parameter.shape[0]) {
            tensors.push((name, QTensor::quantize(&tensor.narrow(0, start, rows)?.force_contiguous()?, dtype)?));
            start += rows;
        }
    }
    let metadata = metadata(bpe, precision);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(name, value)| (*name, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let aside = path.with_extension("part");
    gguf_file::write(&mut BufWriter::new(File::create(&aside)?), &metadata, &tensors)?;
    std::fs::rename(aside, path)?;
    Ok(())
}

/// Reads a file written by [`write()`]: the vocabulary, and the weights as they come out of it.
pub(crate) fn read(path: &Path) -> Result<(Bpe, Vec<Vec<f32>>)> {
    let mut file = File::open(path)?;
    let content = Content::read(&mut file)?;
    let tokens = texts(&content, "tokenizer.ggml.tokens")?;
    let merges = texts(&content, "tokenizer.ggml.merges")?;
    let bpe = Bpe::from_parts(&tokens, &merges).ok_or_else(|| Error::Msg("vocabulary and merges differ".to_owned()))?;
    let mut values = Vec::new();
    for parameter in parameters(bpe.size()) {
        let mut joined = Vec::with_capacity(parameter.len());
        for (name, _) in file_names(&parameter.name, parameter.shape[0]) {
            let tensor = content.tensor(&mut file, &name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
            joined.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
        }
        values.push(joined);
    }
    Ok((bpe, values))
}

/// The tensors into which the file divides a parameter, with their rows.
fn file_names(name: &str, rows: usize) -> Vec<(String, usize)> {
    let Some((block, part)) = name.strip_prefix("block.").and_then(|name| name.split_once('.')) else {
        let name = if name == "embedding" { "token_embd" } else { name };
        return vec![(format!("{name}.weight"), rows)];
    };
    let (queries, keys) = (HEADS.queries * HEADS.width, HEADS.keys * HEADS.width);
    let parts = match part {
        "attention_norm" => vec![("attn_norm", rows)],
        "query_key_value" => vec![("attn_q", queries), ("attn_k", keys), ("attn_v", keys)],
        "attention_output" => vec![("attn_output", rows)],
        "feed_forward_norm" => vec![("ffn_norm", rows)],
        "gate_up" => vec![("ffn_gate", FEED_FORWARD), ("ffn_up", FEED_FORWARD)],
        _ => vec![("ffn_down", rows)],
    };
    parts.into_iter().map(|(part, rows)| (format!("blk.{block}.{part}.weight"), rows)).collect()
}

fn metadata(bpe: &Bpe, precision: Precision) -> Vec<(&'static str, Value)> {
    let text = |text: &str| Value::String(text.to_owned());
    let number = |number: usize| Value::U32(number as u32);
    let list = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    // llama.cpp's numbers: 1 is a normal token, 3 a control token; 0 is all F32, 7 mostly Q8_0.
    let kind = |id: usize| Value::I32(if id < SPECIALS.len() { 3 } else { 1 });
    vec![
        ("general.architecture", text("llama")),
        ("general.name", text("Brigade demo")),
        ("general.description", text("Tells short stories and answers questions about them.")),
        ("general.license", text("MIT OR Apache-2.0")),
        ("general.file_type", number(if precision == Precision::Q8 { 7 } else { 0 })),
        ("general.quantization_version", number(2)),
        ("llama.context_length", number(CONTEXT)),
        ("llama.embedding_length", number(HIDDEN)),
        ("llama.block_count", number(BLOCKS)),
        ("llama.feed_forward_length", number(FEED_FORWARD)),
        ("llama.rope.dimension_count", number(HEADS.width)),
        ("llama.rope.freq_base", Value::F32(ROPE_BASE)),
        ("llama.attention.head_count", number(HEADS.queries)),
        ("llama.attention.head_count_kv", number(HEADS.keys)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(NORM_EPSILON)),
        ("llama.vocab_size", number(bpe.size())),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-2")),
        ("tokenizer.ggml.tokens", list(bpe.token_texts())),
        ("tokenizer.ggml.token_type", Value::Array((0..bpe.size()).map(kind).collect())),
        ("tokenizer.ggml.merges", list(bpe.merge_texts())),
        ("tokenizer.ggml.bos_token_id", Value::U32(BEGIN)),
        ("tokenizer.ggml.eos_token_id", Value::U32(END)),
        ("tokenizer.ggml.eot_token_id", Value::U32(END)),
        ("tokenizer.ggml.padding_token_id", Value::U32(PAD)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Value::Bool(false)),
        ("tokenizer.chat_template", text(CHAT_TEMPLATE)),
    ]
}

fn texts(content: &Content, name: &str) -> Result<Vec<String>> {
    let value = content.metadata.get(name).ok_or_else(|| Error::Msg(format!("file lacks {name}")))?;
    value.to_vec()?.iter().map(|text| text.to_string().cloned()).collect()
}

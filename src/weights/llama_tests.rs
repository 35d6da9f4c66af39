use super::*;
use crate::shape::WeightFormat;
use crate::weights::fixture::RandomModel;
use crate::weights::writer::GgufWriter;

#[test]
fn every_tensor_belongs_to_the_units_that_compute_with_it() {
    let file = GgufFile::from_bytes(RandomModel::tiny().bytes()).unwrap();
    let shape = shape(&file).unwrap();
    let tied = ModelShape { tied: true, ..shape };

    assert_eq!(units_of(&shape, "token_embd.weight"), [0]);
    assert_eq!(units_of(&tied, "token_embd.weight"), [0, 4]);
    assert_eq!(units_of(&shape, "blk.0.attn_q.weight"), [1]);
    assert_eq!(units_of(&shape, "blk.2.ffn_down.weight"), [3]);
    assert_eq!(units_of(&shape, "rope_freqs.weight"), [1, 2, 3]);
    assert_eq!(units_of(&shape, "output_norm.weight"), [4]);
    assert_eq!(units_of(&shape, "output.weight"), [4]);
    assert_eq!(units_of(&shape, "blk.3.attn_q.weight"), [0_u16; 0]);
    assert!(file.tensors().all(|(name, _)| !units_of(&shape, name).is_empty()));
}

#[test]
fn a_missing_tensor_is_named() {
    let error = refused(|_, tensors| tensors.retain(|(name, _)| name != "blk.0.ffn_up.weight"));

    assert_eq!(error.to_string(), "the tensor \"blk.0.ffn_up.weight\" is missing");
}

#[test]
fn a_tensor_of_the_wrong_shape_is_named_with_both_shapes() {
    let error = refused(|_, tensors| {
        tensors.iter_mut().find(|(name, _)| name == "blk.0.attn_k.weight").unwrap().1 = vec![8, 5];
    });

    assert_eq!(error.to_string(), "the tensor \"blk.0.attn_k.weight\" should have the dimensions [8, 8], got [8, 5]");
}

#[test]
fn what_the_engine_does_not_compute_is_refused_by_name() {
    let with_tensor = |name: &str| refused(|_, tensors| tensors.push((name.to_owned(), vec![8]))).to_string();

    assert!(with_tensor("blk.0.attn_q.bias").contains("biases (\"blk.0.attn_q.bias\")"));
    assert!(with_tensor("blk.0.ffn_gate_exps.weight").contains("a mixture of experts"));
    assert!(with_tensor("blk.1.attn_q.weight").contains("blk.1.attn_q.weight"));
    assert!(with_tensor("blk.00.attn_norm.weight").contains("blk.00.attn_norm.weight"));
    let yarn = refused(|writer, _| {
        writer.text("llama.rope.scaling.type", "yarn");
    });
    assert!(yarn.to_string().contains("\"yarn\""), "{yarn}");
    let experts = refused(|writer, _| {
        writer.number("llama.expert_count", 8);
    });
    assert!(experts.to_string().contains("a mixture of experts"), "{experts}");
}

#[test]
fn hyperparameters_that_contradict_each_other_are_refused() {
    let kv_heads = refused(|writer, _| {
        writer.number("llama.attention.head_count_kv", 3);
    });
    let vocab = refused(|writer, _| {
        writer.number("llama.vocab_size", 11);
    });
    let rope = refused(|writer, _| {
        writer.number("llama.rope.dimension_count", 6);
    });

    assert!(kv_heads.to_string().contains("a divisor of 2"), "{kv_heads}");
    assert!(vocab.to_string().contains("the 10 rows of token_embd.weight, got 11"), "{vocab}");
    assert!(rope.to_string().contains("at most the head's 4"), "{rope}");
}

#[test]
fn another_architecture_is_refused_by_name() {
    let mut writer = GgufWriter::new();
    writer.text("general.architecture", "mamba");

    let error = shape(&file(&writer, &[])).unwrap_err();

    assert!(matches!(error, ModelError::Architecture { got } if got == "mamba"));
}

#[test]
fn a_missing_hyperparameter_is_named() {
    let mut writer = GgufWriter::new();
    writer.text("general.architecture", "llama");

    let error = shape(&file(&writer, &[])).unwrap_err();

    assert_eq!(error.to_string(), "the metadata key \"llama.block_count\" is missing");
}

#[test]
fn defaults_hold_where_the_file_says_nothing() {
    let mut writer = GgufWriter::new();
    let tensors = smallest(&mut writer);

    let shape = shape(&file(&writer, &tensors)).unwrap();

    assert_eq!((shape.kv_heads, shape.head_dim, shape.tied), (2, 4, true));
    assert_eq!(shape.rope, Rope { dimensions: 4, base: 10_000.0, scaling: RopeScaling::None });
}

/// What is said about the smallest model after `change`.
fn refused(change: impl FnOnce(&mut GgufWriter, &mut Vec<(String, Vec<u64>)>)) -> ModelError {
    let mut writer = GgufWriter::new();
    let mut tensors = smallest(&mut writer);
    change(&mut writer, &mut tensors);
    shape(&file(&writer, &tensors)).unwrap_err()
}

/// One block of width 8 with two heads of 4.
fn smallest(writer: &mut GgufWriter) -> Vec<(String, Vec<u64>)> {
    writer
        .text("general.architecture", "llama")
        .number("llama.block_count", 1)
        .number("llama.context_length", 16)
        .number("llama.embedding_length", 8)
        .number("llama.feed_forward_length", 12)
        .number("llama.attention.head_count", 2)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let parts: [(&str, &[u64]); 11] = [
        ("token_embd", &[8, 10]),
        ("blk.0.attn_norm", &[8]),
        ("blk.0.attn_q", &[8, 8]),
        ("blk.0.attn_k", &[8, 8]),
        ("blk.0.attn_v", &[8, 8]),
        ("blk.0.attn_output", &[8, 8]),
        ("blk.0.ffn_norm", &[8]),
        ("blk.0.ffn_gate", &[8, 12]),
        ("blk.0.ffn_up", &[8, 12]),
        ("blk.0.ffn_down", &[12, 8]),
        ("output_norm", &[8]),
    ];
    parts.map(|(name, sizes)| (format!("{name}.weight"), sizes.to_vec())).to_vec()
}

fn file(writer: &GgufWriter, tensors: &[(String, Vec<u64>)]) -> GgufFile {
    let mut whole = Vec::new();
    let mut announced = writer.clone();
    for (name, dimensions) in tensors {
        announced.tensor(name, WeightFormat::F32, dimensions);
    }
    announced.write_tables(&mut whole).unwrap();
    for (_, dimensions) in tensors {
        let elements: u64 = dimensions.iter().product();
        GgufWriter::write_data(&mut whole, [vec![0; 4 * elements as usize]]).unwrap();
    }
    GgufFile::from_bytes(whole).unwrap()
}

use super::*;
use crate::shape::WeightFormat;
use crate::weights::writer::GgufWriter;

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
    for key in ["attn_logit_softcapping", "attention.scale", "rope.scaling.attn_factor", "logit_scale"] {
        let key = format!("llama.{key}");
        let error = refused(|writer, _| {
            writer.float(&key, 30.0);
        });
        assert!(matches!(&error, ModelError::Unsupported { feature } if feature.contains(&key)), "{error}");
    }
    let pattern = refused(|writer, _| {
        writer.numbers("llama.attention.sliding_window_pattern", &[1, 0]);
    });
    assert!(pattern.to_string().contains("windows on some of the blocks"), "{pattern}");
}

#[test]
fn a_window_counts_where_it_is_shorter_than_the_context() {
    let window = |window: u32| {
        let mut writer = GgufWriter::new();
        let tensors = smallest(&mut writer);
        writer.number("llama.attention.sliding_window", window);
        shape(&file(&writer, &tensors)).unwrap().window
    };

    assert_eq!([0, 1, 15, 16, u32::MAX].map(window), [None, Some(1), Some(15), None, None]);
}

#[test]
fn each_architecture_has_its_own_keys_tensors_and_pairs() {
    for architecture in Architecture::ALL {
        let mut writer = GgufWriter::new();
        let mut tensors = smallest_of(architecture, &mut writer);

        let whole = shape(&file(&writer, &tensors)).unwrap();

        let halves = architecture != Architecture::Llama;
        let pairs = if halves { RopePairs::Halves } else { RopePairs::Interleaved };
        assert_eq!((whole.architecture, whole.rope.pairs), (architecture, pairs));
        let (last, _) = tensors.pop().unwrap();
        let missing = shape(&file(&writer, &tensors)).unwrap_err();
        assert!(matches!(missing, ModelError::MissingTensor { name } if name == last));
    }
}

#[test]
fn a_window_of_qwen_is_refused_for_nobody_says_where_it_begins() {
    let mut writer = GgufWriter::new();
    let tensors = smallest_of(Architecture::Qwen2, &mut writer);
    writer.number("qwen2.attention.sliding_window", 8);

    let error = shape(&file(&writer, &tensors)).unwrap_err();

    assert!(error.to_string().contains("qwen2.attention.sliding_window"), "{error}");
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

    assert!(matches!(error, ModelError::Architecture { got, .. } if got == "mamba"));
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
    assert_eq!(
        shape.rope,
        Rope { dimensions: 4, pairs: RopePairs::Interleaved, base: 10_000.0, scaling: RopeScaling::None }
    );
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
    smallest_of(Architecture::Llama, writer)
}

fn smallest_of(architecture: Architecture, writer: &mut GgufWriter) -> Vec<(String, Vec<u64>)> {
    writer.text("general.architecture", architecture.name());
    let key = |name: &str| format!("{}.{name}", architecture.name());
    let sizes = [
        ("block_count", 1),
        ("context_length", 16),
        ("embedding_length", 8),
        ("feed_forward_length", 12),
        ("attention.head_count", 2),
    ];
    for (name, size) in sizes {
        writer.number(&key(name), size);
    }
    writer.float(&key("attention.layer_norm_rms_epsilon"), 1e-5);
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
    let own: &[(&str, &[u64])] = match architecture {
        Architecture::Llama => &[],
        Architecture::Qwen2 => &[("attn_q.bias", &[8]), ("attn_k.bias", &[8]), ("attn_v.bias", &[8])],
        Architecture::Qwen3 => &[("attn_q_norm.weight", &[4]), ("attn_k_norm.weight", &[4])],
    };
    let parts = parts.into_iter().map(|(name, sizes)| (format!("{name}.weight"), sizes.to_vec()));
    parts.chain(own.iter().map(|(name, sizes)| (format!("blk.0.{name}"), sizes.to_vec()))).collect()
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

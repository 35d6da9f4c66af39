//! `config.json`: the hyper-parameters.
//!
//! Where a key is missing, what holds is what `transformers` (4.57) takes for the class.

use serde_json::Value;

use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;
use crate::weights::huggingface::json::Object;
use crate::weights::llama::MAX_BLOCKS;
use crate::weights::llama::ModelError;

/// A class of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

const CLASSES: [(&str, Class); 4] = [
    ("LlamaForCausalLM", Class::Llama),
    ("MistralForCausalLM", Class::Mistral),
    ("Qwen2ForCausalLM", Class::Qwen2),
    ("Qwen3ForCausalLM", Class::Qwen3),
];

/// Settings that change what is computed in ways that the engine does not know: key, what it is where nothing is changed (as are null,
/// false and none at all), and what it stands for.
const FOREIGN: [(&str, f64, &str); 19] = [
    ("attention_bias", 0.0, "biases on all of attention"),
    ("mlp_bias", 0.0, "biases in the feed-forward layer"),
    ("quantization_config", 0.0, "quantised weights"),
    ("auto_map", 0.0, "code of its own"),
    ("partial_rotary_factor", 1.0, "rotation of a part of each head"),
    ("num_local_experts", 0.0, "a mixture of experts"),
    ("num_experts", 0.0, "a mixture of experts"),
    ("n_routed_experts", 0.0, "a mixture of experts"),
    ("attn_logit_softcapping", 0.0, "soft-capped scores"),
    ("final_logit_softcapping", 0.0, "soft-capped logits"),
    ("query_pre_attn_scalar", 0.0, "a scale of its own for scores"),
    ("attention_multiplier", 0.0, "a scale of its own for scores"),
    ("logits_scaling", 1.0, "scaled logits"),
    ("logit_scale", 1.0, "scaled logits"),
    ("residual_multiplier", 1.0, "scaled residuals"),
    ("embedding_multiplier", 1.0, "scaled embeddings"),
    ("clip_qkv", 0.0, "clamped queries, keys and values"),
    ("use_qk_norm", 0.0, "norms of heads that the class does not have"),
    ("use_sliding_window", 0.0, "windows on some of the blocks"),
];

/// Reads the shape.
///
/// # Errors
/// What is missing, impossible or not supported, by name.
pub(super) fn shape(config: &Object) -> Result<ModelShape, ModelError> {
    let class = class(config)?;
    refuse_foreign(config)?;
    let blocks = config.needed("num_hidden_layers")?;
    if u64::from(blocks) > MAX_BLOCKS {
        return Err(ModelError::wrong("num_hidden_layers", format!("at most {MAX_BLOCKS}"), blocks));
    }
    let (width, heads) = (config.needed("hidden_size")?, config.needed("num_attention_heads")?);
    let (kv_heads, head_dim) = (kv_heads(config, class, heads)?, head_dim(config, class, width, heads)?);
    let context = config.needed("max_position_embeddings")?;
    Ok(ModelShape {
        architecture: match class {
            Class::Llama | Class::Mistral => Architecture::Llama,
            Class::Qwen2 => Architecture::Qwen2,
            Class::Qwen3 => Architecture::Qwen3,
        },
        blocks: blocks as u16,
        width,
        heads,
        kv_heads,
        head_dim,
        feed_forward: config.needed("intermediate_size")?,
        vocab: config.needed("vocab_size")?,
        context,
        window: window(config, class)?.filter(|window| *window < context),
        norm_eps: config.positive("rms_norm_eps")?.unwrap_or(1e-6),
        rope: rope(config, head_dim)?,
        tied: config.flag("tie_word_embeddings")?.unwrap_or(false),
    })
}

fn class(config: &Object) -> Result<Class, ModelError> {
    let names = config.value("architectures").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let got = match names {
        [name] => name.as_str().unwrap_or_default(),
        _ => "",
    };
    let found = CLASSES.into_iter().find(|(name, _)| *name == got);
    let known = || CLASSES.map(|(name, _)| name).join(", ");
    found.map(|(_, class)| class).ok_or_else(|| ModelError::Architecture { got: got.to_owned(), known: known() })
}

fn refuse_foreign(config: &Object) -> Result<(), ModelError> {
    for (key, harmless, feature) in FOREIGN {
        let is_harmless =
            |value: &Value| value.as_bool() == Some(false) || value.as_f64().is_some_and(|number| number == harmless);
        let is_harmless = config.value(key).is_none_or(is_harmless);
        if !is_harmless {
            return Err(ModelError::unsupported(format!("{feature} (\"{key}\")")));
        }
    }
    match config.text("hidden_act")? {
        None | Some("silu") => Ok(()),
        Some(other) => Err(ModelError::unsupported(format!("the activation \"{other}\""))),
    }
}

fn kv_heads(config: &Object, class: Class, heads: u32) -> Result<u32, ModelError> {
    let key = "num_key_value_heads";
    let kv_heads = match (config.raw(key), class) {
        // What other classes take where it is missing is a number that fits one size of model.
        (None, Class::Mistral | Class::Qwen2 | Class::Qwen3) => config.needed(key)?,
        _ => config.number(key)?.unwrap_or(heads),
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(ModelError::wrong(key, format!("a divisor of {heads}"), kv_heads));
    }
    Ok(kv_heads)
}

fn head_dim(config: &Object, class: Class, width: u32, heads: u32) -> Result<u32, ModelError> {
    let head_dim = match (config.number("head_dim")?, class) {
        (Some(head_dim), _) => head_dim,
        (None, Class::Qwen3) => config.needed("head_dim")?,
        (None, _) if width.is_multiple_of(heads) => width / heads,
        (None, _) => return Err(ModelError::wrong("num_attention_heads", format!("a divisor of {width}"), heads)),
    };
    let is_possible = u64::from(heads) * u64::from(head_dim) <= u64::from(u32::MAX);
    if !head_dim.is_multiple_of(2) || !is_possible {
        return Err(ModelError::wrong("head_dim", "even, and fit the heads into 32 bits", head_dim));
    }
    Ok(head_dim)
}

/// The window, which only the classes of Mistral and Qwen know, and Qwen's only where it is used.
fn window(config: &Object, class: Class) -> Result<Option<u32>, ModelError> {
    let window = match class {
        Class::Mistral if config.raw("sliding_window").is_none() => Some(4_096),
        Class::Mistral | Class::Llama => config.number("sliding_window")?,
        Class::Qwen2 | Class::Qwen3 => None,
    };
    if class == Class::Llama && window.is_some() {
        return Err(ModelError::unsupported("a window that the class does not have (\"sliding_window\")"));
    }
    let expected = if window.is_some() { "sliding_attention" } else { "full_attention" };
    let kinds = config.value("layer_types").and_then(Value::as_array);
    if kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind.as_str() != Some(expected))) {
        return Err(ModelError::unsupported("windows on some of the blocks (\"layer_types\")"));
    }
    Ok(window)
}

fn rope(config: &Object, head_dim: u32) -> Result<Rope, ModelError> {
    // Version 5 of transformers keeps all in one object.
    let key = if config.value("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let settings = match config.value(key) {
        None => Object::default(),
        Some(value) => Object::of(value).ok_or_else(|| ModelError::wrong(key, "an object", "something else"))?,
    };
    let base = match settings.positive("rope_theta")? {
        Some(base) => base,
        None => config.positive("rope_theta")?.unwrap_or(10_000.0),
    };
    let kind = settings.text("rope_type")?.or(settings.text("type")?);
    let scaling = match kind {
        Some("default") => RopeScaling::None,
        None if settings.value("factor").is_none() => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: factor(&settings, "factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: factor(&settings, "factor")?,
            low_freq_factor: factor(&settings, "low_freq_factor")?,
            high_freq_factor: factor(&settings, "high_freq_factor")?,
            original_context: settings.needed("original_max_position_embeddings")?,
        },
        other => {
            return Err(ModelError::unsupported(format!("the rope scaling \"{}\"", other.unwrap_or("without a type"))));
        }
    };
    Ok(Rope { dimensions: head_dim, pairs: RopePairs::Halves, base, scaling })
}

fn factor(settings: &Object, key: &str) -> Result<f32, ModelError> {
    settings.positive(key)?.ok_or_else(|| ModelError::wrong(key, "a number", "nothing"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_class_has_its_shape() {
        let llama = read(json!({})).unwrap();
        let mistral = of("MistralForCausalLM", json!({"sliding_window": 16})).unwrap();
        let qwen2 = of("Qwen2ForCausalLM", json!({"sliding_window": 16, "use_sliding_window": false})).unwrap();
        let qwen3 = of("Qwen3ForCausalLM", json!({"head_dim": 32, "attention_bias": false})).unwrap();

        assert_eq!(
            (llama.architecture, llama.window, llama.head_dim, llama.tied),
            (Architecture::Llama, None, 16, false)
        );
        assert_eq!((llama.rope.pairs, llama.rope.dimensions, llama.rope.base), (RopePairs::Halves, 16, 10_000.0));
        assert_eq!((mistral.architecture, mistral.window), (Architecture::Llama, Some(16)));
        assert_eq!((qwen2.architecture, qwen2.window), (Architecture::Qwen2, None));
        assert_eq!((qwen3.architecture, qwen3.head_dim), (Architecture::Qwen3, 32));
    }

    #[test]
    fn a_window_is_null_a_number_or_what_the_class_takes() {
        let window = |more| of("MistralForCausalLM", more).unwrap().window;

        assert_eq!(window(json!({"sliding_window": null})), None);
        assert_eq!(window(json!({"sliding_window": 256})), None, "as long as the context");
        assert_eq!(window(json!({"max_position_embeddings": 5_000})), Some(4_096));
        assert!(read(json!({"sliding_window": 16})).is_err());
    }

    #[test]
    fn rope_scalings_are_read_in_their_old_and_new_form() {
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        });
        let expected =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 64 };
        let scaling = |more| read(more).unwrap().rope.scaling;

        assert_eq!(scaling(json!({"rope_scaling": llama3})), expected);
        assert_eq!(
            scaling(json!({"rope_scaling": {"type": "linear", "factor": 2}})),
            RopeScaling::Linear { factor: 2.0 }
        );
        let new = read(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}})).unwrap().rope;
        assert_eq!((new.base, new.scaling), (500_000.0, RopeScaling::None));
        for kind in ["yarn", "dynamic", "longrope"] {
            let error = read(json!({"rope_scaling": {"rope_type": kind, "factor": 2.0}})).unwrap_err();
            assert!(error.to_string().contains(kind), "{error}");
        }
        assert!(read(json!({"rope_scaling": {"factor": 2.0}})).is_err());
        assert!(read(json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})).is_err());
    }

    #[test]
    fn what_the_engine_does_not_compute_is_refused_by_name() {
        let foreign = [
            json!({"attention_bias": true}),
            json!({"mlp_bias": true}),
            json!({"quantization_config": {"bits": 4}}),
            json!({"num_local_experts": 8}),
            json!({"final_logit_softcapping": 30.0}),
            json!({"partial_rotary_factor": 0.5}),
            json!({"use_sliding_window": true}),
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
        ];

        for more in foreign {
            let key = more.as_object().unwrap().keys().next().unwrap().clone();
            let error = read(more).unwrap_err();
            assert!(matches!(&error, ModelError::Unsupported { feature } if feature.contains(&key)), "{error}");
        }
        assert!(read(json!({"hidden_act": "gelu"})).unwrap_err().to_string().contains("\"gelu\""));
        let other = of("MixtralForCausalLM", json!({})).unwrap_err();
        assert!(other.to_string().contains("\"MixtralForCausalLM\""), "{other}");
        assert!(read(json!({"architectures": []})).is_err());
    }

    #[test]
    fn missing_and_absurd_numbers_are_refused() {
        for key in ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"] {
            for value in [json!(null), json!(0), json!(-1), json!(1.5), json!("7"), json!(1u64 << 32), json!([1])] {
                let error = read(json!({key: value})).unwrap_err();
                assert!(matches!(&error, ModelError::Hyperparameter { key: got, .. } if got == key), "{error}");
            }
        }
        assert!(read(json!({"num_hidden_layers": 70_000})).is_err());
        assert!(read(json!({"num_key_value_heads": 3})).is_err());
        assert!(read(json!({"num_attention_heads": 5})).is_err());
        assert!(read(json!({"head_dim": 15})).is_err());
        assert!(read(json!({"head_dim": u32::MAX - 1})).is_err());
        assert!(read(json!({"rms_norm_eps": 0.0})).is_err());
        assert!(read(json!({"rope_theta": -1.0})).is_err());
        assert!(read(json!({"rope_theta": 1e300})).is_err());
        assert!(read(json!({"rope_scaling": []})).is_err());
        assert!(of("Qwen3ForCausalLM", json!({})).is_err(), "its head is not that of the width");
    }

    fn read(more: Value) -> Result<ModelShape, ModelError> {
        of("LlamaForCausalLM", more)
    }

    /// The settings of a small model of the class, with some replaced.
    fn of(class: &str, more: Value) -> Result<ModelShape, ModelError> {
        let mut config = json!({
            "architectures": [class], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 300, "max_position_embeddings": 256,
            "rms_norm_eps": 1e-6,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        shape(&Object::of(&config).unwrap())
    }
}

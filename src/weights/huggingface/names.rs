//! Hugging Face's names of tensors, and GGUF's.

/// Names of the parts of a block.
const PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// GGUF's name of a tensor; its own if GGUF has none. None if the tensor holds what follows from the settings, which
/// `transformers` leaves unread too.
pub(super) fn renamed(name: &str) -> Option<String> {
    if name.ends_with("rotary_emb.inv_freq") {
        return None;
    }
    let known = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight".to_owned()),
        "model.norm.weight" => Some("output_norm.weight".to_owned()),
        "lm_head.weight" => Some("output.weight".to_owned()),
        _ => of_block(name),
    };
    Some(known.unwrap_or_else(|| name.to_owned()))
}

fn of_block(name: &str) -> Option<String> {
    let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let (_, ours) = PARTS.into_iter().find(|(theirs, _)| *theirs == part)?;
    Some(format!("blk.{block}.{ours}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_gguf_where_it_has_one() {
        let of = |name: &str| renamed(name).unwrap_or_default();

        assert_eq!(of("model.layers.7.self_attn.q_proj.bias"), "blk.7.attn_q.bias");
        assert_eq!(of("model.layers.12.post_attention_layernorm.weight"), "blk.12.ffn_norm.weight");
        assert_eq!(of("model.layers.0.self_attn.k_norm.weight"), "blk.0.attn_k_norm.weight");
        assert_eq!(of("lm_head.weight"), "output.weight");
        assert_eq!(of("model.layers.0.mlp.experts.3.up_proj.weight"), "model.layers.0.mlp.experts.3.up_proj.weight");
        assert_eq!(of("model.layers.0.self_attn.rotary_emb.inv_freq"), "");
    }
}

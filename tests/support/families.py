"""Small models of Transformers with random weights, by family, and what tests feed them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="bridges to models need torch")
transformers = pytest.importorskip("transformers", reason="bridges to models need transformers")

NUMBERS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 98}
GROUPED = {**NUMBERS, **TOKENS, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}

ENCODERS = {
    "Bert": NUMBERS,
    "Roberta": NUMBERS,
    "DistilBert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 99},
    "ModernBert": {
        **NUMBERS,
        **TOKENS,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
    },
}
# What cannot be packed: no attention by the interface, a factor for all of a text, and neighbours
# that are mixed before and between the layers.
UNPACKED = {
    "MPNet": {**NUMBERS, **TOKENS},
    "Esm": {**NUMBERS, **TOKENS, "mask_token_id": 2},
    "MobileBert": {**NUMBERS, "num_hidden_layers": 1},
    "Lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"]},
}
DECODERS = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, **TOKENS},
    "Llama": HEADS,
    "Mistral": {**HEADS, "sliding_window": 6},  # a window in every layer
    "Gemma2": {  # a window in every other layer, scores capped
        **HEADS,
        "sliding_window": 6,
        "attn_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 8,
    },
    "Qwen2": GROUPED,
    "Qwen3": HEADS,
    "GptOss": {  # sinks
        **HEADS,
        "sliding_window": 6,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "Llama4": {  # chunks
        **HEADS,
        "attention_chunk_size": 5,
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
        "interleave_moe_layer_step": 1,
    },
    "Phi3": {**GROUPED, "sliding_window": 6},
}
_HALVES = {"d_model": 32, "vocab_size": 99, "encoder_layers": 2, "decoder_layers": 2}
_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
_WIDTHS = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48}


def make(kind, config, /, **settings):
    """A model of a class of Transformers, ready for inference."""
    torch.manual_seed(1)
    made = getattr(transformers, config)(**settings)
    made._attn_implementation = "eager"
    model = getattr(transformers, kind)(made)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # so large that attention matters
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def encoder(name):
    return make(f"{name}Model", f"{name}Config", **{**ENCODERS, **UNPACKED}[name])


def decoder(name):
    config = "Llama4TextConfig" if name == "Llama4" else f"{name}Config"
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = make(kind, config, **DECODERS[name])
    for module in model.modules():
        if hasattr(module, "sinks"):
            torch.nn.init.normal_(module.sinks)
    return model


def whisper():
    return make(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        **_HALVES,
        **_HEADS,
        **_WIDTHS,
        **TOKENS,
        max_source_positions=50,
        max_target_positions=40,
        num_mel_bins=8,
        decoder_start_token_id=2,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return make(
        "T5ForConditionalGeneration", "T5Config", **sizes, vocab_size=99, decoder_start_token_id=0
    )


def bart():
    return make(
        "BartForConditionalGeneration",
        "BartConfig",
        **_HALVES,
        **_HEADS,
        **_WIDTHS,
        **TOKENS,
        max_position_embeddings=40,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )


def draw_tokens(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).integers(3, 90, shape))


def padding(side, batch=3, length=17):
    """1 for tokens, 0 for padding, on a side; "holes": inside too; None: nowhere."""
    mask = torch.ones((batch, length), dtype=torch.long)
    if side == "right":
        mask[0, 12:], mask[2, 3:] = 0, 0
    elif side == "left":
        mask[0, :5], mask[2, :14] = 0, 0
    elif side == "holes":
        mask[0, 4:7], mask[2, 1::2] = 0, 0
    return mask


def by(model, implementation, run):
    """What a model gives with one of the attention functions."""
    model.set_attn_implementation(implementation)
    with torch.inference_mode():
        return run(model)

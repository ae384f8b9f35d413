"""The shape of a Llama-like model of about so many parameters, and the small files beside its weights.

Plain arithmetic, without torch. The proportions are TinyLlama's (at a hidden size of 2048 its shapes exactly): heads of
64, one key head for eight query heads, an MLP of 2.75 times the hidden size. Names are those of transformers'
`modeling_llama.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

VOCABULARY = 32000
HEAD = 64
QUERIES_A_KEY = 8
HIDDEN_SIZES = (8192, 4096, 2048, 1024, 512)
LEAST_LAYERS = 4
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """One model."""

    layers: int
    hidden: int

    @classmethod
    def of_numel(cls, numel: int) -> LlamaShape:
        """The widest model of at least four layers that has about `numel` parameters."""
        for hidden in HIDDEN_SIZES:
            ends, layer = (cls(layers, hidden).numel for layers in (0, 1))
            layer -= ends
            layers = round((numel - ends) / layer)
            if layers >= LEAST_LAYERS:
                return cls(layers, hidden)
        least = cls(LEAST_LAYERS, HIDDEN_SIZES[-1]).numel
        raise ValueError(f"{numel} parameters are too few: the smallest model has {least}")

    @property
    def ffn(self) -> int:
        """Rows of the gate."""
        return self.hidden * 11 // 4

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.hidden // HEAD

    @property
    def key_heads(self) -> int:
        """Key and value heads."""
        return self.heads // QUERIES_A_KEY

    @property
    def numel(self) -> int:
        """Numbers in all parameters."""
        return sum(prod(dims) for dims in self.parameters().values())

    def parameters(self) -> Shapes:
        """All parameters, in the order of the model's modules."""
        found: Shapes = {"model.embed_tokens.weight": (VOCABULARY, self.hidden)}
        for layer in range(self.layers):
            found |= {f"model.layers.{layer}.{name}.weight": dims for name, dims in self._layer()}
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": (VOCABULARY, self.hidden)}

    def _layer(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The parameters of one layer."""
        keys = self.key_heads * HEAD
        yield "self_attn.q_proj", (self.hidden, self.hidden)
        yield "self_attn.k_proj", (keys, self.hidden)
        yield "self_attn.v_proj", (keys, self.hidden)
        yield "self_attn.o_proj", (self.hidden, self.hidden)
        yield "mlp.gate_proj", (self.ffn, self.hidden)
        yield "mlp.up_proj", (self.ffn, self.hidden)
        yield "mlp.down_proj", (self.hidden, self.ffn)
        yield "input_layernorm", (self.hidden,)
        yield "post_attention_layernorm", (self.hidden,)

    def config(self) -> dict[str, object]:
        """The model's config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "bos_token_id": 1,
            "dtype": "bfloat16",
            "eos_token_id": 2,
            "head_dim": HEAD,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.ffn,
            "max_position_embeddings": 2048,
            "mlp_bias": False,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.key_heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "vocab_size": VOCABULARY,
        }


def write_beside(folder: Path, shape: LlamaShape, step: int) -> None:
    """What Trainer writes beside the weights as JSON: the configuration, a tokenizer of three words, its own state."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    files: dict[str, dict[str, object]] = {
        "config.json": shape.config(),
        "generation_config.json": {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": id_, "content": word, **flags, "special": True} for word, id_ in words.items()],
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
        },
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, **special},
        "special_tokens_map.json": dict(special),
        "trainer_state.json": {"epoch": 1.0, "global_step": step, "max_steps": step, "log_history": []},
    }
    for name, entries in files.items():
        (folder / name).write_text(json.dumps(entries, indent=2) + "\n")

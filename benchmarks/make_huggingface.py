"""Make a Llama-like Hugging Face folder of any size, of random bf16 numbers, one shard for each layer.

    python benchmarks/make_huggingface.py /data/llama --layers 20     # 8.6 GB

The shapes are Llama 2 7B's; what is written streams through a buffer of 16 MiB, so memory stays small.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HIDDEN, FFN, VOCABULARY, HEADS = 4096, 11008, 32000, 32
_BUFFER = 1 << 24


def layer_shapes(layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a layer, by the names of transformers' ``modeling_llama.py``."""
    prefix = f"model.layers.{layer}"
    for part in "qkvo":
        yield f"{prefix}.self_attn.{part}_proj.weight", (HIDDEN, HIDDEN)
    yield f"{prefix}.mlp.gate_proj.weight", (FFN, HIDDEN)
    yield f"{prefix}.mlp.up_proj.weight", (FFN, HIDDEN)
    yield f"{prefix}.mlp.down_proj.weight", (HIDDEN, FFN)
    yield f"{prefix}.input_layernorm.weight", (HIDDEN,)
    yield f"{prefix}.post_attention_layernorm.weight", (HIDDEN,)


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> int:
    """Write one safetensors file; the bytes of its tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done in range(0, end, _BUFFER):
            # Numbers of about 1: the exponent's upper bits are cleared, so that none is infinite or NaN.
            words = rng.integers(0, 1 << 16, min(_BUFFER, end - done) // 2, dtype=np.uint16)
            file.write((words & 0x807F | 0x3F80).tobytes())
    return end


def main() -> None:
    """Make the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    ends = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    shards = [ends, *(dict(layer_shapes(layer)) for layer in range(arguments.layers))]
    rng = np.random.default_rng(arguments.seed)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        total += write_shard(arguments.folder / name, shapes, rng)
        weight_map |= dict.fromkeys(shapes, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (arguments.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY,
        "dtype": "bfloat16",
    }
    (arguments.folder / "config.json").write_text(json.dumps(config, indent=2))
    print(f"{arguments.folder}: {total / 1e9:.2f} GB in {len(shards)} shards")


if __name__ == "__main__":
    main()

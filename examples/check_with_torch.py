"""Check a conversion with torch alone: merge source and result, and compare every element.

    python examples/check_with_torch.py SRC DST --vocab-size 100

For Megatron-DeepSpeed checkpoints of the pipeline engine with interleaved QKV rows, such as BLOOM's. It loads both
sides whole, so it is for small models.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

Model = dict[str, torch.Tensor]
COLUMNS = ("self_attention.dense.weight", "mlp.dense_4h_to_h.weight")
ROWS = ("query_key_value.weight", "query_key_value.bias", "dense_h_to_4h.weight", "dense_h_to_4h.bias")
VOCABULARY = ("word_embeddings.weight", "lm_head.weight")


def merge(name: str, shards: list[torch.Tensor]) -> torch.Tensor:
    """One parameter from its tensor-parallel shards."""
    if name.endswith(COLUMNS):
        return torch.cat(shards, 1)
    return torch.cat(shards, 0) if name.endswith((*ROWS, *VOCABULARY)) else shards[0]


def read_source(root: Path) -> Model:
    """The layer files of a Megatron-DeepSpeed checkpoint, merged."""
    folder = root / (root / "latest").read_text().strip()
    files: dict[int, list[Model]] = {}
    for path in sorted(folder.glob("layer_*")):
        files.setdefault(int(path.name.split("-")[0][6:]), []).append(torch.load(path, weights_only=True))
    model: Model = {}
    layer = 0
    for index in sorted(files):
        keys = files[index][0]
        is_block = "input_layernorm.weight" in keys
        prefix = f"layers.{layer}." if is_block else "final_layernorm." if "weight" in keys else ""
        layer += is_block
        model |= {prefix + key: merge(key, [rank[key] for rank in files[index]]) for key in keys}
    return model


def shifted(key: str, offset: int) -> str:
    """A layer's key with its number in the whole model."""
    return re.sub(r"^layers\.(\d+)", lambda match: f"layers.{int(match[1]) + offset}", key)


def read_result(root: Path) -> Model:
    """A legacy Megatron-LM checkpoint, merged."""
    folder = root / f"iter_{int((root / 'latest_checkpointed_iteration.txt').read_text()):07d}"
    stages: dict[str, list[Model]] = {}
    for path in sorted(folder.glob("mp_rank_*/model_optim_rng.pt")):
        with torch.serialization.safe_globals([argparse.Namespace]):
            part = torch.load(path, weights_only=True)["model"]["language_model"]
        flat = {
            f"{outer}.{key}": tensor for outer, nested in part["embedding"].items() for key, tensor in nested.items()
        }
        flat |= part["encoder"]
        if "output_layer" in part:
            flat["lm_head.weight"] = part["output_layer"]["weight"]
        stages.setdefault(path.parent.name[11:], []).append(flat)
    model: Model = {}
    offset = 0
    for name in sorted(stages):
        numbers = {int(match[1]) for key in stages[name][0] if (match := re.match(r"layers\.(\d+)\.", key))}
        for key in stages[name][0]:
            model[shifted(key, offset)] = merge(key, [rank[key] for rank in stages[name]])
        offset += len(numbers)
    return model


def main() -> int:
    """Compare; the exit code says whether all is equal."""
    parser = argparse.ArgumentParser(description="Compare a conversion's source and result with torch alone.")
    parser.add_argument("src", type=Path)
    parser.add_argument("dst", type=Path)
    parser.add_argument("--vocab-size", type=int, help="compare so many rows of the vocabulary; the rest is padding")
    arguments = parser.parse_args()
    source, result = read_source(arguments.src), read_result(arguments.dst)
    wrong = sorted(set(source) ^ set(result))
    for name in sorted(set(source) & set(result)):
        rows = arguments.vocab_size if name in VOCABULARY else None
        if not torch.equal(source[name][:rows], result[name][:rows]):
            wrong.append(name)
    print(f"checked with torch: {len(source)} parameters, {len(wrong)} differ{': ' if wrong else ''}{', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Reports to draw: a BLOOM of 176 billion parameters on TP 4 and PP 12, small ones, empty ones, hostile ones."""

from __future__ import annotations

import itertools
import math
import random
import re
from typing import Any

HOSTILE = "</script><img src=x onerror=\"window.flag='ran'\"><!--<script>\u2028$x_{"
_KEYS = "schema path kind nbytes what evidence model dtypes parallel target optimizer files tensors statistics findings"
NOTHING: dict[str, Any] = dict.fromkeys(re.findall(r"\w+", _KEYS))

_BLOCK = (
    ("input_layernorm.weight", ("h",), 1.1),
    ("input_layernorm.bias", ("h",), 0.12),
    ("self_attention.query_key_value.weight", ("3h", "h"), 0.017),
    ("self_attention.query_key_value.bias", ("3h",), 0.6),
    ("self_attention.dense.weight", ("h", "h"), 0.0093),
    ("self_attention.dense.bias", ("h",), 0.09),
    ("post_attention_layernorm.weight", ("h",), 1.4),
    ("post_attention_layernorm.bias", ("h",), 0.2),
    ("mlp.dense_h_to_4h.weight", ("4h", "h"), 0.015),
    ("mlp.dense_h_to_4h.bias", ("4h",), 0.11),
    ("mlp.dense_4h_to_h.weight", ("h", "4h"), 0.0078),
    ("mlp.dense_4h_to_h.bias", ("h",), 0.07),
)
_CUT = {"word_embeddings.weight", *(name for name, shape, _ in _BLOCK if shape[0] != "h" or len(shape) > 1)}


def bloom(layers: int = 70, tp: int = 4, pp: int = 12, hidden: int = 14336, broken: int | None = 37) -> dict[str, Any]:
    """A report with everything in it. Layer ``broken`` has NaN in one matrix and a far too large norm elsewhere."""
    sizes = {"h": hidden, "3h": 3 * hidden, "4h": 4 * hidden, "v": 250880 * hidden // 14336}
    stages = split(layers, pp)
    parts: list[tuple[int | None, str, list[tuple[str, list[int]]]]] = [
        (
            None,
            "layer_01",
            [("word_embeddings.weight", [sizes["v"], hidden]), ("word_embeddings.norm.weight", [hidden])],
        )
    ]
    parts += [
        (layer, f"layer_{layer + 3:02d}", [(name, [sizes[side] for side in shape]) for name, shape, _ in _BLOCK])
        for layer in range(layers)
    ]
    parts.append((None, f"layer_{layers + 4:02d}", [("weight", [hidden]), ("bias", [hidden])]))
    files: list[dict[str, Any]] = []
    tensors: list[dict[str, Any]] = []
    grid: dict[tuple[int, int], list[str]] = {(stage, rank): [] for stage in range(pp) for rank in range(tp)}
    for position, (layer, stem, held) in enumerate(parts):
        for rank in range(tp):
            path, start = f"{stem}-model_{rank:02d}-model_states.pt", len(tensors)
            for name, whole in held:
                shape = [whole[0] // tp, *whole[1:]] if name in _CUT else whole
                nbytes = 2 * math.prod(shape)
                tensors.append(
                    {"name": name, "file": path, "dtype": "bfloat16", "shape": shape, "nbytes": nbytes}
                    | {"offset": 64 * len(tensors), "layer": layer, "parameter": name}
                )
            nbytes = sum(tensor["nbytes"] for tensor in tensors[start:]) + 1024
            files.append({"path": path, "nbytes": nbytes, "kind": "layer", "tensors": len(held)})
            stage = next((at for at, owned in enumerate(stages) if layer in owned), pp - 1 if position else 0)
            grid[stage, rank].append(path)
    elements = sum(math.prod(shape) for _, _, held in parts for _, shape in held)
    return {
        "schema": "streamconv.inspect/1",
        "path": "/checkpoints/bigscience/bloom/global_step95000",
        "kind": "folder",
        "nbytes": sum(file["nbytes"] for file in files),
        "what": "Megatron-DeepSpeed, pipeline engine",
        "evidence": [
            {"what": "layer files", "evidence": f"layer_01 to layer_{layers + 4:02d}, {tp} files each"},
            {"what": "ALiBi", "evidence": "no position embeddings, a norm on the word embedding"},
        ],
        "model": {
            "family": "BLOOM",
            "iteration": 95000,
            "num_layers": layers,
            "hidden": hidden,
            "ffn": 4 * hidden,
            "heads": hidden // 128,
            "kv_groups": None,
            "vocabulary": {"stored": sizes["v"], "true": sizes["v"] - 200, "padding": 200},
            "positions": None,
            "parameters": elements,
            "parameters_per_layer": sum(math.prod(shape) for _, shape in parts[1][2]),
        },
        "dtypes": {"bfloat16": {"tensors": len(tensors), "elements": elements, "nbytes": 2 * elements}},
        "parallel": {
            "tp": tp,
            "pp": pp,
            "dp": 8,
            "stages": stages,
            "grid": [{"stage": stage, "rank": rank, "files": held} for (stage, rank), held in grid.items()],
        },
        "target": None,
        "optimizer": {"present": False, "files": 0, "nbytes": 0, "what": "no optimizer states beside the weights"},
        "files": files,
        "tensors": tensors,
        "statistics": statistics(layers, sizes, broken),
        "findings": findings(broken),
    }


def split(layers: int, pp: int) -> list[list[int]]:
    """Layers over stages, one fewer on the first and the last."""
    bounds = [round(at * (layers + 2) / pp) - 1 for at in range(pp + 1)]
    return [list(range(max(0, low), min(layers, high))) for low, high in itertools.pairwise(bounds)]


def statistics(layers: int, sizes: dict[str, int], broken: int | None) -> list[dict[str, Any]]:
    drawn = random.Random(1)
    vocabulary = [sizes["v"], sizes["h"]]
    rows = [row("word_embeddings.weight", None, vocabulary, 0.012), row("final_norm.weight", None, [sizes["h"]], 3.1)]
    for layer in range(layers):
        depth = layer / max(1, layers - 1)
        for name, shape, rms in _BLOCK:
            wave = 1 + 0.5 * depth + 0.12 * math.sin(9 * depth + len(name)) + drawn.uniform(-0.03, 0.03)
            rows.append(row(name, layer, [sizes[side] for side in shape], rms * wave))
            if layer == broken and name == "mlp.dense_h_to_4h.weight":
                rows[-1] |= {"nan": 12288, "norm": None, "min": None, "max": None, "mean": None, "std": None}
                rows[-1]["flags"] = ["NaN"]
            if layer == broken and name == "post_attention_layernorm.weight":
                rows[-1] |= {"norm": rows[-1]["norm"] * 40, "flags": ["outlier"]}
    return rows


def row(name: str, layer: int | None, shape: list[int], rms: float) -> dict[str, Any]:
    numel = math.prod(shape)
    spread = {"min": -5.3 * rms, "max": 5.1 * rms, "mean": rms * 1e-3, "std": rms, "norm": rms * math.sqrt(numel)}
    return {
        "name": name if layer is None else f"layers.{layer}.{name}",
        "layer": layer,
        "parameter": name,
        "dtype": "bfloat16",
        "shape": shape,
        "numel": numel,
        **spread,
        "zeros": 0,
        "nan": 0,
        "inf": 0,
        "flags": [],
    }


def findings(broken: int | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "severity": "note",
            "what": "200 of 250880 rows of the word embedding are padding",
            "where": None,
            "remedy": None,
        },
        {
            "severity": "warning",
            "what": "input_layernorm.bias differs between tensor-parallel ranks 0 and 2 by at most 1.2e-07",
            "where": "layer_22-model_02-model_states.pt",
            "remedy": "convert with --replicated mean, or take rank 0 (the default)",
        },
    ]
    damage = {
        "severity": "damage",
        "what": f"12288 NaN in layers.{broken}.mlp.dense_h_to_4h.weight",
        "where": f"layer_{(broken or 0) + 3:02d}-model_01-model_states.pt",
        "remedy": "fetch this file again and compare its checksum",
    }
    return found if broken is None else [*found, damage]


def with_target(report: dict[str, Any], tp: int, pp: int) -> dict[str, Any]:
    """``report`` with the map of a conversion: every rank reads the files of its stage's layers."""
    stages = split(report["model"]["num_layers"], pp)
    named = {f"layer_{layer + 3:02d}": at for at, owned in enumerate(stages) for layer in owned}
    sources: list[list[str]] = [[] for _ in stages]
    for file in report["files"]:
        stem = file["path"].split("-")[0]
        sources[named.get(stem, 0 if stem == "layer_01" else pp - 1)].append(file["path"])
    grid = [{"stage": stage, "rank": rank, "sources": sources[stage]} for stage in range(pp) for rank in range(tp)]
    return report | {"target": {"tp": tp, "pp": pp, "stages": stages, "grid": grid}}


def hostile() -> dict[str, Any]:
    """A small report with markup wherever a file can put a name."""
    report = with_target(bloom(layers=3, tp=2, pp=2, hidden=128, broken=1), 1, 3)
    report["path"] = f"/data/{HOSTILE}"
    report["what"] = HOSTILE
    report["evidence"] = [{"what": HOSTILE, "evidence": HOSTILE}]
    report["model"]["family"] = HOSTILE
    report["dtypes"] = {HOSTILE: {"tensors": 1, "elements": 1, "nbytes": 2}}
    report["optimizer"] = {"present": True, "files": 1, "nbytes": 1, "what": HOSTILE}
    report["files"][0]["path"] = report["parallel"]["grid"][0]["files"][0] = HOSTILE
    report["target"]["grid"][0]["sources"][0] = HOSTILE
    report["tensors"][0] |= {"name": HOSTILE, "file": HOSTILE, "dtype": HOSTILE, "parameter": None}
    report["statistics"][2] |= {"name": HOSTILE, "parameter": HOSTILE, "dtype": HOSTILE, "flags": [HOSTILE]}
    report["findings"][0] |= {"what": HOSTILE, "where": HOSTILE, "remedy": HOSTILE, "severity": HOSTILE}
    return report

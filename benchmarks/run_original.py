"""Run Megatron-DeepSpeed's own converter, `tools/convert_checkpoint/deepspeed_to_megatron.py`, with today's torch.

    python benchmarks/run_original.py PATH/deepspeed_to_megatron.py SRC DST --tp 1 --pp 1

The script is not part of this repository: bring a copy from bigscience-workshop/Megatron-DeepSpeed or from
deepspeedai/Megatron-DeepSpeed. It is run as it is on the disk. `deepspeed_checkpoint.py` has to lie beside it, as it
does in deepspeedai's repository; bigscience's removed it in commit 0f23a729 without changing the import, so take it
from before (`git show 0f23a729^:tools/convert_checkpoint/deepspeed_checkpoint.py`), or deepspeedai's, which differs
from it in little.

Neither runs as it is on a BLOOM checkpoint. What is repaired, in the running process only, and no more than that:

1. `from .deepspeed_checkpoint import` (bigscience's) needs a package around the script, of which the repository has no
   `__init__.py`, and `from deepspeed_checkpoint import` (deepspeedai's) needs its folder on the path: both are given.
2. The pickled arguments name an enum of `megatron.enums`: a stand-in is there while the script runs. A package
   `deepspeed` is not needed.
3. Since torch 2.6 `torch.load` refuses the arguments' class: `TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1` gives the former
   default back. So use it on folders that you made yourself only: pickles run code.
4. `_renest_sd` splits a name at its only dot. BLOOM's `word_embeddings.norm.weight` has two, and stops it with
   `ValueError: too many values to unpack`; and of several names with the same beginning it would keep the last. It is
   replaced by one that splits at the first dot and keeps all.
5. `word_embeddings.norm.weight` and `.bias` are missing from `SEQUENTIAL_LAYERS`, the list of what every rank holds
   whole: with fewer ranks than before they would be strung together, to `tp` times their length. They are added.
6. bigscience's `_create_rank_checkpoint` takes a `checkpoint_path` that its caller does not pass, so that the tensor
   rank is taken for the path and the pipeline rank for the tensor rank: right for TP 1 and PP 1 alone. A path (None,
   it is not used) is put between.

The result has then the tensors that plain_torch.py writes, bit for bit.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

REPAIRS = (
    "a package around the script and its folder on sys.path, for its imports",
    "a stand-in for megatron.enums, which the pickled arguments name",
    "torch.load with weights_only=False by default (TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1)",
    "_renest_sd splits names at the first dot and keeps all names with the same beginning",
    "word_embeddings.norm.weight and .bias added to SEQUENTIAL_LAYERS, so that replicas are not strung together",
    "_create_rank_checkpoint is given the checkpoint_path that bigscience's takes and its caller leaves out",
)
PACKAGE = "convert_checkpoint"
EMBEDDING_NORM = ("word_embeddings.norm.weight", "word_embeddings.norm.bias")


def renest(state: dict[str, Any]) -> OrderedDict[str, dict[str, Any]]:
    """Names split at the first dot, two levels deep."""
    nested: OrderedDict[str, dict[str, Any]] = OrderedDict()
    for name, value in state.items():
        outer, inner = name.split(".", 1)
        nested.setdefault(outer, {})[inner] = value
    return nested


def load(path: Path) -> types.ModuleType:
    """The script as a module, repaired; SystemExit when what it imports is not there."""
    folder = path.resolve().parent
    if not (folder / "deepspeed_checkpoint.py").is_file():
        raise SystemExit(f"run_original: {folder} lacks deepspeed_checkpoint.py; `--help` says where it is")
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(f"{PACKAGE}.{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    repair(module)
    return module


def repair(module: types.ModuleType) -> None:
    """Put the defects right that stop or spoil a BLOOM checkpoint; AttributeError if they are not where they were."""
    reader = sys.modules[module.DeepSpeedCheckpoint.__module__]
    replicated: list[str] = reader.SEQUENTIAL_LAYERS
    create = module._create_rank_checkpoint
    assert callable(module._renest_sd)
    module._renest_sd = renest  # type: ignore[attr-defined]
    if "checkpoint_path" in inspect.signature(create).parameters:
        module._create_rank_checkpoint = lambda reader, *rest: create(reader, None, *rest)  # type: ignore[attr-defined]
    replicated += [name for name in EMBEDDING_NORM if name not in replicated]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="deepspeed_to_megatron.py, with deepspeed_checkpoint.py beside it")
    parser.add_argument("source", type=Path, help="Megatron-DeepSpeed checkpoint folder, with `latest` in it")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel size to write (default: 1)")
    parser.add_argument("--pp", type=int, default=1, help="pipeline-parallel size to write (default: 1)")
    options = parser.parse_args()
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    folder = options.source / (options.source / "latest").read_text().strip()
    words = ["--input_folder", str(folder), "--output_folder", str(options.target)]
    words += ["--target_tp", str(options.tp), "--target_pp", str(options.pp)]
    from bloom_state import megatron_enums  # imports torch, which the list of repairs does not need

    with megatron_enums():
        module = load(options.script)
        sys.argv = [str(options.script), *words]
        module.main()


if __name__ == "__main__":
    main()

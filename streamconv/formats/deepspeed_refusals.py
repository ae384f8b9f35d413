"""What a DeepSpeed-like folder may be that streamconv does not translate, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamconv.errors import UnsupportedError
from streamconv.formats import titles_from

__all__ = ["refuse_keys", "refuse_other_folders", "refuse_plain_deepspeed"]


def refuse_other_folders(folder: Path, names: Sequence[str]) -> None:
    """Name a folder that is another framework's checkpoint.

    Raises:
        UnsupportedError: it is one.
    """
    has = set(names).__contains__
    kinds = (
        ("a DeepSpeed universal checkpoint", has("zero") and (folder / "zero").is_dir()),
        ("the output of DeepSpeed's zero_to_fp32", any(n.startswith("pytorch_model") for n in names)),
        ("a Hugging Face safetensors checkpoint", any(".safetensors" in n for n in names)),
        ("a mixture of experts (MoE)", any("_expert_" in n and n.endswith("_model_states.pt") for n in names)),
    )  # fmt: skip
    for name, matches in kinds:
        if matches:
            raise UnsupportedError(
                f"{name}: not a source that streamconv converts",
                where=folder,
                remedy="sources so far: Megatron-DeepSpeed and legacy Megatron-LM folders of "
                f"{titles_from('deepspeed', 'megatron-legacy')}; GPT-NeoX folders of {titles_from('gpt-neox')}; "
                f"Hugging Face folders of {titles_from('huggingface')}",
            )


def refuse_plain_deepspeed(folder: Path, names: Sequence[str], state: Mapping[str, Any]) -> None:
    """Name a DeepSpeed folder that has no layer files and no Megatron module, or that is no DeepSpeed folder at all.

    Raises:
        UnsupportedError: it is one of these.
    """
    module = state.get("module")
    if isinstance(module, dict) and isinstance(module.get("language_model"), dict):
        return
    if any(n.startswith("zero_pp_rank_") and n.endswith("_model_states.pt") for n in names):
        what = "a plain DeepSpeed ZeRO stage 3 folder: its parameters are flat partitions in the optimizer files"
    elif any(n.endswith("_optim_states.pt") for n in names) or state:
        what = "a plain DeepSpeed ZeRO folder: a model that is not Megatron's, without layer files"
    else:
        what = "not a Megatron-DeepSpeed checkpoint: no layer_*-model_states.pt and no mp_rank_*_model_states.pt"
    raise UnsupportedError(
        what,
        where=folder,
        remedy="give the root of a Megatron-DeepSpeed checkpoint (the folder with `latest`), or its tag folder",
    )


def refuse_keys(keys: Collection[str], path: Path) -> None:
    """Name a family or mechanism whose keys give it away in one layer.

    Raises:
        UnsupportedError: the keys do.
    """
    neox = ("attention.", "final_linear.", "norm.")
    kinds = (
        ("GPT-NeoX without its layer_00 files", any(k.startswith(neox) for k in keys)),
        ("a mixture of experts (MoE)", any("deepspeed_moe" in k or ".experts." in k or "gate.wg" in k for k in keys)),
    )  # fmt: skip
    for name, matches in kinds:
        if matches:
            raise UnsupportedError(
                f"{name}: not translated",
                where=path,
                remedy=f"families so far in such folders: {titles_from('deepspeed', 'megatron-legacy')}",
            )

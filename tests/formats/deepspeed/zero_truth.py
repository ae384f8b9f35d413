"""What a plain DeepSpeed run must become: comparing a written file with the truth of a made or of a real folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from streamconv import convert
from tests.making.zero_classes import load
from tests.places import FIXTURES, FRAMEWORKS

Tensors = dict[str, torch.Tensor]
PEFT = "base_model.model."


def written(folder: Path) -> Tensors:
    """All tensors of a folder of safetensors."""
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), "pt") as file:
            names = list(file.keys())
            assert not found.keys() & set(names)
            found |= {name: file.get_tensor(name) for name in names}
    return found


def converted(source: Path, out: Path, **options: Any) -> Tensors:
    # The options of this target are no keywords of the signature that mypy sees.
    how: dict[str, Any] = {"to": "safetensors", "max_ram": "1G", **options}
    convert(source, out, **how)
    return written(out)


def as_named(found: Tensors, wanted: Mapping[str, Any]) -> Tensors:
    """``found`` by the engine's names, if it has an adapter's by those of PEFT's own file."""
    in_file = {name.replace(".modules_to_save.default", "").replace(".default", ""): name for name in wanted}
    if set(found) <= set(wanted) or not all(name.startswith(PEFT) for name in wanted):
        return found
    return {in_file[name]: tensor for name, tensor in found.items()}


def assert_same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], exact: set[str]) -> None:
    """Equal names, shapes and values bit for bit; dtypes too for the names in ``exact``, fp32 is right for the rest.

    The rest is what has no master: it is as the module has it, or widened.
    """
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        mine = found[name]
        kinds = {tensor.dtype} if name in exact or not tensor.is_floating_point() else {tensor.dtype, torch.float32}
        assert mine.dtype in kinds, f"{name} is {mine.dtype}"
        assert mine.shape == tensor.shape, f"{name} is {tuple(mine.shape)}"
        assert torch.equal(bits(mine), bits(tensor.to(mine.dtype))), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.flatten()


@dataclass(frozen=True)
class Real:
    """A folder that DeepSpeed wrote, and the live engine's values."""

    name: str
    stage: int
    inside: str = "."
    excluded: bool = False

    @property
    def root(self) -> Path:
        return FRAMEWORKS / self.name / self.inside

    def converted(self, out: Path, weights: str) -> Tensors:
        """The engine's state, also where a Trainer's model is beside it."""
        return converted(self.root, out, weights=weights, tag=(self.root / "latest").read_text())

    def truth(self) -> dict[str, Any]:
        """``lp`` and ``fp32`` by name; none of what the folder was told to leave out."""
        kept = torch.load(FIXTURES / "zero_truth" / f"{self.name}.pt", weights_only=True).items()
        return {name: pair for name, pair in kept if not (self.excluded and pair["fp32"] is None)}

    def shared(self) -> dict[str, str]:
        """Names of tied parameters, and the names whose values they have."""
        tag = self.root / (self.root / "latest").read_text()
        return dict(load(min(tag.glob("*_model_states.pt")))["shared_params"])


REAL_RUNS = (
    Real("z1_bf16", 1),
    Real("z2_bf16_2g_shared", 2),
    Real("z3_bf16_frozen", 3),
    Real("ds_trainer_llama_z2", 2, "checkpoint-2"),
    Real("ds_trainer_llama_z3", 3, "checkpoint-2"),
    Real("ds_trainer_lora_z3", 3, "checkpoint-2", excluded=True),
    Real("ds_z3_subgroups_dp3", 3),
    Real("ds_z1_bf16opt_dp3", 1),
    Real("ds_z2_roundrobin_dp2", 2),
)

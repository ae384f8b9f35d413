"""Settings that span several arguments or several entries: the activation, and the sliding window."""

# ruff: noqa: D102 - Setting documents the methods.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamconv.models.config.checks import count, number, text
from streamconv.models.config.settings import Args, Config, Setting
from streamconv.models.parameter import ModelSizes

__all__ = ["Activation", "HardWiredGelu", "Window", "activation_of"]

# transformers ``activations.py``: ACT2CLS. gelu_10 clips, quick_gelu is a sigmoid: Megatron has neither.
_FUNCTIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "relu2": "relu2",
}
_ARGS = {
    "gelu": {"bias_gelu_fusion": False, "openai_gelu": False, "onnx_safe": None},
    "gelu_new": {"bias_gelu_fusion": True, "openai_gelu": False, "onnx_safe": None},
    "relu2": {"bias_gelu_fusion": False, "openai_gelu": False, "onnx_safe": None, "squared_relu": True},
}


def activation_of(args: Args) -> str | None:
    """The activation of a run without a gated linear unit, by transformers' name: ``gelu`` (erf), ``gelu_new`` (the
    tanh approximation) or ``relu2``; None if the arguments do not determine it.

    [``megatron/model/transformer.py:ParallelMLP`` of both forks] The fused function
    [``megatron/model/fused_bias_gelu.py``] and ``openai_gelu`` [``megatron/model/utils.py``] are the tanh
    approximation; ``F.gelu`` and ``erf_gelu`` are erf. deepspeedai's fork (4efb479) fuses only if the layers have
    biases and no other function is chosen; bigscience's (8387ae1) fuses whichever function is chosen.
    """
    fused = args.get("bias_gelu_fusion")
    if "glu_activation" in args:
        if fused or args.get("openai_gelu"):
            return "gelu_new"
        return None if fused is None else "gelu"
    if args.get("openai_gelu"):
        return "gelu_new"
    if args.get("onnx_safe"):
        return "gelu"
    if args.get("squared_relu"):
        return "relu2"
    if fused is None:
        return None
    return "gelu_new" if fused and args.get("add_bias_linear") is not False else "gelu"


@dataclass(frozen=True)
class Activation(Setting):
    """The activation of an MLP that is not gated, and its default in transformers."""

    entry: str
    default: str

    @property
    def entries(self) -> tuple[str, ...]:
        return (self.entry,)

    @property
    def asks(self) -> tuple[str, ...]:
        return self.entries

    def read(self, config: Config) -> dict[str, Any]:
        said = config.get(self.entry)
        return {} if said is None else {self.entry: _FUNCTIONS.get(text(self.entry, said), said)}

    def defaults(self, config: Config, known: Config) -> dict[str, Any]:
        return {self.entry: self.default}

    def to_args(self, known: Config) -> dict[str, Any]:
        return dict(_ARGS.get(known.get(self.entry, ""), {}))

    def refusals(self, known: Config) -> Iterator[str]:
        if self.entry in known and known[self.entry] not in _FUNCTIONS:
            yield f"{self.entry} {known[self.entry]!r}"

    def to_config(self, args: Args) -> dict[str, Any]:
        function = activation_of(args)
        return {} if function is None else {self.entry: function}


@dataclass(frozen=True)
class HardWiredGelu(Setting):
    """BLOOM's activation, which transformers has no entry for: ``models/bloom/modeling_bloom.py:BloomGelu``, tanh."""

    def to_args(self, known: Config) -> dict[str, Any]:
        return dict(_ARGS["gelu_new"])

    def objections(self, args: Args, sizes: ModelSizes, known: Config) -> Iterator[str]:
        if activation_of(args) == "relu2":
            yield "args.squared_relu True: transformers' model computes GELU"

    def warnings(self, args: Args) -> Iterator[str]:
        function = activation_of(args)
        if function == "gelu_new":
            return
        run = "args say that the run computed it with erf" if function else "nothing says which one the run computed"
        # The largest difference of the two, at 2.699, in float64.
        yield (
            f"GELU: transformers' BLOOM has the tanh approximation wired in (BloomGelu), {run}: activations differ "
            "by up to 4.73e-4 (at inputs of +-2.7). For erf, set block.mlp.gelu_impl = torch.nn.GELU() in each block"
        )


# A key of our own, no entry of config.json: only some of the layers have the window.
_IN_SOME = "sliding_window in some layers"


@dataclass(frozen=True, kw_only=True)
class Window(Setting):
    """A sliding window over positions, which neither Megatron-DeepSpeed fork has.

    Mistral's models have one unless ``sliding_window`` is null. Qwen's are ``switched``: they have one, in some layers,
    if ``use_sliding_window`` is true.
    """

    default: int | None
    switched: bool = False

    @property
    def entries(self) -> tuple[str, ...]:
        return ("sliding_window",)

    @property
    def asks(self) -> tuple[str, ...]:
        return () if self.switched else self.entries

    def read(self, config: Config) -> dict[str, Any]:
        if self.switched and "use_sliding_window" not in config:
            return {}
        sliding = {True}
        if self.switched:
            sliding = _sliding_layers(config) if config["use_sliding_window"] else {False}
        if sliding == {False}:
            return {"sliding_window": None}
        in_some = {_IN_SOME: True} if len(sliding) > 1 else {}
        if "sliding_window" not in config:
            return {"sliding_window": self.default, **in_some} if self.switched else {}
        said = config["sliding_window"]
        return {"sliding_window": None if said is None else count("sliding_window", said), **in_some}

    def defaults(self, config: Config, known: Config) -> dict[str, Any]:
        return {"sliding_window": None if self.switched else self.default}

    def to_args(self, known: Config) -> dict[str, Any]:
        """No fork has this argument. It keeps the window when a configuration goes to arguments and back."""
        return {"sliding_window": known["sliding_window"]} if known.get("sliding_window") else {}

    def refusals(self, known: Config) -> Iterator[str]:
        window, positions = known.get("sliding_window"), known.get("max_position_embeddings")
        if window is not None and (positions is None or window < positions):
            some = " in some of the layers" if known.get(_IN_SOME) else ""
            yield f"sliding_window {window} (of {positions or 'unknown'} positions){some}"

    def core_refusals(self, known: Config) -> Iterator[str]:
        """A window in only some of the layers: Megatron-Core's ``window_attn_skip_freq`` is not written."""
        return self.refusals(known) if known.get(_IN_SOME) else iter(())

    def to_config(self, args: Args) -> dict[str, Any]:
        return {"sliding_window": args.get("sliding_window")} if args else {}

    def write(self, known: Config) -> dict[str, Any]:
        if "sliding_window" not in known:
            return {}
        window = known["sliding_window"]
        switch: dict[str, Any] = {"use_sliding_window": window is not None} if self.switched else {}
        if self.switched and window is not None and not known.get(_IN_SOME):
            switch |= {"max_window_layers": 0}
        return {"sliding_window": window, **switch}


def _sliding_layers(config: Config) -> set[bool]:
    """``{True}`` if all layers have the window, ``{False}`` if none has, both values if only some have.

    [``models/qwen2/configuration_qwen2.py:__post_init__``] By default there are 32 layers, the first 28 without it.
    """
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and kinds:
        return {kind == "sliding_attention" for kind in kinds}
    layers, below = config.get("num_hidden_layers", 32), config.get("max_window_layers", 28)
    first = number("max_window_layers", below)
    if 0 < first < number("num_hidden_layers", layers):
        return {True, False}
    return {not first}

"""What is refused of adapters, by name and before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import AmbiguousError, DamagedError, DestinationError, StreamconvError, UnsupportedError, UsageError
from tests.kept import Tensors, assert_same, kept, written
from tests.making.adapters import in_file, thin, uneven, write_adapter, write_base
from tests.making.zero import Run, write_run
from tests.making.zero_values import Model, Parameter
from tests.stored import counted
from tests.trees import tree

PEFT = "base_model.model."
Q = f"{PEFT}layers.0.q."
WEIGHT = "layers.0.q.weight"


def refused(tmp_path: Path, adapter: Tensors, whole: Tensors | None = None, **changes: Any) -> StreamconvError:
    """The error of a merge, which has written nothing."""
    write_adapter(tmp_path / "adapter", adapter, **changes)
    write_base(tmp_path / "base", whole or {"layers.0.q.weight": uneven(5, 6)})
    with pytest.raises(StreamconvError) as caught:
        kept(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base")
    assert not written(tmp_path / "out")
    return caught.value


USUAL = in_file({"layers.0.q": thin(5, 6)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "an adapter with use_dora is not merged"),
        ({"lora_bias": True}, "an adapter with lora_bias is not merged"),
        ({"use_qalora": True}, "an adapter with use_qalora is not merged"),
        ({"use_bdlora": {"target": "q"}}, "an adapter with use_bdlora is not merged"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "an adapter with layer_replication is not merged"),
        ({"target_parameters": ["experts.up"]}, "an adapter with target_parameters is not merged"),
        ({"trainable_token_indices": [0, 3]}, "an adapter with trainable_token_indices is not merged"),
        *(
            (
                {"init_lora_weights": how},
                f"an adapter that began as {how!r} (init_lora_weights) is not merged: it took a part out of the base",
            )
            for how in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", 1, [True])
        ),
        ({"peft_type": "IA3"}, "an adapter of the kind 'IA3' is not merged"),
        ({"peft_type": None}, "an adapter of the kind None is not merged"),
    ],
)
def test_a_kind_that_is_computed_otherwise_is_refused_by_name(changes: Any, words: str, tmp_path: Path) -> None:
    error = refused(tmp_path, USUAL, **changes)
    assert type(error) is UnsupportedError
    assert (error.what, error.where) == (words, str(tmp_path / "adapter"))


@pytest.mark.parametrize("end", ["lora_magnitude_vector", "lora_B.bias"])
def test_tensors_of_other_kinds_are_refused_by_name_whatever_the_configuration_says(end: str, tmp_path: Path) -> None:
    name = f"{Q}{end}"
    error = refused(tmp_path, {**USUAL, name: uneven(5)})
    assert type(error) is UnsupportedError
    assert error.what == f"{name}: an adapter with {end} is not merged"


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ({"layers.1.q.weight": uneven(5, 6)}, "the base lacks layers.0.q.weight, for which the adapter has [5, 6]"),
        (
            {"layers.0.q.weight": uneven(6, 5)},
            "the base has [6, 5] of layers.0.q.weight, for which the adapter has [5, 6]",
        ),
        ({WEIGHT: uneven(30)}, "the base has [30] of layers.0.q.weight, for which the adapter has [5, 6]"),
    ],
    ids=["lacks-it", "turned", "flat"],
)
def test_a_base_that_does_not_fit_is_refused(whole: Tensors, words: str, tmp_path: Path) -> None:
    error = refused(tmp_path, USUAL, whole)
    assert (type(error), error.what, error.where) == (DamagedError, words, str(tmp_path / "base"))
    assert error.remedy == f"give the model that the adapter was trained on ({tmp_path / 'adapter'})"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_a_quantised_base_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    error = refused(tmp_path, USUAL, {WEIGHT: counted(5, 6, dtype=dtype)})
    assert type(error) is UnsupportedError


def test_a_whole_module_of_another_shape_is_refused(tmp_path: Path) -> None:
    whole = {"layers.0.q.weight": uneven(5, 6), "head.weight": uneven(7, 6)}
    error = refused(tmp_path, in_file({"layers.0.q": thin(5, 6)}, {"head.weight": uneven(8, 6)}), whole)
    assert error.what == "the base has [7, 6] of head.weight, for which the adapter has [8, 6]"


@pytest.mark.parametrize(
    ("adapter", "changes", "words"),
    [
        (
            {f"{PEFT}layers.0.q.lora_A.weight": uneven(2, 6)},
            {},
            "the adapter's A or B for layers.0.q.weight is missing",
        ),
        (
            {**USUAL, f"{Q}lora_B.weight": uneven(5, 3)},
            {},
            "A and B for layers.0.q.weight have the shapes",
        ),
        ({**USUAL, f"{Q}lora_B.weight": uneven(5, 2, 1)}, {}, "A and B for layers.0.q.weight have the shapes"),
        (USUAL, {"r": 4}, "adapter_config.json says rank 4 and alpha 3 for layers.0.q, whose A has 2 rows"),
        (USUAL, {"lora_alpha": None}, "adapter_config.json says rank 2 and alpha None"),
        (USUAL, {"lora_alpha": True}, "adapter_config.json says rank 2 and alpha True"),
        (USUAL, {"lora_alpha": "3"}, "adapter_config.json says rank 2 and alpha '3'"),
        (USUAL, {"rank_pattern": {"q": 3}}, "adapter_config.json says rank 3"),
        (USUAL, {"r": 2.0}, "adapter_config.json says rank 2.0"),
        (
            {f"{Q}lora_A.weight": uneven(0, 6), f"{Q}lora_B.weight": uneven(5, 0)},
            {"r": 0},
            "adapter_config.json says rank 0",
        ),
        (USUAL, {"lora_alpha": 10**400}, "adapter_config.json says alpha 1000"),
        (USUAL, {"lora_alpha": float("nan")}, "adapter_config.json says alpha nan"),
        (USUAL, {"lora_alpha": 1e300}, "adapter_config.json says alpha 1e+300"),
        ({**USUAL, f"{Q}lora_A.b.weight": uneven(2, 6)}, {}, "two tensors of the adapter are"),
        (
            {**USUAL, f"{PEFT}layers.0.q.base_layer.weight": uneven(5, 6), WEIGHT: uneven(5, 6)},
            {},
            "two tensors of the adapter are layers.0.q.weight",
        ),
    ],
    ids=[
        "no-B",
        "ranks",
        "axes",
        "rank",
        "no-alpha",
        "bool",
        "text",
        "pattern",
        "a-float",
        "nothing",
        "endless",
        "no-number",
        "beyond-fp32",
        "two-halves",
        "two-wholes",
    ],
)
def test_an_adapter_that_contradicts_itself_is_refused(
    adapter: Tensors, changes: Any, words: str, tmp_path: Path
) -> None:
    error = refused(tmp_path, adapter, **changes)
    assert type(error) is DamagedError
    assert words in error.what


@pytest.mark.parametrize("pattern", ["(a+)+q", "x" * 300, "*q", ".*" * 60 + "x", "a{99999999999999}"])
def test_patterns_that_could_take_forever_or_are_none_are_refused(pattern: str, tmp_path: Path) -> None:
    error = refused(tmp_path, USUAL, alpha_pattern={pattern: 8})
    assert type(error) is UnsupportedError
    assert "adapter_config.json" in error.what


def test_trained_tokens_are_refused_by_name(tmp_path: Path) -> None:
    name = f"{PEFT}embed.token_adapter.trainable_tokens_delta"
    error = refused(tmp_path, {**USUAL, name: uneven(2, 6)})
    assert type(error) is UnsupportedError
    assert error.what == f"{name}: an adapter with trained tokens is not merged"


@pytest.mark.parametrize("how", [None, True, False, "gaussian", "orthogonal", "eva"])
def test_ways_to_begin_that_leave_the_base_as_it_is_are_merged(how: object, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", USUAL, init_lora_weights=how)
    write_base(tmp_path / "base", {WEIGHT: uneven(5, 6)})
    assert WEIGHT in kept(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base")


def test_without_a_configuration_nothing_says_the_scale(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", USUAL)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    write_base(tmp_path / "base", {"layers.0.q.weight": uneven(5, 6)})
    with pytest.raises(UnsupportedError, match="nothing says its scale"):
        kept(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_configuration_that_is_none_is_damage(text: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", USUAL)
    (tmp_path / "adapter" / "adapter_config.json").write_text(text)
    with pytest.raises(DamagedError):
        kept(tmp_path / "adapter", tmp_path / "out")


def test_several_adapters_are_ambiguous(tmp_path: Path) -> None:
    torch.save({f"{PEFT}q.lora_A.{name}.weight": uneven(2, 6) for name in ("first", "second")}, tmp_path / "in.pt")
    with pytest.raises(AmbiguousError, match="2 adapters are there: first, second"):
        kept(tmp_path / "in.pt", tmp_path / "out")


def test_a_base_without_an_adapter_to_merge_is_refused(tmp_path: Path) -> None:
    for name in ("in", "base"):
        write_base(tmp_path / name, {"w": uneven(3)})
    with pytest.raises(UsageError, match="there is no adapter to merge"):
        kept(tmp_path / "in", tmp_path / "out", base=tmp_path / "base")


def test_a_weight_that_is_tied_is_not_changed_behind_the_other_name(tmp_path: Path) -> None:
    """The tied head of the base shares the embedding that the adapter changes."""
    model = Model((Parameter("embed.weight", (7, 5)), Parameter("head.weight", (7, 5), shares="embed.weight")), ())
    write_run(tmp_path / "base", Run(stage=2), model)
    write_adapter(tmp_path / "adapter", in_file({"head": thin(7, 5)}))
    with pytest.raises(UnsupportedError, match=r"changes embed\.weight, which head\.weight shares"):
        kept(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base")


# -- the destination ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["base", "adapter", "base/inside"])
def test_neither_the_base_nor_the_adapter_is_ever_written(place: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", USUAL)
    write_base(tmp_path / "base", {WEIGHT: uneven(5, 6)})
    before = tree(tmp_path)
    with pytest.raises(DestinationError):
        kept(tmp_path / "adapter", tmp_path / place, base=tmp_path / "base", overwrite=True)
    assert tree(tmp_path) == before


def test_another_scale_or_another_base_is_another_conversion(tmp_path: Path) -> None:
    """The result of the first is not taken for that of the second."""
    write_adapter(tmp_path / "adapter", USUAL)
    write_base(tmp_path / "base", {WEIGHT: uneven(5, 6)})
    first = kept(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base")
    assert_same(kept(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base"), first)
    write_base(tmp_path / "other", {WEIGHT: uneven(5, 6, start=3)})
    write_adapter(tmp_path / "scaled", USUAL, lora_alpha=5)
    for adapter, base in (("adapter", "other"), ("scaled", "base")):
        with pytest.raises(DestinationError, match="the destination holds a checkpoint"):
            kept(tmp_path / adapter, tmp_path / "out", base=tmp_path / base)
        again = kept(tmp_path / adapter, tmp_path / f"{adapter}-{base}", base=tmp_path / base)
        assert not torch.equal(again[WEIGHT], first[WEIGHT])

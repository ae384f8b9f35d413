"""An adapter merged into its base is base + scale * B @ A: the product and the sum in fp32, and one rounding.

That is what peft's ``merge_and_unload`` makes of an adapter whose matrices it has loaded in fp32 [``peft/tuners/lora/
layer.py:Linear.merge``]; here torch computes it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import UsageError, stream
from tests.kept import Tensors, assert_same, kept
from tests.making.adapters import Thin, in_file, thin, uneven, write_adapter, write_base

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def base(dtype: torch.dtype = torch.float32) -> Tensors:
    return {
        "embed.weight": uneven(7, 6, dtype=dtype),
        "layers.0.q.weight": uneven(5, 6, start=42, dtype=dtype),
        "layers.0.k.weight": uneven(3, 6, start=72, dtype=dtype),
        "layers.1.q.weight": uneven(5, 6, start=90, dtype=dtype),
        "layers.1.q.bias": uneven(5, start=120, dtype=dtype),
        "head.weight": uneven(7, 6, start=125, dtype=dtype),
    }


def added(weight: torch.Tensor, update: torch.Tensor, scale: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The formula: ``dtype`` is that of the result, as whose the base is loaded."""
    loaded = weight.to(dtype or weight.dtype)
    return (loaded.float() + update * scale).to(loaded.dtype)


def merged(tmp_path: Path, adapter: Tensors, whole: Tensors, to: str = "safetensors", **changes: Any) -> Tensors:
    write_adapter(tmp_path / "adapter", adapter, **changes)
    write_base(tmp_path / "base", whole)
    return kept(tmp_path / "adapter", tmp_path / "out", to, base=tmp_path / "base")


@pytest.mark.parametrize("result", [None, "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("of_adapter", ["fp32", "bf16"])
@pytest.mark.parametrize("of_base", ["fp32", "bf16", "fp16"])
def test_the_sum_is_in_fp32_and_rounded_once(of_base: str, of_adapter: str, result: str | None, tmp_path: Path) -> None:
    whole = base(DTYPES[of_base])
    pairs = {"layers.0.q": thin(5, 6), "layers.1.q": thin(5, 6)}
    write_adapter(tmp_path / "adapter", in_file({name: p.to(DTYPES[of_adapter]) for name, p in pairs.items()}))
    write_base(tmp_path / "base", whole)
    dtype = None if result is None else DTYPES[result]
    how = {} if result is None else {"dtype": result}
    found = kept(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base", **how)
    wanted = {name: tensor.to(dtype or tensor.dtype) for name, tensor in whole.items()}
    for name, pair in pairs.items():
        wanted[f"{name}.weight"] = added(whole[f"{name}.weight"], pair.product, 1.5, dtype)
    assert_same(found, wanted)


@pytest.mark.parametrize("to", ["safetensors", "pytorch-bin"])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_containers_do_not_matter(to: str, name: str, tmp_path: Path) -> None:
    whole, pair = base(), thin(3, 6)
    write_adapter(tmp_path / "adapter", in_file({"layers.0.k": pair}), name)
    write_base(tmp_path / "base", whole)
    found = kept(tmp_path / "adapter", tmp_path / "out", to, base=tmp_path / "base")
    assert_same(found, whole | {"layers.0.k.weight": added(whole["layers.0.k.weight"], pair.product, 1.5)})


def test_rslora_divides_by_the_root_of_the_rank(tmp_path: Path) -> None:
    whole, pair = base(), thin(5, 6, rank=3)
    found = merged(tmp_path, in_file({"layers.0.q": pair}), whole, r=3, lora_alpha=7, use_rslora=True)
    wanted = added(whole["layers.0.q.weight"], pair.product, 7 / math.sqrt(3))
    assert_same(found, whole | {"layers.0.q.weight": wanted})


def test_ranks_and_alphas_of_single_modules_are_taken_by_pattern(tmp_path: Path) -> None:
    """A pattern is what a module's name ends with, from a dot on; the first that fits counts."""
    whole = base()
    pairs = {"layers.0.q": thin(5, 6, 4), "layers.0.k": thin(3, 6, 2), "layers.1.q": thin(5, 6, 3)}
    ranks = {"layers.1.q": 3, "q": 4}
    alphas = {"layers.*.k": 10, "0.q": 5, ".*": 2}
    found = merged(tmp_path, in_file(pairs), whole, lora_alpha=100, rank_pattern=ranks, alpha_pattern=alphas)
    scales = {"layers.0.q": 5 / 4, "layers.0.k": 10 / 2, "layers.1.q": 2 / 3}
    for name, pair in pairs.items():
        whole[f"{name}.weight"] = added(whole[f"{name}.weight"], pair.product, scales[name])
    assert_same(found, whole)


def test_a_pattern_is_no_middle_of_a_word(tmp_path: Path) -> None:
    whole = {"a.qq.weight": uneven(5, 6), "a.q.weight": uneven(5, 6, start=30)}
    pairs = {"a.qq": thin(5, 6), "a.q": thin(5, 6)}
    found = merged(tmp_path, in_file(pairs), dict(whole), alpha_pattern={"q": 8})
    assert torch.equal(found["a.q.weight"], added(whole["a.q.weight"], pairs["a.q"].product, 4))
    assert torch.equal(found["a.qq.weight"], added(whole["a.qq.weight"], pairs["a.qq"].product, 1.5))


@pytest.mark.parametrize("shape", [(6, 5), (5, 5)], ids=["oblong", "square"])
def test_matrices_that_are_stored_in_out_get_the_transpose(shape: tuple[int, int], tmp_path: Path) -> None:
    """GPT-2's Conv1D: the module has ``in`` rows, B the outputs."""
    columns, rows = shape
    whole, pair = {"h.0.c_attn.weight": uneven(columns, rows)}, thin(rows, columns)
    found = merged(tmp_path, in_file({"h.0.c_attn": pair}), whole, fan_in_fan_out=True)
    assert_same(found, {"h.0.c_attn.weight": added(whole["h.0.c_attn.weight"], pair.product.T, 1.5)})


def embeds(module: str, pair: Thin) -> Tensors:
    """An embedding's adapter: its names have no ``weight`` behind them, and A has a column for each word."""
    start = f"base_model.model.{module}.lora_embedding_"
    return {f"{start}A": pair.a, f"{start}B": pair.b}


def test_an_embedding_gets_the_transpose(tmp_path: Path) -> None:
    whole, pair, other = base(), thin(6, 7), thin(5, 6)
    found = merged(tmp_path, embeds("embed", pair) | in_file({"layers.0.q": other}), whole)
    wanted = whole | {"embed.weight": added(whole["embed.weight"], pair.product.T, 1.5)}
    assert_same(found, wanted | {"layers.0.q.weight": added(whole["layers.0.q.weight"], other.product, 1.5)})


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_whole_modules_are_replaced_in_the_dtype_of_the_base_or_the_one_that_is_asked_for(
    dtype: str | None, tmp_path: Path
) -> None:
    whole, new = base(torch.float16), uneven(7, 6, start=1000)
    adapter = in_file({"layers.0.q": thin(5, 6)}, {"head.weight": new})
    write_adapter(tmp_path / "adapter", adapter, modules_to_save=["head"])
    write_base(tmp_path / "base", whole)
    found = kept(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base", **({"dtype": dtype} if dtype else {}))
    assert torch.equal(found["head.weight"], new.to(torch.bfloat16 if dtype else torch.float16))
    assert torch.equal(found["embed.weight"], whole["embed.weight"].to(found["embed.weight"].dtype))


def test_what_is_trained_beside_whole_modules_and_embeddings_is_merged(tmp_path: Path) -> None:
    """peft saves the weight of an embedding that has an adapter too, under the name of its base layer."""
    whole, pair, new = base(), thin(6, 7), uneven(7, 6, start=1000)
    adapter = embeds("embed", pair) | in_file(
        {}, {"head.weight": new, "embed.base_layer.weight": whole["embed.weight"]}
    )
    found = merged(tmp_path, adapter, whole, modules_to_save=["head"])
    wanted = whole | {"embed.weight": added(whole["embed.weight"], pair.product.T, 1.5), "head.weight": new}
    assert_same(found, wanted)


@pytest.mark.parametrize("which", ["all", "lora_only"])
def test_biases_that_were_trained_are_the_adapters(which: str, tmp_path: Path) -> None:
    whole, pair = base(), thin(5, 6)
    whole["layers.1.k.bias"] = uneven(3, start=200)
    bias, other = uneven(5, start=1000), uneven(3, start=1005)
    more = {"layers.1.q.base_layer.bias": bias, **({"layers.1.k.bias": other} if which == "all" else {})}
    found = merged(tmp_path, in_file({"layers.1.q": pair}, more), whole, bias=which)
    wanted = whole | {
        "layers.1.q.weight": added(whole["layers.1.q.weight"], pair.product, 1.5),
        "layers.1.q.bias": bias,
    }
    assert_same(found, wanted | ({"layers.1.k.bias": other} if which == "all" else {}))


def test_the_merged_model_may_be_selected_from_and_renamed(tmp_path: Path) -> None:
    whole, pair = base(), thin(5, 6)
    write_adapter(tmp_path / "adapter", in_file({"layers.0.q": pair, "layers.1.q": thin(5, 6)}))
    write_base(tmp_path / "base", whole)
    how: dict[str, Any] = {"tensors": ["layers.*"], "skip": "*.1.q.weight", "rename": {"layers.*.q.*": "h.*.q.*"}}
    found = kept(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base", **how)
    wanted = {
        "h.0.q.weight": added(whole["layers.0.q.weight"], pair.product, 1.5),
        "h.1.q.bias": whole["layers.1.q.bias"],
    }
    assert_same(found, wanted | {"layers.0.k.weight": whole["layers.0.k.weight"]})


def test_a_base_of_double_precision_keeps_it(tmp_path: Path) -> None:
    whole, pair = base(torch.float64), thin(5, 6)
    found = merged(tmp_path, in_file({"layers.0.q": pair}), whole)["layers.0.q.weight"]
    assert torch.equal(found, whole["layers.0.q.weight"] + pair.product.double() * 1.5)


def test_a_stream_has_what_a_conversion_writes(tmp_path: Path) -> None:
    whole, pair = base(torch.bfloat16), thin(5, 6)
    write_adapter(tmp_path / "adapter", in_file({"layers.0.q": pair}))
    write_base(tmp_path / "base", whole)
    where: Any = {"to": "safetensors", "max_ram": "1G", "base": tmp_path / "base"}
    found = {each.name: each.tensor.clone() for each in stream(tmp_path / "adapter", **where)}
    assert_same(found, kept(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base"))


BANDS = [
    pytest.param(90, 700, 16, False, id="wide"),
    pytest.param(700, 90, 16, True, id="transposed"),
    pytest.param(200, 300, 64, False, id="many-ranks"),
    pytest.param(200, 300, 64, True, id="many-ranks-transposed"),
]


@pytest.mark.parametrize(("rows", "columns", "rank", "transposed"), BANDS)
def test_every_size_of_blocks_gives_the_same_bytes(
    rows: int, columns: int, rank: int, transposed: bool, tmp_path: Path
) -> None:
    """Random numbers, whose sums depend on their order: the order must not depend on the band of rows."""
    generator = torch.Generator().manual_seed(0)
    shape = (columns, rows) if transposed else (rows, columns)
    whole = {"w.weight": torch.randn(shape, generator=generator)}
    pair = Thin(torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator))
    write_adapter(tmp_path / "adapter", in_file({"w": pair}), r=rank, fan_in_fan_out=transposed)
    write_base(tmp_path / "base", whole)
    found = kept(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base")["w.weight"]
    product = pair.product.T if transposed else pair.product
    assert torch.allclose(found, whole["w.weight"] + product * (3 / rank), rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError) as caught:
        kept(tmp_path / "adapter", tmp_path / "small", base=tmp_path / "base", block_size="64K")
    (least,) = re.findall(r"([0-9]+)K", str(caught.value.remedy))
    for size in (int(least), int(least) + 28, 2 * int(least)):
        how: dict[str, Any] = {"block_size": f"{size}K", "jobs": 1 + size % 3}
        again = kept(tmp_path / "adapter", tmp_path / f"{size}", base=tmp_path / "base", **how)["w.weight"]
        assert torch.equal(again, found), f"blocks of {size} KiB: {int((again != found).sum())} elements"

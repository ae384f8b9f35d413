"""What DeepSpeed's file names say, in all spellings that it has had."""

from __future__ import annotations

import pytest

from streamconv.formats.deepspeed.names import FileKind, FileName, layer_file, parse_name, parse_names, rank_file


@pytest.mark.parametrize(
    ("name", "kind", "prefix", "first", "second"),
    [
        ("layer_03-model_01-model_states.pt", FileKind.LAYER, "layer_", 3, 1),
        ("layer_103-model_12-model_states.pt", FileKind.LAYER, "layer_", 103, 12),
        ("layer_03-model_states.pt", FileKind.LAYER, "layer_", 3, 0),
        ("mp_rank_07_model_states.pt", FileKind.RANK, "mp_rank_", 7, 0),
        ("zero_pp_rank_5_mp_rank_02_optim_states.pt", FileKind.OPTIMIZER, "zero_pp_rank_", 5, 2),
        ("zero_pp_rank_5_mp_rank_02optim_states.pt", FileKind.OPTIMIZER, "zero_pp_rank_", 5, 2),
        ("bf16_zero_pp_rank_15_mp_rank_00_optim_states.pt", FileKind.OPTIMIZER, "bf16_zero_pp_rank_", 15, 0),
        ("zero_pp_rank_1_mp_rank_00_model_states.pt", FileKind.ZERO3, "zero_pp_rank_", 1, 0),
    ],
)
def test_a_name_says_whose_file_it_is(name: str, kind: FileKind, prefix: str, first: int, second: int) -> None:
    assert parse_name(name) == FileName(kind, prefix, first, second)


@pytest.mark.parametrize(
    "name",
    [
        "latest",
        "layer_3_expert_0_mp_rank_00_model_states.pt",
        "expp_rank_0_mp_rank_00_optim_states.pt",
        "layer_03-model_01-model_states.pt.tmp",
        "mp_rank_00",
        f"layer_{'9' * 30}-model_00-model_states.pt",
    ],
)
def test_other_names_are_nobodys(name: str) -> None:
    assert parse_name(name) is None


def test_a_folder_is_sorted_by_what_its_names_say() -> None:
    twins = ("layer_05-model_00-model_states.pt", "layer_5-model_00-model_states.pt")
    names = parse_names(
        [
            "zero_pp_rank_3_mp_rank_01_optim_states.pt",
            *reversed(twins),
            layer_file(12, 1),
            rank_file(5),
            "zero_to_fp32.py",
        ]
    )
    assert names.layers == {(5, 0): twins[0], (12, 1): "layer_12-model_01-model_states.pt"}
    assert names.ranks == {5: "mp_rank_05_model_states.pt"}
    assert (names.tp, names.dp, names.model_ranks, names.layer_indices) == (2, 4, 6, [5, 12])
    assert names.others == ("zero_to_fp32.py",)
    assert names.twins == (twins,)


def test_names_that_are_written_are_read_back() -> None:
    for layer, rank in ((1, 0), (9, 10), (100, 8)):
        assert parse_names([layer_file(layer, rank)]).layers == {(layer, rank): layer_file(layer, rank)}
        assert parse_names([rank_file(layer)]).ranks == {layer: rank_file(layer)}

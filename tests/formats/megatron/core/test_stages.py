"""Stages of unequal length: where the layers are, and the flags that tell Megatron-LM of it."""

from __future__ import annotations

import re
import shlex
from itertools import product
from pathlib import Path

import pytest

from streamconv import plan
from streamconv.planning.plan import Plan
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.models import MULTIPLE, Stored, case_of, to_torch
from tests.formats.megatron.rank_files import Cut

GPT, LLAMA = case_of("gpt"), case_of("llama", head=True)
FLAGS = "flags for Megatron-LM: "
FIRST, LAST, LAYOUT = (
    "--decoder-first-pipeline-num-layers",
    "--decoder-last-pipeline-num-layers",
    "--pipeline-model-parallel-layout",
)
EACH, VIRTUAL = "--num-layers-per-virtual-pipeline-stage", "--num-virtual-stages-per-pipeline-rank"


def flags_of(work: Plan) -> dict[str, str]:
    """The flags that a plan prints, with their values, as a shell takes them."""
    (words,) = [fact.what.removeprefix(FLAGS) for fact in work.notes if fact.what.startswith(FLAGS)]
    words = " ".join(shlex.split(words))
    return dict(re.findall(r"(--[a-z0-9-]+)(?: (?!--)(\S+))?", words))


def asked(source: Path, stages: tuple[int, ...], vpp: int = 1, container: str = "torch") -> Plan:
    """The plan for these stages."""
    return plan(source, to="megatron-core", container=container, pp_layers=stages, vpp=vpp)


def by_megatron(flags: dict[str, str], pp: int, num_layers: int = 12) -> list[tuple[int, ...]]:
    """The layers of the chunks of each stage that Megatron-LM makes of the flags.

    ``transformer_layer.py:get_transformer_layer_offset``, ``transformer_block.py:get_num_layers_to_build``,
    ``pipeline_parallel_layer_layout.py``: of a layout the words of all stages' chunk 0 come first.
    """
    if LAYOUT in flags:
        words = flags[LAYOUT].split("|")
        assert words[0].startswith("E")
        assert words[-1].endswith("L")
        return [tuple(word.count("t") for word in words[stage::pp]) for stage in range(pp)]
    ends = {0: flags.get(FIRST), pp - 1: flags.get(LAST)}
    fixed = {stage: int(said) for stage, said in ends.items() if said is not None}
    share, rest = divmod(num_layers - sum(fixed.values()), (pp - len(fixed)) or 1)
    assert rest == 0
    stages = [fixed.get(stage, share) for stage in range(pp)]
    assert sum(stages) == num_layers
    vpp = stages[0] // int(flags[EACH]) if EACH in flags else int(flags.get(VIRTUAL, 1))
    assert not any(layers % vpp for layers in stages)
    return [(layers // vpp,) * vpp for layers in stages]


# Every way to cut 12 layers over up to four stages.
ALL = [stages for pp in (1, 2, 3, 4) for stages in product(range(1, 13), repeat=pp) if sum(stages) == 12]


@pytest.mark.slow
def test_flags_mean_the_stages_that_are_written(stored: Stored) -> None:
    """For every cut a plan is not made: what it prints of them is looked at for each kind of cut."""
    kinds = {(len(stages), len(set(stages)), len(set(stages[1:-1])), stages[0] == stages[-1]): stages for stages in ALL}
    assert len(kinds) > 12
    for stages in kinds.values():
        for vpp in (1, 2):
            if vpp == 1 or (len(stages) > 1 and not any(layers % 2 for layers in stages)):
                flags = flags_of(asked(stored(GPT), stages, vpp))
                expected = [(layers // vpp,) * vpp for layers in stages]
                assert by_megatron(flags, len(stages)) == expected, (stages, vpp, flags)


@pytest.mark.parametrize(
    ("stages", "vpp", "expected"),
    [
        ((12,), 1, {}),
        ((6, 6), 1, {}),
        ((6, 6), 3, {EACH: "2"}),
        ((4, 4, 4), 4, {EACH: "1"}),
        ((2, 5, 5), 1, {FIRST: "2"}),
        ((5, 5, 2), 1, {LAST: "2"}),
        ((5, 3, 4), 1, {FIRST: "5", LAST: "4"}),
        ((3, 6, 3), 1, {FIRST: "3", LAST: "3"}),
        ((1, 5, 5, 1), 1, {FIRST: "1", LAST: "1"}),
        ((2, 4, 6), 2, {FIRST: "2", LAST: "6", VIRTUAL: "2"}),
        ((4, 4, 2, 2), 2, {LAYOUT: "Ett|tt|t|t|tt|tt|t|tL"}),
        ((2, 2, 6, 2), 2, {LAYOUT: "Et|t|ttt|t|t|t|ttt|tL"}),
        ((3, 3, 4, 2), 1, {LAYOUT: "Ettt|ttt|tttt|ttL"}),
        ((4, 1, 2, 1, 4), 1, {LAYOUT: "Etttt|t|tt|t|ttttL"}),
    ],
    ids=str,
)
def test_the_printed_flags(stages: tuple[int, ...], vpp: int, expected: dict[str, str], stored: Stored) -> None:
    """The ends have flags of their own; any other cut is a layout, which says the virtual stages too."""
    work = asked(stored(GPT), stages, vpp)
    flags = flags_of(work)
    assert {name: value for name, value in flags.items() if name in (FIRST, LAST, LAYOUT, EACH, VIRTUAL)} == expected
    assert flags["--pipeline-model-parallel-size"] == str(len(stages))
    assert flags["--ckpt-format"] == "torch"
    assert {"--use-checkpoint-args", "--no-load-optim", "--no-load-rng"} <= set(flags)


def test_two_stages_of_unequal_length(stored: Stored) -> None:
    """One of the ends is enough to say it, and both say the same."""
    flags = flags_of(asked(stored(GPT), (7, 5)))
    assert flags.get(FIRST, "7") == "7"
    assert flags.get(LAST, "5") == "5"
    assert {FIRST, LAST} & set(flags)
    assert LAYOUT not in flags


def test_torch_dist_has_no_flags_of_stages(stored: Stored) -> None:
    """Who reads it cuts it."""
    flags = flags_of(asked(stored(GPT), (3, 3, 4, 2), container="torch_dist"))
    assert flags["--ckpt-format"] == "torch_dist"
    assert not {FIRST, LAST, LAYOUT, "--pipeline-model-parallel-size", "--tensor-model-parallel-size"} & set(flags)


@pytest.mark.parametrize("spec", ["te", "local"])
def test_the_local_spec_has_flags(spec: str, stored: Stored) -> None:
    flags = [flags_of(plan(stored(case), to="megatron-core", container="torch", spec=spec)) for case in (GPT, LLAMA)]
    assert [one.get("--transformer-impl") for one in flags] == [{"te": None, "local": "local"}[spec]] * 2
    assert ["--no-persist-layer-norm" in one for one in flags] == [False, spec == "local"]


@pytest.mark.parametrize(
    "cut",
    [
        Cut(2, (3, 3, 4, 2)),
        Cut(2, (5, 3, 4)),
        Cut(2, (2, 4, 6), 2),
        Cut(1, (4, 4, 2, 2), 2),
        Cut(1, (3, 9), 3),
    ],
    ids=str,
)
def test_layers_are_on_the_stages_that_were_asked_for(cut: Cut, stored: Stored, tmp_path: Path) -> None:
    """And args say it as the flags do."""
    root = to_torch(stored(GPT), tmp_path / "out", cut, config=MULTIPLE)
    files.check_ranks(root, GPT.model(), cut, "te")
    args = vars(files.read_ranks(root, cut)[0, 0]["args"])
    flags = flags_of(asked(stored(GPT), cut.stages, cut.vpp))
    for flag in (FIRST, LAST, LAYOUT):
        said = args[flag.removeprefix("--").replace("-", "_")]
        assert (None if said is None else str(said)) == flags.get(flag)
    assert args["virtual_pipeline_model_parallel_size"] == (cut.vpp if cut.vpp > 1 else None)


def test_uneven_shares_of_a_number_that_does_not_divide(stored: Stored) -> None:
    """The first stages have one layer more."""
    work = plan(stored(GPT), to="megatron-core", container="torch", pp=5)
    assert work.target_layout.stages == (3, 3, 2, 2, 2)
    assert flags_of(work)[LAYOUT] == "Ettt|ttt|tt|tt|ttL"


def test_the_embedding_on_a_stage_of_its_own(tmp_path: Path) -> None:
    """As --pipeline-model-parallel-layout E|tttt|tttt|ttttL has it: kept where nothing else is asked."""
    cut = Cut(2, (0, 4, 4, 4))
    args = files.core_args(GPT.model(), cut)
    files.save_ranks(tmp_path / "src", cut, files.core_files(GPT.model(), cut), args=args, checkpoint_version=3.0)
    work = plan(tmp_path / "src", to="megatron-core", container="torch")
    assert work.target_layout.stages == (0, 4, 4, 4)
    assert flags_of(work)[LAYOUT] == "E|tttt|tttt|ttttL"
    back = to_torch(tmp_path / "src", tmp_path / "out", Cut(2, (4, 8)))
    files.check_ranks(back, GPT.model(), Cut(2, (4, 8)), "te")

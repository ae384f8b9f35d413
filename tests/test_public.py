"""The public API is what it says it is, and the documents tell the truth about the command line."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import streamconv
from streamconv.cli.program import VERBS
from streamconv.core.errors import StreamconvError, UsageError
from tests import oracle
from tests.places import FRAMEWORKS, REAL, ROOT

MODULES = [
    info.name for info in pkgutil.walk_packages(streamconv.__path__, "streamconv.") if "__main__" not in info.name
]


def flags_of(*verbs: str) -> set[str]:
    """The flags of verbs, those for single checkpoints left out."""
    commands = [importlib.import_module(f"streamconv.cli.{verb}").command("") for verb in verbs]
    known = {each.flag for command in commands for each in command.known.values()}
    return known | {f"--{place.name}" for command in commands for place in command.path_options}


def test_all_names_are_there() -> None:
    for name in streamconv.__all__:
        assert getattr(streamconv, name) is not None
    with pytest.raises(AttributeError):
        _ = streamconv.nothing_of_this_name


@pytest.mark.parametrize("name", MODULES)
def test_every_public_thing_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{name}.{public}"


@pytest.mark.parametrize("name", MODULES)
def test_a_number_in_a_name_has_ascii_digits(name: str) -> None:
    r"""``\d`` and ``int`` take those of every script: ``iter_\u0663`` would be iteration 3."""
    patterns = [value for value in vars(importlib.import_module(name)).values() if isinstance(value, re.Pattern)]
    assert not [pattern.pattern for pattern in patterns if r"\d" in str(pattern.pattern)]


def test_every_option_that_the_documents_name_exists() -> None:
    script = {"--input_folder", "--output_folder", "--target_tp", "--target_pp", "--for_release", "--folder"}
    ours = flags_of(*VERBS) | {"--a-NAME", "--b-NAME", "--dst-NAME", "--help", "--version"}
    for name in ("README.md", "docs/inspect.md", "docs/convert.md", "docs/options.md"):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-zA-Z0-9_-]+", (ROOT / name).read_text()))
        assert named - script <= ours


def test_exit_codes_are_those_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text()

    def classes(root: type[StreamconvError]) -> set[type[StreamconvError]]:
        return {root} | {found for child in root.__subclasses__() for found in classes(child)}

    for error in classes(StreamconvError):
        assert re.search(rf"\b{error.exit_code}\b", text.split("Exit codes:")[1].split("\n\n")[0])


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_a_checkpoint_is_a_mapping_of_names_to_lazy_tensors(tmp_path: Path) -> None:
    folder = REAL[1].folder
    checkpoint = streamconv.open_checkpoint(folder)
    name = "layer_03-model_01-model_states.pt:self_attention.query_key_value.weight"
    stored = torch.load(folder / "global_step3" / "layer_03-model_01-model_states.pt", mmap=True, weights_only=True)
    expected = stored["self_attention.query_key_value.weight"]
    tensor = checkpoint[name]
    assert (tensor.shape, str(tensor.dtype), tensor.nbytes) == (tuple(expected.shape), "float32", expected.nbytes)
    assert torch.equal(tensor.torch(), expected)
    assert name in checkpoint
    assert len(checkpoint) == len(list(checkpoint)) > 100
    for absent in ("nothing", "nothing.pt:weight", "layer_03-model_01-model_states.pt:nothing"):
        assert absent not in checkpoint
    one = streamconv.open_checkpoint(folder / "global_step3" / "layer_03-model_01-model_states.pt")
    assert set(one) == set(stored)
    for key in stored:
        assert torch.equal(one[key].torch(), stored[key])
    assert set(one.state()) == set(stored)


def test_a_result_opens_as_a_checkpoint_too(tmp_path: Path) -> None:
    streamconv.convert(REAL[3].folder, tmp_path / "out", max_ram="2G", to="megatron-legacy")
    checkpoint = streamconv.open_checkpoint(tmp_path / "out")
    (state,) = (s for place, s in oracle.result_files(tmp_path / "out", 2, 2).items() if place == (1, 1))
    prefix = "iter_0000003/mp_rank_01_001/model_optim_rng.pt:model.language_model.encoder."
    for key, tensor in state["model"]["language_model"]["encoder"].items():
        assert torch.equal(checkpoint[prefix + key].torch(), tensor)


def test_opening_what_is_not_there_is_a_source_error(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(streamconv.StreamconvError):
            streamconv.open_checkpoint(path)


def test_a_hostile_file_opens_and_nothing_happens() -> None:
    """The real framework's arguments hold foreign classes; they come back as inert records."""
    state = streamconv.open_checkpoint(FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0").state("mp_rank_00_model_states.pt")
    kind = state["args"].attributes["position_embedding_type"]
    assert (str(kind.cls), kind.args) == ("megatron.enums.PositionEmbeddingType", (3,))


def test_a_choice_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="tpp: no such option"):
        streamconv.plan(REAL[0].folder, tpp=4)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="dtyp: no such option"):
        streamconv.convert(REAL[0].folder, None, dtyp="bf16")  # type: ignore[call-arg]


def test_one_word_means_one_thing() -> None:
    """No two modules have public classes of the same name."""
    homes: dict[str, set[str]] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            thing = getattr(module, public)
            if inspect.isclass(thing) and thing.__name__ == public and thing.__module__.startswith("streamconv."):
                homes.setdefault(public, set()).add(thing.__module__)
    assert {word: found for word, found in homes.items() if len(found) > 1} == {}

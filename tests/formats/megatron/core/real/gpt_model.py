"""The real ``GPTModel`` of Megatron-Core loads a folder and answers, on a CPU, over any TP, PP and virtual stages.

Megatron-LM falls back to a loose load when the strict one fails, and says nothing: so here the keys must be exactly
those of the model, every parameter is NaN until the folder gives it a value, and the logits are what counts. Nothing of
the package runs in the ranks. From a shell::

    python -m tests.formats.megatron.core.real.gpt_model FOLDER --container torch --tp 2 --pp 2 \\
        --tokens oracle_logits.pt --out x.pt
"""

# mypy: disable-error-code="no-untyped-call,no-any-return,unused-ignore"

from __future__ import annotations

import argparse
import contextlib
import re
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import distributed

from tests.formats.megatron.core.real import training_args
from tests.formats.megatron.core.real.ranks import in_ranks
from tests.formats.megatron.core.real.training_args import Args

Spec = Literal["local", "te"]
State = dict[str, Any]

# The local model's norms, and where Transformer Engine's fused layers keep them [gpt_layer_specs.py].
TE_NORMS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


@dataclass(frozen=True)
class Sizes:
    """How a model is cut."""

    tp: int = 1
    pp: int = 1
    vpp: int = 1

    @property
    def ranks(self) -> int:
        return self.tp * self.pp


def logits_from_torch(
    folder: Path,
    tokens: torch.Tensor,
    *,
    tp: int = 1,
    pp: int = 1,
    vpp: int = 1,
    spec: Spec = "local",
    args: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """What the model answers with the weights of ``mp_rank_*/model_optim_rng.pt``, over the padded vocabulary.

    Args:
        folder: the folder with ``latest_checkpointed_iteration.txt``.
        tokens: ``[batch, length]``.
        tp: the run's sizes, which must be those of the files.
        pp: as ``tp``.
        vpp: chunks a stage.
        spec: the names of the norms in the files; those of Transformer Engine are renamed after a check of every key.
        args: instead of the ``args`` in the files, or in addition to them.
    """
    return _answer(_load_torch, folder, tokens, Sizes(tp, pp, vpp), spec, args)


def logits_from_torch_dist(
    folder: Path,
    tokens: torch.Tensor,
    *,
    tp: int = 1,
    pp: int = 1,
    vpp: int = 1,
    args: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """What the model answers with the weights that ``dist_checkpointing.load`` reads, at any TP and PP."""
    return _answer(_load_torch_dist, folder, tokens, Sizes(tp, pp, vpp), "local", args)


def saved_args(folder: Path) -> Namespace:
    """The ``args`` of a folder in either container, read in a process of its own."""
    return in_ranks(1, _saved_args, str(folder))[0]


def _answer(
    load: Any, folder: Path, tokens: torch.Tensor, sizes: Sizes, spec: Spec, args: Mapping[str, Any] | None
) -> torch.Tensor:
    found = in_ranks(sizes.ranks, _rank_logits, load, str(folder), tokens, sizes, spec, dict(args or {}))
    return answer_of(found, sizes)


def answer_of(found: Sequence[torch.Tensor | None], sizes: Sizes) -> torch.Tensor:
    """The one answer of the ranks of the last stage, by what each rank returned."""
    answers = [logits for logits in found if logits is not None]
    assert len(answers) == sizes.tp, f"{len(answers)} ranks answered: the last stage has {sizes.tp}"
    assert all(torch.equal(answers[0], other) for other in answers), "the ranks of the last stage disagree"
    assert not answers[0].isnan().any(), "some parameter was never given a value"
    return answers[0]


# What follows runs in the ranks.


def _rank_logits(
    load: Any, folder: str, tokens: torch.Tensor, sizes: Sizes, spec: Spec, args: Args
) -> torch.Tensor | None:
    place = checkpoint_of(Path(folder))
    whole = training_args.complete({**vars(_saved_args(folder, required=not args)), **args})
    chunks = build(whole, sizes)
    load(place, chunks, whole, sizes, spec)
    return forward(chunks, tokens, sizes, whole["hidden_size"])


def build(args: Args, sizes: Sizes) -> list[Any]:
    """This rank's chunks of the model, every parameter NaN, as ``get_model`` and ``gpt_builder`` make them."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    virtual = sizes.vpp if sizes.vpp > 1 else None
    parallel_state.initialize_model_parallel(sizes.tp, sizes.pp, virtual_pipeline_model_parallel_size=virtual)
    config = training_args.config_of(args, tp=sizes.tp, pp=sizes.pp, vpp=sizes.vpp)
    chunks = []
    for stage in range(sizes.vpp):
        vp_stage = stage if virtual else None
        chunk = GPTModel(
            config=config,
            transformer_layer_spec=get_gpt_layer_local_spec(
                qk_layernorm=args["qk_layernorm"], normalization=args["normalization"]
            ),
            vocab_size=args["padded_vocab_size"],
            max_sequence_length=args["max_position_embeddings"],
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            parallel_output=True,
            share_embeddings_and_output_weights=not args["untie_embeddings_and_output_weights"],
            position_embedding_type=args["position_embedding_type"],
            rotary_percent=args["rotary_percent"],
            rotary_base=args["rotary_base"],
            rope_scaling=args["use_rope_scaling"],
            vp_stage=vp_stage,
        ).eval()
        with torch.no_grad():
            for parameter in chunk.parameters():
                parameter.fill_(torch.nan)
        chunks.append(chunk)
    return chunks


def forward(chunks: list[Any], tokens: torch.Tensor, sizes: Sizes, hidden: int) -> torch.Tensor | None:
    """One pass through all stages and chunks; the whole vocabulary's logits on the last stage, None elsewhere."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    batch, length = tokens.shape
    positions = torch.arange(length).expand(batch, length)
    mask = torch.ones(length, length).triu(1).bool()[None, None]
    stage = parallel_state.get_pipeline_model_parallel_rank()
    logits = None
    # Dropout is off; the attention takes the GPU's random state for it all the same.
    no_fork = mock.patch.object(CudaRNGStatesTracker, "fork", return_value=contextlib.nullcontext())
    # A window's mask is made on a GPU.
    ones = torch.ones
    on_cpu = mock.patch.object(torch, "ones", lambda *size, device=None, **how: ones(*size, **how))
    with torch.no_grad(), no_fork, on_cpu:
        for number, chunk in enumerate(chunks):
            first = stage == 0 and number == 0
            last = stage == sizes.pp - 1 and number == sizes.vpp - 1
            if not first:
                states = torch.empty(length, batch, hidden)
                distributed.recv(states, src=parallel_state.get_pipeline_model_parallel_prev_rank())
                chunk.set_input_tensor(states)
            answer = chunk(input_ids=tokens, position_ids=positions, attention_mask=mask)
            if last:
                logits = gather_from_tensor_model_parallel_region(answer)
            else:
                distributed.send(answer.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank())
    return logits


def _load_torch(place: Path, chunks: list[Any], args: Args, sizes: Sizes, spec: Spec) -> None:
    from megatron.core import parallel_state

    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    stage = parallel_state.get_pipeline_model_parallel_rank()
    wanted = {rank_folder(tp, pp, sizes.pp) for tp in range(sizes.tp) for pp in range(sizes.pp)}
    assert {path.name for path in place.glob("mp_rank_*")} == wanted
    state = _load_file(place / rank_folder(tp_rank, stage, sizes.pp) / "model_optim_rng.pt")
    assert state["checkpoint_version"] == 3.0
    assert isinstance(state["iteration"], int)
    if "args" in state:
        # As check_checkpoint_args does; without these loading ends with an error.
        saved = state["args"]
        assert (saved.tensor_model_parallel_size, saved.pipeline_model_parallel_size) == (sizes.tp, sizes.pp)
    names = ["model"] if sizes.vpp == 1 else [f"model{number}" for number in range(sizes.vpp)]
    assert sorted(key for key in state if re.fullmatch(r"model\d*", key)) == names
    for name, chunk in zip(names, chunks, strict=True):
        load_chunk(chunk, state[name], args, spec, f"{name} of TP rank {tp_rank}, stage {stage}")


def load_chunk(chunk: Any, stored: Mapping[str, Any], args: Args, spec: Spec, where: str) -> None:
    """Give a chunk its values: the keys, shapes and types must all be the model's own."""
    own = chunk.state_dict_for_save_checkpoint()
    names = {key: te_name(key) if spec == "te" else key for key in without_extra_state(own)}
    missing = set(names.values()) - without_extra_state(stored)
    unexpected = without_extra_state(stored) - set(names.values())
    if missing or unexpected:
        raise KeyError(f"{where}, {spec} names: missing {sorted(missing)}, unexpected {sorted(unexpected)}")
    state = {ours: stored[theirs] for ours, theirs in names.items()}
    dtype = training_args.dtype_of(args)
    for key, tensor in state.items():
        if tensor.shape != own[key].shape or tensor.dtype != dtype:
            wanted = f"{tuple(own[key].shape)} {dtype}"
            raise ValueError(f"{where}: {key} is {tuple(tensor.shape)} {tensor.dtype}, and should be {wanted}")
    chunk.load_state_dict(state, strict=True)


def _load_torch_dist(place: Path, chunks: list[Any], args: Args, sizes: Sizes, spec: Spec) -> None:
    del args, spec
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.validation import StrictHandling

    names = ["model"] if sizes.vpp == 1 else [f"model{number}" for number in range(sizes.vpp)]
    common = dist_checkpointing.load_common_state_dict(str(place))
    state, missing, unexpected = dist_checkpointing.load(
        sharded_state(names, chunks, dist_checkpointing.load_content_metadata(preloaded_state_dict=common)),
        str(place),
        strict=StrictHandling.RETURN_ALL,
    )
    # In Megatron's words a key is missing that no rank asks for, and unexpected that the folder lacks. Layers of
    # Transformer Engine have more extra state than local ones.
    unread = without_extra_state(missing)
    if unread or unexpected:
        raise KeyError(f"nobody asks for {sorted(unread)}, and the folder lacks {sorted(unexpected)}")
    assert isinstance(state["iteration"], int)
    for name, chunk in zip(names, chunks, strict=True):
        chunk.load_state_dict(state[name], strict=True)


def sharded_state(names: Iterable[str], chunks: Iterable[Any], metadata: Mapping[str, Any] | None = None) -> State:
    """The chunks as ``generate_state_dict`` has them for a distributed checkpoint."""
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    known = {**(metadata or {}), "dp_cp_group": group}
    return {name: chunk.sharded_state_dict(metadata=known) for name, chunk in zip(names, chunks, strict=True)}


def te_name(key: str) -> str:
    """The name of one of the local model's parameters in a model of Transformer Engine's layers."""
    for local, fused in TE_NORMS.items():
        if re.match(rf"decoder\.layers\.\d+\.{re.escape(local)}", key):
            return key.replace(local, fused)
    return key


def without_extra_state(state: Iterable[str]) -> set[str]:
    """The names of the tensors."""
    return {key for key in state if not key.endswith("_extra_state")}


def checkpoint_of(folder: Path) -> Path:
    """The iteration's folder, by the tracker file."""
    tag = (folder / "latest_checkpointed_iteration.txt").read_text(encoding="ascii").strip()
    return folder / (tag if tag == "release" else f"iter_{int(tag):07d}")


def rank_folder(tp_rank: int, stage: int, pp: int) -> str:
    """A rank's folder, as ``get_checkpoint_name`` names it."""
    return f"mp_rank_{tp_rank:02d}" if pp == 1 else f"mp_rank_{tp_rank:02d}_{stage:03d}"


def _load_file(path: Path) -> State:
    return torch.load(path, map_location="cpu", weights_only=False)


def _saved_args(folder: str, *, required: bool = True) -> Namespace:
    place = checkpoint_of(Path(folder))
    common = place / "common.pt"
    state = _load_file(common if common.exists() else sorted(place.glob("mp_rank_*/model_optim_rng.pt"))[0])
    if "args" not in state and required:
        raise KeyError(f"{place} has no args, and none were given")
    return state.get("args", Namespace())


def main() -> None:
    """The logits of one folder, into a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--container", choices=("torch", "torch_dist"), default="torch")
    parser.add_argument("--spec", choices=("local", "te"), default="local", help="names of the norms (torch)")
    for name in ("--tp", "--pp", "--vpp"):
        parser.add_argument(name, type=int, default=1)
    parser.add_argument("--tokens", type=Path, required=True, help="a file with {tokens: ..}")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    tokens = torch.load(options.tokens, weights_only=True)["tokens"]
    sizes = {"tp": options.tp, "pp": options.pp, "vpp": options.vpp}
    if options.container == "torch":
        logits = logits_from_torch(options.folder, tokens, spec=options.spec, **sizes)
    else:
        logits = logits_from_torch_dist(options.folder, tokens, **sizes)
    torch.save({"tokens": tokens, "logits": logits}, options.out)


if __name__ == "__main__":
    main()

"""Megatron-Core's checkpoints as a source, in both containers.

``torch``: a file for each rank, its ``model`` flat [``megatron/training/checkpointing.py:save_checkpoint``].
``torch_dist``: :mod:`streamconv.formats.megatron.core.dist_source`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import DamagedError
from streamconv.core.layout import FIRST_RANK
from streamconv.core.lazy import LazyTensor
from streamconv.formats.megatron.core.claims import claims, dist_folder
from streamconv.formats.megatron.core.dist_source import open_dist, says_untied
from streamconv.formats.megatron.core.names import SPECS, parse_core_name, stored_name
from streamconv.formats.megatron.core.options import SOURCE_OPTIONS
from streamconv.formats.megatron.core.refusals import check_version, refusal, refuse_args, refuse_names
from streamconv.formats.megatron.embedding_and_head import check_ends, check_head, copies_aside
from streamconv.formats.megatron.rank_files import Ranks, StageTensors, left_behind, open_ranks, to_model
from streamconv.formats.options import TrainingSourceOptions
from streamconv.formats.recorded import is_child_name
from streamconv.formats.source import Fact, SourceFormat, StoredModel
from streamconv.models.config.training_args import neutral_args
from streamconv.models.orders import GluOrder, QkvLayout
from streamconv.models.parameter import ParameterId, Section

__all__ = ["SOURCE", "open_model"]

_EXTRA = "._extra_state"
_HEAD_COPY = "output_layer"
_HEAD = ParameterId(Section.HEAD, -1, "lm_head.weight")
_NOT_SAID = (
    "nothing says whether output_layer.weight is a head of its own or a copy of the embedding: taken for its own; for "
    'a tied head say --config with {"tie_word_embeddings": true}'
)


def open_model(path: Path, options: TrainingSourceOptions) -> StoredModel:
    """Open a Megatron-Core checkpoint, metadata only.

    Args:
        path: the root (with ``latest_checkpointed_iteration.txt``) or an iteration's folder.
        options: the user's options for it; ``tag`` is the name of another ``iter_*`` folder, or ``release``.

    Raises:
        SourceError: it is not there.
        AmbiguousError: the root does not name one of its checkpoints, and no tag does.
        UnsupportedError: it is of a kind that is refused by name.
        DamagedError: files are missing, broken or contradict each other.
    """
    meant = path / options.tag if options.tag is not None and is_child_name(options.tag) else path
    if meant.is_dir() and dist_folder(meant) is not None:
        return _settle_rows(open_dist(path, options))
    return _open_torch(path, options)


def _open_torch(path: Path, options: TrainingSourceOptions) -> StoredModel:
    ranks = open_ranks(path, options, refuse_args, _chunk_tensors)
    check_version(ranks.state, ranks.files[FIRST_RANK].path)
    is_untied = says_untied(ranks.args, options)
    facts, warnings = _set_copies_aside(ranks, is_untied)
    check_ends(ranks)
    check_head(ranks, is_untied, "output_layer.weight", "output_layer.weight")
    model = to_model(ranks, options, "Megatron-Core, torch", neutral_args(ranks.args) if ranks.args else None)
    specs = sorted({age for parts in ranks.parts.values() for part in parts for age in part.ages})
    if len(specs) > 1:
        raise DamagedError(f"norms are named by two specs: {' and '.join(specs)}", where=ranks.folder)
    spec = Fact(f"names of the spec {specs[0] if specs else 'unknown'}", "where the layers' norms are")
    model = replace(model, spec=specs[0] if specs else None).noting(facts=[spec])
    model = _settle_rows(copies_aside(ranks, model, _HEAD_COPY))
    return model.noting(facts=facts, warnings=warnings, dropped=left_behind(ranks))


def _settle_rows(model: StoredModel) -> StoredModel:
    """The model with Megatron-Core's only row orders [``attention.py:get_query_key_value_tensors``, ``mlp.py:glu``]."""
    fact = Fact("query_key_value rows interleaved, gate before up", "Megatron-Core has no other order")
    called = partial(stored_name, spec=model.spec or SPECS[0])
    settled = replace(model, qkv=QkvLayout.INTERLEAVED, glu=GluOrder.GATE_UP, cuts_groups=True, called=called)
    return settled.noting(facts=[fact])


def _chunk_tensors(file: StoredFile, entry: str) -> StageTensors:
    """The parameters of one model (``model``, ``model0``) in a rank's file."""
    model = file.state[entry]
    if not isinstance(model, dict):
        raise DamagedError(f"its `{entry}` is no dictionary", where=file.path)
    parsed, strays = StageTensors(), []
    for name, value in model.items():
        if isinstance(name, str) and name.endswith(_EXTRA):
            parsed.extra += [value] if isinstance(value, LazyTensor) else []
            continue
        known = parse_core_name(name) if isinstance(name, str) else None
        if known is None or not isinstance(value, LazyTensor):
            strays.append(str(name))
        elif known.place in parsed.tensors:
            raise DamagedError(f"{name} is there under two names", where=file.path)
        else:
            parsed.tensors[known.place] = value
            parsed.ages |= {known.spec} if known.spec else set()
    refuse_names(strays, file.path)
    parsed.check_layers(file.path)
    return parsed


def _set_copies_aside(ranks: Ranks, is_untied: bool | None) -> tuple[list[Fact], list[str]]:
    """Move ``output_layer.weight`` of a tied head to ``copy``: on the last of several stages it is a copy of the
    embedding. Returns facts and warnings.
    """
    heads = [parts[-1] for rank, parts in ranks.parts.items() if rank.pp == ranks.found.pp - 1]
    if not any(_HEAD in part.tensors for part in heads):
        return [], []
    if is_untied is not False:
        return [], [_NOT_SAID] if is_untied is None else []
    for part in heads:
        if _HEAD in part.tensors:
            part.copy["weight"] = part.tensors.pop(_HEAD)
    return [Fact("tied head: output_layer.weight is a copy", "args.untie_embeddings_and_output_weights is false")], []


SOURCE = SourceFormat("megatron-core", open_model, claims, refusal, SOURCE_OPTIONS, "Megatron-Core")

"""What tests of Megatron's folders take from :mod:`tests.making`, under one name."""

from __future__ import annotations

from tests.making.cuts import Cut, Rank, even
from tests.making.hugging_face import hugging_face_tensors, load_hugging_face, save_hugging_face
from tests.making.labelled import HEAD, Labelled, Sizes, assert_same, labelled
from tests.making.megatron_core import COPY, LINEARS, check_ranks, core_args, core_files, core_key
from tests.making.megatron_legacy import in_version, legacy_files
from tests.making.megatron_ranks import (
    TRACKER,
    State,
    checkpoint_of,
    chunks_of,
    rank_folder,
    read_ranks,
    save_ranks,
    started,
    tensors_of,
)
from tests.making.torch_dist import by_layer, in_halves, read_dist, read_object, save_dist, whole_tensors

__all__ = [
    "COPY",
    "HEAD",
    "LINEARS",
    "TRACKER",
    "Cut",
    "Labelled",
    "Rank",
    "Sizes",
    "State",
    "assert_same",
    "by_layer",
    "check_ranks",
    "checkpoint_of",
    "chunks_of",
    "core_args",
    "core_files",
    "core_key",
    "even",
    "hugging_face_tensors",
    "in_halves",
    "in_version",
    "labelled",
    "legacy_files",
    "load_hugging_face",
    "rank_folder",
    "read_dist",
    "read_object",
    "read_ranks",
    "save_dist",
    "save_hugging_face",
    "save_ranks",
    "started",
    "tensors_of",
    "whole_tensors",
]

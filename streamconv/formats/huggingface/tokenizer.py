"""The files that go along with a model, which are copied byte for byte: the tokenizer's, and those of processors."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from streamconv.core.errors import UsageError
from streamconv.io.refusals import refusals

__all__ = ["PROCESSOR_NAMES", "TOKENIZER_NAMES", "files_along", "tokenizer_files"]

# The files that transformers' tokenizers save and load [transformers tokenization_utils_base.py:
# VOCAB_FILES_NAMES, and those of its models]. Python files, which a model may ship, are never copied.
TOKENIZER_NAMES = (
    "tokenizer*.json",
    "tokenizer.model*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
    "chat_template.*",
)
"""Patterns (:mod:`fnmatch`) of their names."""


# [transformers utils/__init__.py: FEATURE_EXTRACTOR_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME]
PROCESSOR_NAMES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""The files of what turns pictures and sounds into a model's input."""


def files_along(folder: Path, taken: Collection[str] = (), *, generation: bool = False) -> dict[str, Path]:
    """The files in a model's folder that go along with it, by name; symbolic links are followed.

    Args:
        folder: the model's folder.
        taken: names that are not to be copied.
        generation: take ``generation_config.json`` too.
    """
    patterns = (*TOKENIZER_NAMES, *PROCESSOR_NAMES, *(("generation_config.json",) if generation else ()))
    return _matching(folder, patterns, taken) if folder.is_dir() else {}


def _matching(folder: Path, patterns: Collection[str], taken: Collection[str]) -> dict[str, Path]:
    with refusals("list the folder", folder):
        children = sorted(folder.iterdir())
    return {
        child.name: child
        for child in children
        if child.suffix != ".py"
        and child.name not in taken
        and any(fnmatchcase(child.name, pattern) for pattern in patterns)
        and child.is_file()
    }


def tokenizer_files(folder: Path, taken: Collection[str] = ()) -> dict[str, Path]:
    """The tokenizer's files in a folder, by name; symbolic links are followed.

    Args:
        folder: where a tokenizer was saved, mostly a Hugging Face model's folder.
        taken: names that are not to be copied.

    Raises:
        UsageError: ``folder`` is no folder, or has no file of a tokenizer.
    """
    if not folder.is_dir():
        raise UsageError(f"--tokenizer {folder}: no such folder")
    files = _matching(folder, TOKENIZER_NAMES, taken)
    if not files:
        raise UsageError(
            f"--tokenizer {folder}: no tokenizer file there",
            remedy="give the folder that has tokenizer.json or tokenizer_config.json",
        )
    return files

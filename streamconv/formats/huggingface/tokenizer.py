"""The tokenizer's files, which are copied byte for byte."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from streamconv.core.errors import UsageError

__all__ = ["TOKENIZER_NAMES", "tokenizer_files"]

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
    files = {
        child.name: child
        for child in sorted(folder.iterdir())
        if child.is_file()
        and child.suffix != ".py"
        and child.name not in taken
        and any(fnmatchcase(child.name, pattern) for pattern in TOKENIZER_NAMES)
    }
    if not files:
        raise UsageError(
            f"--tokenizer {folder}: no tokenizer file there",
            remedy="give the folder that has tokenizer.json or tokenizer_config.json",
        )
    return files

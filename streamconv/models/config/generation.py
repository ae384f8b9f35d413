"""``generation_config.json``: how a Hugging Face model generates. Its ``config.json`` has only a part of it.

Entries are those of transformers 5.23, ``generation/configuration_utils.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from streamconv.core.text import shown

__all__ = ["StoredConfig", "checked", "generation_of"]

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and isfinite(value))


def _is_above_0(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


def _is_words(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(word, str) for word in value))


_KINDS: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    ("true or false", lambda value: isinstance(value, bool), ("do_sample", "use_cache", "remove_invalid_values")),
    ("true or false", lambda value: isinstance(value, bool), ("renormalize_logits", "return_dict_in_generate")),
    ("true, false or never", lambda value: isinstance(value, bool) or value == "never", ("early_stopping",)),
    ("a number above 0", _is_above_0, ("max_length", "max_new_tokens", "num_beams", "num_return_sequences")),
    ("a whole number", _is_whole, ("min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size", "bos_token_id")),
    ("a whole number", _is_whole, ("forced_bos_token_id", "encoder_no_repeat_ngram_size")),
    ("a number", _is_number, ("temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")),
    ("a number", _is_number, ("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "guidance_scale")),
    ("a number", _is_number, ("max_time", "penalty_alpha")),
    (
        "a token or a list of tokens",
        lambda value: _is_whole(value) or _is_tokens(value),
        ("eos_token_id", "pad_token_id", "forced_eos_token_id", "decoder_start_token_id"),
    ),
    ("a list of tokens", _is_tokens, ("suppress_tokens", "begin_suppress_tokens")),
    ("a word or a list of words", _is_words, ("stop_strings",)),
)
_CHECKS = {name: (words, is_valid) for words, is_valid, names in _KINDS for name in names}


def checked(entries: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the entries without those whose values are of another kind than transformers takes, those in words).

    Entries that are not known here, and null, are valid.
    """
    faults = {
        name: f"{name} is {shown(entries[name])}, not {words}"
        for name, (words, is_valid) in _CHECKS.items()
        if entries.get(name) is not None and not is_valid(entries[name])
    }
    return {name: value for name, value in entries.items() if name not in faults}, list(faults.values())


class StoredConfig(dict[str, Any]):
    """A source's ``config.json``, and the ``generation_config.json`` beside it, None if there is none."""

    generation: Mapping[str, Any] | None = None


def generation_of(
    source: Mapping[str, Any] | None, config: Mapping[str, Any], said: Mapping[str, Any]
) -> dict[str, Any]:
    """The entries of the new ``generation_config.json``: the source's, or else those of the new ``config.json``.

    Args:
        source: the source's ``config.json``, None if it is no Hugging Face model.
        config: the ``config.json`` that is written.
        said: the user's entries. Only their tokens replace the source's, which may be more than ``config.json`` has.
    """
    stored = source.generation if isinstance(source, StoredConfig) else None
    new = _TOKENS if stored is None else [name for name in _TOKENS if name in said]
    kept = {"_from_model_config": True} if stored is None else {n: v for n, v in stored.items() if n not in new}
    return {**kept, **{name: config[name] for name in new if config.get(name) is not None}}

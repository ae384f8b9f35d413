"""Numbers and texts in a pickle. One that is none raises a ``ValueError``, which the machine turns into a refusal."""

from __future__ import annotations

import codecs

__all__ = ["digits", "latin", "quoted", "utf8", "whole"]

# Numbers stay so small that a product of several has less than 4300 digits, which Python refuses to write.
_LARGEST_INT = 128
_MOST_DIGITS = 300


def latin(raw: bytes) -> str:
    """Text in the bytes of Latin 1."""
    return raw.decode("latin1")


def utf8(raw: bytes) -> str:
    """Text in UTF-8, in which a pickle may have lone surrogates."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogatepass")


def whole(raw: bytes) -> int:
    """A whole number in little-endian bytes."""
    if len(raw) > _LARGEST_INT:
        raise ValueError(f"an integer of {len(raw)} bytes")
    return int.from_bytes(raw, "little", signed=True)


def digits(line: bytes) -> int:
    """A whole number in decimal digits."""
    if len(line) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(line)} digits")
    return int(line)


def quoted(line: bytes) -> str:
    """Text in quotes, with escapes."""
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b'"', b"'"):
        raise ValueError("string without quotes")
    # Bytes of Python 2, escaped: codecs.escape_decode is what the standard library's own unpickler uses.
    raw, _ = codecs.escape_decode(line[1:-1])
    return latin(raw)

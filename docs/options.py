"""Write what is made of the declared options: docs/options.md, and the types of the keywords in Python.

python docs/options.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from streamconv.api.options import SIDES, VERBS, options_of_verb
from streamconv.cli.options import OWN_OPTIONS
from streamconv.core.options import Option, all_options, options_of
from streamconv.execution.options import BenchOptions, ExtractOptions, PublishOptions, RunOptions, StreamOptions
from streamconv.formats.frameworks import source_options, target_options
from streamconv.formats.options import TrainingOptions
from streamconv.inspection.options import InspectOptions
from streamconv.planning.options import ConversionOptions
from streamconv.verification.options import DiffOptions, DigestOptions, ReferenceOptions

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "options.md"
TYPES = ROOT / "streamconv" / "api" / "typed.py"

_HEAD = """\
# Options

<!-- written by docs/options.py from the declarations; do not edit -->

Every option is declared once, by the format or the part of the program that it is for. It is a flag on the command
line, a keyword in Python, and, except for `--overwrite`, `--restart` and `--ignore`, a variable of the environment. An
option that the chosen target or the opened source does not have is refused if it is a flag or a keyword, and passed
over if it is a variable. Choices may be in any case; a word that is nearly right is answered with the one that was
meant. Short for targets: `hf`, `mcore`, `neox`; types have their long names too (`bfloat16`).

`streamconv VERB --help` shows them too; with `--to TARGET`, those of a target.

## Completion

Verbs, options, choices and paths are completed. In `~/.bashrc`:

```
eval "$(_STREAMCONV_COMPLETE=bash_source streamconv)"
```

In `~/.zshrc`, after `autoload -Uz compinit` and `compinit`:

```
eval "$(_STREAMCONV_COMPLETE=zsh_source streamconv)"
```

In `~/.config/fish/completions/streamconv.fish`:

```
_STREAMCONV_COMPLETE=fish_source streamconv | source
```
"""


def page() -> str:
    """The text of docs/options.md."""
    return "\n".join(_page())


def _page() -> Iterator[str]:
    yield _HEAD
    training = {each.name for each in options_of(TrainingOptions)}
    yield from _table("Conversions: `convert`, `plan`, `stream`, `bench`", options_of(ConversionOptions))
    yield from _table("Targets that are training checkpoints", options_of(TrainingOptions))
    for name, owner in target_options().items():
        yield from _table(f"`--to {name}`", [each for each in options_of(owner) if each.name not in training])
    sources = all_options(source_options())
    yield from _table("Sources: what they do not say themselves", list(sources.values()))
    prefixes = "; ".join(
        f"`{verb}` {' and '.join(f'`--{side}-NAME`' for side in sides)}" for verb, sides in SIDES.items()
    )
    yield "These are options of `inspect`, `verify`, `diff`, `digest` and `extract` too.\n"
    yield f"For one of two checkpoints alone: {prefixes}; their variables are like `STREAMCONV_DST_NAME`.\n"
    yield from _table(
        "Memory, threads and I/O",
        options_of(RunOptions),
    )
    yield from _table("The destination of `convert`", options_of(PublishOptions))
    yield from _table("`streamconv.stream`, in Python alone", options_of(StreamOptions), flags=False)
    yield from _table("`inspect`", options_of(InspectOptions))
    yield from _table("`verify`", options_of(ReferenceOptions))
    yield from _table("`diff`", options_of(DiffOptions))
    yield from _table("`digest`", options_of(DigestOptions))
    yield from _table("`extract`", options_of(ExtractOptions))
    yield from _table("`bench`", options_of(BenchOptions))
    for own in OWN_OPTIONS:
        yield from _table((own.__doc__ or "").rstrip("."), options_of(own), keywords=False)


def _table(
    title: str, options: list[Option] | tuple[Option, ...], *, flags: bool = True, keywords: bool = True
) -> Iterator[str]:
    yield f"## {title[0].upper()}{title[1:]}\n"
    heads = [
        *(["flag"] if flags else []),
        *(["keyword"] if keywords else []),
        *(["variable"] if flags else []),
        "meaning",
    ]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for each in options:
        names = " ".join([*([f"`{each.short}`"] if each.short else []), f"`{_with_value(each)}`"])
        variable = f"`{each.variable}`" if each.variable else "none: it destroys or overrules"
        cells = [*([names] if flags else []), *([f"`{each.name}`"] if keywords else []), *([variable] if flags else [])]
        yield f"| {' | '.join([*cells, _meaning(each)])} |"
    yield ""


def _with_value(each: Option) -> str:
    if each.is_switch or each.repeats:
        return each.flag
    value = "WORD" if each.kind.words else each.kind.metavar
    return f"{each.flag} {value}" if each.kind.bare is None else f"{each.flag} [{value}]"


def _meaning(each: Option) -> str:
    words = f": {', '.join(f'`{word}`' for word in each.kind.words)}" if each.kind.words else ""
    off = f" (`{each.name}=False`)" if each.is_switch and each.default else ""
    return f"{each.help}{off}{words}".replace("|", "\\|")


def types() -> str:
    """The text of streamconv/api/typed.py."""
    return "\n".join(_types())


def _types() -> Iterator[str]:
    yield '"""The types of the verbs\' keywords, for type checkers; written by docs/options.py."""\n'
    yield "from __future__ import annotations\n"
    yield "from collections.abc import Mapping, Sequence"
    yield "from os import PathLike"
    yield "from typing import Any, TypedDict\n"
    yield "from streamconv.core.dtypes import DType\n"
    verbs = [verb for verb in VERBS if options_of_verb(verb)]
    names = sorted(f"{verb.capitalize()}Keywords" for verb in verbs)
    yield "__all__ = ["
    yield from (f'    "{name}",' for name in names)
    yield "]"
    known: dict[str, dict[str, str]] = {}
    for verb in verbs:
        mine = {each.name: f"{each.kind.python} | None" for each in options_of_verb(verb).values()}
        # A verb that has all the keywords of another one says only the rest; the one that leaves least to say.
        larger = (name for name, keywords in known.items() if keywords.items() <= mine.items())
        base = max(larger, key=lambda name: len(known[name]), default="TypedDict")
        rest = {name: kind for name, kind in mine.items() if name not in known.get(base, ())}
        known[f"{verb.capitalize()}Keywords"] = mine
        yield f"\n\nclass {verb.capitalize()}Keywords({base}, total=False):"
        yield f'    """The keywords of ``{verb}``."""\n'
        yield from (f"    {name}: {kind}" for name, kind in rest.items())
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page())
    TYPES.write_text(types())

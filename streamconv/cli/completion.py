"""Completion in bash, zsh and fish: click's, and what its scripts for these shells do not do."""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    shell_complete,
)

from streamconv.core.errors import UsageError
from streamconv.core.shown import as_shown

__all__ = ["COMPLETION", "complete"]

COMPLETION = "_STREAMCONV_COMPLETE"
"""The variable by which a shell asks: ``bash_source`` for the script, ``bash_complete`` for completions."""


def complete(program: click.Group, instruction: str) -> int:
    """Answer a shell; returns the exit code.

    Raises:
        UsageError: no shell has set the variables.
    """
    shells = {shell.name: shell for shell in (_Bash, _Zsh, _Fish)}
    name, _, action = instruction.partition("_")
    if name not in shells or action not in ("source", "complete"):
        known = ", ".join(f"{name}_source" for name in shells)
        raise UsageError(
            f"{COMPLETION}={as_shown(instruction)}: not what a shell asks for completion",
            remedy=f"unset it, or say one of {known} for a script",
        )
    words, place = os.environ.get("COMP_WORDS"), os.environ.get("COMP_CWORD")
    if action == "complete" and (words is None or place is None or not (place.isdecimal() or name == "fish")):
        raise UsageError(f"{COMPLETION}={instruction} without what is typed, in COMP_WORDS and COMP_CWORD")
    for shell in shells.values():
        add_completion_class(shell)
    return shell_complete(program, {}, "streamconv", COMPLETION, instruction)


class _AnyPath(ShellComplete):
    """A shell that is answered in UTF-8, whatever bytes it completes; paths it completes itself."""

    def format_completion(self, item: CompletionItem) -> str:
        return super().format_completion(item).encode(errors="replace").decode()


class _Bash(_AnyPath, BashComplete):
    """bash, which hands over ``--to=deeps`` as three words, and wants the last one completed."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        words: list[str] = []
        for word in (*args, incomplete):
            if words and words[-1].startswith("--") and (word == "=" or words[-1].endswith("=")):
                words[-1] += word
            else:
                words.append(word)
        return words[:-1], words[-1]


class _Zsh(_AnyPath, ZshComplete):
    """zsh: in ``--tokenizer=che`` the path begins after the flag, which click's script does not say."""

    source_template = ZshComplete.source_template.replace("_path_files", "compset -P 1 '--*='; _path_files")

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        return _with_flag(incomplete, super().get_completions(args, incomplete))


class _Fish(_AnyPath, FishComplete):
    """fish: click's script cuts helps at their first comma, and does not know ``~`` and variables in paths."""

    source_template = """\
function %(complete_func)s
    set -l token (commandline -ct)
    for line in (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=$token %(prog_name)s)
        set -l item (string split -m 1 , -- $line)
        switch $item[1]
            case dir
                __fish_complete_directories "$token"
            case file
                complete -C "'' $token"
            case plain
                echo $item[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        return _with_flag(incomplete, super().get_completions(args, incomplete))


def _with_flag(incomplete: str, items: list[CompletionItem]) -> list[CompletionItem]:
    """The items for the value in ``--to=deeps``, as the whole word that they complete."""
    flag, equals, _ = incomplete.partition("=")
    if not (equals and flag.startswith("--")):
        return items
    return [CompletionItem(f"{flag}={item.value}", item.type, item.help) for item in items]

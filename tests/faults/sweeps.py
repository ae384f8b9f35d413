"""What is wrong after a kill or an error at each of many points: one line for each finding, none if all is well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tests.faults.cases import TARGETS, WORK, Case, differences
from tests.faults.points import ERRORS, Call, Done, Point
from tests.trees import tree

__all__ = [
    "close_points",
    "error_points",
    "errors",
    "kill_points",
    "kills",
    "kills_while_it_goes_on",
    "reading_errors",
    "reading_points",
]

KILLED = -9
FULL = (ERRORS["ENOSPC"], ERRORS["EDQUOT"])


def kill_points(calls: Sequence[Call]) -> list[Point]:
    """Before each call, and in the middle of each write."""
    numbered = list(enumerate(calls, 1))
    hows = [("kill", numbered), ("torn", [(number, call) for number, call in numbered if call.is_write])]
    return [Point(number, how, call) for how, some in hows for number, call in some]


def kills(case: Case, points: Iterable[Point]) -> Iterator[str]:
    """Kill a run at each point, look at the destination, and run it again."""
    for point in points:
        case.reset()
        yield from _killed(case, point)


def kills_while_it_goes_on(case: Case, first: Point, points: Iterable[Point]) -> Iterator[str]:
    """Kill a run at ``first``, and at each point of ``points`` the one that goes on."""
    for point in points:
        case.reset()
        case.run(first)
        yield from (f"{first}; {words}" for words in _killed(case, point))


def _killed(case: Case, point: Point) -> Iterator[str]:
    done = case.run(point)
    if done.code != KILLED:
        yield f"{point}: it was not killed, but ended with {done.code}: {done.last_words}"
    yield from (f"{point}: {words}" for words in (*case.mixed(case.seen()), *case.again()))


# -- errors ------------------------------------------------------------------------------------------------------------


def error_points(case: Case, how: str, *, ever: bool = False) -> list[Point]:
    """Each call at which this can happen: only an open finds too many files open, only a write is short."""
    last = case.published
    return [
        Point(number, how, call, ever=ever, decided=number > last)
        for number, call in enumerate(case.calls, 1)
        if _can_happen(how, call)
    ]


def _can_happen(how: str, call: Call) -> bool:
    if how == "lose":
        return call.is_sync
    if how in ("short", "end"):
        return call.is_write
    return call.name == "open" or how != ERRORS["EMFILE"]


def close_points(case: Case, how: str) -> list[Point]:
    """Each close of a file that was written to."""
    kind = "change,close"
    case.reset()
    calls = case.calls_now(kind)
    last, written = case.deciding(calls), {call.path for call in calls if call.is_write}
    return [
        Point(number, how, call, kind, decided=number > last)
        for number, call in enumerate(calls, 1)
        if call.name == "close" and call.path in written
    ]


def errors(case: Case, points: Iterable[Point]) -> Iterator[str]:
    """Let a call fail at each point, look at what the run says and leaves, and run it again."""
    for point in points:
        case.reset()
        done = case.run(point)
        words = [*_said(done, point.how), *_left(case, done, point)]
        is_left = done.code == 0 and (case.destination / WORK).exists()
        if is_left and not point.decided:
            words.append(f"it ends with 0 and leaves {sorted(tree(case.destination / WORK))} of its work")
        rest = case.again() if is_left else _finished(case, done)
        yield from (f"{point}: {each}" for each in (*words, *rest))


def reading_points(case: Case, kind: str, way: str) -> list[tuple[str, Point]]:
    """Each call of a kind on the source: those of the conversion, and those of opening and planning before it.

    The latter are the same for all targets of a source, and are of the first of them.
    """
    found: dict[str, list[Call]] = {}
    for how in ("planned", "whole"):
        case.reset()
        found[how] = case.calls_now(kind, how, case.target.source)
    is_first = case.target == next(target for target in TARGETS if target.source == case.target.source)
    found["whole"] = found["whole"][: len(found["whole"]) - len(found["planned"])] if is_first else []
    return [(how, Point(number, way, call, kind)) for how in found for number, call in enumerate(found[how], 1)]


def reading_errors(case: Case, points: Iterable[tuple[str, Point]]) -> Iterator[str]:
    """Let a look at the source fail at each point; nothing may be published then."""
    for how, point in points:
        case.reset()
        done = case.run(point, how=how, below=case.target.source)
        seen = case.seen()
        words = list(_said(done, point.how))
        if seen != (case.new if done.code == 0 else case.before):
            words.append(f"it ends with {done.code} and shows {differences(seen, case.new)}")
        yield from (f"{point}: {each}" for each in (*words, *_finished(case, done)))


def _finished(case: Case, done: Done) -> Iterator[str]:
    """What is wrong with the same command again, if the first did not end well."""
    return case.again() if done.code != 0 else iter(())


def _said(done: Done, how: str) -> Iterator[str]:
    """What is wrong with how a run ended, when ``how`` had happened to it."""
    expected = 4 if how in FULL else 5
    if done.code not in (0, expected):
        yield f"it ends with {done.code} and not with {expected}: {done.last_words}"
    if done.code != 0 and not any(line.startswith("error: ") for line in done.text.splitlines()):
        yield f"it ends with {done.code} and says no error: {done.last_words}"
    if "Traceback" in done.text or "unexpected" in done.text:
        yield f"it ends with {done.code} and a traceback: {done.last_words}"


def _left(case: Case, done: Done, point: Point) -> Iterator[str]:
    """What is wrong with what the destination shows; while nothing works, not all can be put back."""
    seen = case.seen()
    yield from case.mixed(seen)
    if done.code == 0 and seen != case.new:
        yield f"it ends with 0 without the result: {differences(seen, case.new)}"
    if done.code != 0 and seen == case.new:
        # Where nothing works, what was exchanged stays so; and the record may say the same as the old one.
        if not point.decided and not (point.ever and case.before):
            yield f"it ends with {done.code} before it was decided, and the result is there: {done.last_words}"
        if "cannot publish" in done.text:
            yield f"the result is there, and it says: {done.last_words}"
    elif done.code != 0 and seen != case.before and not point.ever:
        yield f"it ends with {done.code} and leaves {differences(seen, case.before)}: {done.last_words}"

"""Variables of the environment that look like options and are none."""

from __future__ import annotations

import os
from collections.abc import Iterator

from streamconv.core.kinds import nearest
from streamconv.core.options import ENVIRONMENT, all_options

__all__ = ["variables_that_are_not_read"]


def variables_that_are_not_read() -> Iterator[str]:
    """For each such variable what is wrong with it: it is for an option that destroys something, or for none."""
    found = [name for name in os.environ if name.startswith(ENVIRONMENT)]
    if not found:
        return
    from streamconv.api.options import known_options
    from streamconv.cli.options import OWN_OPTIONS

    options = [*known_options().values(), *all_options(OWN_OPTIONS).values()]
    known = {each.variable for each in options if each.variable is not None}
    destroys = {each.any_variable: each.flag for each in options if each.destroys}
    for name in sorted(set(found) - known):
        meant = nearest(name, known)
        if name in destroys:
            yield f"{name} is not read: say {destroys[name]} on the command line"
        else:
            yield f"{name} is no option" + (f": did you mean {meant}?" if meant else "")

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
    # Compared without the prefix, which makes all of them alike.
    known = {each.any_variable.removeprefix(ENVIRONMENT): each for each in options}
    for name in sorted(found):
        each = known.get(name.removeprefix(ENVIRONMENT))
        meant = nearest(name.removeprefix(ENVIRONMENT), known)
        if each is None and meant is not None:
            yield f"{name} is no option: did you mean {known[meant].variable or known[meant].flag}?"
        elif each is None:
            yield f"{name} is no option"
        elif each.variable is None:
            yield f"{name} is not read: say {each.flag} on the command line"

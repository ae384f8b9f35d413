"""The second copy of a run's parameters: whether the masters in its optimizer files could be put together.

The model is read without them, and to inspect a run only the first of its optimizer files is opened.
"""

from __future__ import annotations

from pathlib import Path

from streamconv.core.errors import DamagedError, StorageError, StreamconvError
from streamconv.core.options import Given
from streamconv.formats.deepspeed.zero.options import MASTER
from streamconv.formats.named import NamedModel
from streamconv.formats.registry import open_named
from streamconv.inspection.report import Finding, finding_of

__all__ = ["faults_of_masters"]


def faults_of_masters(path: Path, given: Given) -> list[Finding]:
    """The damage that stands in the way of the masters of a run whose model is whole. Masters of a kind that is not
    read are no damage.

    Raises:
        StorageError: the system refused to read.
    """
    try:
        model = open_named(path, given).model
        if isinstance(model, NamedModel) and model.masters is not None:
            open_named(path, given.plus(weights=MASTER))
    except DamagedError as error:
        return [finding_of(error)]
    except StorageError:
        raise
    except StreamconvError:
        pass  # what cannot be opened at all has been found by the inspection
    return []

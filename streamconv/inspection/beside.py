"""What else is in the root of a checkpoint: a folder that was given, and that names the checkpoint's own folder."""

from __future__ import annotations

from pathlib import Path

from streamconv.containers.open_any import checkpoint_files
from streamconv.formats.recorded import iteration_of

__all__ = ["files_beside"]


def files_beside(root: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """The checkpoint files below a root that are in no checkpoint's folder, and the names of the folders of other
    checkpoints than the one in ``folder``.

    The HF Trainer saves the model beside DeepSpeed's folder, and zero_to_fp32 writes its result there.
    """
    if folder == root or root not in folder.parents:
        return [], []
    own = folder.relative_to(root).parts[0]
    others = sorted(
        child.name
        for child in root.iterdir()
        if child.name != own and child.is_dir() and iteration_of(child.name) is not None
    )
    apart = {own, *others}
    return [path for path in checkpoint_files(root) if path.relative_to(root).parts[0] not in apart], others

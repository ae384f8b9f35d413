"""The verbs that look at checkpoints, in Python: paths first, every option a keyword."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import streamconv
from streamconv.api import verbs
from streamconv.api.calling import (
    AnyPath,
    Progress,
    given_by,
    in_words_of_python,
    path_of,
    shown,
    text_of,
    verb,
    word_of,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from streamconv.api import typed

__all__ = ["diff", "digest", "extract", "inspect", "open_checkpoint", "verify"]

READERS = ("streamconv", "reference")


@verb
def inspect(
    path: AnyPath, *, progress: Progress = None, **options: Unpack[typed.InspectKeywords]
) -> streamconv.InspectionReport:
    """What is inside a checkpoint file or folder, from its metadata; no code in it is executed.

    >>> streamconv.inspect("checkpoints/bloom")
    <InspectionReport: Megatron-DeepSpeed, pipeline engine, ..., 0 findings: checkpoints/bloom/global_step3>

    Args:
        path: a checkpoint file of any kind that is read, or a folder of them.
        progress: called with (bytes done, bytes in all) while values are streamed; True draws a bar on stderr.
        options: see below.

    Raises:
        SourceError: there is no file or folder, or no checkpoint in it.
        DamagedError: a single file cannot be opened. In a folder that is a finding.
        UsageError: an option makes no sense.
        MemoryBudgetError: the budget is too small to read values.
    """
    given, place = given_by("inspect", options), path_of("path", path)
    with shown(progress, "reading") as show:
        return verbs.inspect(place, given, show)


@verb
def verify(
    dst: AnyPath,
    against: AnyPath | None = None,
    *,
    progress: Progress = None,
    **options: Unpack[typed.VerifyKeywords],
) -> streamconv.Verification:
    """Check that a checkpoint is whole, and that it holds what another one does.

    Containers first: every record's CRC-32, headers, indexes, and that no rank, layer or shard is missing. Then, if
    ``against`` is given and the checkpoint is whole, both sides are opened anew and every element is compared under
    canonical names; where dtypes differ, the other side's value is first cast as by a conversion. Copies inside the
    checkpoint (replicated parameters, a tied head) must be equal.

    >>> streamconv.verify("out", against="checkpoints/bloom")
    <Verification: whole, 69 tensors compared: out/iter_0000003>

    Args:
        dst: the checkpoint to verify.
        against: the checkpoint that it was made from, of any format and any parallelism. Options are then about this
            one, and those that begin with ``dst_`` about ``dst``. Or a file of its digests, from :func:`digest`.
        progress: called with (bytes done, bytes in all) of the pass that runs; True draws a bar on stderr.
        options: see below.

    Raises:
        SourceError: a side is not there or not a checkpoint.
        DamagedError: ``dst`` is a single file that cannot be opened, or ``against`` is broken.
        MemoryBudgetError: the budget is too small.
    """
    given, made = given_by("verify", options), path_of("dst", dst)
    source = None if against is None else path_of("against", against)
    with shown(progress, "verifying") as show:
        return verbs.verify(made, source, given, show)


@verb
def diff(
    a: AnyPath, b: AnyPath, *, progress: Progress = None, **options: Unpack[typed.DiffKeywords]
) -> streamconv.Comparison:
    """The differences between two checkpoints, under canonical names if both are translated models, else under stored
    names. Where dtypes differ, values are compared as numbers.

    >>> streamconv.diff("checkpoints/bloom", "out").is_equal
    True

    Args:
        a: a checkpoint file or folder.
        b: another. Options are about both, those that begin with ``a_`` or ``b_`` about one.
        progress: called with (bytes done, bytes in all); True draws a bar on stderr.
        options: see below.

    Raises:
        SourceError, DamagedError: a side is not there, not a checkpoint, or broken.
        MemoryBudgetError: the budget is too small.
    """
    given = given_by("diff", options)
    sides = path_of("a", a), path_of("b", b)
    with shown(progress, "comparing") as show:
        return verbs.diff(*sides, given, show)


@verb
def digest(path: AnyPath, *, progress: Progress = None, **options: Unpack[typed.DigestKeywords]) -> streamconv.Digests:
    """The digest of every parameter, by its canonical name: the same for every layout, framework and parallelism.

    Of a checkpoint of no family that is translated, the digests are by stored names. ``save`` writes them to a file,
    which :func:`verify` takes in place of the checkpoint.

    >>> streamconv.digest("checkpoints/bloom").save("digests.json")
    >>> streamconv.verify("checkpoints/bloom", "digests.json").exit_code
    0

    Args:
        path: a checkpoint file or folder.
        progress: called with (bytes done, bytes in all); True draws a bar on stderr.
        options: see below.

    Raises:
        SourceError: it is not there, or not a checkpoint.
        AmbiguousError: the true size of the vocabulary or the number of heads is unknown.
        DamagedError: it is broken.
        MemoryBudgetError: the budget is too small.
    """
    given, place = given_by("digest", options), path_of("path", path)
    with shown(progress, "digesting") as show:
        return verbs.digest(place, given, show)


@verb
def extract(
    src: AnyPath, name: str, out: AnyPath, *, progress: Progress = None, **options: Unpack[typed.ExtractKeywords]
) -> streamconv.Extracted:
    """Write one tensor, whole, to a file of its own, whatever ranks and files its parts are in.

    >>> streamconv.extract("checkpoints/bloom", "layers.2.mlp.dense_4h_to_h.weight", "w.npy")
    <Extracted: layers.2.mlp.dense_4h_to_h.weight, float32, 16.12 KiB: w.npy>

    Args:
        src: a checkpoint file or folder.
        name: the tensor's name, as :func:`inspect` shows it.
        out: the file, ``.npy`` or ``.safetensors``.
        progress: called with (bytes done, bytes in all); True draws a bar on stderr.
        options: see below.

    Raises:
        UsageError: there is no such tensor, or the file's suffix is another one.
        DestinationError: the file is there already.
        StreamconvError: the source is refused; its class says why.
    """
    given = given_by("extract", options)
    source, place = path_of("src", src), path_of("out", out)
    wanted = text_of("name", name)
    with shown(progress, "extracting") as show:
        return verbs.extract(source, wanted, place, given, show)


@overload
def open_checkpoint(
    path: AnyPath, *, tag: str | None = None, reader: Literal["streamconv"] = "streamconv"
) -> streamconv.Checkpoint: ...


@overload
def open_checkpoint(
    path: AnyPath, *, tag: str | None = None, reader: Literal["reference"]
) -> streamconv.ReferenceCheckpoint: ...


def open_checkpoint(
    path: AnyPath, *, tag: str | None = None, reader: str = "streamconv"
) -> streamconv.Checkpoint | streamconv.ReferenceCheckpoint:
    """Open a file of tensors, or a folder of them, lazily and without executing anything in it.

    >>> tensors = streamconv.open_checkpoint("checkpoints/bloom")
    >>> tensors["layer_03-model_00-model_states.pt:self_attention.dense.weight"]
    LazyTensor(shape=(32, 16), dtype=float32, 1 piece)
    >>> theirs = streamconv.open_checkpoint("checkpoints/bloom", reader="reference")
    >>> theirs["layer_03-model_00-model_states.pt:self_attention.dense.weight"].shape
    torch.Size([32, 16])

    Args:
        path: a torch, safetensors or ``.distcp`` file, or a folder; for a DeepSpeed root the tag in ``latest`` is
            taken.
        tag: another tag of a DeepSpeed root.
        reader: ``streamconv``, or ``reference``: torch's tensors by the same names, as the format's own reader reads
            them, under mapping and with inert stand-ins for the classes that files name.

    Raises:
        SourceError: ``path`` does not exist, or the folder has no such file.
        UnsupportedError: for ``reference``, this release of torch is not safe.
    """
    from streamconv.inspection.open_checkpoint import open_checkpoint as open_lazily

    with in_words_of_python():
        place, given = path_of("path", path), given_by("inspect", {"tag": tag})
        return open_lazily(place, given.get("tag"), reference=word_of("reader", reader, READERS) == READERS[1])

"""Find a stored model's family and sizes, and check every shape against them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from streamconv.core.errors import AmbiguousError, DamagedError, UnsupportedError, UsageError
from streamconv.core.lazy import LazyTensor, Storage
from streamconv.core.text import shown
from streamconv.formats.registry import find_source, titles_from
from streamconv.formats.source import Fact, StoredModel, positive_int
from streamconv.models.family import ModelFamily
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import WORDS, ModelSizes, ParameterId, Section
from streamconv.models.registry import known_families
from streamconv.planning.biases import stored_as, stored_biases
from streamconv.planning.contradictions import contradictions

__all__ = ["NearestFamily", "Recognised", "nearest_family", "need_heads", "recognise"]


class NearestFamily(NamedTuple):
    """The family that a stored model looks like, the evidence, and what named it."""

    family: ModelFamily
    evidence: Fact
    named_by: Literal["its own configuration", "the configuration", "the keys"]


class Recognised(NamedTuple):
    """A stored model with the facts about it, its family, and its sizes."""

    model: StoredModel
    family: ModelFamily
    sizes: ModelSizes


def recognise(
    model: StoredModel, num_heads: int | None, named: str | None = None, *, by_args: bool = False
) -> Recognised:
    """The family whose table has exactly the stored keys, and the sizes with which all shapes agree.

    Args:
        model: what a format opened.
        num_heads: the user's number of attention heads; None takes that of the training arguments.
        named: the family that a configuration names, to choose among families with the same parameters.
        by_args: where the training arguments contradict the family that the keys name, take a family with the same
            parameters that they do not contradict. This is enough for comparing values, not for a conversion.

    Raises:
        UnsupportedError: no family has these keys, or the arguments name a mechanism that the family lacks.
        DamagedError: keys or shapes contradict each other or the training arguments.
    """
    by_layer = model.keys_by_layer()
    nearest = nearest_family(model, named)
    if by_args and nearest.named_by == "the keys" and (other := _alike(nearest.family, model)):
        reasons = f"{nearest.evidence.evidence}; not {nearest.family.title}, as args say"
        nearest = nearest._replace(family=other, evidence=Fact(f"family {other.title}", reasons))
    _refuse_mechanisms(nearest, model)
    family = nearest.family.having(stored_biases(model, nearest.family))
    for layer in range(model.num_layers):
        _check_keys(model, family, f"layer {layer}", by_layer.get(layer, set()), Section.LAYER)
    _check_keys(model, family, "the final norm", model.keys(Section.FINAL_NORM), Section.FINAL_NORM)
    heads = _heads(model, num_heads)
    sizes = _sizes(model, family, heads)
    _check_args(model, sizes)
    _refuse_aliases(model)
    for stored, shards in model.tensors.items():
        parameter = family.parameter(stored)
        expected = list(sizes.shape_of(parameter))
        if parameter.axis is not None:
            expected[parameter.axis] //= model.tp
        if shards[0].shape != tuple(expected):
            raise DamagedError(
                f"{stored.name} is {shards[0].shape}, expected {tuple(expected)} at TP {model.tp}: {sizes}"
                f"{stored_as(model, stored)}",
                where=shards[0].pieces[0].views[0].storage.path if shards[0].pieces else model.path,
            )
    facts = [nearest.evidence]
    if num_heads is not None:
        facts.append(Fact(f"{heads} attention heads", "--num-heads; nothing in the folder can confirm it"))
    return Recognised(model.noting(facts=facts), family, sizes)


def nearest_family(model: StoredModel, named: str | None = None) -> NearestFamily:
    """The family that the folder or a configuration names, else the one with the nearest keys.

    Keys that differ are not refused here.

    Raises:
        UnsupportedError: no family has the keys of this embedding and this head.
    """
    layer = model.keys(Section.LAYER, 0)
    embedding, head = model.keys(Section.EMBEDDING), model.keys(Section.HEAD)
    candidates = []
    for family in known_families():
        allowed_head = {p.key for p in family.parameters if p.section is Section.HEAD}
        if embedding == family.keys(Section.EMBEDDING) and head <= allowed_head:
            candidates.append(family)
    words = f"keys {', '.join(sorted(embedding))}" + (", own head" if head else ", no head: tied")
    chosen = {family.name: family for family in candidates}.get(model.family or named or "")
    # A configuration tells families with the same parameters apart; it does not outweigh the parameters.
    if chosen is not None and (model.family or layer - chosen.choices == chosen.keys(Section.LAYER)):
        evidence = Fact(f"family {chosen.title}", f"{words}; the configuration names it")
        return NearestFamily(chosen, evidence, "its own configuration" if model.family else "the configuration")
    by_keys = [family for family in candidates if not family.only_named]
    if by_keys:
        family = min(by_keys, key=lambda family: _distance(family, layer))
        return NearestFamily(family, Fact(f"family {family.title}", words), "the keys")
    raise UnsupportedError(
        f"no known family has the embedding {sorted(embedding)}" + (f" and the head {sorted(head)}" if head else ""),
        where=model.path,
        remedy=f"families so far in such folders: {_titles(model)}",
    )


def _distance(family: ModelFamily, layer: set[str]) -> tuple[int, int]:
    """The number of a layer's keys that differ from any model of a family, then from the keys that all models have."""
    keys = family.keys(Section.LAYER)
    return len((layer - family.choices) ^ keys), len(layer ^ keys)


def _titles(model: StoredModel) -> str:
    return titles_from(find_source(model.path).name)


def _refuse_mechanisms(nearest: NearestFamily, model: StoredModel) -> None:
    family, _, named_by = nearest
    reason = next(contradictions(family, model.args or {}), None)
    up = model.tensors.get(ParameterId(Section.LAYER, 0, "mlp.dense_h_to_4h.weight"))
    down = model.tensors.get(ParameterId(Section.LAYER, 0, "mlp.dense_4h_to_h.weight"))
    if reason is None and up and down and not family.gated and up[0].shape[0] == 2 * down[0].shape[1]:
        reason = "a gated linear unit (GLU: dense_h_to_4h has twice the rows that dense_4h_to_h has columns)"
    if reason is None:
        return
    remedy = f"families so far in such folders: {_titles(model)}"
    if named_by == "the configuration":
        remedy = "give the configuration of the model that was trained"
    elif other := _alike(family, model):
        named = f'{{"model_type": "{other.huggingface.model_type}"}}'
        remedy = f"if it is a {other.title}, which has the same parameters, say {named} in --config FILE"
    names = "name" if named_by == "the keys" else "names"
    raise UnsupportedError(
        f"{reason}: not translated for the family {family.title}, which {named_by} {names}",
        where=model.path,
        remedy=remedy,
    )


def _alike(family: ModelFamily, model: StoredModel) -> ModelFamily | None:
    """Where args contradict a family: one of the same parameters that they do not, if the source can hold it."""
    args = model.args or {}
    if next(contradictions(family, args), None) is None:
        return None
    layer = model.keys_by_layer().get(0, set())
    for other in known_families():
        same = other.only_named and other.parameters == family.parameters and layer == other.keys(Section.LAYER)
        if same and not any(contradictions(other, args)) and not find_source(model.path).refusal(other):
            return other
    return None


def _check_keys(model: StoredModel, family: ModelFamily, where: str, keys: set[str], section: Section) -> None:
    expected = family.keys(section)
    remedy = f"in a {family.title} model it has {', '.join(sorted(expected))}"
    if unknown := keys - expected:
        raise UnsupportedError(
            f"{where}: unknown tensors {', '.join(sorted(unknown))}", where=model.path, remedy=remedy
        )
    if missing := expected - keys:
        raise DamagedError(f"{where}: missing tensors {', '.join(sorted(missing))}", where=model.path, remedy=remedy)


def _heads(model: StoredModel, num_heads: int | None) -> int | None:
    """The number of attention heads: the user's, which must agree with the training arguments, or theirs."""
    heads = positive_int(model.args, "num_attention_heads", model.path)
    if num_heads is not None and heads not in (None, num_heads):
        raise UsageError(f"--num-heads {num_heads}: args say {heads}", remedy="leave it out")
    return heads if num_heads is None else num_heads


def _sizes(model: StoredModel, family: ModelFamily, heads: int | None) -> ModelSizes:
    def stored(parameter: ParameterId) -> LazyTensor:
        try:
            tensor = model.tensors[parameter][0]
        except KeyError:
            raise DamagedError(f"{parameter.key} is missing", where=model.path) from None
        if len(tensor.shape) != 2:
            raise DamagedError(f"{parameter.key} has shape {tensor.shape}, not two axes", where=model.path)
        return tensor

    words = stored(WORDS)
    hidden = words.shape[1]
    place = WORDS.beside("position_embeddings.weight")
    positions = stored(place) if place in model.tensors else None
    ffn = stored(ParameterId(Section.LAYER, 0, "mlp.dense_h_to_4h.weight")).shape[0] * model.tp
    attention = stored(ParameterId(Section.LAYER, 0, "self_attention.dense.weight")).shape[1] * model.tp
    head_dim = positive_int(model.args, "kv_channels", model.path) or (attention // heads if heads else None)
    rows = stored(ParameterId(Section.LAYER, 0, "self_attention.query_key_value.weight")).shape[0] * model.tp
    if heads is None and family.grouped and rows != 3 * hidden:
        raise AmbiguousError(
            f"the number of attention heads is unknown, and query_key_value has {rows} rows of {hidden}",
            where=model.path,
            remedy="say --num-heads N",
        )
    return ModelSizes(
        num_layers=model.num_layers,
        hidden=hidden,
        ffn=ffn // 2 if family.gated else ffn,
        vocab=words.shape[0] * model.tp,
        positions=positions.shape[0] if positions else None,
        heads=heads,
        groups=_groups(model, family, heads, head_dim, rows) if heads and head_dim else None,
        head_dim=head_dim if heads else None,
        gated=family.gated,
    )


def _groups(model: StoredModel, family: ModelFamily, heads: int, head_dim: int, rows: int) -> int:
    """The number of key and value heads, from the rows of query_key_value."""
    if not family.grouped:
        return heads
    groups, rest = divmod(rows - heads * head_dim, 2 * head_dim)
    said = positive_int(model.args, "num_key_value_heads", model.path)
    if rest or groups < 1 or heads % groups or said not in (None, groups):
        raise DamagedError(
            f"query_key_value has {rows} rows: {heads} queries of {head_dim} rows leave {rows - heads * head_dim} for "
            f"keys and values, args say {said or 'nothing'} of them",
            where=model.path,
            remedy="check --num-heads, or the arguments num_attention_heads, num_key_value_heads and kv_channels",
        )
    return groups


def _check_args(model: StoredModel, sizes: ModelSizes) -> None:
    args = model.args or {}
    for name, value in (
        ("hidden_size", sizes.hidden),
        ("ffn_hidden_size", sizes.ffn),
        ("padded_vocab_size", sizes.vocab),
        ("max_position_embeddings", sizes.positions),
    ):
        said = args.get(name)
        if said is not None and value is not None and said != value:
            raise DamagedError(f"args.{name} is {shown(said)}, the stored tensors have {value}", where=model.path)


def _refuse_aliases(model: StoredModel) -> None:
    """Refuse parameters or rows that share the same bytes: no trained Megatron model has them."""
    seen: dict[tuple[Storage, int], str] = {}
    for parameter, shards in model.tensors.items():
        name = f"{parameter.key} of layer {parameter.layer}"
        for shard in shards:
            for piece in shard.pieces:
                view = piece.views[0]
                other = seen.setdefault((view.storage, view.offset), name)
                expanded = any(s == 0 and n > 1 for s, n in zip(view.strides, piece.shape, strict=True))
                if expanded or other != name:
                    what = "repeats one stored row" if expanded else f"is stored as the same bytes as {other}"
                    raise UnsupportedError(f"{name} {what}", where=view.storage.path)


def need_heads(model: StoredModel, sizes: ModelSizes, tp: int, *, moved: bool, cuts_groups: bool = False) -> None:
    """Refuse to move query_key_value rows without the number of heads, or to cut a head or a group.

    Args:
        model: the source.
        sizes: its sizes.
        tp: tensor-parallel size of the target.
        moved: whether the rows are moved even if TP does not change.
        cuts_groups: whether a rank of the target may hold a slice of a group's rows.

    Raises:
        AmbiguousError: the number of heads is needed and unknown.
        UnsupportedError: the target's tensor-parallel size does not divide the heads.
    """
    if sizes.heads is None:
        if tp != model.tp or model.qkv not in (None, QkvLayout.INTERLEAVED) or moved:
            raise AmbiguousError(
                "the number of attention heads is unknown, and the rows of query_key_value must be moved",
                where=model.path,
                remedy="say --num-heads N",
            )
        return
    groups = sizes.groups or sizes.heads
    for what, size, cuts in (("source", model.tp, model.cuts_groups), ("target", tp, cuts_groups)):
        may_cut = cuts and size % groups == 0
        for count, units, fits in ((sizes.heads, "attention heads", False), (groups, "key and value heads", may_cut)):
            if count % size and not fits:
                raise UnsupportedError(
                    f"{count} {units} do not divide over the {what}'s TP {size}",
                    remedy=f"choose a --tp that divides {count}"
                    + (f", or a multiple of {groups}" if cuts and count == groups else ""),
                )

"""Find a stored model's family and sizes, and check every shape against them."""

from __future__ import annotations

from streamconv.errors import AmbiguousError, DamagedError, UnsupportedError, UsageError
from streamconv.families import known_families
from streamconv.families.base import ModelFamily, ModelSizes, QkvLayout, Section
from streamconv.formats.base import Fact, ShardedModel, positive_int
from streamconv.lazy import LazyTensor, Storage

__all__ = ["need_heads", "recognise"]


def recognise(model: ShardedModel, num_heads: int | None) -> tuple[ModelFamily, ModelSizes]:
    """The family whose table has exactly the keys that are stored, and the sizes that all shapes agree with.

    Args:
        model: what a format opened.
        num_heads: the number of attention heads as the user says it; otherwise the training arguments say it.

    Raises:
        UnsupportedError: no family has these keys, or the arguments name a mechanism that none of them has.
        DamagedError: keys or shapes contradict each other or the training arguments.
    """
    family = _family(model)
    _refuse_mechanisms(family, model)
    sizes = _sizes(model, num_heads)
    _check_args(model, sizes)
    by_layer = model.keys_by_layer()
    for layer in range(model.num_layers):
        _check_keys(model, family, f"layer {layer}", by_layer.get(layer, set()), Section.LAYER)
    _check_keys(model, family, "the final norm", model.keys(Section.FINAL_NORM), Section.FINAL_NORM)
    _refuse_aliases(model)
    for (section, layer, key), shards in model.tensors.items():
        parameter = family.parameter(section, key)
        expected = list(sizes.shape_of(parameter))
        if parameter.axis is not None:
            expected[parameter.axis] //= model.tp
        if shards[0].shape != tuple(expected):
            raise DamagedError(
                f"{parameter.name(layer)} is {shards[0].shape}, expected {tuple(expected)} at TP {model.tp}: {sizes}",
                where=shards[0].pieces[0].views[0].storage.path if shards[0].pieces else model.path,
            )
    return family, sizes


def _family(model: ShardedModel) -> ModelFamily:
    embedding, head = model.keys(Section.EMBEDDING), model.keys(Section.HEAD)
    for family in known_families():
        allowed_head = {p.key for p in family.parameters if p.section is Section.HEAD}
        if embedding == family.keys(Section.EMBEDDING) and head <= allowed_head:
            words = f"keys {', '.join(sorted(embedding))}" + (", own head" if head else ", no head: tied")
            model.facts.append(Fact(f"family {family.title}", words))
            return family
    titles = ", ".join(family.title for family in known_families())
    raise UnsupportedError(
        f"no known family has the embedding {sorted(embedding)}" + (f" and the head {sorted(head)}" if head else ""),
        where=model.path,
        remedy=f"families so far: {titles}",
    )


def _refuse_mechanisms(family: ModelFamily, model: ShardedModel) -> None:
    reason = family.refusal(dict(model.args or {}))
    up = model.tensors.get((Section.LAYER, 0, "mlp.dense_h_to_4h.weight"))
    down = model.tensors.get((Section.LAYER, 0, "mlp.dense_4h_to_h.weight"))
    if reason is None and up and down and up[0].shape[0] == 2 * down[0].shape[1]:
        reason = "a gated linear unit (GLU: dense_h_to_4h has twice the rows that dense_4h_to_h has columns)"
    if reason is not None:
        raise UnsupportedError(
            f"{reason}: not translated yet",
            where=model.path,
            remedy="families so far: BLOOM and GPT (learned positions)",
        )


def _check_keys(model: ShardedModel, family: ModelFamily, where: str, keys: set[str], section: Section) -> None:
    expected = family.keys(section)
    remedy = f"in a {family.title} model it has {', '.join(sorted(expected))}"
    if unknown := keys - expected:
        raise UnsupportedError(
            f"{where}: unknown tensors {', '.join(sorted(unknown))}", where=model.path, remedy=remedy
        )
    if missing := expected - keys:
        raise DamagedError(f"{where}: missing tensors {', '.join(sorted(missing))}", where=model.path, remedy=remedy)


def _sizes(model: ShardedModel, num_heads: int | None) -> ModelSizes:
    def stored(section: Section, layer: int, key: str) -> LazyTensor:
        try:
            return model.tensors[section, layer, key][0]
        except KeyError:
            raise DamagedError(f"{key} is missing", where=model.path) from None

    words = stored(Section.EMBEDDING, -1, "word_embeddings.weight")
    if len(words.shape) != 2:
        raise DamagedError(f"word_embeddings.weight has shape {words.shape}, not two axes", where=model.path)
    hidden = words.shape[1]
    positions = model.tensors.get((Section.EMBEDDING, -1, "position_embeddings.weight"))
    heads = positive_int(model.args, "num_attention_heads", model.path)
    if num_heads is not None:
        if heads not in (None, num_heads):
            raise UsageError(f"--num-heads {num_heads}: args say {heads}", remedy="leave it out")
        heads = num_heads
        model.facts.append(Fact(f"{heads} attention heads", "--num-heads; nothing in the folder can confirm it"))
    head_dim = positive_int(model.args, "kv_channels", model.path) or (hidden // heads if heads else None)
    return ModelSizes(
        num_layers=model.num_layers,
        hidden=hidden,
        ffn=stored(Section.LAYER, 0, "mlp.dense_h_to_4h.weight").shape[0] * model.tp,
        vocab=words.shape[0] * model.tp,
        positions=positions[0].shape[0] if positions else None,
        heads=heads,
        head_dim=head_dim if heads else None,
    )


def _check_args(model: ShardedModel, sizes: ModelSizes) -> None:
    args = model.args or {}
    for name, value in (
        ("hidden_size", sizes.hidden),
        ("ffn_hidden_size", sizes.ffn),
        ("padded_vocab_size", sizes.vocab),
        ("max_position_embeddings", sizes.positions),
    ):
        said = args.get(name)
        if isinstance(said, int) and value is not None and said != value:
            raise DamagedError(f"args.{name} is {said}, the stored tensors have {value}", where=model.path)


def _refuse_aliases(model: ShardedModel) -> None:
    """Parameters that are the same bytes, or rows that are: no trained Megatron model has them."""
    seen: dict[tuple[Storage, int], str] = {}
    for (_, layer, key), shards in model.tensors.items():
        name = f"{key} of layer {layer}"
        for shard in shards:
            for piece in shard.pieces:
                view = piece.views[0]
                other = seen.setdefault((view.storage, view.offset), name)
                expanded = any(s == 0 and n > 1 for s, n in zip(view.strides, piece.shape, strict=True))
                if expanded or other != name:
                    what = "repeats one stored row" if expanded else f"is stored as the same bytes as {other}"
                    raise UnsupportedError(f"{name} {what}", where=view.storage.path)


def need_heads(model: ShardedModel, sizes: ModelSizes, tp: int) -> None:
    """Refuse a change of query_key_value rows without the number of heads, or one that cuts a head.

    Raises:
        AmbiguousError: the number of heads is needed and unknown.
        UnsupportedError: the target's tensor-parallel size does not divide the heads.
    """
    if sizes.heads is None:
        if tp != model.tp or model.qkv is QkvLayout.BLOCKS:
            raise AmbiguousError(
                "the number of attention heads is unknown, and the rows of query_key_value must be moved",
                where=model.path,
                remedy="say --num-heads N",
            )
        return
    for what, size in (("source", model.tp), ("target", tp)):
        if sizes.heads % size:
            raise UnsupportedError(
                f"{sizes.heads} attention heads do not divide over the {what}'s TP {size}",
                remedy=f"choose a --tp that divides {sizes.heads}",
            )

"""Which layers Megatron-Core puts where."""

# mypy: disable-error-code="no-untyped-call,no-any-return,unused-ignore"

from __future__ import annotations

from typing import Any

from tests.formats.megatron.core.real.ranks import in_ranks

Case = dict[str, Any]


def real_layers(
    num_layers: int, pp: int, vpp: int = 1, first: int | None = None, last: int | None = None, **more: Any
) -> list[list[range]]:
    """The global layers, from 0, of each chunk of each stage: ``real_layers(..)[stage][chunk]``.

    ``first`` and ``last`` are the layers on the first and the last stage; ``more`` are further fields of Megatron's
    ``TransformerConfig``, for instance ``account_for_embedding_in_pipeline_split``. What Megatron refuses raises
    ``ValueError``.
    """
    case = {"num_layers": num_layers, "pp": pp, "vpp": vpp, "first": first, "last": last, **more}
    (layers, error) = real_layers_of([case])[0]
    if error:
        raise ValueError(error)
    return layers


def real_layers_of(cases: list[Case]) -> list[tuple[list[list[range]], str]]:
    """Many cases at once: for each what :func:`real_layers` says, and the error that Megatron ends with or nothing."""
    answers: list[tuple[list[list[range]], str]] = in_ranks(1, _real_layers_of, cases)[0]
    return answers


def _real_layers_of(cases: list[Case]) -> list[tuple[list[list[range]], str]]:
    return [_attempt(case) for case in cases]


def _attempt(case: Case) -> tuple[list[list[range]], str]:
    try:
        return _real_layers(**case), ""
    except (AssertionError, ValueError, ZeroDivisionError) as error:
        return [], f"{type(error).__name__}: {error}"


def _real_layers(
    *, num_layers: int, pp: int, vpp: int = 1, first: int | None = None, last: int | None = None, **more: Any
) -> list[list[range]]:
    import torch
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    config = TransformerConfig(
        num_layers=num_layers,
        hidden_size=8,
        num_attention_heads=2,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
        pipeline_dtype=torch.float32,
        num_layers_in_first_pipeline_stage=first,
        num_layers_in_last_pipeline_stage=last,
        **more,
    )
    stages = []
    for stage in range(pp):
        chunks = []
        for chunk in range(vpp):
            place = (config, chunk if vpp > 1 else None, stage)
            offset = get_transformer_layer_offset(*place)
            chunks.append(range(offset, offset + get_num_layers_to_build(*place)))
        stages.append(chunks)
    return stages

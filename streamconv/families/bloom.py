"""BLOOM: ALiBi instead of position embeddings, a LayerNorm on the word embedding, a head tied to the embedding."""

from __future__ import annotations

from streamconv.families.base import ModelFamily, Parameter, Section
from streamconv.families.megatron import BLOCK, FINAL_NORM

FAMILY = ModelFamily(
    name="bloom",
    title="BLOOM",
    positions="alibi",
    parameters=(
        Parameter(Section.EMBEDDING, "word_embeddings.weight", ("vocab", "hidden"), axis=0),
        Parameter(Section.EMBEDDING, "word_embeddings.norm.weight", ("hidden",)),
        Parameter(Section.EMBEDDING, "word_embeddings.norm.bias", ("hidden",)),
        *BLOCK,
        *FINAL_NORM,
    ),
    runs_in="bigscience-workshop/Megatron-DeepSpeed; NVIDIA/Megatron-LM has neither ALiBi nor the embedding norm",
)

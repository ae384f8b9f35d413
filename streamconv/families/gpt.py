"""GPT-2 and GPT-3: learned absolute positions, and a head that is tied to the embedding or its own."""

from __future__ import annotations

from streamconv.families.base import ModelFamily, Parameter, Section
from streamconv.families.megatron import BLOCK, FINAL_NORM

FAMILY = ModelFamily(
    name="gpt",
    title="GPT",
    positions="learned",
    parameters=(
        Parameter(Section.EMBEDDING, "word_embeddings.weight", ("vocab", "hidden"), axis=0),
        Parameter(Section.EMBEDDING, "position_embeddings.weight", ("positions", "hidden")),
        *BLOCK,
        *FINAL_NORM,
        Parameter(Section.HEAD, "lm_head.weight", ("vocab", "hidden"), axis=0, optional=True),
    ),
    runs_in="Megatron-LM and its forks",
)

"""The repository, and the checkpoints in it that tests convert."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
FRAMEWORKS = FIXTURES / "frameworks"
MADE = FIXTURES / "made"


@dataclass(frozen=True)
class Source:
    """A checkpoint that converts: its folder, parallel sizes, and what a test must know to check it."""

    folder: Path
    tp: int
    pp: int
    stages: tuple[int, ...]
    true_vocab: int
    blocks: bool = False
    heads: int = 4

    @property
    def name(self) -> str:
        return self.folder.name


REAL = (
    Source(FRAMEWORKS / "bs_bloom_L5_embpart_tp1pp2_fp32_z0", 1, 2, (3, 2), 100),
    Source(FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0", 2, 2, (2, 2), 100),
    Source(FRAMEWORKS / "bs_gpt2_tp2pp2_fp16_z1", 2, 2, (2, 2), 100),
    Source(FRAMEWORKS / "dsh_gpt_dp2_tp2pp2_bf16_z1", 2, 2, (2, 2), 101, blocks=True),
    Source(FRAMEWORKS / "dsh_gpt_tp2pp2_fp32_z0", 2, 2, (2, 2), 101, blocks=True),
    Source(FRAMEWORKS / "dsp_gpt_nopipe_tp2_fp32_z0", 2, 1, (4,), 101),
    Source(FRAMEWORKS / "dsp_gptuntied_tp2pp1_fp32_z0", 2, 1, (4,), 101),
)
LLAMA = Source(FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0", 2, 2, (2, 2), 101)
LABELLED = (
    Source(MADE / "bloom_L12_tp1pp3_type_z1", 1, 3, (4, 4, 4), 20),
    Source(MADE / "bloom_L7_tp2pp3_embpart_z0", 2, 3, (2, 3, 2), 20),
    Source(MADE / "gpt_L7_tp1pp3_uniform_z0", 1, 3, (2, 4, 1), 20),
    Source(MADE / "gpt_L7_tp1pp3_parameters_z0", 1, 3, (2, 3, 2), 20),
    Source(MADE / "gptuntied_L5_tp2pp2_z1_bf16", 2, 2, (3, 2), 20),
    Source(MADE / "gpt_L2_tp12pp1_z0", 12, 1, (2,), 20, heads=12),
    Source(MADE / "dsmd_blocks_L2_tp2pp1_z1", 2, 1, (2,), 20, blocks=True),
)
REFUSED = {
    "z1_bf16": "a model without config.json",
    "z1_bf16.fp32": "a model without config.json",
    "z1_bf16.universal": "a model without config.json",
    "z3_bf16_frozen": "a model without config.json",
}

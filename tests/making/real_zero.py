"""Real DeepSpeed runs on a CPU, each in processes of its own: the engine alone, Hugging Face's Trainer, accelerate.

``start`` is what a test calls; the rest of the module runs in the processes that it starts. A run leaves its folder as
the framework wrote it, and beside it ``truth.pt``: what the live model had, whole, by name: ``lp`` as the module has
it, ``fp32`` as the optimizer has it, or None.
"""

# mypy: disable-error-code="no-untyped-call,no-any-return,unused-ignore,misc"

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

SECONDS = 300
LLAMA: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def start(kind: str, out: Path, world: int = 1, **options: Any) -> dict[str, Any]:
    """Run ``kind`` in ``world`` processes and give its truth back."""
    out.mkdir(parents=True)
    meeting = out / "meeting"
    command = [sys.executable, "-m", __name__, kind, str(out), json.dumps(options)]
    around = dict(os.environ, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", MEETING=str(meeting))
    around |= {
        "WORLD_SIZE": str(world),
        "LOCAL_SIZE": str(world),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    around |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "PYTHONPATH": str(Path(__file__).parents[2])}
    ranks, logs = [], [out / f"rank{rank}.log" for rank in range(world)]
    try:
        for rank, log in enumerate(logs):
            mine = {**around, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("w") as words:
                ranks.append(subprocess.Popen(command, env=mine, stdout=words, stderr=words))
        codes = [process.wait(SECONDS) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    if any(codes):
        told = "\n".join(log.read_text()[-4000:] for log in logs)
        raise RuntimeError(f"the {kind} run ended with {codes}:\n{told}")
    for path in (*logs, meeting):
        path.unlink(missing_ok=True)
    return torch.load(out / "truth.pt", weights_only=True)


class Odd(nn.Module):
    """Sizes that no number of ranks divides, none at all, a tied head, a frozen layer, and buffers of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.a, self.b = nn.Linear(5, 3), nn.Linear(3, 5)
        self.scale = nn.Parameter(torch.randn(1))
        # ZeRO-3 cannot gather a parameter of a layer that runs, if it has no elements.
        self.unused = nn.Module()
        self.unused.register_parameter("empty", nn.Parameter(torch.empty(0, 4)))
        self.frozen = nn.Linear(5, 5, bias=False)
        self.frozen.weight.requires_grad = False
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("count", torch.tensor([3, 4]))
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states = self.frozen(self.b(self.a(self.embed(tokens)))) * self.scale
        return nn.functional.cross_entropy(self.head(states).flatten(0, 1), tokens.flatten())


def configuration(options: dict[str, Any]) -> dict[str, Any]:
    """What DeepSpeed is told."""
    zero = {"stage": options["stage"], **options.get("zero", {})}
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if options["dtype"] != "fp32":
        found[options["dtype"]] = {"enabled": True, **({"loss_scale": 128} if options["dtype"] == "fp16" else {})}
    return found | options.get("extra", {})


def llama(options: dict[str, Any]) -> nn.Module:
    """A tiny Llama whose norms differ too; with ``lora`` an adapter around it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=options.get("tied", False)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    if options.get("lora"):
        from peft import LoraConfig, get_peft_model

        chosen = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **options.get("peft", {}))
        return get_peft_model(model, chosen)
    return model


class Lines(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, LLAMA["vocab_size"], (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


def truth_of(engine: Any, stage: int) -> dict[str, Any]:
    """Every parameter of the live engine, whole, and its persistent buffers."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    assert isinstance(engine, deepspeed.DeepSpeedEngine)
    found: dict[str, Any] = {}
    unnamed = unnamed_masters(engine) if stage == 0 else {}
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if not shape.numel():
            found[name] = {"lp": torch.empty(shape, dtype=parameter.dtype), "fp32": None}
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            rounded = parameter.detach().cpu().clone()
        named = safe_get_full_fp32_param(parameter) if parameter.requires_grad and stage > 0 else None
        master = unnamed.get(id(parameter)) if stage == 0 else named
        found[name] = {"lp": rounded, "fp32": None if master is None else master.detach().float().cpu().clone()}
    kept = set(engine.module.state_dict())
    for name, buffer in engine.module.named_buffers():
        if name in kept:
            found[name] = {"lp": buffer.detach().cpu().clone(), "fp32": None}
    return found


def unnamed_masters(engine: Any) -> dict[int, torch.Tensor]:
    """The masters at ZeRO-0, which has lists of them by group, by whose they are."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "fp32_groups"):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {id(mine): master for group in pairs for mine, master in zip(*group, strict=True)}


def whole_model(truth: dict[str, Any], options: dict[str, Any], dtype: torch.dtype) -> Any:
    """The model with the live values; in fp32 with the masters."""
    model: Any = llama(options).to(dtype)
    values = {
        name: (pair["fp32"] if dtype == torch.float32 and pair["fp32"] is not None else pair["lp"]).to(dtype)
        for name, pair in truth.items()
    }
    model.load_state_dict(values, strict=True)
    return model.eval()


def merged(truth: dict[str, Any], options: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What PEFT's own ``merge_and_unload`` makes of the live values; in fp32 the adapter's are the masters."""
    model = whole_model(truth, options, dtype)
    return {name: tensor.detach().clone() for name, tensor in model.merge_and_unload().state_dict().items()}


def finish(engine: Any, out: Path, options: dict[str, Any], more: dict[str, Any] | None = None) -> None:
    """Write the truth, by the first rank."""
    truth = truth_of(engine, options["stage"])
    if int(os.environ["RANK"]) == 0:
        found: dict[str, Any] = {"params": truth, **(more or {})}
        if options.get("lora"):
            found["merged_fp32"] = merged(truth, options, torch.float32)
            found["merged_lp"] = merged(truth, options, DTYPES[options["dtype"]])
        if "tokens" in found and not options.get("lora"):
            with torch.no_grad():
                found["logits_fp32"] = whole_model(truth, options, torch.float32)(found["tokens"]).logits
        torch.save(found, out / "truth.pt")
    torch.distributed.barrier()


def engine_run(out: Path, options: dict[str, Any]) -> None:
    import deepspeed

    torch.manual_seed(0)
    told = configuration(options)
    if options["stage"] == 3:
        with deepspeed.zero.Init(config_dict_or_path=told):
            model: Any = Odd()
    else:
        model = Odd()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for name, parameter in trained if name.endswith("bias") == few],
            "weight_decay": 0.1 * few,
        }
        for few in (False, True)
    ]
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, lr=1e-2), config=told)
    generator = torch.Generator().manual_seed(int(os.environ["RANK"]))
    for _ in range(options.get("steps", 2)):
        engine.backward(engine(torch.randint(0, 7, (2, 5), generator=generator)))
        engine.step()
    engine.save_checkpoint(str(out / "run"), exclude_frozen_parameters=options.get("exclude_frozen", False))
    finish(engine, out, options)


def trainer_run(out: Path, options: dict[str, Any]) -> None:
    import transformers.training_args
    from transformers import Trainer, TrainingArguments

    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    steps = options.get("steps", 2)
    args = TrainingArguments(
        str(out / "run"),
        per_device_train_batch_size=2,
        max_steps=steps,
        save_steps=steps,
        learning_rate=1e-2,
        deepspeed=configuration(options),
        bf16=options["dtype"] == "bf16",
        fp16=options["dtype"] == "fp16",
        report_to=[],
        optim="adamw_torch",
        disable_tqdm=True,
    )
    trainer = Trainer(llama(options), args, train_dataset=Lines())
    trainer.train()
    engine = trainer.model_wrapped
    tokens = Lines()[63]["input_ids"][None]
    with torch.no_grad():
        logits = engine.module(input_ids=tokens).logits.detach().clone()
    finish(engine, out, options, {"tokens": tokens, "logits": logits})


def accelerate_run(out: Path, options: dict[str, Any]) -> None:
    from accelerate import Accelerator, DeepSpeedPlugin

    accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=configuration(options)))
    model: Any = llama(options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loader = torch.utils.data.DataLoader(Lines(), batch_size=2)
    engine, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(trained, lr=1e-2), loader)
    for _, batch in zip(range(options.get("steps", 2)), loader, strict=False):
        accelerator.backward(engine(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(str(out / "run"), **options.get("save", {}))
    finish(engine, out, options)


def main() -> None:
    kind, out, words = sys.argv[1:]
    options = {"stage": 0, "dtype": "bf16", **json.loads(words)}
    torch.set_num_threads(1)
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    type(get_accelerator()).is_fp16_supported = lambda self: True
    # No operator for ranks of one machine: it would be compiled, and runs at the same time would share its memory.
    deepspeed.ops.__compatible_ops__ = {}
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    deepspeed.init_distributed("gloo", init_method=f"file://{os.environ['MEETING']}", rank=rank, world_size=world)
    {"engine": engine_run, "trainer": trainer_run, "accelerate": accelerate_run}[kind](Path(out), options)
    # Threads of gloo and of deepspeed's operator now and then abort a regular end.
    os._exit(0)


if __name__ == "__main__":
    main()

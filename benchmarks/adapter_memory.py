"""Memory of training an adapter beside full fine-tuning of the same model: by arithmetic, and as found.

    python benchmarks/adapter_memory.py --model RUN [--rank 8] [--batch-tokens 4096]

Both with AdamW on steps of the same size. Parameters, gradients and optimizer: counted from their numbers, and in the
tensors that exist after a step. All of a step: the arithmetic of `cutaway plan`, and the peak of resident memory of a
rehearsal, a process of its own (the least of `--rounds`: an allocator's luck only adds to it). Ends with exit code 1
where the first is above 30 % of full fine-tuning's or the second no lower.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from cutaway.model.config import ModelConfig
from cutaway.recipe.base import TrainSettings
from cutaway.recipe.stages import LoRASettings, SFTSettings
from cutaway.stages.rehearsal import DataSize, Stage, rehearse, staged_model
from cutaway.training.plan import step_memory
from cutaway.training.preparation import optimizers_of

NAMES = {
    "trained": "parameters, gradients and optimizer, computed",
    "held": "the same, held after a step",
    "step": "all memory of a step, computed",
    "peak": "peak of the process, measured",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="whose shape is taken")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    config = ModelConfig.load(flags.model)
    common: dict[str, Any] = {"steps": 3, "batch_tokens": flags.batch_tokens, "compile": "off", "optimizer": "adamw"}
    common |= {"adam_lr": 1e-3, "weight_decay": 0.1}
    full = measured(config, "sft", SFTSettings(**common), flags.rounds)
    adapter = measured(config, "lora", LoRASettings(**common, rank=flags.rank), flags.rounds)
    for key, words in NAMES.items():
        print(f"{words}: {adapter[key]:,} of {full[key]:,} bytes, {adapter[key] / full[key]:.1%}")
    little = all(adapter[key] <= 0.3 * full[key] for key in ("trained", "held"))
    lower = all(adapter[key] < full[key] for key in ("step", "peak"))
    print(f"{'met' if little else 'NOT MET'}: parameters, gradients and optimizer at most 30 %")
    print(f"{'met' if lower else 'NOT MET'}: a lower peak")
    return 0 if little and lower else 1


def measured(config: ModelConfig, stage: Stage, settings: TrainSettings, rounds: int) -> dict[str, int]:
    """Bytes of a stage's training, by the keys of `NAMES`."""
    size = DataSize(10**6, settings.batch_tokens or 0)
    seen = min((rehearse(config, stage, settings, size) for _ in range(rounds)), key=lambda one: one.peak_bytes)
    value_bytes = 4 if seen.precision == "fp32" else 2
    model = staged_model(config, settings, filled=True)
    memory = step_memory(model, seen.rows, settings.row_length, value_bytes, "adamw")
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    computed = 4 * sum(one.numel() for one in model.parameters()) + 4 * trained + 8 * trained
    return {"trained": computed, "held": held(model, settings), "step": memory.total, "peak": seen.peak_bytes}


def held(model: torch.nn.Module, settings: TrainSettings) -> int:
    """Bytes of the parameters, gradients and optimizer state that exist after a step in fp32."""
    optimizers = optimizers_of(model, settings, torch.float32)
    ids = torch.arange(8).unsqueeze(0)
    torch.autograd.backward(model(ids, targets=ids).sum())
    for optimizer in optimizers:
        optimizer.step()
    parameters = list(model.parameters())
    gradients = [one.grad for one in parameters if one.grad is not None]
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    moments = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(one.nbytes for one in [*parameters, *gradients, *moments])


if __name__ == "__main__":
    sys.exit(main())

"""RL runs in one rank of as many as the environment says; writes the gradients of the first update.

rl_ddp_worker.py INIT DATA OUT CASE...
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rl_helpers import train
from safetensors.torch import save_file
from torch import Tensor

from cutaway.generation.conversation import answer_message
from cutaway.rl import environment
from cutaway.stages import rl
from cutaway.tokenization.messages import Message
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tools.standard import standard_toolbox
from cutaway.tools.toolbox import Toolbox
from cutaway.training import distributed

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {"group_size": 4}),
    "dapo": ("grpo", {"algorithm": "dapo", "group_size": 4, "mask_truncated": False}),
    "rloo": ("grpo", {"algorithm": "rloo", "group_size": 4}),
    "spo": ("spo", {}),
    "ppo": ("ppo", {"target_kl": 1e-4}),
    "agent": ("agent", {"group_size": 4, "row_length": 180, "turns": 3, "environment": f"{__file__}:tools"}),
}


def tools(record: Mapping[str, Any]) -> Toolbox:
    """The environment of the case `agent`."""
    return standard_toolbox()


def calling(ids: Sequence[int], tokenizer: Tokenizer, thinking: bool | None = None) -> Message:
    """A random model writes no calls: two of three answers count as one, and the tool says how long they were."""
    call = {"name": "calculator", "arguments": {"expression": f"{len(ids)}+0"}}
    return answer_message(ids, tokenizer, thinking) | ({"tool_calls": [call]} if sum(ids) % 3 else {})


def main(init: str, data: str, out: str, names: list[str]) -> None:
    make = rl.make_optimizers
    distributed.stop_ranks = lambda ranks: None  # type: ignore[assignment]  # one group for all runs
    for name in names:
        stage, settings = CASES[name]
        gradients: dict[str, Tensor] = {}

        def recording(network: Any, critic: Any, chosen: Any, gradients: Any = gradients) -> Any:
            optimizers = make(network, critic, chosen)

            def before_step(*_: Any) -> None:
                if gradients:
                    return
                for prefix, module in (("actor", network.model), ("critic", critic)):
                    for key, parameter in module.named_parameters() if module is not None else ():
                        if parameter.grad is not None:
                            gradients[f"{prefix}.{key}"] = parameter.grad.clone()

            optimizers[0].register_step_pre_hook(before_step)
            return optimizers

        rl.make_optimizers = recording
        environment.answer_message = calling if stage == "agent" else answer_message
        folder = Path(out) / name
        train(stage, Path(init), Path(data), folder, **settings)
        if os.environ.get("RANK", "0") == "0":
            save_file(gradients, folder / "gradients.safetensors")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])

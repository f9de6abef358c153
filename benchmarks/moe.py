"""The grouped path of a mixture of experts against a loop over experts, forward and backward, on this machine.

    python benchmarks/moe.py [--experts 8] [--top-k 2] [--hidden 768] [--inner 1280] [--tokens 2048] [--rounds 7]

Both take turns, so that what else the machine does falls on both; the median and the quickest round are printed. The
loop is the usual one: find the tokens of an expert, compute its layer, add the outputs to where they belong.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.model.config import ModelConfig
from cutaway.model.moe import MixtureOfExperts
from cutaway.training.metrics import synchronise
from cutaway.training.precision import autocast, pick_device


def by_loop(layer: MixtureOfExperts, x: Tensor) -> Tensor:
    """One expert after another."""
    tokens, experts = x.flatten(0, 1), layer.experts
    with torch.autocast(x.device.type, enabled=False):
        logits = F.linear(tokens.float(), layer.gate.weight)
    weights, chosen = torch.softmax(logits, -1).topk(layer.top_k, -1)
    weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
    out = torch.zeros_like(tokens)
    for e in range(experts.gate_proj.shape[0]):
        token, place = torch.where(chosen == e)
        row = tokens[token]
        inner = F.silu(F.linear(row, experts.gate_proj[e])) * F.linear(row, experts.up_proj[e])
        out.index_add_(0, token, F.linear(inner, experts.down_proj[e]) * weights[token, place, None])
    return out.view(x.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"experts": 8, "top-k": 2, "hidden": 768, "inner": 1280, "tokens": 2048, "rounds": 7}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    device = pick_device()
    plain = ModelConfig(
        vocab_size=8,
        hidden_size=arguments.hidden,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
        max_position_embeddings=8,
        qk_norm=True,
    )
    config = dataclasses.replace(
        plain,
        num_experts=arguments.experts,
        num_experts_per_tok=arguments.top_k,
        moe_intermediate_size=arguments.inner,
    )
    torch.manual_seed(0)
    layer = MixtureOfExperts(config).to(device)
    print(f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}: {vars(arguments)}")
    print("| arithmetic | grouped, median ms | loop, median ms | loop / grouped | grouped, least | loop, least |")
    print("| --- | --- | --- | --- | --- | --- |")
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1, arguments.tokens, arguments.hidden, device=device, dtype=dtype, requires_grad=True)

        def seconds(function: Callable[[Tensor], Tensor], x: Tensor = x, dtype: torch.dtype = dtype) -> float:
            layer.zero_grad()
            synchronise(device)
            start = time.perf_counter()
            with autocast(device, dtype):
                out = function(x)
            torch.autograd.backward(out, torch.ones_like(out))
            synchronise(device)
            return 1e3 * (time.perf_counter() - start)

        paths: list[Callable[[Tensor], Tensor]] = [layer, lambda x: by_loop(layer, x)]
        for path in paths:
            seconds(path)
        times = [[seconds(path) for path in paths] for _ in range(arguments.rounds)]
        grouped, loop = ([row[i] for row in times] for i in (0, 1))
        values = (median(grouped), median(loop), median(loop) / median(grouped), min(grouped), min(loop))
        print(f"| {str(dtype).removeprefix('torch.')} | " + " | ".join(f"{value:.2f}" for value in values) + " |")


if __name__ == "__main__":
    main()

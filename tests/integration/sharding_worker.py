"""What two ranks find about sharded weights and shared Muon; the first writes it down as JSON.

sharding_worker.py OUT
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cutaway.data.loader import Batch
from cutaway.model.config import ModelConfig
from cutaway.model.sharded import local, part_of, whole
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise
from cutaway.training.distributed import joined_ranks
from cutaway.training.horizon import seconds_per_exchange
from cutaway.training.network import Network
from cutaway.training.optim import make_optimizers, orthogonalise, orthogonalise_shared

CONFIG = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    qk_norm=True,
    tie_word_embeddings=True,
)


def main(out: str) -> None:
    with joined_ranks() as ranks:
        found: dict[str, Any] = {}
        for count in (1, 2, 3, 7):
            stack = torch.randn(count, 12, 20, generator=torch.Generator().manual_seed(count))
            shared, alone = (one(stack, dtype=torch.float32) for one in (orthogonalise_shared, orthogonalise))
            found[f"orthogonalise_{count}"] = float((shared - alone).abs().max())
        for name, dtype, compiled in (
            ("fp32", torch.float32, False),
            ("recomputed", torch.float32, False),
            ("bf16", torch.bfloat16, False),
            ("compiled", torch.float32, True),
        ):
            expected = trained(Network(model(), alone_like(ranks), dtype))
            network = Network(model(), ranks, dtype)
            network.model.model.checkpointing = name == "recomputed"
            if compiled:
                network.compile()
            network.shard()
            parameters = list(network.model.parameters())
            found[f"{name}_held"] = sum(local(one).numel() for one in parameters)
            found[f"{name}_all"] = sum(one.numel() for one in parameters)
            weights = trained(network)
            start = dict(model().named_parameters())
            found[f"{name}_moved"] = max(
                float((start[key] - value).detach().abs().max()) for key, value in expected.items()
            )
            found[name] = max(float((weights[key] - value).abs().max()) for key, value in expected.items())
        found["gradients_held"] = gradients_between(network)
        found["exchange_s"] = seconds_per_exchange(100_000, ranks)
        whole_copy = network.whole_model()
        if ranks.first:
            same = zip(whole_copy.parameters(), weights.values(), strict=True)
            found["copy"] = max(float((one - other).detach().abs().max()) for one, other in same)
        pattern = next(network.model.parameters())
        found["part"] = bool(torch.equal(whole(part_of(weights["model.embed_tokens.weight"], pattern)), whole(pattern)))
        if dist.get_rank() == 0:
            Path(out).write_text(json.dumps(found), encoding="utf-8")


def alone_like(ranks: Any) -> Any:
    return type(ranks)(0, 1, ranks.device)


def model() -> CausalLM:
    made = CausalLM(CONFIG)
    initialise(made, 0)
    return made


def trained(network: Network) -> dict[str, Tensor]:
    """All weights after three steps on the same rows in two micro-batches; on every rank the same rows."""
    optimizers = make_optimizers(
        network.model, optimizer="muon", muon_lr=0.02, adam_lr=0.01, weight_decay=0.1, muon_dtype=torch.float32
    )
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        for number in range(2):
            with network.synchronised_at(last=number == 1):
                torch.autograd.backward(network.token_losses(batch_of(draw)).mean() / 2)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return {name: whole(weight.detach()).clone() for name, weight in network.model.named_parameters()}


def batch_of(draw: torch.Generator) -> Batch:
    ids = torch.randint(61, (2, 17), generator=draw)
    positions = torch.arange(16).expand(2, 16).contiguous()
    return Batch(ids[:, :-1], ids[:, 1:], positions, torch.zeros(2, 16, dtype=torch.int32))


def gradients_between(network: Network) -> int:
    """Values of gradients that this rank holds after a micro-batch that is not a step's last."""
    with network.synchronised_at(last=False):
        torch.autograd.backward(network.token_losses(batch_of(torch.Generator())).mean())
    gradients = [weight.grad for weight in network.model.parameters()]
    return sum(local(one).numel() for one in gradients if one is not None)


if __name__ == "__main__":
    main(sys.argv[1])

"""What the policy that wrote the answers, the reference and the value model say of a rollout's tokens.

Passes without a gradient, before the first update. They go past the wrapper of the ranks, since ranks have different
numbers of answers to go through.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.generation.engine import Engine
from cutaway.rl.algorithms import Algorithm
from cutaway.rl.playing import Players
from cutaway.rl.policy import ActorCritic, Outputs
from cutaway.rl.rollout import Minibatch, Sample, measure
from cutaway.training.precision import autocast


def measure_rollout(
    players: Players, samples: Sequence[Sample], later: Sequence[Sample], row: Algorithm, updates: int
) -> list[str]:
    """Fill the fields of this rank's samples that the row needs; gives back their names, the same on every rank.

    Log-probabilities of the policy that answered are the trainer's, so that the first ratio is 1; the sampler's serve
    where the two agree to rounding (`sampler_is_exact`). In a rollout's first update the present ones are the old ones:
    only those of the samples that are trained on `later` need be known before it, unless a value model, a tracker or a
    KL in the reward asks for all.
    """
    device, gae = players.network.ranks.device, row.advantage == "gae"
    names: list[str] = []

    def present(batch: Minibatch) -> Sequence[Tensor]:
        logprobs, _, values = outputs(players, players.actor, batch, values=gae)
        return (logprobs, values) if gae else (logprobs,)

    whole = gae or players.tracker is not None or row.kl == "reward"
    if whole or updates > 1:
        names += ["old_logprobs", "values"] if gae else ["old_logprobs"]
        asked = samples if whole else later
        if gae or not sampler_is_exact(players):
            measure(asked, present, names, device)
        else:
            for sample in asked:
                sample.old_logprobs = sample.sampler_logprobs
    if players.reference is not None:
        with players.reference.active() as model:
            frozen = ActorCritic(model, players.actor.temperature)
            measure(samples, lambda batch: outputs(players, frozen, batch)[:1], ["ref_logprobs"], device)
        names.append("ref_logprobs")
    return names


def sampler_is_exact(players: Players) -> bool:
    """Whether what the sampler said of its tokens is what the trainer would say, to 1e-5
    (`tests/unit/test_generation_engine.py`): the engine, in fp32, on a CPU; a GPU rounds fp32 products to TF32."""
    ranks, dtype = players.network.ranks, players.network.dtype
    return isinstance(players.engine, Engine) and dtype == torch.float32 and ranks.device.type == "cpu"


def measure_again(players: Players, samples: Sequence[Sample]) -> None:
    """The present policy's log-probabilities of earlier answers, as `old_logprobs`."""

    def logprobs(batch: Minibatch) -> Sequence[Float[Tensor, "batch seq"]]:
        return outputs(players, players.actor, batch)[:1]

    measure(samples, logprobs, ["old_logprobs"], players.network.ranks.device)


def outputs(players: Players, actor: ActorCritic, batch: Minibatch, values: bool = False) -> Outputs:
    """Of a policy, in the arithmetic of the run, without the entropy."""
    with autocast(players.network.ranks.device, players.network.dtype):
        found: Outputs = actor(batch.input_ids, batch.targets, batch.own, values, entropy=False)
    return found

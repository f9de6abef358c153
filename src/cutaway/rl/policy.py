"""The policy as RL trains it: log-probabilities of the tokens it wrote, their entropy, and a value model beside it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cutaway.model.lora import adapter_of, switched_off
from cutaway.model.moe import Routing
from cutaway.model.reward import RewardModel
from cutaway.model.transformer import CausalLM

Outputs = tuple[Float[Tensor, "batch seq"], Float[Tensor, "batch seq"], Float[Tensor, "batch seq"]]


def value_model(policy: CausalLM) -> RewardModel:
    r"""$V(s_t)$: what the answer will earn from here on, by a head of its own on a copy of the policy.

    The copy ends with the policy's final norm, so the head reads normalised states: no second norm is applied. The head
    starts at 0, so every value does. The copy of an adapted policy trains adapters of its own.
    """
    return RewardModel.on(copy.deepcopy(policy))


class ActorCritic(nn.Module):
    """What ranks wrap and the loop trains: one forward pass gives all that a step needs.

    Rows are whole episodes, padded behind, where nothing looks at the padding: causal attention needs no mask.
    """

    def __init__(self, model: CausalLM, temperature: float, critic: RewardModel | None = None) -> None:
        super().__init__()
        self.actor, self.temperature, self.critic = model, temperature, critic

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        targets: Int[Tensor, "batch seq"],
        mask: Bool[Tensor, "batch seq"],
        values: bool = True,
        routing: Routing | None = None,
        entropy: bool = True,
    ) -> Outputs:
        """Log-probabilities of the targets under the sampling distribution, its entropy in nats (no gradient), and
        values (0 without a value model); each of the last two 0 where it is not asked for, and all where `mask` is
        false. `routing` is filled with what the policy's routers said."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        hidden = self.actor.model(input_ids, positions, None, None, routing)
        chosen, spread = token_logprobs(hidden[mask], self.actor.head_weight, targets[mask], self.temperature, entropy)
        zeros = torch.zeros(mask.shape, device=mask.device)
        logprobs = zeros.masked_scatter(mask, chosen)
        entropies = zeros.masked_scatter(mask, spread)
        if self.critic is None or not values:
            return logprobs, entropies, zeros
        return logprobs, entropies, torch.where(mask, self.critic(input_ids, positions=positions), 0.0)


def token_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    temperature: float,
    entropy: bool = True,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    r"""$\log\pi(y) = z_y / T - \log\sum_v e^{z_v / T}$ and the entropy $-\sum_v \pi_v \log\pi_v$ of each place, fp32.

    $z = h\,W^\top$, $T$ is `temperature`: the distribution that the engine draws from (`generation/sampling.py`). The
    entropy has no gradient, and is 0 where it is not asked for."""
    logits = F.linear(hidden, weight).float().div_(temperature)
    log_z = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_z
    if not entropy:
        return logprobs, torch.zeros_like(log_z)
    with torch.no_grad():
        mean = (logits.softmax(-1) * logits).sum(-1)
    return logprobs, (log_z - mean).detach()


class Reference:
    """The policy before training: the adapter switched off, or a frozen copy where all weights are trained.

    Made before a checkpoint is read, so that a resumed run has the same one.
    """

    def __init__(self, model: CausalLM) -> None:
        adapted = adapter_of(model) is not None
        self.model = model if adapted else copy.deepcopy(model).requires_grad_(False)

    @contextmanager
    def active(self) -> Iterator[CausalLM]:
        """The model that computes as the reference, for as long as the block runs."""
        with switched_off(self.model):
            yield self.model

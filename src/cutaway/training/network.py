"""A model as the loop calls it: in the chosen arithmetic, compiled, and wrapped for ranks."""

import copy
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cutaway.data.loader import Batch
from cutaway.model.moe import Routing
from cutaway.model.sharded import on_first
from cutaway.model.transformer import CausalLM
from cutaway.objectives.next_token import IGNORE
from cutaway.training.distributed import Ranks, shard, wrap
from cutaway.training.precision import autocast

Module = TypeVar("Module", bound=nn.Module)


def _shallow(module: Module) -> Module:
    """A copy that has the parts of the first, but may be given others."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def by_layers(model: CausalLM) -> CausalLM:
    """A model of the same weights whose layers are compiled. The one given stays as it is: it generates samples, with
    other shapes in every call."""
    twin = _shallow(model)
    twin.model = _shallow(model.model)
    fast: Callable[[Any], Any] = functools.partial(torch.compile, dynamic=False)
    twin.model.layers = nn.ModuleList(fast(layer) for layer in model.model.layers)
    twin.model.norm = fast(model.model.norm)
    twin.packed_mask, twin.token_nll = fast(model.packed_mask), fast(model.token_nll)
    return twin


class Network:
    """Calls go to `module`: the bare model at first, then compiled, then wrapped so that ranks sum their gradients.

    After `shard` in place of `wrap`, every rank holds a part of each weight, and every call is one of all ranks.
    """

    def __init__(self, model: CausalLM, ranks: Ranks, dtype: torch.dtype) -> None:
        self.model, self.ranks, self.dtype = model.to(ranks.device), ranks, dtype
        self.local: nn.Module = self.model
        self.module: nn.Module = self.model
        self.sharded = False

    def compile(self, how: Literal["on", "layers"] = "on") -> None:
        """Fuse what lies between the matrix products. Shapes must stay the same from call to call.

        `layers` compiles a layer at a time. They differ in nothing but their weights, so the first one's code serves
        all (`benchmarks/compiling.py`).
        """
        compiled: Any = by_layers(self.model) if how == "layers" else torch.compile(self.model, dynamic=False)
        self.local = self.module = compiled

    @property
    def layers_alike(self) -> bool:
        """Whether one layer's code serves all: experts' layers add to one list, so each would be compiled anew, and
        wrappers for ranks want one module."""
        return not self.model.config.num_experts and self.ranks.world == 1 and self.ranks.device.type == "cpu"

    @property
    def compiled(self) -> bool:
        """Whether `compile` was called."""
        return self.local is not self.model

    def wrap(self) -> None:
        """From here on a backward pass averages gradients over ranks."""
        self.module = wrap(self.local, self.ranks)

    def shard(self) -> None:
        """From here on each rank holds a part of every weight; alone, all of it."""
        if self.ranks.world > 1:
            shard(self.model, self.ranks)
            self.sharded = True

    def synchronised_at(self, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once a step, in the backward pass of the last micro-batch.

        Sharded ones do so at every micro-batch, or each would hold whole gradients from the first to the last: a step
        of them sends two gathers of the weights and one scatter of the gradients a micro-batch.
        """
        if isinstance(self.module, DistributedDataParallel) and not last:
            return self.module.no_sync()
        return nullcontext()

    def whole_model(self) -> CausalLM:
        """The model with all of its weights, on the first rank: itself, or of a sharded one a copy.

        Of a sharded one every rank must ask; what the others get is empty.
        """
        if not self.sharded:
            return self.model
        weights = {name: on_first(tensor) for name, tensor in self.model.state_dict().items()}
        with torch.device("meta"):
            copy = CausalLM(self.model.config)
        if self.ranks.first:
            copy.load_state_dict(weights, assign=True)
            copy.model.rotary = type(copy.model.rotary)(self.model.config)
            copy.to(self.ranks.device)
        return copy

    def training_loss(self, batch: Batch, z_loss: float = 0.0) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        r"""Sum over trained tokens of what is minimised, and sums to log; the loop divides both by the tokens' number.

        $$\sum_t \bigl(\ell_t + c\,L + c_z L_z\bigr)$$

        $\ell$ is the next-token loss, $L$ and $L_z$ the routers' losses (`objectives/router.py`) over this batch
        without its padding, $c$ and $c_z$ the model's `router_aux_loss_coef` and `router_z_loss_coef`. Counted
        once a trained token, the routers' losses of accumulated batches average as the next-token loss does.
        """
        routing = self.routing()
        next_token = self.token_losses(batch, z_loss, routing=routing).sum()
        loss, sums = self.with_router_losses(next_token, routing, batch, (batch.targets != IGNORE).sum())
        return loss, {"next_token_loss": next_token} | sums if sums else {}

    def routing(self) -> Routing | None:
        """What a forward pass fills with what the routers said; None where there are none."""
        return Routing() if self.model.config.num_experts else None

    def with_router_losses(
        self, loss: Float[Tensor, ""], routing: Routing | None, batch: Batch, count: Tensor | int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """A sum over `count` trained tokens or pairs, which the loop divides by, with the routers' losses added to it
        as in `training_loss`; and sums to log, none without routers."""
        config = self.model.config
        if routing is None:
            return loss, {}
        top_k, mask = config.num_experts_per_tok, (batch.documents >= 0).flatten()
        balance, router_z = (count * value for value in routing.losses(top_k, mask))
        load = routing.load(top_k, mask)
        loss = loss + config.router_aux_loss_coef * balance + config.router_z_loss_coef * router_z
        sums = {"load_balance": balance, "router_z": router_z}
        return loss, sums | {"expert_load_max": count * load.max(), "expert_load_min": count * load.min()}

    def token_losses(
        self, batch: Batch, z_loss: float = 0.0, local: bool = False, routing: Routing | None = None
    ) -> Float[Tensor, "rows seq"]:
        """Negative log-likelihood of every trained target, 0 elsewhere (`objectives/next_token.py`).

        `local` goes past the wrapper: ranks that evaluate different numbers of batches must not wait for each other.
        """
        return self.forward(batch, local, targets=batch.targets, z_loss=z_loss, routing=routing)

    def forward(self, batch: Batch, local: bool = False, **more: Any) -> Tensor:
        """What the model gives for a batch of packed documents, `more` being its further arguments."""
        with autocast(self.ranks.device, self.dtype):
            result: Tensor = (self.local if local else self.module)(
                batch.input_ids, positions=batch.positions, documents=batch.documents, **more
            )
        return result

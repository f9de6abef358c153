"""Mixture of experts: a feed-forward layer of which each token uses a part. Exactly Qwen3-MoE."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cutaway.model.config import ModelConfig
from cutaway.objectives.router import expert_load, load_balancing_loss, router_z_loss

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def is_router(name: str) -> bool:
    """Whether a parameter is a router's table of expert vectors."""
    return name.endswith("mlp.gate.weight")


class Routing:
    """What the routers of one forward pass said, layer by layer: handed through the network as the cache is.

    `model(ids, targets=..., routing=routing)` fills it; the losses below then have the gradient of that pass. A plain
    object and no list, because wrappers of modules copy the lists among their arguments.
    """

    def __init__(self) -> None:
        self.logits: list[Float[Tensor, "tokens experts"]] = []

    def losses(
        self, top_k: int, mask: Bool[Tensor, " tokens"] | None = None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Load-balancing loss and z-loss, each the mean over layers (`objectives/router.py`)."""
        logits = torch.stack(self.logits)
        return load_balancing_loss(logits, top_k, mask).mean(), router_z_loss(logits, mask).mean()

    def load(self, top_k: int, mask: Bool[Tensor, " tokens"] | None = None) -> Float[Tensor, "layers experts"]:
        """Share of the tokens that each expert got, 1 being an even share."""
        return expert_load(torch.stack(self.logits).detach(), top_k, mask)


class MixtureOfExperts(nn.Module):
    r"""Each token passes through the $k$ experts that its router likes best, weighted by how much it likes them.

    $$y = \sum_{e \in \mathrm{top}_k(p)} w_e\,\mathrm{SwiGLU}_e(x), \qquad p = \mathrm{softmax}(W_r\,x), \qquad
      w_e = \frac{p_e}{\sum_{j \in \mathrm{top}_k(p)} p_j}$$

    (without `norm_topk_prob`, $w_e = p_e$). Qwen3 technical report, arXiv 2505.09388, section 2; sparsely gated layers:
    Shazeer et al., arXiv 1701.06538. The gradient of the next-token loss reaches the router through $w_e$; with one
    expert a token and normalised weights, $w_e = 1$ and none would. Logits and softmax are fp32 under any autocast,
    since rounding them would flip choices (arXiv 2202.08906, section 3.3).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)

    def forward(
        self, x: Float[Tensor, "batch seq hidden"], routing: Routing | None = None
    ) -> Float[Tensor, "batch seq hidden"]:
        tokens = x.flatten(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(tokens.float(), self.gate.weight.float())
        if routing is not None:
            routing.logits.append(logits)
        weights, chosen = torch.softmax(logits, -1).topk(self.top_k, -1)
        if self.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        out: Tensor = self.experts(tokens, chosen, weights.to(x.dtype)).view(x.shape)
        return out


class Experts(nn.Module):
    """SwiGLU layers stacked into one tensor a projection, computed together on tokens sorted by expert.

    Optimizers see the stacks; a checkpoint has every expert's matrices under their published names,
    `{expert}.{gate,up,down}_proj.weight`, because `state_dict` and `load_state_dict` translate.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe_intermediate_size is not None
        count, hidden, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_proj = nn.Parameter(torch.empty(count, inner, hidden))
        self.up_proj = nn.Parameter(torch.empty(count, inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, inner))
        for stack in (self.gate_proj, self.up_proj, self.down_proj):
            nn.init.normal_(stack, std=stack.shape[-1] ** -0.5)

    def forward(
        self,
        x: Float[Tensor, "tokens hidden"],
        chosen: Int[Tensor, "tokens top_k"],
        weights: Float[Tensor, "tokens top_k"],
    ) -> Float[Tensor, "tokens hidden"]:
        """Sum over each token's chosen experts of weight times output; no loop, and no shape depends on the choice."""
        top_k = chosen.shape[1]
        ordered, order = chosen.flatten().sort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        experts = torch.arange(self.gate_proj.shape[0], device=x.device)
        ends = torch.searchsorted(ordered, experts, right=True, out_int32=True)
        rows = _reorder(x, order, inverse, top_k)
        inner = F.silu(grouped_product(rows, self.gate_proj, ends)) * grouped_product(rows, self.up_proj, ends)
        outputs = _reorder(grouped_product(inner, self.down_proj, ends), inverse, order)
        mixed: Tensor = (outputs.view(*chosen.shape, -1) * weights.unsqueeze(-1)).sum(1)
        return mixed

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Views of each expert's matrices under their published names, expert by expert."""
        for expert in range(self.gate_proj.shape[0]):
            for name in PROJECTIONS:
                stack = getattr(self, name)
                destination[f"{prefix}{expert}.{name}.weight"] = (stack if keep_vars else stack.detach())[expert]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Stack the published tensors, then load as any module does; what is missing or left over is reported."""
        for name in PROJECTIONS:
            keys = [f"{prefix}{expert}.{name}.weight" for expert in range(self.gate_proj.shape[0])]
            absent = [key for key in keys if key not in state_dict]
            missing_keys += absent
            parts = [state_dict.pop(key) for key in keys if key not in absent]
            if not absent and len({part.shape for part in parts}) == 1:
                state_dict[prefix + name] = torch.stack(parts)
            elif not absent:
                error_msgs.append(f"{prefix}*.{name}.weight: the experts differ in shape")
        stacked = {prefix + name for name in PROJECTIONS}
        reported: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, reported, unexpected_keys, error_msgs)
        missing_keys += [key for key in reported if key not in stacked]


def grouped_product(
    x: Float[Tensor, "rows inputs"], weight: Float[Tensor, "experts outputs inputs"], ends: Int[Tensor, " experts"]
) -> Float[Tensor, "rows outputs"]:
    """$x\\,W_e^\\top$ for rows sorted by expert; those of expert $e$ end before row `ends[e]`.

    torch's grouped product where it takes the data type, the device and the alignment, a padded batched one elsewhere.
    """
    weight = weight.to(x.dtype)
    aligned = all(size * x.element_size() % 16 == 0 for size in weight.shape[1:])
    if aligned and _has_grouped_mm(x.device.type, x.dtype):
        # torch cannot trace it in other types than bf16 (2.13), so there it runs between two compiled graphs.
        traced = x.dtype == torch.bfloat16 or not torch.compiler.is_compiling()
        return (F.grouped_mm if traced else _untraced)(x, weight.mT, offs=ends)
    return padded_product(x, weight, ends)


def padded_product(
    x: Float[Tensor, "rows inputs"], weight: Float[Tensor, "experts outputs inputs"], ends: Int[Tensor, " experts"]
) -> Float[Tensor, "rows outputs"]:
    """The same as one batched product, every expert's rows padded with zeros to the number of the busiest one's."""
    starts = F.pad(ends[:-1], (1, 0))
    capacity = int((ends - starts).max())
    row = torch.arange(x.shape[0], device=x.device)
    expert = torch.searchsorted(ends, row.to(ends.dtype), right=True)
    place = expert * capacity + row - starts[expert]
    padded = x.new_zeros(weight.shape[0] * capacity, x.shape[1]).index_copy(0, place, x)
    product = torch.bmm(padded.view(weight.shape[0], capacity, -1), weight.mT)
    return product.flatten(0, 1).index_select(0, place)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _untraced(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    return F.grouped_mm(x, weight, offs=offs)


_FOUND: dict[tuple[str, torch.dtype], bool] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_grouped_mm(device: str, dtype: torch.dtype) -> bool:
    """Whether torch's grouped product works here, forward and backward; tried once.

    In a thread of its own, because the modes of the first caller (inference, tracing, autocast, hooks) belong to its
    thread: under inference mode the trial has no backward pass and would say no for the rest of the process.
    """
    if (device, dtype) not in _FOUND:
        with ThreadPoolExecutor(1) as thread:
            _FOUND[device, dtype] = thread.submit(_try_grouped_mm, device, dtype).result()
    return _FOUND[device, dtype]


def _try_grouped_mm(device: str, dtype: torch.dtype) -> bool:
    try:
        x = torch.ones(8, 16, device=device, dtype=dtype, requires_grad=True)
        weight = torch.ones(2, 16, 16, device=device, dtype=dtype, requires_grad=True)
        ends = torch.tensor([8, 8], device=device, dtype=torch.int32)
        out = F.grouped_mm(x, weight.mT, offs=ends)
        torch.autograd.backward(out, torch.ones_like(out))
        return bool((out == 16).all())
    except (AttributeError, RuntimeError, ValueError):
        return False


def _reorder(x: Tensor, index: Tensor, inverse: Tensor, copies: int = 1) -> Tensor:
    out: Tensor = _Reorder.apply(x, index, inverse, copies)  # type: ignore[no-untyped-call]
    return out


class _Reorder(torch.autograd.Function):
    """Rows of `x`, each standing for `copies` equal ones, in the order `index`; `inverse` undoes it.

    As a function of its own because the gradient of a reordering is the opposite one, while that of plain indexing
    adds row by row, in an order that a GPU does not repeat.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return x.index_select(0, index // copies if copies > 1 else index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        rows = gradient.index_select(0, inverse)
        return rows.view(-1, ctx.copies, rows.shape[1]).sum(1) if ctx.copies > 1 else rows, None, None, None

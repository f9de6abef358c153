"""Muon for matrices, AdamW for the rest."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from cutaway.model.moe import is_router
from cutaway.model.sharded import is_sharded, part_of, whole

NEWTON_SCHULZ_STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(
    matrices: Float[Tensor, "stack rows columns"], steps: int = NEWTON_SCHULZ_STEPS, dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "stack rows columns"]:
    r"""Nearest (nearly) orthogonal matrix: $U V^\top$ of each matrix's singular value decomposition $U S V^\top$.

    Newton-Schulz iteration, which needs matrix products only:

    $$X \leftarrow a X + (b A + c A^2) X, \qquad A = X X^\top$$

    With $(a, b, c) = (3.4445, -4.775, 2.0315)$ five steps take every singular value into about $[0.7, 1.2]$, which is
    near enough to 1 (Jordan et al., "Muon", 2024, kellerjordan.github.io/posts/muon). Matrices of one shape are
    computed together. bf16 is precise enough, because an error in $X$ is corrected by the next step.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return result


def orthogonalise_shared(
    matrices: Float[Tensor, "stack rows columns"], dtype: torch.dtype
) -> Float[Tensor, "stack rows columns"]:
    """`orthogonalise` of a stack that all ranks have: each does its share of the matrices and hands it round."""
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1:
        return orthogonalise(matrices, dtype=dtype)
    share, rank = -(-len(matrices) // world), dist.get_rank()
    own = matrices[rank * share : (rank + 1) * share]
    done = matrices.new_zeros(share, *matrices.shape[1:], dtype=dtype)
    if len(own):
        done[: len(own)] = orthogonalise(own, dtype=dtype)
    parts = [torch.empty_like(done) for _ in range(world)]
    dist.all_gather(parts, done)
    return torch.cat(parts)[: len(matrices)].to(matrices.dtype)


class Muon(Optimizer):
    r"""Momentum, orthogonalised: every direction of a matrix moves by the same amount.

    $$m \leftarrow \mu m + (1 - \mu)\, g, \qquad
      W \leftarrow W - \eta \lambda W - \eta \sqrt{\max(1, \tfrac{rows}{columns})}\;
      \mathrm{orthogonalise}((1-\mu)\,g + \mu m)$$

    (Nesterov momentum; Jordan et al. 2024; the shape factor keeps the change of the output per unit of input alike for
    all shapes.) For matrices and stacks of them (experts, each for itself), embeddings, heads and routers excluded.

    An orthogonal matrix cannot be made of some of its rows. Where ranks hold rows only (FSDP2), the matrices are
    therefore gathered, in the iteration's own `dtype`; and however ranks share the work, each orthogonalises its share
    of the matrices, whole, and hands the results round. N ranks then spend no more on it together than one does.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                self._update(parameters, group, max(1.0, shape[-2] / shape[-1]) ** 0.5)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any], scale: float) -> None:
        momentum, lr = group["momentum"], group["lr"]
        directions = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - momentum)
            direction = parameter.grad.lerp(state["momentum"], momentum)
            directions.append(whole(direction.to(self.dtype) if is_sharded(direction) else direction))
        stack = torch.stack(directions)
        updates = orthogonalise_shared(stack.flatten(0, -3), self.dtype).view_as(stack)
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(part_of(update.to(parameter.dtype), parameter), alpha=-lr * scale)


def newton_schulz_flops(rows: int, columns: int) -> int:
    """FLOPs of one orthogonalisation: 5 (4 m^2 n + 2 m^3) for a matrix of m <= n."""
    m, n = sorted((rows, columns))
    return NEWTON_SCHULZ_STEPS * (4 * m * m * n + 2 * m**3)


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Weights that Muon may take: matrices between hidden vectors and stacks of them, not tables of token or expert
    vectors, whose rows are each updated for themselves."""
    table = "embed_tokens" in name or "lm_head" in name or is_router(name)
    return parameter.ndim in (2, 3) and not table


def muon_cost(model: nn.Module) -> int:
    """FLOPs of Muon's iterations in one optimizer step."""
    matrices = (parameter for name, parameter in model.named_parameters() if is_matrix(name, parameter))
    return sum(newton_schulz_flops(*weight.shape[-2:]) * weight.shape[:-2].numel() for weight in matrices)


def make_optimizers(
    model: nn.Module,
    *,
    optimizer: Literal["muon", "adamw"],
    muon_lr: float,
    adam_lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
    muon_dtype: torch.dtype = torch.bfloat16,
) -> list[Optimizer]:
    """The optimizers of a model. Weight decay acts on matrices only, never on norms, token vectors or routers.

    A parameter group keeps its peak learning rate under `peak_lr`, which the schedule multiplies.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in named if is_matrix(name, parameter)]
    others = [parameter for name, parameter in named if not is_matrix(name, parameter)]
    fused = all(parameter.device.type in ("cuda", "cpu") for _, parameter in named)
    adam_groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
    optimizers: list[Optimizer] = []
    if optimizer == "muon" and matrices:
        optimizers.append(Muon(matrices, lr=muon_lr, weight_decay=weight_decay, dtype=muon_dtype))
    else:
        adam_groups.append({"params": matrices, "weight_decay": weight_decay})
    adam_groups = [group for group in adam_groups if group["params"]]
    if adam_groups:
        optimizers.append(AdamW(adam_groups, lr=adam_lr, betas=betas, eps=1e-8, fused=fused))
    for one in optimizers:
        for group in one.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers

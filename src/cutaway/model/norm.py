"""RMSNorm."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    r"""Scale a vector to unit root-mean-square, then by a learned gain.

    $$y = \frac{x}{\sqrt{\frac1d \sum_i x_i^2 + \epsilon}} \odot g$$

    Unlike LayerNorm it subtracts no mean and has no bias (Zhang & Sennrich, arXiv 1910.07467, equation 4). The mean of
    squares is taken in fp32, because in bf16 a sum of hundreds of squares loses its small terms.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * scale * self.weight).to(x.dtype)

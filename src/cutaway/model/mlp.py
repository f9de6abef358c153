"""The feed-forward half of a decoder layer."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.model.config import ModelConfig


class SwiGLU(nn.Module):
    r"""A gated feed-forward layer: one projection decides how much of another passes.

    $$y = W_{down}\,(\mathrm{silu}(W_{gate}\,x) \odot W_{up}\,x), \qquad \mathrm{silu}(a) = a\,\sigma(a)$$

    Shazeer, arXiv 2002.05202, equation 6 (without biases). With three matrices instead of two, `intermediate_size` is
    8/3 of `hidden_size` instead of 4 times, for the same number of parameters.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out

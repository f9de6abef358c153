"""Rotary position embedding, and the ways of stretching it to contexts longer than those trained on."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cutaway.errors import UserError
from cutaway.model.config import ROPE_TYPES, ModelConfig

Turn = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


class RotaryEmbedding(nn.Module):
    r"""Angles of the rotary position embedding (Su et al., arXiv 2104.09864, section 3.2).

    Pair $i$ of a head's $d$ channels turns by $p\,\theta_i$ at position $p$, with $\theta_i = b^{-2i/d}$ and base $b$
    `rope_theta`. A query and a key then meet at an angle that depends on the distance of their positions only. The
    angles are computed from the positions given, so packed documents simply restart at 0.
    """

    inv_freq: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inv_freq, self.attention_factor = inverse_frequencies(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(
        self, positions: Int[Tensor, "batch seq"]
    ) -> tuple[Float[Tensor, "batch 1 seq half"], Float[Tensor, "batch 1 seq half"]]:
        """Cosines and sines in fp32, one for each pair of channels."""
        compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        turn: Turn = turns_apart if compiling else turns
        return turn(positions, self.inv_freq, self.attention_factor)


def turns(positions: Tensor, rates: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    r"""$c\,\cos(p\,\theta_i)$ and $c\,\sin(p\,\theta_i)$ in fp32, each of shape (batch, 1, seq, half).

    `positions` $p$ has shape (batch, seq), `rates` $\theta$, in radians a position, (half); `factor` is $c$. The types
    are plain because an operator's schema is read off them.
    """
    angles = positions.unsqueeze(1).unsqueeze(-1).float() * rates
    return angles.cos() * factor, angles.sin() * factor


turns_apart: Turn = torch.library.custom_op("cutaway::turns", turns, mutates_args=())
"""`turns`, which the compiler may not look into: it would fuse them into every rotation and compute the cosines anew in
every layer for every head. On an H200 the two kernels that did so took a tenth of a pass of `mini`."""


@turns_apart.register_fake  # type: ignore[attr-defined, untyped-decorator]
def _turned(positions: Tensor, rates: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """The shapes."""
    cos = rates.new_empty(positions.shape[0], 1, positions.shape[1], rates.shape[0])
    return cos, torch.empty_like(cos)


def rotate(
    x: Float[Tensor, "batch heads seq head_dim"],
    cos: Float[Tensor, "batch 1 seq half"],
    sin: Float[Tensor, "batch 1 seq half"],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Turn channel pairs $(x_i, x_{i+d/2})$ by their angles: Llama's checkpoints pair the two halves of a head."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


def stretch(config: ModelConfig, scaling: str, trained_length: int) -> ModelConfig:
    """The config with its context stretched: `yarn:4`, `llama3:8` or `linear:2`, with `:LENGTH` if need be, or `none`.

    LENGTH is the context that the model was trained on, `trained_length` where it is left out; the context becomes
    factor x LENGTH. `none` takes a stretch away and leaves the context as it is. A config that already says the same
    keeps its other keys. Raises UserError for any other text.
    """
    if not scaling or scaling == scaling_text(config):
        return config
    if scaling == "none":
        return dataclasses.replace(config, rope_scaling={})
    kind, *numbers = scaling.split(":")
    try:
        factor = float(numbers[0])
        length = int(numbers[1]) if len(numbers) > 1 else trained_length
    except (IndexError, ValueError):
        factor = length = 0
    if kind not in ROPE_TYPES or kind == "default" or len(numbers) > 2 or not 1 <= factor < math.inf or length < 1:
        raise UserError(
            f"rope_scaling is {scaling!r}, must be none or KIND:FACTOR[:LENGTH], such as yarn:4 or llama3:8:512"
        )
    table: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind != "linear":
        table["original_max_position_embeddings"] = length
    if kind == "llama3":
        table |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # as Llama 3.1 has them
    # transformers takes the quotient of the two lengths for the factor in some versions, so they must agree.
    return dataclasses.replace(config, rope_scaling=table, max_position_embeddings=round(factor * length))


def scaling_text(config: ModelConfig) -> str:
    """The stretch of a config as `stretch` reads it; empty where there is none."""
    table = config.rope_scaling
    if not table:
        return ""
    length = table.get("original_max_position_embeddings") or config.max_position_embeddings
    if table["rope_type"] == "linear":
        length = round(config.max_position_embeddings / table["factor"])
    return f"{table['rope_type']}:{table['factor']:g}:{length}"


def inverse_frequencies(config: ModelConfig) -> tuple[Float[Tensor, " half"], float]:
    """Turning rates in radians a position, and the factor on cosine and sine (1 except for YaRN)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    rates = 1.0 / config.rope_theta**half
    scaling = config.rope_scaling
    match scaling.get("rope_type", "default"):
        case "linear":
            return rates / float(scaling["factor"]), 1.0
        case "llama3":
            return _llama3(rates, scaling), 1.0
        case "yarn":
            return _yarn(rates, config)
        case _:
            return rates, 1.0


def _llama3(rates: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Llama 3.1's rule: slow channels are slowed by `factor`, fast ones kept, those between blended by wavelength."""
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(scaling["original_max_position_embeddings"]) * rates / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return rates * (keep + (1 - keep) / factor)


def _yarn(rates: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    r"""YaRN (Peng et al., arXiv 2309.00071): "NTK by parts", section 3.2, and the attention factor, equation 22.

    Channels that turn more than `beta_fast` (32) times within the trained length keep their rate, those that turn less
    than `beta_slow` (1) times are slowed by `factor` $s$, linearly between in the channel index; attention sharpens by
    $0.1\ln s + 1$ on queries and keys each. Whole-channel rounding as `transformers` has it.
    """
    scaling, dim = config.rope_scaling, config.head_dim
    factor = float(scaling["factor"])
    length = float(scaling.get("original_max_position_embeddings") or config.max_position_embeddings)

    def channel(turns: float) -> float:
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = channel(float(scaling.get("beta_fast") or 32)), channel(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    slowed = ramp.clamp(0, 1)
    attention = scaling.get("attention_factor")
    if attention is None:
        scale, scale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        if scale and scale_all:
            attention = _mscale(factor, float(scale)) / _mscale(factor, float(scale_all))
        else:
            attention = _mscale(factor, 1.0)
    return rates * (1 - slowed) + rates / factor * slowed, float(attention)


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

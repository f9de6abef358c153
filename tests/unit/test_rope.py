"""Rotary embedding against complex numbers and against formulas written out a channel at a time."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import UserError
from cutaway.model.rope import RotaryEmbedding, inverse_frequencies, rotate, scaling_text, stretch, turns, turns_apart
from cutaway.model.weights import load_model, save_model
from model_helpers import ROPE_SCALINGS, random_ids, random_model, tiny_config


def naive_rates(scaling: dict[str, float | str], dim: int, base: float, max_length: int) -> list[float]:
    """The published rules, one channel pair after another, in Python floats."""
    rates = [base ** (-2 * i / dim) for i in range(dim // 2)]
    kind = scaling.get("rope_type", "default")
    if kind == "default":
        return rates
    factor = float(scaling["factor"])
    if kind == "linear":
        return [rate / factor for rate in rates]
    if kind == "llama3":
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        old = float(scaling["original_max_position_embeddings"])
        out = []
        for rate in rates:
            wavelength = 2 * math.pi / rate
            if wavelength < old / high:
                out.append(rate)
            elif wavelength > old / low:
                out.append(rate / factor)
            else:
                smooth = (old / wavelength - low) / (high - low)
                out.append((1 - smooth) * rate / factor + smooth * rate)
        return out
    old = float(scaling.get("original_max_position_embeddings", max_length))
    first, last = (dim * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1))
    first, last = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
    out = []
    for i, rate in enumerate(rates):
        slowed = min(max((i - first) / (last - first), 0.0), 1.0)
        out.append((1 - slowed) * rate + slowed * rate / factor)
    return out


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("dim", [8, 64, 128])
@pytest.mark.parametrize("kind", ROPE_SCALINGS)
@pytest.mark.parametrize("original", [None, 4096])
def test_turning_rates(kind: str, dim: int, base: float, original: int | None) -> None:
    scaling = dict(ROPE_SCALINGS[kind])
    if original is None and kind == "yarn":
        del scaling["original_max_position_embeddings"]
    elif original and "original_max_position_embeddings" in scaling:
        scaling["original_max_position_embeddings"] = original
    config = tiny_config(head_dim=dim, rope_theta=base, rope_scaling=scaling, max_position_embeddings=8192)
    rates, factor = inverse_frequencies(config)
    expected = torch.tensor(naive_rates(scaling, dim, base, 8192), dtype=torch.float64)
    torch.testing.assert_close(rates.double(), expected, rtol=1e-5, atol=0)
    assert factor == pytest.approx(0.1 * math.log(4) + 1 if kind == "yarn" else 1.0)


def test_yarn_attention_factor() -> None:
    def factor(**keys: float) -> float:
        return inverse_frequencies(tiny_config(rope_scaling={"rope_type": "yarn", "factor": 16.0, **keys}))[1]

    log = 0.1 * math.log(16)
    assert factor() == pytest.approx(log + 1)
    assert factor(attention_factor=0.7) == pytest.approx(0.7)
    assert factor(mscale=1.0, mscale_all_dim=0.5) == pytest.approx((log + 1) / (0.5 * log + 1))
    assert factor(mscale=2.0) == pytest.approx(log + 1)
    assert factor(factor=1.0) == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 5000), seed=st.integers(0, 100))
def test_rotation_is_multiplication_by_a_unit_complex_number(position: int, seed: int) -> None:
    config = tiny_config(head_dim=16)
    x = torch.randn(1, 2, 1, 16, generator=torch.Generator().manual_seed(seed))
    cos, sin = RotaryEmbedding(config)(torch.tensor([[position]]))
    turned = rotate(x, cos, sin)
    angles = position * inverse_frequencies(config)[0]
    spun = torch.complex(x[..., :8], x[..., 8:]) * torch.polar(torch.ones(8), angles)
    torch.testing.assert_close(turned, torch.cat((spun.real, spun.imag), -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.norm(), x.norm())


@settings(max_examples=25, deadline=None)
@given(
    a=st.integers(0, 500), b=st.integers(0, 500), shift=st.integers(0, 500), kind=st.sampled_from(sorted(ROPE_SCALINGS))
)
def test_a_product_depends_on_the_distance_only(a: int, b: int, shift: int, kind: str) -> None:
    rotary = RotaryEmbedding(tiny_config(head_dim=16, rope_scaling=ROPE_SCALINGS[kind]))
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator) for _ in range(2))

    def product(p: int, r: int) -> torch.Tensor:
        return (rotate(q, *rotary(torch.tensor([[p]]))) * rotate(k, *rotary(torch.tensor([[r]])))).sum()

    torch.testing.assert_close(product(a, b), product(a + shift, b + shift), atol=2e-3, rtol=0)


def test_position_zero_is_left_alone_and_positions_are_per_token() -> None:
    rotary = RotaryEmbedding(tiny_config())
    x = torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary(torch.tensor([[0, 1, 0], [5, 0, 1]]))
    assert cos.shape == sin.shape == (2, 1, 3, 4)
    turned = rotate(x, cos, sin)
    assert torch.equal(turned[0, :, [0, 2]], x[0, :, [0, 2]]) and torch.equal(turned[1, :, 1], x[1, :, 1])
    assert torch.equal(cos[0, 0, 1], cos[1, 0, 2]) and not torch.equal(cos[0, 0, 1], cos[1, 0, 0])


def test_angles_stay_fp32_under_autocast_and_the_table_is_in_no_checkpoint() -> None:
    rotary = RotaryEmbedding(tiny_config())
    positions = torch.tensor([[4093]])
    exact = rotary(positions)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rotary(positions)[0], exact)
    assert exact.dtype == torch.float32
    assert not rotary.state_dict()
    assert rotate(torch.ones(1, 1, 1, 8, dtype=torch.bfloat16), *rotary(positions)).dtype == torch.bfloat16


def test_what_the_compiler_may_not_look_into_is_the_same() -> None:
    given = torch.tensor([[0, 3, 7], [1, 1, 900]]), inverse_frequencies(tiny_config())[0], 1.5
    assert all(torch.equal(one, other) for one, other in zip(turns_apart(*given), turns(*given), strict=True))
    torch.library.opcheck(turns_apart, given)


def test_a_stretch_as_text() -> None:
    config = tiny_config()
    yarn = stretch(config, "yarn:4", 32)
    assert yarn.rope_scaling == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert yarn.max_position_embeddings == 128 and scaling_text(yarn) == "yarn:4:32"
    llama = stretch(config, "llama3:2.5:64", 32)
    assert llama.rope_scaling | {"factor": 8.0, "original_max_position_embeddings": 16} == ROPE_SCALINGS["llama3"]
    assert llama.max_position_embeddings == 160 and scaling_text(llama) == "llama3:2.5:64"
    linear = stretch(config, "linear:2", 32)
    assert linear.rope_scaling == {"rope_type": "linear", "factor": 2.0} and scaling_text(linear) == "linear:2:32"
    for one in (config, yarn, llama, linear):
        assert stretch(one, "", 7) is one and stretch(one, scaling_text(one), 7) is one
        assert stretch(one, "none", 7).rope_scaling == {}
    assert scaling_text(config) == ""


@pytest.mark.parametrize(
    "text",
    [
        "ntk:4",
        "yarn",
        "yarn:",
        "yarn:x",
        "yarn:0.5",
        "yarn:nan",
        "yarn:inf",
        "yarn:4:0",
        "yarn:4:x",
        "yarn:4:8:1",
        "default:1",
    ],
)
def test_a_wrong_stretch_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="must be none or KIND:FACTOR"):
        stretch(tiny_config(), text, 32)


@torch.no_grad()
def test_a_model_is_stretched_from_the_rows_that_it_was_trained_on(tmp_path: Path) -> None:
    model = random_model(tiny_config(rope_theta=100.0))
    save_model(model, tmp_path, model.config)
    ids = random_ids(model.config, 2, 60)
    assert load_model(tmp_path, rope_scaling="yarn:4").config.rope_scaling["original_max_position_embeddings"] == 128
    (tmp_path / "recipe.toml").write_text("[sft]\nrow_length = 16\n\n[made]\nstage = 'sft'\n", encoding="utf-8")
    stretched = load_model(tmp_path, rope_scaling="yarn:4")
    assert scaling_text(stretched.config) == "yarn:4:16" and stretched.config.max_position_embeddings == 64
    by_hand = random_model(tiny_config(rope_theta=100.0, rope_scaling=stretched.config.rope_scaling))
    torch.testing.assert_close(stretched(ids), by_hand(ids))
    assert (stretched(ids) - load_model(tmp_path)(ids)).abs().max() > 0.1
    # Written and read again it needs no flag, and a stretch on top starts from the same rows.
    save_model(stretched, tmp_path / "again", stretched.config)
    torch.testing.assert_close(load_model(tmp_path / "again")(ids), stretched(ids))
    assert scaling_text(load_model(tmp_path / "again", rope_scaling="yarn:8").config) == "yarn:8:16"

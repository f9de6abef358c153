"""How far a reward model's stated probabilities can be trusted: by hand, and by what must hold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.objectives.reward import brier, calibration_gaps


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_by_hand() -> None:
    # Confidences 0.9, 0.9, 0.6 and 0.6; the second and the last are wrong.
    margin = torch.tensor([logit(0.9), -logit(0.9), logit(0.6), -logit(0.6)])
    gaps = calibration_gaps(margin, bins=2).mean(1)
    assert gaps.tolist() == pytest.approx([(1.2 - 1) / 4, (1.8 - 1) / 4], abs=1e-6)
    assert brier(margin).tolist() == pytest.approx([0.01, 0.81, 0.16, 0.36], abs=1e-6)
    assert brier(torch.zeros(1)).item() == pytest.approx(0.25)


@settings(deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20), st.integers(1, 12))
def test_every_pair_is_in_one_bin(margins: list[float], bins: int) -> None:
    margin = torch.tensor(margins)
    gaps = calibration_gaps(margin, bins)
    assert gaps.shape == (bins, len(margins))
    confidence = torch.sigmoid(margin.abs())
    torch.testing.assert_close(gaps.sum(0), confidence - (margin > 0).float())
    assert ((gaps != 0).sum(0) <= 1).all()
    assert gaps.mean(1).abs().sum() <= 1 + 1e-6

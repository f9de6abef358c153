"""Which loss a name of `DPOSettings` stands for, what is derived of it, and what is logged."""

from typing import Any

import pytest
import torch

from cutaway.errors import UserError
from cutaway.objectives import preference
from cutaway.objectives.preference import Pairs
from cutaway.recipe.stages import DPOSettings
from cutaway.stages.dpo import derive_loss, metrics, pair_losses


def pairs() -> Pairs:
    chosen, rejected = torch.tensor([-2.0, -7.0]), torch.tensor([-5.0, -6.0])
    ref_chosen, ref_rejected = torch.tensor([-3.0, -6.5]), torch.tensor([-4.0, -6.5])
    return Pairs(chosen, rejected, ref_chosen, ref_rejected, torch.tensor([2.0, 5.0]), torch.tensor([4.0, 5.0]))


def resolved(**changes: Any) -> DPOSettings:
    return derive_loss(DPOSettings(**changes))[0]


P = pairs()
TABLE = {
    "dpo": (resolved(), preference.dpo(P, 0.1)),
    "dpo, smoothed": (resolved(label_smoothing=0.2, beta=0.3), preference.dpo(P, 0.3, 0.2)),
    "robust": (resolved(loss="robust"), preference.robust(P, 0.1, 0.1)),
    "hinge": (resolved(loss="hinge"), preference.hinge(P, 0.1)),
    "ipo": (resolved(loss="ipo"), preference.ipo(P, 0.1)),
    "dpo_norm": (resolved(loss="dpo_norm"), preference.dpo_norm(P, 5.0)),
    "simpo": (resolved(loss="simpo"), preference.simpo(P, 2.5, 1.375)),
    "cpo": (resolved(loss="cpo"), preference.cpo(P, 0.1) + preference.chosen_nll(P)),
    "orpo": (resolved(loss="orpo"), preference.orpo(P, 0.1) + preference.chosen_nll(P)),
    "dpo with nll": (resolved(nll_weight=0.5), preference.dpo(P, 0.1) + 0.5 * preference.chosen_nll(P)),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_name_is_its_equation(name: str) -> None:
    settings, expected = TABLE[name]
    torch.testing.assert_close(pair_losses(pairs(), settings), expected)


def test_kto_is_the_mean_of_a_pair_s_two_answers() -> None:
    settings, kl = resolved(loss="kto", undesirable_weight=0.5), torch.tensor(0.2)
    good = 1 - torch.sigmoid(0.1 * (P.chosen_ratio - kl))
    bad = 0.5 * (1 - torch.sigmoid(0.1 * (kl - P.rejected_ratio)))
    torch.testing.assert_close(pair_losses(pairs(), settings, kl), (good + bad) / 2)


def test_what_is_logged() -> None:
    found = metrics(pairs(), resolved(beta=0.5))
    assert found["margin"].tolist() == pytest.approx([1.0, -0.5])
    assert found["accuracy"].tolist() == [1, 0]
    assert found["kl"].tolist() == pytest.approx([0.0, 0.0])
    assert "kl" not in metrics(pairs(), resolved(loss="simpo"))


def test_a_loss_that_looks_at_tokens_has_the_margin_of_tokens() -> None:
    """By sums the shorter answer would be the better one, which is not what these losses bring about."""
    chosen, rejected, nothing = torch.tensor([-6.0]), torch.tensor([-5.0]), torch.zeros(1)
    longer = Pairs(chosen, rejected, nothing, nothing, torch.tensor([12.0]), torch.tensor([2.0]))
    for loss in ("simpo", "orpo"):
        found = metrics(longer, resolved(loss=loss, beta=2.0))
        assert (found["margin"].item(), found["accuracy"].item()) == (4.0, 1.0)
    found = metrics(longer, resolved(loss="cpo", beta=2.0))
    assert (found["margin"].item(), found["accuracy"].item()) == (-2.0, 0.0)


def test_derived_values_are_said_and_given_ones_kept() -> None:
    settings, rules = derive_loss(DPOSettings(loss="simpo"))
    assert {rule.name for rule in rules} == {"beta", "gamma", "label_smoothing", "nll_weight"}
    assert derive_loss(settings) == (settings, [])
    assert (settings.beta, settings.gamma, settings.nll_weight) == (2.5, 1.375, 0.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"beta": 0.0}, "beta is 0.0, must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"loss": "simpo", "gamma": -1.0}, "gamma is -1.0"),
        ({"gamma": 0.5}, "gamma means nothing to loss dpo"),
        ({"reference": "live"}, "needs an adapter"),
        ({"loss": "kto", "label_smoothing": 0.1}, "label_smoothing means nothing to loss kto"),
        ({"desirable_weight": 2.0}, "desirable_weight means nothing to loss dpo"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        derive_loss(DPOSettings(**changes))

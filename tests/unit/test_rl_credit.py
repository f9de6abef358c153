"""From rewards to advantages of tokens, by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cutaway.recipe.rl import GRPOSettings, PPOSettings
from cutaway.rl.algorithms import ALGORITHMS, group_advantage
from cutaway.rl.credit import credit_tokens, give_credit, share
from cutaway.rl.meter import Meter
from cutaway.rl.playing import Group, Players
from cutaway.rl.prompts import Prompt
from cutaway.rl.rollout import Sample
from cutaway.training.distributed import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def sample(place: int, own: list[bool], left_out: bool = False) -> Sample:
    mine = torch.tensor(own)
    trained = torch.zeros_like(mine) if left_out else mine
    found = Sample(torch.arange(len(own) + 1), mine, trained, torch.zeros(len(own)), place)
    found.values = torch.zeros(len(own))
    return found


def test_ppo_whitens_over_what_is_trained() -> None:
    """Two answers, right and wrong, and one that could not be judged, whose value model is far off."""
    samples = [sample(0, [False, True, True]), sample(1, [True, True, False]), sample(2, [True] * 3, left_out=True)]
    samples[2].values = torch.tensor([50.0, -50.0, 50.0])
    row, meter = ALGORITHMS["ppo"].with_values(kl="none"), Meter(ALONE)
    rewards = torch.tensor([1.0, 0.0, math.nan], dtype=torch.float64)
    credit_tokens(ALONE, samples, rewards, row, PPOSettings(lam=0.5), meter)
    # One answer is credited 1 at its last token and half of that before; the other 0.
    assert samples[0].returns.tolist() == [0.0, 0.5, 1.0] and samples[1].returns.tolist() == [0.0, 0.0, 0.0]
    raw = torch.tensor([0.5, 1.0, 0.0, 0.0])
    expected = (raw - raw.mean()) / raw.var(correction=0).sqrt()
    found = torch.cat([one.advantages[one.own] for one in samples[:2]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert samples[0].advantages[0] == 0
    line = meter.report()
    assert line["advantage_mean"] == pytest.approx(0.375)
    assert line["explained_variance"] == 0  # of the values, which are all 0


def test_an_answer_that_could_not_be_judged_is_in_no_statistic_of_advantages() -> None:
    """Two groups: of one only two answers were judged, of the other none."""
    samples = [sample(place, [True]) for place in range(6)]
    earned = ([1.0, 0.0, math.nan], [math.nan] * 3)
    groups = [Group(Prompt(str(i), {}, [1]), rewards) for i, rewards in enumerate(earned)]
    players, meter = object.__new__(Players), Meter(ALONE)
    vars(players).update(network=SimpleNamespace(ranks=ALONE), tracker=None)
    give_credit(players, groups, samples, ALGORITHMS["dr_grpo"], GRPOSettings(), meter)
    assert [float(one.advantages) for one in samples] == [0.5, -0.5, 0, 0, 0, 0]
    assert meter.report() == {"advantage_mean": 0.0, "advantage_square": 0.25, "advantage_zero": 0.0}


def test_a_learner_s_advantage_may_trip_over_an_answer_that_could_not_be_judged(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("def centre(rewards):\n    return rewards - rewards.mean(1, keepdim=True)\n")
    advantage = group_advantage(ALGORITHMS["grpo"].with_values(advantage=f"{file}:centre"))
    assert advantage is not None
    assert advantage(torch.tensor([[1.0, 0.0], [1.0, math.nan]])).tolist() == [[0.5, -0.5], [0.0, 0.0]]


def test_a_tracker_reads_rewards_as_shares() -> None:
    assert [share(reward, (-1.0, 3.0)) for reward in (-1.0, 0.0, 3.0, 9.0, -4.0)] == [0.0, 0.25, 1.0, 1.0, 0.0]
    assert math.isnan(share(math.nan, (0.0, 1.0)))

"""SPO's tracker by hand and against a second implementation, and MiniMind's single one."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.rl.value_tracker import GlobalTracker, ValueTracker, Visit, drift_of, forgetting


def visit(name: str, reward: float, drift: float = 0.0, logprobs: tuple[float, ...] = (-1.0,)) -> Visit:
    return Visit(name, reward, drift, [5] * (len(logprobs) + 1), [True] * len(logprobs), logprobs)


def test_forgetting_by_hand() -> None:
    assert forgetting(0.06) == 0.875  # a half, but not below the least
    assert forgetting(0.0) == 0.96  # 1, but not above the most
    assert forgetting(0.006) == pytest.approx(2**-0.1)
    assert drift_of([-1.0, -2.0, -3.0], [-1.5, -9.0, -2.0], [True, False, True]) == pytest.approx(0.75)
    assert drift_of([], [], []) == 0


def test_start_by_hand() -> None:
    tracker = ValueTracker()
    tracker.start("x", [1.0, 1.0, 0.0, math.nan])
    # N0 = 1 / (1 - 0.875) = 8, three judged, two right.
    belief = tracker.beliefs["x"]
    assert (belief.alpha, belief.beta) == (8 * 2.5 / 4, 8 * 1.5 / 4)
    tracker.start("nothing", [])
    assert (tracker.beliefs["nothing"].alpha, tracker.beliefs["nothing"].beta) == (0.5, 0.5)
    assert tracker.value("never seen") == 0.5


def test_the_first_answer_forgets_least_and_later_ones_by_their_drift() -> None:
    tracker = ValueTracker()
    tracker.update([visit("x", 1.0, drift=9.0)])
    assert (tracker.beliefs["x"].alpha, tracker.beliefs["x"].beta) == (0.96 * 0.5 + 1, 0.96 * 0.5)
    tracker.update([visit("x", 0.0, drift=9.0)])
    assert tracker.beliefs["x"].alpha == pytest.approx(0.875 * 1.48)
    assert tracker.beliefs["x"].beta == pytest.approx(0.875 * 0.48 + 1)


def test_a_prompt_s_further_answers_in_one_rollout_find_a_policy_that_has_not_moved() -> None:
    tracker = ValueTracker()
    tracker.update([visit("x", 1.0)])
    tracker.update([visit("x", 1.0, drift=9.0), visit("x", 0.0, drift=9.0)])
    assert tracker.beliefs["x"].alpha == pytest.approx(0.96 * (0.875 * 1.48 + 1))
    assert tracker.metrics()["tracker_visited_before"] == pytest.approx(1 / 3)


def test_an_answer_that_could_not_be_judged_changes_nothing() -> None:
    tracker = ValueTracker()
    tracker.update([visit("x", 1.0)])
    before = json.dumps(tracker.state_dict())
    tracker.update([visit("x", math.nan, drift=3.0, logprobs=(-7.0,))])
    assert json.dumps(tracker.state_dict()) == before


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1), st.floats(0, 0.2)), max_size=12))
@settings(max_examples=50, deadline=None)
def test_beliefs_equal_a_weighted_sum_of_all_rewards(visits: list[tuple[str, float, float]]) -> None:
    """Unrolled: alpha is the start and every reward, each times all the factors that came after it."""
    tracker = ValueTracker()
    for name, reward, drift in visits:
        tracker.update([visit(name, reward, drift)])
    for name in {name for name, _, _ in visits}:
        own = [(reward, drift) for one, reward, drift in visits if one == name]
        factors = [0.96 if i == 0 else min(max(2 ** (-drift / 0.06), 0.875), 0.96) for i, (_, drift) in enumerate(own)]
        alpha = 0.5 * math.prod(factors)
        beta = alpha
        for i, (reward, _) in enumerate(own):
            later = math.prod(factors[i + 1 :])
            alpha, beta = alpha + later * reward, beta + later * (1 - reward)
        assert tracker.value(name) == pytest.approx(alpha / (alpha + beta))
        assert tracker.beliefs[name].answers <= 25.5


def test_the_state_is_exact_through_json() -> None:
    tracker: Any
    for tracker in (ValueTracker(), GlobalTracker()):
        tracker.update([visit("x", 1 / 3, 0.01, (-0.1, -0.7)), visit("y", 0.2)])
        tracker.update([visit("x", 0.1, 0.02, (-1 / 7,))])
        other = type(tracker)()
        other.load_state_dict(json.loads(json.dumps(tracker.state_dict())))
        for one in (tracker, other):
            one.update([visit("y", 0.9, 0.03), visit("z", 0.4)])
        assert tracker.state_dict() == other.state_dict()
        assert tracker.value("x") == other.value("x")


def test_one_tracker_for_all_prompts_knows_no_hard_ones() -> None:
    """Easy prompts always succeed, hard ones never: SPO's baselines part, MiniMind's is one half for both."""
    own, shared = ValueTracker(), GlobalTracker()
    for _ in range(20):
        both = [visit("easy", 1.0), visit("hard", 0.0)]
        own.update(both)
        shared.update(both)
    assert own.value("easy") > 0.9 and own.value("hard") < 0.1
    assert shared.value("easy") == shared.value("hard") == pytest.approx(0.5)


def test_the_global_tracker_by_hand() -> None:
    tracker = GlobalTracker()
    tracker.update([visit("x", 1.0, logprobs=(-1.0, -3.0)), visit("y", 0.5, logprobs=(-2.0,))])
    assert (tracker.alpha, tracker.beta, tracker.level) == (0.96 + 0.75, 0.96 + 0.25, -2.0)
    # The mean moved by a nat, though these are other prompts and the policy may be the same: half is forgotten.
    tracker.update([visit("z", 0.0, logprobs=(-3.0,))])
    assert (tracker.alpha, tracker.beta) == (pytest.approx(0.5 * 1.71), pytest.approx(0.5 * 1.21 + 1))

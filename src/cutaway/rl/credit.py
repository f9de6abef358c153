"""From rewards to the advantages of tokens: how much better than expected each answer was, or each token of it.

Groups hold the rewards of all ranks, samples are this rank's. What is computed over a group, a batch or a tracker is
computed over all of it on every rank.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.objectives import advantages as objective
from cutaway.objectives.kl import kl, rewards_after_kl
from cutaway.objectives.value import explained_variance
from cutaway.recipe.rl import PPOSettings, RLSettings
from cutaway.rl.algorithms import Algorithm, group_advantage
from cutaway.rl.measuring import measure_again
from cutaway.rl.meter import Meter
from cutaway.rl.playing import Group, Players
from cutaway.rl.rollout import Sample, collate
from cutaway.rl.value_tracker import Belief, Visit, drift_of
from cutaway.training.distributed import Ranks

Bounds = tuple[float, float]


def give_credit(
    players: Players,
    groups: Sequence[Group],
    samples: Sequence[Sample],
    row: Algorithm,
    settings: RLSettings,
    meter: Meter,
) -> None:
    """Fill the advantages of the samples, with a value model the returns too, and let a tracker see what was earned."""
    ranks = players.network.ranks
    rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
    if row.advantage == "gae":
        assert isinstance(settings, PPOSettings)
        credit_tokens(ranks, samples, rewards.flatten(), row, settings, meter)
        return
    if row.needs_reference and row.kl == "reward":
        rewards = rewards - row.beta * distances(ranks, samples, row, rewards.numel()).view_as(rewards)
    if players.tracker is None:
        of_group = group_advantage(row)
        assert of_group is not None
        found = of_group(rewards)
    else:
        low, high = settings.reward_range
        values = [[players.tracker.value(group.prompt.id)] * len(group.rewards) for group in groups]
        baselines = low + (high - low) * torch.tensor(values, dtype=torch.float64)
        scale = row.advantage == "tracked"
        found = objective.tracked(rewards.flatten(), baselines.flatten(), scale).view_as(rewards)
        tell_tracker(players, groups, samples, settings.reward_range, meter)
    flat = found.flatten().float()
    for sample in samples:
        sample.advantages = torch.where(sample.own, flat[sample.place], 0.0)
    if ranks.first:
        judged = flat[~rewards.flatten().isnan()]
        meter.add("advantage_mean", judged.sum(), judged.numel())
        meter.add("advantage_square", judged.square().sum(), judged.numel())
        meter.add("advantage_zero", (judged.abs() < 1e-6).sum(), judged.numel())


def distances(ranks: Ranks, samples: Sequence[Sample], row: Algorithm, count: int) -> Float[Tensor, " answers"]:
    """The KL of each of the rollout's `count` answers, summed over its tokens, on every rank."""
    mine = []
    for one in samples:
        each = kl(one.old_logprobs[None], one.ref_logprobs[None], row.kl_estimator)[0]
        mine.append((one.place, float(each[one.own].sum())))
    found = torch.zeros(count, dtype=torch.float64)
    for part in ranks.gather(mine):
        for place, distance in part:
            found[place] = distance
    return found


def credit_tokens(
    ranks: Ranks,
    samples: Sequence[Sample],
    rewards: Float[Tensor, " answers"],
    row: Algorithm,
    settings: PPOSettings,
    meter: Meter,
) -> None:
    """PPO's advantages: the reward at an answer's last token, the distance at every token, GAE, whitening over the
    tokens that are trained."""
    count = torch.zeros(3, dtype=torch.float64)
    for sample in samples:
        own = sample.own[None]
        each = torch.zeros(own.shape)
        if own.any() and not rewards[sample.place].isnan():
            each[0, int(own[0].nonzero()[-1])] = float(rewards[sample.place])
        if row.needs_reference and row.kl == "reward":
            logprobs = (sample.old_logprobs[None], sample.ref_logprobs[None])
            each = torch.where(own, rewards_after_kl(each, *logprobs, row.beta, row.kl_estimator), each)
        found, returns = objective.gae(each, sample.values[None], own, settings.gamma, settings.lam)
        sample.advantages, sample.returns = found[0], returns[0]
        count += objective.moments(found, sample.trained[None])
    if samples:
        whole = collate(samples)
        assert whole.values is not None and whole.returns is not None
        explained = explained_variance(whole.values, whole.returns, whole.mask)
        if math.isfinite(explained):
            meter.add("explained_variance", explained)
    number, total, squares = ranks.sum_all([float(value) for value in count])
    mean = total / max(1.0, number)
    variance = max(0.0, squares / max(1.0, number) - mean * mean)
    if ranks.first:
        meter.add("advantage_mean", mean)
        meter.add("advantage_square", variance + mean * mean)
    for sample in samples:
        given, own = sample.advantages[None], sample.own[None]
        sample.advantages = objective.whiten(given, own, torch.tensor(mean), torch.tensor(variance))[0].float()


def tell_tracker(
    players: Players, groups: Sequence[Group], samples: Sequence[Sample], bounds: Bounds, meter: Meter
) -> None:
    """Measure how far the policy has moved on each prompt's previous answer, and let the tracker count, alike on every
    rank."""
    tracker, ranks, size = players.tracker, players.network.ranks, len(groups[0].rewards)
    assert tracker is not None
    before: dict[int, Sample] = {}
    for sample in samples:
        belief = tracker.previous(groups[sample.place // size].prompt.id)
        if belief is not None:
            before[sample.place] = _previous_answer(belief)
    measure_again(players, list(before.values()))
    mine = []
    for sample in samples:
        group, past = groups[sample.place // size], before.get(sample.place)
        visit = Visit(
            id=group.prompt.id,
            reward=share(group.rewards[sample.place % size], bounds),
            drift=None if past is None else _drift(past),
            ids=sample.ids.tolist(),
            own=sample.own.tolist(),
            logprobs=sample.old_logprobs.tolist(),
        )
        mine.append((sample.place, vars(visit)))
    visits = {place: Visit(**fields) for part in ranks.gather(mine) for place, fields in part}
    tracker.update([visits[place] for place in sorted(visits)])
    if ranks.first:
        again = [visit.drift for visit in visits.values() if visit.drift is not None]
        if again:
            meter.add("tracker_drift", sum(again), len(again))
        for name, value in tracker.metrics().items():
            meter.add(name, value)


def share(reward: float, bounds: Bounds) -> float:
    """Where a reward lies between the least and the largest, as a tracker reads it: 0 to 1; NaN stays NaN."""
    low, high = bounds
    return reward if math.isnan(reward) else min(1.0, max(0.0, (reward - low) / (high - low)))


def _previous_answer(belief: Belief) -> Sample:
    """As a sample whose `sampler_logprobs` are those of its time."""
    own = torch.tensor(belief.own)
    return Sample(torch.tensor(belief.ids), own, own, torch.tensor(belief.logprobs), 0)


def _drift(past: Sample) -> float:
    return drift_of(past.sampler_logprobs.tolist(), past.old_logprobs.tolist(), past.own.tolist())

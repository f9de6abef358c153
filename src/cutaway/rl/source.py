"""The batch source of RL: it lets the present policy answer prompts, and hands the answers out as minibatches.

One `refill` is one rollout, in the order it happens: draw prompts, play episodes, score them, measure what the policy,
the reference and the value model say of their tokens, compute advantages, deal out minibatches. All ranks draw the same
prompts; each plays every world-th of them, and rewards are exchanged, so that what is computed over a group, a batch or
a tracker is computed over all of it on every rank.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.data.hashing import derive_key
from cutaway.objectives import advantages as objective
from cutaway.objectives.kl import kl, rewards_after_kl
from cutaway.objectives.value import explained_variance
from cutaway.recipe import PPOSettings, RLSettings
from cutaway.rl import prompts as drawing
from cutaway.rl.algorithms import Algorithm, group_advantage
from cutaway.rl.environment import Episode, Limits, PolicySampler, ToolboxOf, play
from cutaway.rl.meter import Meter
from cutaway.rl.policy import ActorCritic, Reference
from cutaway.rl.prompts import Prompt
from cutaway.rl.rewards import Rewards, Scored
from cutaway.rl.rollout import Minibatch, Sample, collate, measure, split_evenly
from cutaway.rl.value_tracker import Tracker, ValueTracker, Visit, drift_of
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.network import Network
from cutaway.training.precision import autocast


@dataclass
class Group:
    """The answers to one prompt."""

    prompt: Prompt
    rewards: list[float]
    """Of all its answers, on every rank."""
    episodes: list[Episode]
    """On the rank that played them; elsewhere none."""


@dataclass
class Players:
    """Who takes part in a rollout."""

    network: Network
    actor: ActorCritic
    engine: PolicySampler
    tokenizer: Tokenizer
    rewards: Rewards
    reference: Reference | None
    tracker: Tracker | None
    toolbox_of: ToolboxOf
    limits: Limits


class RolloutSource:
    """Endless minibatches. What it remembers: how many prompts were drawn, rollouts made, tokens written, the tracker.

    Checkpoints fall where no minibatch is left (`at_boundary`), so no answer need be saved. `overrun` is asked before
    every further update of a rollout; where it says yes on all ranks, the rest of the rollout is dropped.
    """

    def __init__(
        self,
        players: Players,
        prompts: Sequence[Prompt],
        row: Algorithm,
        settings: RLSettings,
        meter: Meter,
        accumulation: int,
        overrun: Callable[[], bool] | None = None,
    ) -> None:
        self.players, self.prompts, self.row, self.settings = players, list(prompts), row, settings
        self.meter, self.accumulation, self.overrun = meter, accumulation, overrun
        self.ranks = players.network.ranks
        assert settings.group_size is not None
        self.size = settings.group_size
        """Answers to a prompt."""
        self.updates = settings.minibatches * settings.rollout_epochs
        self.drawn = self.rollouts = self.rollout_tokens = 0
        self.idle_s = 0.0
        """Seconds since the last rollout that were neither rollout nor training, such as evaluation."""
        self._queue: deque[Minibatch] = deque()
        self._spare: Sample | None = None
        self._measured: set[str] = {"advantages"}
        """Fields of samples that rollouts fill."""
        self._ready: tuple[float, int] | None = None

    def __iter__(self) -> Iterator[Minibatch]:
        return self

    def __next__(self) -> Minibatch:
        between = bool(self._queue) and len(self._queue) % self.accumulation == 0
        if between and self.overrun is not None and self.overrun():
            self._queue.clear()
        if not self._queue:
            self.refill()
        return self._queue.popleft()

    @property
    def at_boundary(self) -> bool:
        """Whether the rollout is used up."""
        return not self._queue

    def first_update(self) -> list[Minibatch]:
        """The micro-batches of the next update of the rollout at hand."""
        return list(self._queue)[: self.accumulation]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next rollout depends on besides the weights."""
        tracker = self.players.tracker
        state = {"drawn": self.drawn, "rollouts": self.rollouts, "rollout_tokens": self.rollout_tokens}
        return state | {"tracker": tracker.state_dict() if tracker is not None else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.drawn, self.rollouts = state["drawn"], state["rollouts"]
        self.rollout_tokens = state["rollout_tokens"]
        if self.players.tracker is not None and state["tracker"] is not None:
            self.players.tracker.load_state_dict(state["tracker"])
        self._queue.clear()

    def begin(self, samples: int) -> None:
        """Before training: `samples` answers to every prompt, from which the tracker starts."""
        tracker = self.players.tracker
        if not samples or not isinstance(tracker, ValueTracker):
            return
        low, high = self.settings.reward_range
        self.players.engine.refresh()
        earned: dict[str, list[float]] = {}
        for number in range(samples):
            # A draw of its own for every sample, counted down so that none is one of training's.
            for group in self._play(self.prompts, -1 - number, size=1):
                earned.setdefault(group.prompt.id, []).append((group.rewards[0] - low) / (high - low))
        for name, rewards in earned.items():
            tracker.start(name, rewards)
        self.meter.report()  # what was measured here is of before training

    def refill(self) -> None:
        """One rollout, and its minibatches."""
        began = time.monotonic()
        if self._ready is not None:
            self.meter.add("training_tokens_per_second", self._ready[1], began - self._ready[0] - self.idle_s)
        self.players.engine.refresh()
        groups = self._groups()
        written = time.monotonic()
        samples = self._samples(groups)
        self._measure(samples)
        self._advantages(groups, samples)
        self._deal(groups, samples)
        self.rollouts += 1
        tokens = sum(batch.tokens for batch in self._queue)
        self._ready, self.idle_s = (time.monotonic(), tokens), 0.0
        self.meter.add("rollout_seconds", written - began)
        self.meter.add("measuring_seconds", time.monotonic() - written)

    # Playing

    def _groups(self) -> list[Group]:
        """The groups of one rollout; under dynamic sampling, those whose answers earned different rewards."""
        settings, wanted = self.settings, self.settings.prompts_per_rollout
        groups: list[Group] = []
        for draw in range(settings.resample_rounds if self.row.prompts == "dynamic" else 1):
            fresh = self._play(self._draw(wanted), draw)
            kept = drawing.informative(np.array([group.rewards for group in fresh]))
            if self.size > 1:
                self.meter.add("degenerate_groups", float(len(kept) - sum(kept)), len(kept))
            if self.row.prompts == "dynamic":
                kept[0] |= not any(kept) and not groups  # there must be something to go through a step with
                fresh = [group for group, keep in zip(fresh, kept, strict=True) if keep]
            groups += fresh
            if len(groups) >= wanted:
                break
        return groups[:wanted]

    def _draw(self, wanted: int) -> list[Prompt]:
        if self.row.prompts == "uncertainty":
            assert self.players.tracker is not None
            values = np.array([self.players.tracker.value(prompt.id) for prompt in self.prompts])
            key = derive_key(self.settings.seed, self.rollouts)
            chosen = drawing.weighted(drawing.uncertainty(values), wanted, key)
        else:
            chosen = drawing.in_order(len(self.prompts), self.drawn, wanted, self.settings.seed)
        self.drawn += wanted
        return [self.prompts[i] for i in chosen]

    def _play(self, chosen: Sequence[Prompt], draw: int, size: int = 0) -> list[Group]:
        """Let this rank's share of the prompts be answered, judge it, and exchange the rewards."""
        size, world, began = size or self.size, self.ranks.world, time.monotonic()
        groups = [Group(prompt, [], []) for prompt in chosen]
        for place in range(self.ranks.rank, len(chosen), world):
            for number in range(size):
                seed = derive_key(self.settings.seed, self.rollouts, draw, place, number)
                groups[place].episodes.append(Episode(chosen[place], seed))
        mine = [episode for group in groups for episode in group.episodes]
        players = self.players
        play(players.engine, players.tokenizer, mine, players.limits, self.settings.temperature, players.toolbox_of)
        scored = players.rewards.score(mine)
        self._note(mine, scored, time.monotonic() - began)
        for rank, totals in enumerate(self.ranks.gather(scored.totals)):
            for number, place in enumerate(range(rank, len(chosen), world)):
                groups[place].rewards = totals[number * size : (number + 1) * size]
        if self._spare is None:
            self._spare = Sample.of(mine[0], 0)
        return groups

    def _note(self, episodes: Sequence[Episode], scored: Scored, seconds: float) -> None:
        """Measure what was written and earned."""
        meter, count = self.meter, len(episodes)
        judged = [value for value in scored.totals if not math.isnan(value)]
        meter.add("reward", sum(judged), len(judged))
        meter.add("reward_square", sum(value * value for value in judged), len(judged))
        for name, values in scored.parts.items():
            finite = [value for value in values if math.isfinite(value)]
            meter.add(f"reward_{name}", sum(finite), len(finite))
        meter.add("success", sum(scored.solved), count)
        for level in sorted({prompt.level for prompt in self.prompts} - {""}):
            of_level = [ok for one, ok in zip(episodes, scored.solved, strict=True) if one.prompt.level == level]
            meter.add(f"success_level_{level}", sum(of_level), len(of_level))
        lengths = [sum(episode.own) for episode in episodes]
        written = int(self.ranks.sum_all([float(sum(lengths))])[0])
        self.rollout_tokens += written
        meter.add("response_length", sum(lengths), count)
        meter.add("truncated", sum(episode.truncated for episode in episodes), count)
        meter.add("turns", sum(episode.turns for episode in episodes), count)
        results = [result for episode in episodes for result in episode.results]
        meter.add("tool_errors", sum(not result.ok for result in results), len(results))
        meter.add("empty", sum(not episode.text.strip() and not episode.results for episode in episodes), count)
        meter.add("unjudged", scored.unjudged, count)
        meter.add("verifier_raised", scored.raised, count)
        meter.add("rollout_tokens_per_second", sum(lengths), seconds)

    # Measuring

    def _samples(self, groups: Sequence[Group]) -> list[Sample]:
        """What this rank trains on; places count over all ranks."""
        size, samples = self.size, []
        for slot, group in enumerate(groups):
            for number, episode in enumerate(group.episodes):
                unjudged = math.isnan(group.rewards[number])
                left_out = unjudged or (self.row.mask_truncated and episode.truncated)
                samples.append(Sample.of(episode, slot * size + number, left_out))
        return samples

    def _measure(self, samples: Sequence[Sample]) -> None:
        """What the policy that wrote the answers, the reference and the value model say of their tokens."""
        players, device = self.players, self.ranks.device
        gae = self.row.advantage == "gae"
        if self.updates > 1 or gae or players.tracker is not None or self.row.kl == "reward":
            names = ("old_logprobs", "values") if gae else ("old_logprobs",)

            def present(batch: Minibatch) -> Sequence[Tensor]:
                logprobs, _, values = self._forward(players.actor, batch, values=gae)
                return (logprobs, values) if gae else (logprobs,)

            measure(samples, present, names, device)
            self._measured |= {*names, "returns"} if gae else {*names}
        if players.reference is not None:
            with players.reference.active() as model:
                frozen = ActorCritic(model, self.settings.temperature)
                measure(samples, lambda batch: (self._forward(frozen, batch)[0],), ("ref_logprobs",), device)
            self._measured.add("ref_logprobs")

    def _forward(self, actor: ActorCritic, batch: Minibatch, values: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Past the wrapper: there is no gradient, and ranks have different numbers of groups to go through."""
        with autocast(self.ranks.device, self.players.network.dtype):
            outputs: tuple[Tensor, Tensor, Tensor] = actor(batch.input_ids, batch.targets, batch.own, values)
        return outputs

    # Advantages

    def _advantages(self, groups: Sequence[Group], samples: Sequence[Sample]) -> None:
        """Fill the advantages of this rank's samples, and let the tracker see what came."""
        rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
        if self.row.advantage == "gae":
            self._estimate(rewards.flatten(), samples)
            return
        if self.row.needs_reference and self.row.kl == "reward":
            rewards = rewards - self.row.beta * self._distances(samples, rewards.numel()).view_as(rewards)
        tracker = self.players.tracker
        if tracker is None:
            of_group = group_advantage(self.row)
            assert of_group is not None
            found = of_group(rewards)
        else:
            low, high = self.settings.reward_range
            values = [[tracker.value(group.prompt.id)] * len(group.rewards) for group in groups]
            baselines = low + (high - low) * torch.tensor(values, dtype=torch.float64)
            scale = self.row.advantage == "tracked"
            found = objective.tracked(rewards.flatten(), baselines.flatten(), scale).view_as(rewards)
            self._tell(tracker, groups, samples)
        flat = found.flatten().float()
        for sample in samples:
            sample.advantages = torch.where(sample.own, flat[sample.place], 0.0)
        first = self.ranks.first
        self.meter.add("advantage_mean", flat.sum() * first, flat.numel() * first)
        self.meter.add("advantage_square", flat.square().sum() * first, flat.numel() * first)
        self.meter.add("advantage_zero", (flat.abs() < 1e-6).sum() * first, flat.numel() * first)

    def _distances(self, samples: Sequence[Sample], count: int) -> Float[Tensor, " answers"]:
        """KL of every answer of the rollout, summed over its tokens, on every rank."""
        flat: list[float] = []
        for one in samples:
            each = kl(one.old_logprobs[None], one.ref_logprobs[None], self.row.kl_estimator)[0]
            flat += [float(one.place), float(each[one.own].sum())]
        found = torch.zeros(count, dtype=torch.float64)
        for numbers in self.ranks.gather(flat):
            for place, value in zip(numbers[::2], numbers[1::2], strict=True):
                found[int(place)] = value
        return found

    def _estimate(self, rewards: Float[Tensor, " answers"], samples: Sequence[Sample]) -> None:
        """PPO's advantages: the reward at an answer's last token, the distance at every token, GAE, whitening."""
        settings, count = self.settings, torch.zeros(3, dtype=torch.float64)
        assert isinstance(settings, PPOSettings)
        for sample in samples:
            own = sample.own[None]
            each = torch.zeros(own.shape)
            if own.any() and not rewards[sample.place].isnan():
                each[0, int(own[0].nonzero()[-1])] = float(rewards[sample.place])
            if self.row.needs_reference and self.row.kl == "reward":
                distances = (sample.old_logprobs[None], sample.ref_logprobs[None])
                each = torch.where(own, rewards_after_kl(each, *distances, self.row.beta, self.row.kl_estimator), each)
            found, returns = objective.gae(each, sample.values[None], own, settings.gamma, settings.lam)
            sample.advantages, sample.returns = found[0], returns[0]
            count += objective.moments(found, own)
        explained = math.nan
        if samples:
            whole = collate(samples)
            assert whole.values is not None and whole.returns is not None
            explained = explained_variance(whole.values, whole.returns, whole.own)
        known = math.isfinite(explained)
        self.meter.add("explained_variance", explained if known else 0.0, float(known))
        number, total, squares = self.ranks.sum_all([float(value) for value in count])
        mean = total / max(1.0, number)
        variance = max(0.0, squares / max(1.0, number) - mean * mean)
        self.meter.add("advantage_mean", mean * self.ranks.first, float(self.ranks.first))
        self.meter.add("advantage_square", (variance + mean * mean) * self.ranks.first, float(self.ranks.first))
        for sample in samples:
            row, own = sample.advantages[None], sample.own[None]
            sample.advantages = objective.whiten(row, own, torch.tensor(mean), torch.tensor(variance))[0].float()

    def _tell(self, tracker: Tracker, groups: Sequence[Group], samples: Sequence[Sample]) -> None:
        """Measure the drift on each prompt's previous answer, and let the tracker count, alike on every rank."""
        low, high = self.settings.reward_range
        size, flat = self.size, []
        before = {}
        for sample in samples:
            belief = tracker.previous(groups[sample.place // size].prompt.id)
            if belief is not None:
                own = torch.tensor(belief.own)
                before[sample.place] = Sample(torch.tensor(belief.ids), own, own, torch.tensor(belief.logprobs), 0)
        measure(
            list(before.values()),
            lambda batch: (self._forward(self.players.actor, batch)[0],),
            ("old_logprobs",),
            self.ranks.device,
        )
        for sample in samples:
            past = before.get(sample.place)
            drift = 0.0
            if past is not None:
                drift = drift_of(past.sampler_logprobs.tolist(), past.old_logprobs.tolist(), past.own.tolist())
            own_row, logprobs = sample.own.double().tolist(), sample.old_logprobs.double().tolist()
            flat += [float(sample.place), drift, float(len(sample))]
            flat += [*sample.ids.double().tolist(), *own_row, *logprobs]
        visits: dict[int, Visit] = {}
        for numbers in self.ranks.gather(flat):
            at = 0
            while at < len(numbers):
                place, drift, length = int(numbers[at]), numbers[at + 1], int(numbers[at + 2])
                at += 3
                ids = [int(token) for token in numbers[at : at + length + 1]]
                own_row = numbers[at + length + 1 : at + 2 * length + 1]
                logprobs = numbers[at + 2 * length + 1 : at + 3 * length + 1]
                at += 3 * length + 1
                group = groups[place // size]
                share = (group.rewards[place % size] - low) / (high - low)
                share = share if math.isnan(share) else min(1.0, max(0.0, share))
                mine = [bool(value) for value in own_row]
                visits[place] = Visit(group.prompt.id, share, drift, ids, mine, logprobs)
        tracker.update([visits[place] for place in sorted(visits)])
        drifts = [visit.drift for visit in visits.values()]
        first = self.ranks.first
        self.meter.add("tracker_drift", sum(drifts) * first, len(drifts) * first)
        for name, value in tracker.metrics().items():
            self.meter.add(name, value * first, float(first))

    # Dealing out

    def _deal(self, groups: Sequence[Group], samples: Sequence[Sample]) -> None:
        """Shuffle all answers, over all ranks alike, into the minibatches of every pass; each rank takes its own."""
        settings, total = self.settings, len(groups) * self.size
        mine = {sample.place: sample for sample in samples}
        for epoch in range(settings.rollout_epochs):
            key = derive_key(settings.seed, self.rollouts, epoch) % 2**63
            order = torch.randperm(total, generator=torch.Generator().manual_seed(key)).tolist()
            for number in range(settings.minibatches):
                bounds = [total * i // settings.minibatches for i in (number, number + 1)]
                chosen = [mine[place] for place in order[bounds[0] : bounds[1]] if place in mine]
                first = epoch == number == 0
                for part in split_evenly(chosen, self.accumulation):
                    self._queue.append(self._batch(part, first))

    def _batch(self, part: Sequence[Sample], first: bool) -> Minibatch:
        """A micro-batch; a rank without an answer for it goes along with one that counts for nothing."""
        if part:
            return collate(part, first=first)
        assert self._spare is not None
        spare = self._spare
        for name in self._measured:
            setattr(spare, name, torch.zeros(len(spare)))
        return collate([spare], counted=False, first=first)

"""The batch source of RL: it lets the present policy answer prompts, and hands the answers out as minibatches.

One `refill` is one rollout, in the order it happens: draw prompts, let them be answered and judged (`rl/playing.py`),
measure what the policy, the reference and the value model say of the tokens (`rl/measuring.py`), turn rewards into
advantages (`rl/credit.py`), deal out minibatches. All ranks draw the same prompts, and each plays every world-th of
them.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from cutaway.data.hashing import derive_key
from cutaway.recipe.rl import RLSettings
from cutaway.rl import prompts as drawing
from cutaway.rl.algorithms import Algorithm
from cutaway.rl.credit import give_credit, share
from cutaway.rl.measuring import measure_rollout
from cutaway.rl.meter import Meter
from cutaway.rl.playing import Group, Players, play_groups
from cutaway.rl.prompts import Prompt
from cutaway.rl.rollout import Minibatch, Sample, collate, split_evenly
from cutaway.rl.value_tracker import ValueTracker


class RolloutSource:
    """Endless minibatches. What it remembers: how many prompts were drawn, rollouts made, tokens written, the tracker.

    Checkpoints fall where no minibatch is left (`used_up`), so no answer need be saved. `overrun` is asked after every
    update; where it says yes, alike on all ranks, the rest of the rollout is dropped.
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
        self._measured: list[str] = []
        """Fields of samples that the rollout has filled."""
        self._ready: tuple[float, int] | None = None
        """When the rollout at hand was ready, and this rank's tokens of it that were trained on since."""

    def __iter__(self) -> Iterator[Minibatch]:
        return self

    def __next__(self) -> Minibatch:
        if not self._queue:
            self.refill()
        return self._queue.popleft()

    def used_up(self) -> bool:
        """Whether the next update begins with a rollout; asked once after every update, by all ranks."""
        if self._queue and self.overrun is not None and self.overrun():
            if self._ready is not None:
                self._ready = self._ready[0], self._ready[1] - self._waiting()
            self._queue.clear()
        return not self._queue

    def _waiting(self) -> int:
        """Tokens of this rank that are to be trained on yet."""
        return sum(batch.tokens for batch in self._queue)

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
        self.players.engine.refresh()
        earned: dict[str, list[float]] = {}
        for number in range(samples):
            # A draw of its own for every sample, counted down so that none is one of training's.
            for group in self._play(self.prompts, -1 - number, size=1):
                earned.setdefault(group.prompt.id, []).append(share(group.rewards[0], self.settings.reward_range))
        for name, rewards in earned.items():
            tracker.start(name, rewards)
        self.meter.report()  # what was measured here is of before training

    def refill(self) -> None:
        """One rollout, and its minibatches."""
        began = time.monotonic()
        if self._ready is not None:
            seconds = began - self._ready[0] - self.idle_s
            self.meter.add("training_tokens_per_second", self._ready[1] * self.ranks.world, seconds)
        self.players.engine.refresh()
        groups = self._groups()
        written = time.monotonic()
        samples = self._samples(groups)
        later = self._later(samples, len(groups) * self.size)
        measured = measure_rollout(self.players, samples, later, self.row, self.updates)
        give_credit(self.players, groups, samples, self.row, self.settings, self.meter)
        self._measured = ["advantages", *measured, *(["returns"] if "values" in measured else [])]
        self._deal(groups, samples)
        self.rollouts += 1
        self._ready, self.idle_s = (time.monotonic(), self._waiting()), 0.0
        self.meter.add("rollout_seconds", written - began)
        self.meter.add("measuring_seconds", time.monotonic() - written)

    def _groups(self) -> list[Group]:
        """The groups of one rollout; under dynamic sampling, those whose outcomes differ."""
        wanted, dynamic = self.settings.prompts_per_rollout, self.row.prompts == "dynamic"
        groups: list[Group] = []
        for draw in range(self.settings.resample_rounds if dynamic else 1):
            fresh = self._play(self._draw(wanted), draw)
            if self.size > 1:
                differing = drawing.informative(np.array([group.rewards for group in fresh]))
                self.meter.add("degenerate_groups", float(len(fresh) - sum(differing)), len(fresh))
            kept = drawing.informative(np.array([group.outcomes for group in fresh]))
            groups += [group for group, keep in zip(fresh, kept, strict=True) if keep or not dynamic]
            if len(groups) >= wanted:
                break
        if dynamic:
            self.meter.add("dynamic_filled", min(1.0, len(groups) / wanted))
        return groups[:wanted] or fresh[:1]  # there must be something to go through a step with

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
        """Groups of `size` answers, by default the run's."""
        keys = (self.settings.seed, self.rollouts, draw)
        groups = play_groups(self.players, chosen, size or self.size, self.settings.temperature, keys, self.meter)
        mine = [episode for group in groups for episode in group.episodes]
        self.rollout_tokens += int(self.ranks.sum_all([float(sum(sum(episode.own) for episode in mine))])[0])
        if self._spare is None and mine:
            self._spare = Sample.of(mine[0], 0)
        return groups

    def _samples(self, groups: Sequence[Group]) -> list[Sample]:
        """What this rank trains on; places count over all ranks."""
        samples = []
        for slot, group in enumerate(groups):
            for number, episode in enumerate(group.episodes):
                unjudged = math.isnan(group.rewards[number])
                left_out = unjudged or (self.row.mask_truncated and episode.truncated)
                samples.append(Sample.of(episode, slot * self.size + number, left_out))
        return samples

    def _order(self, total: int, epoch: int) -> list[int]:
        """The places of all answers of the rollout at hand, as a pass deals them out."""
        key = derive_key(self.settings.seed, self.rollouts, epoch) % 2**63
        order: list[int] = torch.randperm(total, generator=torch.Generator().manual_seed(key)).tolist()
        return order

    def _later(self, samples: Sequence[Sample], total: int) -> list[Sample]:
        """Those that an update after the rollout's first trains on."""
        if self.settings.rollout_epochs > 1:
            return list(samples)
        opening = set(self._order(total, 0)[: total // self.settings.minibatches])
        return [sample for sample in samples if sample.place not in opening]

    def _deal(self, groups: Sequence[Group], samples: Sequence[Sample]) -> None:
        """Shuffle all answers, over all ranks alike, into the minibatches of every pass; each rank takes its own."""
        settings, total = self.settings, len(groups) * self.size
        mine = {sample.place: sample for sample in samples}
        for epoch in range(settings.rollout_epochs):
            order = self._order(total, epoch)
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

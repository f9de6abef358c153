"""What an update measures, by hand."""

import dataclasses
from typing import Any

import pytest
import torch

from cutaway.objectives.policy import Tokens
from cutaway.rl.algorithms import ALGORITHMS
from cutaway.rl.meter import Meter
from cutaway.rl.rollout import Minibatch, Sample, collate
from cutaway.rl.update import measure_step
from cutaway.training.distributed import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def sample(place: int, own: list[bool], advantage: float = 0.0) -> Sample:
    mine = torch.tensor(own)
    found = Sample(torch.arange(len(own) + 1), mine, mine, torch.full((len(own),), -1.5), place)
    found.old_logprobs, found.ref_logprobs = torch.full((len(own),), -1.5), torch.full((len(own),), -1.5)
    found.advantages = advantage * mine
    return found


def measured(batch: Minibatch, logprobs: torch.Tensor, meter: Meter, row: str = "grpo") -> None:
    assert batch.old_logprobs is not None
    tokens = Tokens(logprobs, batch.old_logprobs, batch.advantages, batch.mask)
    measure_step(meter, ALGORITHMS[row], tokens, torch.ones_like(logprobs), batch, torch.zeros_like(logprobs))


def test_a_micro_batch_that_only_goes_along_is_measured_nowhere() -> None:
    """What is not known of it is 0, which would look like a sampler that disagrees with the trainer."""
    answered, spare = collate([sample(0, [False, True, True])], first=True), sample(1, [False, True])
    spare.old_logprobs, spare.ref_logprobs = torch.zeros(2), torch.zeros(2)
    meter, alone = Meter(ALONE), Meter(ALONE)
    for one in (meter, alone):
        measured(answered, torch.full((1, 3), -1.5), one)
    measured(collate([spare], counted=False, first=True), torch.full((1, 2), -1.5), meter)
    line = meter.report()
    assert line == alone.report()
    assert (line["sampler_mismatch"], line["kl_ref_k3"], line["entropy"]) == (0, 0, 1)


@pytest.mark.parametrize(("row", "low"), [("gspo", 1 / 3), ("grpo", 2 / 8)])
def test_an_answer_s_ratio_is_clipped_once(row: str, low: float) -> None:
    """Answers of two, five and one tokens, of which the first is clipped, and one that is left out."""
    samples = [sample(0, [False, True, True], -1.0), sample(1, [True] * 5, -1.0), sample(2, [True], 1.0)]
    left_out: Any = dataclasses.replace(sample(3, [True] * 4, -1.0), trained=torch.zeros(4, dtype=torch.bool))
    batch = collate([*samples, left_out])
    logprobs, meter = torch.full(batch.mask.shape, -1.5), Meter(ALONE)
    logprobs[[0, 3]] -= 1
    measured(batch, logprobs, meter, row)
    line = meter.report()
    assert (line["clip_fraction_low"], line["clip_fraction_high"]) == (pytest.approx(low), 0)

"""Losses, gradients and metrics of the GRPO family against TRL's GRPOTrainer on the same tensors.

TRL has its losses inside `_compute_loss`. It is called here with a stand-in for the trainer, whose log-probabilities
are those of the test.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

trl = pytest.importorskip("trl")

from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402

from cutaway.objectives import aggregation, kl, policy  # noqa: E402
from cutaway.objectives.policy import Tokens  # noqa: E402
from cutaway.rl.algorithms import ALGORITHMS, Algorithm, policy_loss  # noqa: E402
from cutaway.rl.meter import Meter  # noqa: E402
from cutaway.rl.rollout import Minibatch  # noqa: E402
from cutaway.rl.update import measure_step  # noqa: E402
from cutaway.training.distributed import Ranks  # noqa: E402

pytestmark = pytest.mark.slow

AGREE = {"atol": 1e-5, "rtol": 1e-5}
BATCH, LENGTH, LONGEST, BETA = 6, 11, 16, 0.04


class Answers:
    """Six answers of unequal lengths, tokens of a tool among them, under a policy that has moved since."""

    def __init__(self, moved: float) -> None:
        generator = torch.Generator().manual_seed(3)
        lengths = torch.tensor([3, 11, 1, 7, 5, 9])
        self.completion_mask = torch.arange(LENGTH) < lengths.unsqueeze(1)
        self.tool_mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
        self.tool_mask[1, 4:7] = False
        self.mask = self.completion_mask & self.tool_mask
        self.old = -3 * torch.rand(BATCH, LENGTH, generator=generator)
        change = moved * torch.randn(BATCH, LENGTH, generator=generator)
        self.logprobs = (self.old + change).requires_grad_()
        self.ref = self.old + 0.3 * torch.randn(BATCH, LENGTH, generator=generator)
        self.entropies = torch.rand(BATCH, LENGTH, generator=generator)
        self.advantages = torch.tensor([1.2, -0.7, 0.0, -1.5, 0.4, 0.9])

    def tokens(self) -> Tokens:
        return Tokens(self.logprobs, self.old, self.advantages.unsqueeze(1).expand(BATCH, LENGTH), self.mask)

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.logprobs, retain_graph=True)[0]


def theirs(answers: Answers, loss_type: str, **settings: Any) -> tuple[Tensor, dict[str, float]]:
    """TRL's loss of the batch, all of it in one step on one process, and what it logs."""
    chosen = {"low": 0.2, "high": 0.2, "beta": 0.0, "level": "token", "delta": None} | settings

    def same(x: Any, *_: Any, **__: Any) -> Any:
        return x

    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=same, gather_for_metrics=same, reduce=same, num_processes=1
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (answers.logprobs, answers.entropies, None),
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        args=SimpleNamespace(delta=chosen["delta"], use_bias_correction_kl=False, steps_per_generation=1),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=chosen["level"],
        beta=chosen["beta"],
        loss_type=loss_type,
        epsilon_low=chosen["low"],
        epsilon_high=chosen["high"],
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "prompt_ids": torch.zeros(BATCH, 2, dtype=torch.long),
        "prompt_mask": torch.ones(BATCH, 2, dtype=torch.long),
        "completion_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long),
        "completion_mask": answers.completion_mask.long(),
        "tool_mask": answers.tool_mask.long(),
        "advantages": answers.advantages,
        "old_per_token_logps": answers.old,
        "ref_per_token_logps": answers.ref,
        "num_items_in_batch": answers.mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {key: values[0] for key, values in trainer._metrics["train"].items()}


def mean(per_token: Tensor, answers: Answers, how: Any) -> Tensor:
    divisor = aggregation.divisor(answers.mask, how, BATCH, LONGEST)
    return aggregation.total(per_token, answers.mask, how) / divisor


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {"beta": BETA}),
    "dr_grpo": ("dr_grpo", {}),
    "dapo": ("dapo", {"high": 0.28}),
    "cispo": ("cispo", {"high": 1.28}),
    "gspo": ("grpo", {"low": 3e-4, "high": 4e-4, "level": "sequence"}),
}
"""Rows of the table: TRL's name of the loss, and its settings where they are not the defaults above. Its CISPO takes
the cap itself where ours counts from 1."""


@pytest.mark.parametrize("moved", [0.0, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_rows_of_the_table(name: str, moved: float) -> None:
    loss_type, settings = CASES[name]
    row = ALGORITHMS[name]
    answers = Answers(moved)
    changes = {"clip_high": 0.28} if name == "cispo" else {}
    loss_of = policy_loss(row.with_values(**changes))
    per_token = loss_of(answers.tokens())
    if row.kl == "loss":
        per_token = per_token + BETA * kl.kl(answers.logprobs, answers.ref, row.kl_estimator)
    loss = mean(per_token, answers, row.aggregation)
    expected, metrics = theirs(answers, loss_type, **settings)
    torch.testing.assert_close(loss, expected, **AGREE)
    torch.testing.assert_close(answers.gradient(loss), answers.gradient(expected), **AGREE)
    assert metrics["entropy"] == pytest.approx(answers.entropies[answers.mask].mean().item(), abs=1e-5)
    if row.kl == "loss":
        distance = kl.kl(answers.logprobs, answers.ref, "k3")[answers.mask].mean().item()
        assert metrics["kl"] == pytest.approx(distance, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_clip_fractions(name: str) -> None:
    """As a run logs them: of tokens, and in GSPO of answers."""
    loss_type, settings = CASES[name]
    answers = Answers(0.5)
    _, metrics = theirs(answers, loss_type, **settings)
    changes = {"clip_high": 0.28} if name == "cispo" else {}
    line = logged(answers, ALGORITHMS[name].with_values(**changes))
    if name == "cispo":
        assert line["clip_fraction_high"] == pytest.approx(metrics["cispo_clip_ratio"], abs=1e-6)
        return
    assert line["clip_fraction_low"] == pytest.approx(metrics["clip_ratio/low_mean"], abs=1e-6)
    assert line["clip_fraction_high"] == pytest.approx(metrics["clip_ratio/high_mean"], abs=1e-6)
    assert 0 < metrics["clip_ratio/low_mean"] < 1


def logged(answers: Answers, row: Algorithm) -> dict[str, float]:
    """What `rl/update.py` measures of an update on these answers."""
    tokens, meter = answers.tokens(), Meter(Ranks(0, 1, torch.device("cpu")))
    ids, shown = torch.zeros(BATCH, LENGTH, dtype=torch.long), (answers.mask, answers.mask)
    known = (answers.old, tokens.advantages, answers.old, answers.ref, None, None)
    batch = Minibatch(ids, ids, ids, *shown, *known, BATCH, int(answers.mask.sum()), first=False)
    measure_step(meter, row, tokens, answers.entropies, batch, policy_loss(row)(tokens))
    return meter.report()


def test_bnpo_is_the_token_mean_of_one_batch() -> None:
    answers = Answers(0.5)
    expected, _ = theirs(answers, "bnpo", beta=BETA)
    per_token = policy.ppo_clip(answers.tokens(), 0.2, 0.2) + BETA * kl.kl(answers.logprobs, answers.ref)
    loss = mean(per_token, answers, "token_mean")
    torch.testing.assert_close(loss, expected, **AGREE)
    torch.testing.assert_close(answers.gradient(loss), answers.gradient(expected), **AGREE)


def test_dual_clip_is_their_delta() -> None:
    answers = Answers(1.5)
    expected, _ = theirs(answers, "dapo", high=0.28, delta=2.0)
    loss = mean(policy.ppo_clip(answers.tokens(), 0.2, 0.28, dual=2.0), answers, "token_mean")
    assert (answers.tokens().ratio[answers.mask] > 2).any()
    torch.testing.assert_close(loss, expected, **AGREE)
    torch.testing.assert_close(answers.gradient(loss), answers.gradient(expected), **AGREE)

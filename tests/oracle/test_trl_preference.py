"""Preference losses, their gradients and their logged metrics against TRL's, on the same log-probabilities.

TRL has its losses inside `Trainer._compute_loss`. They are called here with a stand-in for the trainer, whose model
gives back the log-probabilities of the test.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

trl = pytest.importorskip("trl")

from trl.experimental.cpo import CPOTrainer  # noqa: E402
from trl.experimental.gkd.gkd_trainer import GKDTrainer  # noqa: E402
from trl.experimental.orpo import ORPOTrainer  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402
from trl.trainer.kto_trainer import KTOTrainer  # noqa: E402

from cutaway.objectives import distillation, preference  # noqa: E402
from cutaway.objectives.preference import Pairs  # noqa: E402
from cutaway.recipe.stages import DPOSettings  # noqa: E402
from cutaway.stages import dpo as stage  # noqa: E402

pytestmark = pytest.mark.slow

AGREE = {"atol": 1e-5, "rtol": 1e-5}
PAIRS, LENGTH, BETA = 5, 9, 0.3


class Answers:
    """Log-probabilities a token of five pairs of answers of different lengths, chosen first, as TRL batches them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.tensor([3, 8, 1, 5, 4, 6, 2, 7, 8, 3])
        self.mask = (torch.arange(LENGTH) >= 1) & (torch.arange(LENGTH) <= lengths.unsqueeze(1))
        drawn = -torch.rand(2 * PAIRS, LENGTH - 1, generator=generator)
        self.logprobs = (drawn * self.mask[:, 1:]).requires_grad_()
        self.reference = (-torch.rand(2 * PAIRS, LENGTH - 1, generator=generator) * self.mask[:, 1:]).sum(1)

    def pairs(self) -> Pairs:
        chosen, rejected = (self.logprobs * self.mask[:, 1:]).sum(1).chunk(2)
        ref_chosen, ref_rejected = self.reference.chunk(2)
        chosen_tokens, rejected_tokens = self.mask.float().sum(1).chunk(2)
        return Pairs(chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens)

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.logprobs, retain_graph=True)[0] * self.mask[:, 1:]


def stand_in(answers: Answers, **settings: Any) -> Any:
    """What `_compute_loss` asks of a trainer."""

    def same(x: Any) -> Any:
        return x

    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        aux_loss_enabled=False,
        beta=BETA,
        label_smoothing=0.0,
        loss_weights=[1.0],
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        args=SimpleNamespace(),
    )
    for key, value in settings.items():
        setattr(trainer, key, value)
    return trainer


def stand_in_model(answers: Answers) -> Callable[..., Any]:
    def model(**_: Any) -> Any:
        zeros = torch.zeros_like(answers.logprobs)
        return SimpleNamespace(
            log_probs=answers.logprobs * answers.mask[:, 1:], entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    return model


def their_dpo(answers: Answers, loss: str, label_smoothing: float = 0.0) -> tuple[Tensor, dict[str, float]]:
    trainer = stand_in(answers, loss_types=[loss], label_smoothing=label_smoothing)
    ref_chosen, ref_rejected = answers.reference.chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(answers.mask, dtype=torch.long),
        "attention_mask": torch.ones_like(answers.mask),
        "completion_mask": answers.mask.long(),
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    value = DPOTrainer._compute_loss(trainer, stand_in_model(answers), inputs, return_outputs=False)
    return value, {key: values[0] for key, values in trainer._metrics["train"].items()}


CASES: dict[str, tuple[str, float, Callable[[Pairs], Tensor]]] = {
    "sigmoid": ("sigmoid", 0.0, lambda pairs: preference.dpo(pairs, BETA)),
    "ipo": ("ipo", 0.0, lambda pairs: preference.ipo(pairs, BETA)),
    "hinge": ("hinge", 0.0, lambda pairs: preference.hinge(pairs, BETA)),
    "robust": ("robust", 0.2, lambda pairs: preference.robust(pairs, BETA, 0.2)),
    "length-normalised": ("sigmoid_norm", 0.0, lambda pairs: preference.dpo_norm(pairs, BETA)),
}


def logged_by(pairs: Pairs, loss: str) -> dict[str, Tensor]:
    """What the stage logs under a loss, TRL's cases by their names here."""
    name = {"sigmoid": "dpo", "length-normalised": "dpo_norm"}.get(loss, loss)
    return stage.metrics(pairs, stage.derive_loss(DPOSettings(loss=name, beta=BETA))[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_dpo_and_its_relatives(case: str) -> None:
    name, smoothing, ours = CASES[case]
    answers = Answers()
    pairs = answers.pairs()
    loss = ours(pairs).mean()
    expected, metrics = their_dpo(answers, name, smoothing)
    torch.testing.assert_close(loss, expected, **AGREE)
    torch.testing.assert_close(answers.gradient(loss), answers.gradient(expected), **AGREE)
    mine = {
        "rewards/chosen": BETA * pairs.chosen_ratio,
        "rewards/rejected": BETA * pairs.rejected_ratio,
        "logps/chosen": pairs.chosen,
        "logps/rejected": pairs.rejected,
    }
    logged = logged_by(pairs, case)
    mine |= {"rewards/margins": logged["margin"], "rewards/accuracies": logged["accuracy"]}
    for key, values in mine.items():
        assert values.mean().item() == pytest.approx(metrics[key], abs=1e-5), key


@pytest.mark.parametrize("case", ["simpo", "cpo", "cpo smoothed"])
def test_simpo_and_cpo(case: str) -> None:
    answers = Answers()
    pairs = answers.pairs()
    smoothing = 0.1 if case == "cpo smoothed" else 0.0
    trainer = stand_in(answers, loss_type="sigmoid", alpha=0.0, label_smoothing=smoothing)
    if case == "simpo":
        trainer.loss_type, trainer.simpo_gamma = "simpo", 0.4
        loss = preference.simpo(pairs, BETA, gamma=0.4)
        chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    else:
        loss = preference.cpo(pairs, BETA, smoothing)
        chosen, rejected = pairs.chosen, pairs.rejected
    expected, *rewards = CPOTrainer.cpo_loss(trainer, chosen, rejected)
    torch.testing.assert_close(loss, expected, **AGREE)
    torch.testing.assert_close(answers.gradient(loss.sum()), answers.gradient(expected.sum()), **AGREE)
    logged = logged_by(without_reference(pairs), case.partition(" ")[0])
    torch.testing.assert_close(logged["margin"], rewards[0] - rewards[1], **AGREE)
    torch.testing.assert_close(logged["accuracy"], (rewards[0] > rewards[1]).float(), **AGREE)


def without_reference(pairs: Pairs) -> Pairs:
    """As the stage makes them for a loss that has none."""
    zeros = torch.zeros_like(pairs.ref_chosen)
    return dataclasses.replace(pairs, ref_chosen=zeros, ref_rejected=zeros)


def test_orpo() -> None:
    answers = Answers()
    pairs = answers.pairs()
    loss = preference.orpo(pairs, weight=0.1)
    trainer = stand_in(answers, beta=0.1)
    means = (pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens)
    losses, *rewards = ORPOTrainer.odds_ratio_loss(trainer, *means)[:3]
    expected = -losses
    torch.testing.assert_close(loss, expected, **AGREE)
    torch.testing.assert_close(answers.gradient(loss.sum()), answers.gradient(expected.sum()), **AGREE)
    settings = stage.derive_loss(DPOSettings(loss="orpo", beta=0.1))[0]
    logged = stage.metrics(without_reference(pairs), settings)
    torch.testing.assert_close(logged["margin"], rewards[0] - rewards[1], **AGREE)


@pytest.mark.parametrize("mismatched", [0.7, -0.7])
def test_kto(mismatched: float) -> None:
    answers = Answers()
    desirable = torch.tensor([True, False, True, True, False, False, True, False, False, True])
    trainer = stand_in(
        answers,
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=1.3,
        undesirable_weight=0.8,
        _compute_kl_logps=lambda *_: torch.full((2 * PAIRS,), mismatched),
    )
    inputs = {
        "input_ids": torch.zeros_like(answers.mask, dtype=torch.long),
        "attention_mask": torch.ones_like(answers.mask),
        "completion_mask": answers.mask.long(),
        "label": desirable,
        "ref_logps": answers.reference,
        "ref_KL_logps": torch.zeros(2 * PAIRS),
    }
    expected = KTOTrainer._compute_loss(trainer, stand_in_model(answers), inputs, return_outputs=False)
    ratio = (answers.logprobs * answers.mask[:, 1:]).sum(1) - answers.reference
    kl = preference.kto_kl(torch.full((2 * PAIRS,), mismatched))
    loss = preference.kto(ratio, desirable, kl, BETA, 1.3, 0.8).mean()
    torch.testing.assert_close(loss, expected, **AGREE)
    torch.testing.assert_close(answers.gradient(loss), answers.gradient(expected), **AGREE)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_generalised_jensen_shannon(beta: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(2, 4, 17, generator=generator).requires_grad_()
    teacher = torch.randn(2, 4, 17, generator=generator)
    loss = distillation.jensen_shannon(student, teacher, beta, temperature).mean()
    expected = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=temperature, reduction="none")
    expected = expected.sum(-1).mean()
    torch.testing.assert_close(loss, expected, **AGREE)
    gradients = [torch.autograd.grad(value, student, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, **AGREE)

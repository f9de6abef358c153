"""The one loop on a tiny network: accumulation, clipping, divergence, graceful stop, and going on where it stopped."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.data.loader import Batch, OneBatch, RowSource
from cutaway.errors import Stopped, UserError
from cutaway.training import loop
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.loop import fit
from cutaway.training.network import Network
from cutaway.training.schedule import learning_rate_factor
from training_helpers import SEQ, Recorder, conversations, job, network, optimizers, rows_of


def counting(net: Network, act: Any) -> Any:
    """A step that calls `act(number of the micro-batch, loss)` and uses what it gives back as the loss."""
    calls = iter(range(10**9))

    def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return act(next(calls), net.token_losses(batch).sum()), {}

    return step


def test_accumulation_is_one_big_batch_although_micro_batches_train_unequal_numbers(tmp_path: Path) -> None:
    gradients, losses = [], []
    for accumulation, rows in ((4, 1), (2, 2), (1, 4)):
        net = network()
        recorder = Recorder(net)
        one = job(tmp_path / str(rows), net, [recorder], accumulation=accumulation, rows=rows, steps=3)
        losses.append([row["loss"] for row in _fit(one)])
        gradients.append(recorder.gradients)
    source = RowSource(conversations(), rows=1, seq=SEQ)
    batches = [next(source) for _ in range(4)]
    assert len({batch.trained_tokens() for batch in batches}) > 1
    for other in (1, 2):
        assert losses[other] == pytest.approx(losses[0], rel=2e-6)
        for step in range(3):
            torch.testing.assert_close(gradients[other][step], gradients[0][step], atol=1e-6, rtol=1e-5)
    # And both are the gradient of the mean over all trained tokens.
    net = network()
    total = sum((net.token_losses(batch).sum() for batch in batches), torch.zeros(()))
    (total / sum(batch.trained_tokens() for batch in batches)).backward()
    expected = {name: parameter.grad for name, parameter in net.model.named_parameters()}
    torch.testing.assert_close(gradients[0][0], expected, atol=1e-6, rtol=1e-5)


def _fit(one: Any, resume: bool = False) -> list[dict[str, Any]]:
    one.out.mkdir(parents=True, exist_ok=True)
    fit(one, resume)
    return [row for row in rows_of(one.out) if "loss" in row]


@pytest.mark.parametrize("limit", [0.05, 1e3])
def test_clipping_scales_the_whole_gradient_and_logs_its_length_before(limit: float, tmp_path: Path) -> None:
    free, clipped = network(), network()
    recorders = Recorder(free), Recorder(clipped)
    _fit(job(tmp_path / "free", free, [recorders[0]], steps=1))
    rows = _fit(job(tmp_path / "clipped", clipped, [recorders[1]], steps=1, max_grad_norm=limit))
    full, cut = recorders[0].gradients[0], recorders[1].gradients[0]
    norm = float(torch.stack([gradient.norm() for gradient in full.values()]).norm())
    assert rows[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for name, gradient in full.items():
        torch.testing.assert_close(cut[name], gradient * min(1.0, limit / norm), atol=1e-7, rtol=1e-4)


def test_the_schedule_multiplies_every_groups_peak(tmp_path: Path) -> None:
    net = network()
    recorder = Recorder(net, lr=0.5)
    rows = _fit(job(tmp_path, net, [recorder], steps=12, schedule="cosine", warmup_fraction=0.2))
    expected = [
        0.5 * learning_rate_factor(step, 12, kind="cosine", warmup=0.2, decay=0.5, final=0.05) for step in range(12)
    ]
    assert recorder.rates == pytest.approx(expected)
    assert [row["lr"] for row in rows] == pytest.approx(expected, rel=1e-5)


def test_metrics_have_the_keys_of_the_design_and_are_means_over_the_window(tmp_path: Path) -> None:
    net, same = network(), network()
    each = _fit(job(tmp_path / "each", net, [Recorder(net, 0.1)], steps=6))
    pairs = _fit(
        job(
            tmp_path / "pairs",
            same,
            [Recorder(same, 0.1)],
            steps=6,
            log_every=3,
            eval_every=2,
            evaluate=lambda: {"bpb": 2.5},
        )
    )
    wanted = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "elapsed_s"}
    assert set(each[0]) == wanted == set(pairs[0])
    assert [row["step"] for row in pairs] == [3, 6]
    for row, group in zip(pairs, (each[:3], each[3:]), strict=True):
        assert row["loss"] == pytest.approx(sum(one["loss"] for one in group) / 3, rel=1e-5)
        assert row["tokens"] == group[-1]["tokens"]
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] * net.model.flops_per_token(SEQ) / 1e9, rel=1e-4)
    held = [row for row in rows_of(tmp_path / "pairs") if "heldout_bpb" in row]
    assert [(row["step"], row["heldout_bpb"]) for row in held] == [(0, 2.5), (2, 2.5), (4, 2.5), (6, 2.5)]


def test_a_stages_own_sums_are_logged_a_token(tmp_path: Path) -> None:
    net = network()

    def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = net.token_losses(batch).sum()
        return loss, {"double": 2 * loss}

    rows = _fit(job(tmp_path, net, [Recorder(net)], steps=2, step=step))
    assert [row["double"] for row in rows] == pytest.approx([2 * row["loss"] for row in rows], rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_run_ends_in_one_line_and_spoils_no_checkpoint(bad: float, tmp_path: Path) -> None:
    net = network()
    broken = counting(net, lambda number, loss: loss * bad if number >= 4 * 4 else loss)
    one = job(tmp_path, net, optimizers(net), step=broken, steps=20, log_every=10, save_every=3, keep_checkpoints=5)
    with pytest.raises(UserError, match="diverged; lower the learning rates") as error:
        _fit(one)
    assert "\n" not in str(error.value)
    assert Checkpoints(tmp_path, 5).steps() == [3]
    state = Checkpoints(tmp_path, 5).restore(network().model, optimizers(net))
    assert state["step"] == 3


def test_an_infinite_gradient_of_a_finite_loss_is_found_before_it_is_saved(tmp_path: Path) -> None:
    net = network()

    def explode(number: int, loss: Tensor) -> Tensor:
        if number == 4 * 3:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    one = job(tmp_path, net, optimizers(net), step=counting(net, explode), steps=20, log_every=4, save_every=4)
    with pytest.raises(UserError, match="gradient norm"):
        _fit(one)
    assert Checkpoints(tmp_path, 2).steps() == []


def test_a_batch_without_a_trained_token_is_refused(tmp_path: Path) -> None:
    net = network()
    one = job(tmp_path, net, optimizers(net), normalizer=lambda batch: 0)
    with pytest.raises(UserError, match="step 1: not one trained token"):
        _fit(one)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_one_batch_is_learned_by_heart(kind: str, tmp_path: Path) -> None:
    net = network()
    source = OneBatch(RowSource(conversations(), rows=1, seq=SEQ))
    rows = _fit(job(tmp_path, net, optimizers(net, kind), steps=80, source=source, accumulation=1, log_every=20))
    assert rows[-1]["loss"] < 0.05


def weights_after(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def optimizer_state(out: Path, step: int) -> bytes:
    return (out / "state" / f"step-{step:08d}" / "optimizer.safetensors").read_bytes()


class _Killed(BaseException):
    """What no handler catches, as no handler sees SIGKILL."""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_killed_at_any_step_goes_on_to_the_same_bytes(kind: str, tmp_path: Path) -> None:
    net = network()
    _fit(job(tmp_path / "whole", net, optimizers(net, kind), steps=11))
    for dies in (0, 17, 30, 43):
        out = tmp_path / f"killed-{dies}"

        def die(number: int, loss: Tensor, dies: int = dies) -> Tensor:
            if number == dies:
                raise _Killed
            return loss

        net = network()
        with pytest.raises(_Killed):
            _fit(job(out, net, optimizers(net, kind), steps=11, save_every=3, step=counting(net, die)))
        saved = Checkpoints(out, 2).steps()
        assert saved == [step for step in (3, 6, 9) if 4 * step <= dies][-2:]
        # A network of another seed: everything must come from the checkpoint.
        net = network(seed=5 if saved else 0)
        rows = _fit(job(out, net, optimizers(net, kind), steps=11, save_every=3), resume=bool(saved))
        assert weights_after(out) == weights_after(tmp_path / "whole")
        assert optimizer_state(out, 11) == optimizer_state(tmp_path / "whole", 11)
        assert [row["step"] for row in rows] == list(range(1, 12))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_the_step_with_a_checkpoint(number: signal.Signals, code: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    net = network()

    def stop(micro: int, loss: Tensor) -> Tensor:
        if micro == 4 * 4 + 1:
            os.kill(os.getpid(), number)
        return loss

    with pytest.raises(Stopped, match=r"after step [56] of 9") as stopped:
        _fit(job(tmp_path / "stopped", net, optimizers(net), steps=9, step=counting(net, stop)))
    assert stopped.value.code == code
    assert signal.getsignal(number) == before
    assert Checkpoints(tmp_path / "stopped", 2).steps()[-1] in (5, 6)
    net = network(seed=1)
    _fit(job(tmp_path / "stopped", net, optimizers(net), steps=9), resume=True)
    net = network()
    _fit(job(tmp_path / "whole", net, optimizers(net), steps=9))
    assert weights_after(tmp_path / "stopped") == weights_after(tmp_path / "whole")


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    net = network()

    def stop(micro: int, loss: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return loss

    with pytest.raises(KeyboardInterrupt):
        _fit(job(tmp_path, net, optimizers(net), steps=9, step=counting(net, stop)))


def test_samples_are_asked_for_and_come_before_the_checkpoint(tmp_path: Path) -> None:
    net = network()
    asked: list[tuple[int, list[int]]] = []

    def sample(step: int) -> None:
        asked.append((step, Checkpoints(tmp_path, 2).steps()))

    _fit(job(tmp_path, net, optimizers(net), steps=5, sample=sample, sample_every=2, save_every=2))
    assert asked == [(2, []), (4, [2]), (5, [2, 4])]


def test_what_the_device_has_still_to_train_is_no_part_of_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "synchronise", lambda device: time.sleep(0.05))
    window = loop._Window(torch.device("cpu"))
    with window.paused():
        pass
    assert window.seconds() > 0.04


def test_resume_refuses_other_data(tmp_path: Path) -> None:
    net = network()
    _fit(job(tmp_path, net, optimizers(net), steps=2))
    other = RowSource(conversations(seed=9), rows=1, seq=SEQ)
    with pytest.raises(UserError, match=r"cannot resume: .* of the data was"):
        _fit(job(tmp_path, net, optimizers(net), steps=3, source=other), resume=True)

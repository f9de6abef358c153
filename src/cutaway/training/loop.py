"""The one loop. Every stage gives it batches, optimizers and a step; it does everything else, for all of them.

A step of the optimizer: take the accumulated micro-batches, count what the loss is divided by over all of them and all
ranks, *then* go forward and backward through each. Dividing every micro-batch by its own count instead would weigh a
token by how few others its micro-batch trained, and more than one rank would not equal one.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cutaway.errors import Stopped, UserError
from cutaway.model.sharded import local, whole
from cutaway.recipe.base import TrainSettings
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.metrics import MetricsLog, synchronise
from cutaway.training.network import Network
from cutaway.training.progress import TrainingProgress
from cutaway.training.reference import Reading
from cutaway.training.schedule import learning_rate_factor
from cutaway.training.signals import StopFlag, StopSignals
from cutaway.training.trackers import open_tracker

log = logging.getLogger("cutaway")
Step = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]
"""From a stage's own kind of `Batch` to the sum of the loss, and further sums to log."""


class Source(Protocol):
    """Where batches come from; what it remembers is saved with every checkpoint."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Job:
    """What a stage hands to the loop."""

    stage: str
    out: Path
    settings: TrainSettings
    total_steps: int
    accumulation: int
    network: Network
    """The model whose weights are saved, and the module that the step calls."""
    source: Source
    optimizers: list[Optimizer]
    step: Step
    """Batch to (sum of the loss, further sums to log); the loop divides both by the normalizer."""
    normalizer: Callable[[Any], float]
    """What one micro-batch adds to the divisor, such as its trained tokens."""
    flops_per_token: int
    matmul_rate: float
    evaluate: Callable[[], dict[str, float]] | None = None
    sample: Callable[[int], None] | None = None
    """Writes sample texts; called on the first rank, and on all of them where the network is sharded."""
    scaler: torch.amp.GradScaler | None = None
    begin: Callable[[], None] | None = None
    """Called on the first rank once the run is known to be able to go on, to describe it in its directory."""
    reading: Reading | None = None
    """The recorded run to show beside this one."""
    started: float = field(default_factory=time.monotonic)
    """Clock reading when the stage began, so that elapsed time holds preparation too."""
    companions: Mapping[str, nn.Module] = field(default_factory=dict)
    """Modules trained beside the model and saved with every checkpoint, but not published, such as a value model."""
    report: Callable[[], dict[str, float]] | None = None
    """Further values for a log line, means over all ranks already; called on every rank."""
    at_boundary: Callable[[], bool] = lambda: True
    """Whether a checkpoint may be written after this step, asked once after each; RL's fall between rollouts. A stop
    waits for it."""


def fit(job: Job, resume: bool) -> dict[str, Any]:
    """Train to the last step; gives back the last metrics. On SIGINT or SIGTERM: checkpoint, then `Stopped`."""
    checkpoints = Checkpoints(job.out, job.settings.keep_checkpoints)
    restore = (job.network.model, job.optimizers, job.network.ranks.first, job.companions)
    state = checkpoints.restore(*restore) if resume else None
    if state is not None:
        job.source.load_state_dict(state["data"])
        if job.scaler is not None and state.get("scaler"):
            job.scaler.load_state_dict(state["scaler"])
    if job.begin is not None and job.network.ranks.first:
        job.begin()
    run = _Run(job, checkpoints, state or {})
    if state is not None and run.ranks.first:
        log.info("going on from step %d of %d", run.step, job.total_steps)
    if run.step >= job.total_steps:
        log.info("%s is complete: %d of %d steps", job.out, run.step, job.total_steps)
    with StopSignals() as stop:
        try:
            return run.to_the_end(stop)
        finally:
            run.close()


class _Run:
    """The state of a loop under way."""

    def __init__(self, job: Job, checkpoints: Checkpoints, state: dict[str, Any]) -> None:
        self.job, self.ranks, self.checkpoints = job, job.network.ranks, checkpoints
        self.step: int = state.get("step", 0)
        self.tokens: int = state.get("tokens", 0)
        self.earlier_s: float = state.get("elapsed_s", 0.0)
        self.due = False
        """Whether a checkpoint waits to be written."""
        self.last: dict[str, Any] = state.get("metrics", {})
        self.log: MetricsLog | None = None
        if self.ranks.first:
            tracker = open_tracker(job.settings.track, job.out, asdict(job.settings), resume=bool(state))
            self.log = MetricsLog(job.out, self.step if state else None, tracker)
        price = job.settings.price_per_hour
        quiet = not self.ranks.first
        self.progress = TrainingProgress(job.stage, job.total_steps, self.step, price, quiet, job.reading)

    def close(self) -> None:
        self.progress.close()
        if self.log is not None:
            self.log.close()

    def to_the_end(self, stop: StopFlag) -> dict[str, Any]:
        job, settings = self.job, self.job.settings
        assert settings.log_every and settings.eval_every and settings.save_every
        if self.step == 0:
            self._evaluate()
        window = _Window(self.ranks.device)
        while self.step < job.total_steps:
            stopped = self._train_step(window, stop)
            self.step += 1
            last = self.step == job.total_steps
            if self.step % settings.log_every == 0 or last:
                self._write(window)
                window = _Window(self.ranks.device)
            if self.step % settings.eval_every == 0 or last:
                with window.paused():
                    self._evaluate()
            if job.sample is not None and settings.sample_every and (self.step % settings.sample_every == 0 or last):
                with window.paused():
                    if self.ranks.first or job.network.sharded:
                        job.sample(self.step)
            boundary = last or job.at_boundary()
            self.due |= self.step % settings.save_every == 0 or last or stopped
            if self.due and boundary:
                self._check_finite(window)
                with window.paused():
                    self._save()
                self.due = False
            if stopped and boundary and not last:
                name = signal.Signals(stop.signal or signal.SIGTERM).name
                message = f"stopped by {name} after step {self.step} of {job.total_steps}; go on with --resume"
                raise Stopped(message, 128 + (stop.signal or signal.SIGTERM))
        return self.last

    def _train_step(self, window: "_Window", stop: StopFlag) -> bool:
        """One optimizer step; says whether a signal asks to stop."""
        job, device = self.job, self.ranks.device
        batches = [next(job.source) for _ in range(job.accumulation)]
        counts = [float(sum(job.normalizer(batch) for batch in batches))]
        counts += [float(sum(batch.useful_tokens() for batch in batches)), float(stop.signal is not None)]
        normalizer, useful, stopped = self.ranks.sum_all(counts)
        if normalizer <= 0:
            raise UserError(f"step {self.step + 1}: not one trained token in the whole batch")
        # Data parallelism averages gradients over ranks; the loss is divided by the count over all of them.
        scale = self.ranks.world / normalizer
        for number, batch in enumerate(batches):
            with job.network.synchronised_at(last=number == len(batches) - 1):
                loss, sums = job.step(batch.to(device))
                scaled = loss * scale
                torch.autograd.backward(job.scaler.scale(scaled) if job.scaler is not None else scaled)
            window.add(loss.detach() / normalizer, {key: value.detach() / normalizer for key, value in sums.items()})
        window.norm = self._update()
        window.step(int(useful))
        self.tokens += int(useful)
        return stopped > 0

    def _update(self) -> Tensor:
        """Clip, set the learning rate, step; gives back the norm before clipping, still on the device."""
        job, settings = self.job, self.job.settings
        if job.scaler is not None:
            for optimizer in job.optimizers:
                job.scaler.unscale_(optimizer)
        norm = _clip(job.network.model, settings.max_grad_norm)
        norms = [norm, *(_clip(module, settings.max_grad_norm) for module in job.companions.values())]
        # Under loss scaling an overflow skips the step of every optimizer, not only of the one whose gradients show it.
        overflow = job.scaler is not None and not all(bool(torch.isfinite(one)) for one in norms)
        factor = learning_rate_factor(
            self.step,
            job.total_steps,
            kind=settings.schedule,
            warmup=settings.warmup_fraction,
            decay=settings.decay_fraction,
            final=settings.final_lr_fraction,
        )
        for optimizer in job.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            if overflow:
                pass
            elif job.scaler is not None:
                job.scaler.step(optimizer)
            else:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if job.scaler is not None:
            job.scaler.update()
        return norm

    def _write(self, window: "_Window") -> None:
        """One line of metrics, over the steps since the last line."""
        loss, *values = self.ranks.sum_all([float(value) / window.steps for value in window.sums.values()])
        self._check_finite(window)
        speed = window.tokens / window.seconds()
        elapsed = self.earlier_s + time.monotonic() - self.job.started
        self.last |= {
            "step": self.step,
            "tokens": self.tokens,
            "loss": loss,
            "lr": self.job.optimizers[0].param_groups[0]["lr"],
            "grad_norm": float(window.norm),
            "tokens_per_second": speed,
            "mfu": speed * self.job.flops_per_token / (self.job.matmul_rate * self.ranks.world),
            "elapsed_s": elapsed,
            **dict(zip(list(window.sums)[1:], values, strict=True)),
            **(self.job.report() if self.job.report is not None else {}),
        }
        self.progress.update(self.step, self.last)
        if self.log is not None:
            own = {key: value for key, value in self.last.items() if not key.startswith("heldout_")}
            self.log.write(own)

    def _check_finite(self, window: "_Window") -> None:
        """Stop before diverged weights are logged or saved. Under loss scaling an infinite gradient is only skipped."""
        if not window.steps:
            return
        loss = self.ranks.sum_all([float(window.sums["loss"]) / window.steps])[0]
        norm = float(window.norm) if self.job.scaler is None else 0.0
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"loss is {loss:.4g} and the gradient norm {norm:.4g} at step {self.step}: the run diverged; lower the "
                "learning rates or raise warmup_fraction, and go on from the last checkpoint with --resume"
            )

    def _evaluate(self) -> None:
        if self.job.evaluate is None:
            return
        scores = {f"heldout_{key}": value for key, value in self.job.evaluate().items()}
        self.last |= scores
        if self.log is not None:
            self.log.write({"step": self.step, "tokens": self.tokens, **scores})

    def _save(self) -> None:
        """Rank 0 writes, the others send it their parts or wait; all of them fail if it fails."""
        state = {
            "tokens": self.tokens,
            "total_steps": self.job.total_steps,
            "elapsed_s": self.earlier_s + time.monotonic() - self.job.started,
            "data": self.job.source.state_dict(),
            "metrics": self.last,
            "scaler": self.job.scaler.state_dict() if self.job.scaler is not None else None,
        }
        failure: UserError | None = None
        if self.ranks.first or self.job.network.sharded:
            try:
                job, write = self.job, self.ranks.first
                self.checkpoints.save(self.step, job.network.model, job.optimizers, state, job.companions, write)
            except UserError as error:
                failure = error
        if self.ranks.any(failure is not None):
            raise failure or UserError("the first rank could not write its checkpoint")


def _clip(module: nn.Module, most: float) -> Tensor:
    """The norm of a module's gradients, which are scaled down to `most` where they are larger (0: never)."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    if most > 0:
        torch._foreach_mul_([local(gradient) for gradient in gradients], (most / (norm + 1e-6)).clamp(max=1.0))
    return norm


class _Window:
    """Sums since the last log line, kept on the device so that no step waits for the host."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.norm = torch.zeros(())
        self.steps = self.tokens = 0
        self._start, self._idle = time.monotonic(), 0.0

    def add(self, loss: Tensor, sums: dict[str, Tensor]) -> None:
        for key, value in {"loss": loss, **sums}.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value

    def step(self, tokens: int) -> None:
        self.steps, self.tokens = self.steps + 1, self.tokens + tokens

    def seconds(self) -> float:
        """Training time of the window, evaluation and checkpoints left out."""
        return max(1e-9, time.monotonic() - self._start - self._idle)

    def paused(self) -> "_Pause":
        return _Pause(self)


class _Pause:
    def __init__(self, window: _Window) -> None:
        self.window = window

    def __enter__(self) -> None:
        synchronise(self.window.device)  # steps that the device still has to do are no part of the pause
        self.start = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self.window._idle += time.monotonic() - self.start

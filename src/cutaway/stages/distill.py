"""Distillation: a student learns, token by token, the distribution of a teacher with the same tokenizer.

    python -m cutaway.stages.distill recipe.toml [--resume]       the same as `cutaway distill`, without tyro

The equations are in `objectives/distillation.py`. The teacher is run beside the student, or once for all
(`stages/teacher.py`); with `on_policy` the student writes some of the answers itself (`stages/written.py`).
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cutaway.data.batch import Batch, WrittenBatch, assemble
from cutaway.errors import UserError
from cutaway.objectives import distillation
from cutaway.objectives.next_token import IGNORE, MAX_LOGIT_BYTES
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.recipe.stages import DistillSettings
from cutaway.stages import shared, supervised, teacher, written
from cutaway.training.distributed import joined_ranks
from cutaway.training.network import Network
from cutaway.training.precision import autocast


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Train the model of `run.init` on conversations and on what the teacher makes of them."""
    started = time.monotonic()
    shared.prepare_out(run)
    settings = recipe.distill
    check(settings)
    with joined_ranks() as ranks:
        model, tokenizer = shared.start_model(run, settings)
        master = teacher.load(settings.teacher, tokenizer)
        data = supervised.read_data("sft", settings, run, tokenizer, ranks)
        network = shared.build_network(model, settings, ranks)
        kept = teacher.Kept(master, network, data[0], settings) if settings.top_k else None
        lessons = kept or teacher.Beside(master, network)

        def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            """Sums over the trained tokens; the loop divides by their number."""
            routing = network.routing()
            hidden = network.forward(batch, head=False, routing=routing)
            wanted = batch.targets != IGNORE
            ce, divergence = compare(network, hidden[wanted], batch.targets[wanted], lessons, batch, settings)
            # What the student wrote itself is no example to learn by heart.
            weight = 0.0 if isinstance(batch, WrittenBatch) else settings.ce_weight
            mixed = weight * ce.sum() + (1 - weight) * settings.temperature**2 * divergence.sum()
            loss, sums = network.with_router_losses(mixed, routing, batch, wanted.sum())
            return loss, sums | {"next_token_loss": ce.sum(), "divergence": divergence.sum()}

        prompts = shared.question_prompts(tokenizer)
        asked = written.questions(data[0], data[1].tolist(), settings, ranks.first) if settings.on_policy else []
        material = supervised.next_token("distill", network, tokenizer, data, settings, prompts=prompts)

        def source(rows: int) -> shared.BatchSource:
            make = kept.assemble if kept is not None else assemble
            batches = supervised.row_source(data[0], data[1], settings, ranks, rows, make=make)
            return written.MixedSource(batches, asked, network, tokenizer, settings) if settings.on_policy else batches

        material = dataclasses.replace(material, source=source, step=step)
        return shared.train(material, shared.with_shape(recipe, model), run, started=started)


def compare(
    network: Network,
    hidden: Float[Tensor, "tokens hidden"],
    targets: Int[Tensor, " tokens"],
    lessons: teacher.Beside | teacher.Kept,
    batch: Batch,
    settings: DistillSettings,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Next-token loss and divergence from the teacher of every trained token of the batch; many tokens in pieces that
    are computed again in the backward pass, so that their logits are never there all at once."""
    measure, told = divergence_of(settings), lessons.tell(batch)
    weight = network.model.head_weight

    def piece(h: Tensor, wanted: Tensor, *said: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(network.ranks.device, network.dtype):
            logits = F.linear(h, weight).float()
            return F.cross_entropy(logits, wanted, reduction="none"), measure(logits, *lessons.say(*said))

    # Student's and teacher's logits and their softmaxes.
    count = -(-len(targets) * weight.shape[0] * 16 // MAX_LOGIT_BYTES)
    if count <= 1:
        return piece(hidden, targets, *told)
    parts = zip(*(tensor.chunk(count) for tensor in (hidden, targets, *told)), strict=True)
    pieces = [checkpoint(piece, *part, use_reentrant=False) for part in parts]
    return torch.cat([ce for ce, _ in pieces]), torch.cat([divergence for _, divergence in pieces])


def divergence_of(settings: DistillSettings) -> Callable[..., Float[Tensor, " tokens"]]:
    """From the student's logits and what the teacher says (logits, or its likeliest tokens) to what is minimised."""
    temperature = settings.temperature

    def divergence(student: Float[Tensor, "tokens vocab"], *said: Tensor) -> Float[Tensor, " tokens"]:
        if settings.top_k:
            ids, logprobs = said
            return distillation.top_k_forward_kl(student, ids, logprobs, temperature)
        (logits,) = said
        known = student[:, : logits.shape[-1]]  # vocabularies may be padded differently
        match settings.divergence:
            case "forward_kl":
                return distillation.forward_kl(known, logits, temperature)
            case "reverse_kl":
                return distillation.reverse_kl(known, logits, temperature)
            case "jensen_shannon":
                return distillation.jensen_shannon(known, logits, settings.beta, temperature)

    return divergence


def check(settings: DistillSettings) -> None:
    """Refuse values that no run can have."""
    for name in ("beta", "ce_weight", "on_policy"):
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f"{name} is {getattr(settings, name)}, must be between 0 and 1")
    if settings.divergence != "jensen_shannon" and settings.beta != DistillSettings.beta:
        raise UserError(f"beta means nothing to divergence {settings.divergence}: leave it away")
    for name in ("temperature", "sampling_temperature"):
        if not getattr(settings, name) > 0:
            raise UserError(f"{name} is {getattr(settings, name)}, must be above 0")
    if settings.max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {settings.max_new_tokens}, must be at least 1")
    if settings.top_k < 0:
        raise UserError(f"top_k is {settings.top_k}, must be 0 (the whole vocabulary) or more")
    if settings.top_k and settings.divergence != "forward_kl":
        raise UserError(f"top_k keeps too little for {settings.divergence}: take forward_kl, or top_k = 0")
    if settings.top_k and settings.on_policy:
        raise UserError("top_k keeps what the teacher thinks of the data, not of what the student writes: one of both")
    if settings.on_policy and settings.minutes is not None:
        raise UserError("minutes cannot be kept with on_policy, where writing takes time: set steps, tokens or epochs")


if __name__ == "__main__":
    sys.exit(shared.main(run, sys.argv[1:]))

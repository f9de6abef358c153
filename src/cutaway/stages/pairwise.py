"""What the stages share that learn from pairs of answers: reading, packing, sums over answers, held-out means."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.data.pairs import Pair, PairBatch, PairSource, pair_batches, read_pairs, split_pairs
from cutaway.errors import UserError
from cutaway.model.moe import Routing
from cutaway.recipe.base import TrainSettings
from cutaway.recipe.recipe import RunSettings
from cutaway.stages.shared import Evaluation, Material
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.network import Network
from cutaway.training.preparation import check_settings

Measure = Callable[[PairBatch, bool, Routing | None], dict[str, Tensor]]
"""From a batch, whether it is held out, and what its forward pass is to fill with the routers' choices, to values a
pair; `loss` is among them. What is held out goes past the wrapper for ranks (`local`), since ranks may have different
numbers of such batches."""
Means = dict[str, float]
Data = tuple[list[Pair], list[int], list[int]]
"""Pairs, and the indices of those to train on and of those held out."""


def read_data(settings: TrainSettings, run: RunSettings, tokenizer: Tokenizer, spare: int = 0) -> Data:
    """Tokenise the preference files; every rank does it for itself, these sets are small. A pair must leave `spare`
    places of a row free."""
    check_settings(settings)
    if not run.data:
        raise UserError("--data is missing: the files of pairs")

    def read(files: Sequence[str]) -> list[Pair]:
        options = {"scripts": settings.scripts, "seed": settings.seed, "skip_bad": settings.skip_bad}
        return read_pairs(files, tokenizer, settings.row_length - spare, **options)  # type: ignore[arg-type]

    pairs = read(run.data)
    if not run.eval_data:
        return pairs, *split_pairs(pairs, settings.holdout_tokens, settings.seed)
    number = len(pairs)
    pairs += read(run.eval_data)
    return pairs, list(range(number)), list(range(number, len(pairs)))


def pairwise(
    stage: str,
    network: Network,
    tokenizer: Tokenizer,
    data: Data,
    settings: TrainSettings,
    measure: Measure,
    finish: Callable[[Means], Means] = lambda means: means,
    **more: Any,
) -> Material:
    """A stage whose loss is a mean over pairs; `finish` makes what is shown of the means over held-out ones, `more` are
    further fields of the material."""
    pairs, train, heldout = data
    ranks, seq = network.ranks, settings.row_length

    def step(batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums over the pairs; the loop divides by their number."""
        routing = network.routing()
        sums = {key: values.sum() for key, values in measure(batch, False, routing).items()}
        loss, more = network.with_router_losses(sums.pop("loss"), routing, batch, batch.pairs())
        return loss, sums | more

    def held_pairs(rows: int) -> list[PairBatch]:
        return list(pair_batches(pairs, heldout, rows, seq))

    return Material(
        stage=stage,
        network=network,
        tokenizer=tokenizer,
        source=lambda rows: PairSource(
            pairs, train, rows=rows, seq=seq, seed=settings.seed, rank=ranks.rank, world=ranks.world
        ),
        step=step,
        normalizer=PairBatch.pairs,
        sizes=(len(train), len(heldout)),
        unit="pairs",
        evaluation=(lambda rows: evaluation(network, held_pairs(rows), measure, finish)) if heldout else None,
        heldout_tokens=sum(pairs[i].size for i in heldout),
        **more,
    )


def evaluation(
    network: Network, batches: Sequence[PairBatch], measure: Measure, finish: Callable[[Means], Means]
) -> Evaluation:
    """Means over the pairs of the batches of all that `measure` says, and what `finish` makes of them; ranks share."""
    ranks, number_of_pairs = network.ranks, sum(batch.pairs() for batch in batches)

    def evaluate() -> dict[str, float]:
        sums: dict[str, float] = {}
        for number, batch in enumerate(batches):
            # Every rank measures the first batch, so that all know the names of the sums.
            if number and number % ranks.world != ranks.rank:
                continue
            counts = 1.0 if number % ranks.world == ranks.rank else 0.0
            with torch.set_grad_enabled(network.compiled):
                found = measure(batch.to(ranks.device), True, None)
            for key, values in found.items():
                sums[key] = sums.get(key, 0.0) + counts * float(values.detach().double().sum())
        totals = ranks.sum_all(list(sums.values()))
        return finish({key: total / number_of_pairs for key, total in zip(sums, totals, strict=True)})

    return evaluate


def per_answer(
    values: Float[Tensor, "rows seq"], batch: PairBatch
) -> tuple[Float[Tensor, "pairs 2"], Float[Tensor, "pairs 2"]]:
    """Sum of a value over the tokens of each answer, chosen and rejected, and the number of these tokens."""
    inside = batch.answer >= 0
    owner, nothing = batch.answer[inside], values.new_zeros(2 * batch.pairs())
    sums = nothing.index_add(0, owner, values[inside])
    counts = nothing.index_add(0, owner, torch.ones_like(values[inside]))
    return sums.view(-1, 2), counts.view(-1, 2)

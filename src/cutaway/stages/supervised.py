"""What pretraining and supervised fine-tuning share: documents, the loss of the next token, bits per byte."""

from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from torch import Tensor

from cutaway.data.cache import TokenCache, build_cache, split_holdout
from cutaway.data.loader import Batch, RowSource, evaluation_batches
from cutaway.errors import UserError
from cutaway.evals.bpb import bits_per_byte
from cutaway.recipe.base import TrainSettings
from cutaway.recipe.recipe import RunSettings
from cutaway.stages.shared import Evaluation, Material, first_rank_first
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.distributed import Ranks
from cutaway.training.network import Network
from cutaway.training.preparation import check_settings

Kind = Literal["pretrain", "sft"]
Documents = Int[np.ndarray, "_documents"]
"""Indices into a cache; the underscore lets two of them in one signature differ in length."""
Data = tuple[TokenCache, Documents, TokenCache, Documents]
"""Training cache and indices, held-out cache and indices."""


def read_data(kind: Kind, settings: TrainSettings, run: RunSettings, tokenizer: Tokenizer, ranks: Ranks) -> Data:
    """What is trained on and what is held out. The first rank tokenises, the others wait for it."""

    def cache(files: tuple[str, ...]) -> TokenCache:
        return build_cache(
            files,
            tokenizer,
            kind,
            scripts=settings.scripts,
            seed=settings.seed,
            skip_bad=settings.skip_bad,
            workers=settings.workers,
            max_tokens=settings.row_length + 1,
        )

    check_settings(settings)
    if not run.data:
        raise UserError("--data is missing: the training files")
    training, separate = first_rank_first(
        ranks, lambda: (cache(run.data), cache(run.eval_data) if run.eval_data else None)
    )
    if separate is not None:
        return training, np.arange(len(training)), separate, np.arange(len(separate))
    train, heldout = split_holdout(training, settings.holdout_tokens, settings.seed)
    return training, train, training, heldout


def row_source(
    cache: TokenCache, indices: Documents, settings: TrainSettings, ranks: Ranks, rows: int, **more: Any
) -> RowSource:
    """Endless micro-batches of `rows` rows for this rank; `more` goes to the source."""
    return RowSource(
        cache,
        indices,
        rows=rows,
        seq=settings.row_length,
        seed=settings.seed,
        rank=ranks.rank,
        world=ranks.world,
        prefetch=0 if settings.overfit_one_batch else 2,
        **more,
    )


def next_token(
    stage: str, network: Network, tokenizer: Tokenizer, data: Data, settings: TrainSettings, **more: Any
) -> Material:
    """Next-token prediction on documents; `more` are further fields of the material."""
    cache, train, heldout_cache, heldout = data

    def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the trained tokens' negative log-likelihoods; the loop divides by their number."""
        return network.training_loss(batch, settings.z_loss)

    def evaluation(rows: int) -> Evaluation:
        batches, num_bytes = evaluation_batches(heldout_cache, heldout, rows, settings.row_length)
        return lambda: bits_per_byte(network, batches, num_bytes)

    return Material(
        stage=stage,
        network=network,
        tokenizer=tokenizer,
        source=lambda rows: row_source(cache, train, settings, network.ranks, rows),
        step=step,
        normalizer=Batch.trained_tokens,
        sizes=(len(train), len(heldout)),
        unit="documents",
        evaluation=evaluation if len(heldout) else None,
        heldout_tokens=int((heldout_cache.lengths[heldout] - 1).sum()),
        **more,
    )

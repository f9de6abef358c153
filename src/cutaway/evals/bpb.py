"""Bits per byte: how well a model predicts a text, comparable across tokenizers."""

import math

import torch

from cutaway.data.loader import EvaluationBatches
from cutaway.training.network import Network


def bits_per_byte(network: Network, batches: EvaluationBatches, num_bytes: int) -> dict[str, float]:
    r"""$\mathrm{bpb} = \frac{1}{\ln 2}\,\frac{\sum_t -\log p(y_t)}{\text{UTF-8 bytes}}$, and the loss a token in nats.

    Sums run over all trained targets, the end of a document or turn included; bytes are those of the trained text, so a
    tokenizer with longer tokens has a higher loss a token and the same scale here. Ranks share the batches; all of them
    go forward equally often, because a sharded network gathers its weights from all: the last round's spare ones count
    nothing.
    """
    ranks = network.ranks
    nll, tokens = 0.0, 0.0
    for first in range(0, len(batches), ranks.world):
        counts = first + ranks.rank < len(batches)
        batch = batches[first + ranks.rank if counts else 0]
        # Without gradients a compiled network would be compiled once more, which takes longer than a run's evaluations.
        with torch.set_grad_enabled(network.compiled):
            losses = network.token_losses(batch.to(ranks.device), local=True).detach()
        nll += counts * float(losses.double().sum())
        tokens += counts * batch.trained_tokens()
    nll, tokens = ranks.sum_all([nll, tokens])
    return {"bpb": nll / math.log(2) / max(1, num_bytes), "loss": nll / max(1.0, tokens)}

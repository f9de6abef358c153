"""Bits per byte against the definition, one document at a time, and shared by ranks."""

import math

import numpy as np
import pytest
import torch

from cutaway.data.cache import TokenCache
from cutaway.data.loader import evaluation_batches
from cutaway.evals.bpb import bits_per_byte
from cutaway.training.distributed import Ranks
from training_helpers import SEQ, conversations, network

SOME = np.array([3, 4, 11, 20, 21, 22, 40])


@torch.no_grad()
def naive(cache: TokenCache, indices: np.ndarray) -> tuple[float, float]:
    """Each document alone, without packing: log-probabilities of its trained tokens from the logits."""
    model = network().model
    nll, trained_tokens, num_bytes = 0.0, 0, 0
    for index in indices:
        ids = torch.tensor(cache.tokens(index).astype(np.int64))
        mask = cache.trained(index)
        logprobs = model(ids[None, :-1])[0].double().log_softmax(-1)
        for position in range(len(ids) - 1):
            if mask is None or mask[position + 1]:
                nll -= float(logprobs[position, ids[position + 1]])
                trained_tokens += 1
        num_bytes += cache.num_bytes(index)
    return nll / math.log(2) / num_bytes, nll / trained_tokens


@pytest.mark.parametrize("rows", [1, 3])
def test_equals_the_definition(rows: int) -> None:
    cache = conversations()
    batches, num_bytes = evaluation_batches(cache, SOME, rows, SEQ)
    scores = bits_per_byte(network(), batches, num_bytes)
    bpb, loss = naive(cache, SOME)
    assert scores == {"bpb": pytest.approx(bpb, rel=1e-5), "loss": pytest.approx(loss, rel=1e-5)}


def test_weights_and_gradients_are_left_alone() -> None:
    net = network()
    batches, num_bytes = evaluation_batches(conversations(), SOME, 2, SEQ)
    first = bits_per_byte(net, batches, num_bytes)
    assert first == bits_per_byte(net, batches, num_bytes)
    assert all(parameter.grad is None for parameter in net.model.parameters())


def test_an_untrained_model_guesses_among_all_tokens() -> None:
    batches, num_bytes = evaluation_batches(conversations(), SOME, 2, SEQ)
    loss = bits_per_byte(network(), batches, num_bytes)["loss"]
    assert loss == pytest.approx(math.log(61), abs=0.1)


def test_ranks_share_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = conversations()
    batches, num_bytes = evaluation_batches(cache, SOME, 1, SEQ)
    assert len(batches) > 3
    alone = bits_per_byte(network(), batches, num_bytes)
    parts: list[list[float]] = []

    def keep(self: Ranks, values: list[float]) -> list[float]:
        parts.append(values)
        return values

    monkeypatch.setattr(Ranks, "sum_all", keep)
    for rank in range(2):
        net = network()
        net.ranks = Ranks(rank, 2, torch.device("cpu"))
        bits_per_byte(net, batches, num_bytes)
    nll, tokens = (sum(part[i] for part in parts) for i in range(2))
    assert nll / math.log(2) / num_bytes == pytest.approx(alone["bpb"])
    assert nll / tokens == pytest.approx(alone["loss"])

"""The reference's log-probabilities of all answers: computed once, kept on disk, found again by what they hang on."""

import hashlib
import logging

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from cutaway.data.cache import cache_root
from cutaway.data.pairs import Pair, pair_batches
from cutaway.errors import UserError
from cutaway.model.lora import switched_off
from cutaway.model.weights import read_safetensors_file, weights_fingerprint, write_safetensors
from cutaway.stages.pairwise import per_answer
from cutaway.stages.shared import first_rank_first
from cutaway.training.network import Network

log = logging.getLogger("cutaway")
PASS_TOKENS = 8192
"""Tokens of one forward pass."""


def cached_logprobs(network: Network, pairs: list[Pair], seq: int) -> Float[Tensor, "all_pairs 2"]:
    """Log-probability of every pair's chosen and rejected answer under the model as it is now, without its adapter.

    The file is named by a hash of the weights, the arithmetic, the tokens of all pairs and the row length. The first
    rank computes it, the others read it.
    """
    key = hashlib.sha256(f"{weights_fingerprint(network.model)} {network.dtype} {seq}".encode())
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            key.update(answer.ids.tobytes() + answer.trained.tobytes() + b"/")
    path = cache_root() / f"reference-{key.hexdigest()[:32]}.safetensors"

    def find() -> Float[Tensor, "all_pairs 2"]:
        if path.is_file():
            try:
                return read_safetensors_file(path)[0]["logprobs"].clone()
            except (UserError, SafetensorError, KeyError):
                log.warning("%s: damaged, computed again", path)
        table = _compute(network, pairs, seq)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent}: cannot keep the reference there: {error.strerror}") from None
        write_safetensors({"logprobs": table}, path)
        return table

    table = first_rank_first(network.ranks, find)
    if network.ranks.first:
        log.info("reference model: %s bytes of log-probabilities in %s", f"{path.stat().st_size:,}", path)
    return table.to(network.ranks.device)


@torch.no_grad()
def _compute(network: Network, pairs: list[Pair], seq: int) -> Float[Tensor, "all_pairs 2"]:
    table = torch.zeros(len(pairs), 2)
    with switched_off(network.model):
        for batch in pair_batches(pairs, range(len(pairs)), max(1, PASS_TOKENS // seq), seq):
            here = batch.to(network.ranks.device)
            table[batch.index] = per_answer(-network.token_losses(here, local=True), here)[0].cpu()
    return table

"""The reference of a preference stage: its log-probabilities of all answers, computed once, kept on disk and found
again by what they hang on, or taken in every step from the model with its adapter switched off."""

import hashlib
import logging
from collections.abc import Callable

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from cutaway.data.cache import cache_root
from cutaway.data.packing import pack_best_fit
from cutaway.data.pairs import Pair, PairBatch, assemble_pairs, mismatched, pair_batches
from cutaway.errors import UserError
from cutaway.model.lora import switched_off
from cutaway.model.weights import read_safetensors_file, weights_fingerprint, write_safetensors
from cutaway.objectives.preference import kto_kl
from cutaway.recipe.stages import DPOSettings
from cutaway.stages.pairwise import per_answer
from cutaway.stages.shared import first_rank_first
from cutaway.training.network import Network

log = logging.getLogger("cutaway")
REFERENCE_FREE = ("simpo", "cpo", "orpo")
Reference = Callable[[PairBatch], Float[Tensor, "pairs 2"]]
"""The reference's log-probabilities of the answers of a batch."""
PASS_TOKENS = 8192
"""Tokens of one forward pass."""


def reference_of(network: Network, pairs: list[Pair], settings: DPOSettings) -> Reference:
    """Where a batch's reference log-probabilities come from, as the settings say; zeros for a loss that has none."""
    if settings.loss in REFERENCE_FREE:
        return lambda batch: torch.zeros(batch.pairs(), 2, device=batch.answer.device)
    if settings.reference == "live":
        return lambda batch: _switched_off_logprobs(network, batch)
    table = cached_logprobs(network, pairs, settings.row_length)
    return lambda batch: table[batch.index]


def _switched_off_logprobs(network: Network, batch: PairBatch) -> Float[Tensor, "pairs 2"]:
    with torch.set_grad_enabled(network.compiled), switched_off(network.model):
        return per_answer(-network.token_losses(batch, local=True), batch)[0].detach()


def reference_distance(
    network: Network, pairs: list[Pair], settings: DPOSettings
) -> Callable[[PairBatch], Float[Tensor, ""]]:
    """KTO's $z_0$ of a micro-batch, estimated on its prompts with the answers to other prompts."""
    others = mismatched(pairs, settings.row_length)
    reference = reference_of(network, others, settings)

    def distance(batch: PairBatch) -> Float[Tensor, ""]:
        rows, seq = batch.input_ids.shape
        members = batch.index.tolist()
        packed = pack_best_fit([others[i].size for i in members], seq)[:rows]
        inside = [[members[i] for i in row] for row in packed]
        exchanged = assemble_pairs(others, inside, rows, seq).to(batch.input_ids.device)
        with torch.set_grad_enabled(network.compiled):
            logprobs = per_answer(-network.token_losses(exchanged, local=True), exchanged)[0].detach()
        return kto_kl((logprobs - reference(exchanged)).flatten())

    return distance


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
        tokens = sum(pair.size for pair in pairs)
        log.info("reference model: reading %s pairs, %s tokens, once", f"{len(pairs):,}", f"{tokens:,}")
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

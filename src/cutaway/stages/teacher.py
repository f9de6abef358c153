"""The teacher of a distillation: run beside the student, or once for all with its likeliest tokens kept on disk."""

import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.data.batch import Batch, Rows, TaughtBatch, assemble_with_places, pack_rows
from cutaway.data.cache import TokenCache, cache_root
from cutaway.errors import UserError
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import load_model, weights_fingerprint
from cutaway.objectives.next_token import IGNORE
from cutaway.recipe.stages import DistillSettings
from cutaway.stages.shared import first_rank_first
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.network import Network
from cutaway.training.precision import autocast

log = logging.getLogger("cutaway")
PASS_TOKENS = 8192
"""Tokens of one forward pass."""


def load(directory: str, tokenizer: Tokenizer) -> CausalLM:
    """The teacher, frozen. UserError where it does not have the student's tokenizer: token 17 of one would be compared
    with token 17 of the other, which is another word."""
    if not directory:
        raise UserError("--teacher is missing: the model directory to learn from")
    model = load_model(directory)
    if Tokenizer.load(directory).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{directory}: the teacher has another tokenizer than the student, their distributions cannot be compared; "
            "let it write answers instead (cutaway data answer)"
        )
    return model.requires_grad_(False)


class Beside:
    """A teacher that is run in every step."""

    def __init__(self, model: CausalLM, network: Network) -> None:
        self.model, self.network = model.to(network.ranks.device), network
        self.width = min(model.config.vocab_size, network.model.config.vocab_size)

    @torch.no_grad()
    def tell(self, batch: Batch) -> tuple[Tensor, ...]:
        """Its final hidden states at the trained places, from which `say` makes logits."""
        return (_hidden(self.model, batch, self.network)[batch.targets != IGNORE],)

    @torch.no_grad()
    def say(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Its logits."""
        return (F.linear(hidden, self.model.head_weight[: self.width]),)


class Kept:
    """What a teacher thought of every trained token of a data set, computed once and kept on disk.

    A directory named by all that decides it holds two tables with a row a trained token, in the order of the token
    cache: `ids.bin` (uint16 or uint32) and `logprobs.bin` (float16, at the temperature).
    """

    def __init__(self, model: CausalLM, network: Network, cache: TokenCache, settings: DistillSettings) -> None:
        if settings.top_k > model.config.vocab_size:
            raise UserError(f"top_k is {settings.top_k}, the teacher's vocabulary only {model.config.vocab_size}")
        self.k, self.temperature = settings.top_k, settings.temperature
        assert cache.flat_trained is not None
        self.row_of = np.cumsum(cache.flat_trained, dtype=np.int64) - 1
        self.id_type = np.dtype(np.uint16 if model.config.vocab_size <= 2**16 else np.uint32)
        parts = [weights_fingerprint(model), str(network.dtype), settings.row_length, self.k, self.temperature]
        parts.append(hashlib.sha256(cache.flat_tokens.tobytes() + cache.flat_trained.tobytes()).hexdigest())
        folder = cache_root() / f"teacher-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}"
        first_rank_first(network.ranks, lambda: self._find(folder, model, network, cache, settings.row_length))
        shape = (int(self.row_of[-1]) + 1, self.k)
        self.ids = np.memmap(folder / "ids.bin", self.id_type, "r", shape=shape)
        self.logprobs = np.memmap(folder / "logprobs.bin", np.float16, "r", shape=shape)
        if network.ranks.first:
            size = self.ids.nbytes + self.logprobs.nbytes
            said = f"{size:,} bytes for {shape[0]:,} trained tokens, its {self.k} likeliest for each"
            log.info("teacher: %s, in %s", said, folder)

    def assemble(self, cache: TokenCache, parts: list[Rows], rows: int, seq: int) -> TaughtBatch:
        """Rows with what the teacher thought of each."""
        batch, places = assemble_with_places(cache, parts, rows, seq)
        wanted = (batch.targets != IGNORE).numpy()
        ids, logprobs = np.zeros((rows, seq, self.k), np.int64), np.zeros((rows, seq, self.k), np.float32)
        kept = self.row_of[places[wanted]]
        ids[wanted], logprobs[wanted] = self.ids[kept], self.logprobs[kept]
        tensors = batch.input_ids, batch.targets, batch.positions, batch.documents
        return TaughtBatch(*tensors, torch.from_numpy(ids), torch.from_numpy(logprobs))

    def tell(self, batch: Batch) -> tuple[Tensor, ...]:
        """Likeliest tokens and their log-probabilities at the trained places."""
        assert isinstance(batch, TaughtBatch)
        wanted = batch.targets != IGNORE
        return batch.teacher_ids[wanted], batch.teacher_logprobs[wanted]

    def say(self, *told: Tensor) -> tuple[Tensor, ...]:
        """The same."""
        return told

    def _find(self, folder: Path, model: CausalLM, network: Network, cache: TokenCache, seq: int) -> None:
        if (folder / "ids.bin").is_file():
            return
        log.info("teacher: computing its %d likeliest tokens of %s trained ones", self.k, f"{self.row_of[-1] + 1:,}")
        building = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
            self._write(building, model.to(network.ranks.device), network, cache, seq)
            building.rename(folder)
        except OSError as error:
            raise UserError(
                f"{folder.parent}: cannot keep the teacher's tokens there: {error.strerror or error}; set "
                "CUTAWAY_CACHE to a folder with room, take a smaller top_k, or top_k = 0"
            ) from None
        finally:
            if building is not None:
                shutil.rmtree(building, ignore_errors=True)

    @torch.no_grad()
    def _write(self, folder: Path, model: CausalLM, network: Network, cache: TokenCache, seq: int) -> None:
        shape = (int(self.row_of[-1]) + 1, self.k)
        width = min(model.config.vocab_size, network.model.config.vocab_size)
        ids: Any = np.memmap(folder / "ids.bin", self.id_type, "w+", shape=shape)
        logprobs: Any = np.memmap(folder / "logprobs.bin", np.float16, "w+", shape=shape)
        packed = pack_rows(cache, np.flatnonzero(cache.targets_per_document), seq, None)
        rows = max(1, PASS_TOKENS // seq)
        for first in range(0, len(packed), rows):
            part = packed.part(first, min(first + rows, len(packed)))
            batch, places = assemble_with_places(cache, [part], rows, seq)
            wanted = batch.targets != IGNORE
            here = batch.to(network.ranks.device)
            hidden = _hidden(model, here, network)[here.targets != IGNORE]
            logits = F.linear(hidden, model.head_weight[:width]).float()
            top = (logits / self.temperature).log_softmax(-1).topk(self.k)
            kept = self.row_of[places[wanted.numpy()]]
            ids[kept], logprobs[kept] = top.indices.cpu().numpy(), top.values.cpu().numpy()
        ids.flush()
        logprobs.flush()


def _hidden(model: CausalLM, batch: Batch, network: Network) -> Tensor:
    with autocast(network.ranks.device, network.dtype):
        hidden: Tensor = model(batch.input_ids, positions=batch.positions, documents=batch.documents, head=False)
    return hidden

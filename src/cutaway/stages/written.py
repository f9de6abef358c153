"""On-policy batches: conversations whose last answer the model in training writes itself, for a teacher to grade.

Generalised knowledge distillation (Agarwal et al., arXiv 2306.13649, algorithm 1): a student that only ever sees other
people's answers is not taught what to do after its own mistakes.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from cutaway.data.batch import Batch, WrittenBatch
from cutaway.data.cache import TokenCache
from cutaway.data.hashing import derive_key, keyed_order
from cutaway.data.loader import RowSource
from cutaway.data.packing import pack_best_fit
from cutaway.errors import UserError
from cutaway.generation.engine import Engine
from cutaway.generation.generate import generate
from cutaway.generation.sampling import Sampling
from cutaway.objectives.next_token import IGNORE
from cutaway.recipe.stages import DistillSettings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.network import Network

log = logging.getLogger("cutaway")
SLOTS = 64
"""Answers written at a time."""


def questions(
    cache: TokenCache, documents: Sequence[int], settings: DistillSettings, loud: bool = True
) -> list[list[int]]:
    """Conversations up to where their last answer begins, but for those behind which an answer might not fit; how many
    these are is said, if `loud`. UserError where none is left."""
    found, left_out = [], 0
    for document in documents:
        trained = cache.trained(document)
        assert trained is not None
        if not trained.any():
            continue
        begin = int(np.flatnonzero(np.diff(trained, prepend=False) & trained)[-1])
        if begin + settings.max_new_tokens <= settings.row_length + 1:
            found.append(cache.tokens(document)[:begin].tolist())
        else:
            left_out += 1
    length = f"max_new_tokens {settings.max_new_tokens} in a row of {settings.row_length}"
    if not found:
        raise UserError(f"no question leaves room for an answer of {length}")
    if left_out and loud:
        log.info("%d of %d questions are not asked: no room for an answer of %s", left_out, len(documents), length)
    return found


class MixedSource:
    """The batches of `data`, a share of them replaced by ones that the model writes after `prompts`: micro-batch m of
    the run where a hash of seed and m says so.

    What is asked comes from the same conversations (`questions`): an epoch of them in an order of its own, cut into
    groups that fit a micro-batch even if every answer takes all of `max_new_tokens`.
    """

    def __init__(
        self,
        data: RowSource,
        prompts: list[list[int]],
        network: Network,
        tokenizer: Tokenizer,
        settings: DistillSettings,
    ) -> None:
        self.data, self.prompts = data, prompts
        self.network, self.tokenizer, self.settings = network, tokenizer, settings
        self._round = 0
        self._engine: Engine | None = None
        self._epoch: tuple[int, list[list[list[int]]]] = (-1, [])
        self._groups_per_epoch = len(self._groups(0))

    @property
    def tokens_per_epoch(self) -> int:
        """Useful tokens in one pass over the data."""
        return self.data.tokens_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        number = self._round * self.data.world + self.data.rank
        self._round += 1
        # Taken in any case, so that the data's place does not hang on what others wrote.
        batch = next(self.data)
        if derive_key(self.settings.seed, number, 1) >= self.settings.on_policy * 2**64:
            return batch
        epoch, group = divmod(number, self._groups_per_epoch)
        return self._write(self._groups(epoch)[group], number)

    def state_dict(self) -> dict[str, int]:
        """The data's state, and how many micro-batches this rank has taken."""
        return self.data.state_dict() | {"round": self._round}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self._round = int(state["round"])
        self.data.load_state_dict({key: value for key, value in state.items() if key != "round"})

    def close(self) -> None:
        """Stop the data's thread."""
        self.data.close()

    def _groups(self, epoch: int) -> list[list[list[int]]]:
        """The epoch's micro-batches, each a list of rows of prompts."""
        if self._epoch[0] != epoch:
            longest = [len(prompt) + self.settings.max_new_tokens - 1 for prompt in self.prompts]
            packed = pack_best_fit(longest, self.data.seq)
            order = keyed_order(len(packed), derive_key(self.settings.seed, epoch, 2)).tolist()
            rows = [packed[i] for i in order]
            self._epoch = epoch, [rows[i : i + self.data.rows] for i in range(0, len(rows), self.data.rows)]
        return self._epoch[1]

    def _write(self, rows: list[list[int]], number: int) -> WrittenBatch:
        """The model's answers to the prompts of some rows, packed as they were grouped."""
        if self._engine is None:
            self._engine = Engine(
                self.network.model, self.tokenizer, SLOTS, self.data.seq + 1, self.network.dtype, frozen=True
            )
        self._engine.refresh()
        asked = [self.prompts[i] for row in rows for i in row]
        seeds = [derive_key(self.settings.seed, number, place, 3) >> 1 for place in range(len(asked))]
        sampling = Sampling(temperature=self.settings.sampling_temperature)
        limit = self.settings.max_new_tokens
        done = iter(generate(self._engine, asked, sampling=sampling, max_new_tokens=limit, seed=seeds))
        texts = [[(self.prompts[i], next(done).ids) for i in row] for row in rows]
        return packed_answers(texts, self.data.rows, self.data.seq)


def packed_answers(rows: list[list[tuple[list[int], list[int]]]], count: int, seq: int) -> WrittenBatch:
    """`count` rows of prompts with their answers, of which the answers are targets; missing rows are padding."""
    input_ids, positions = np.zeros((count, seq), np.int64), np.zeros((count, seq), np.int64)
    targets, documents = np.full((count, seq), IGNORE, np.int64), np.full((count, seq), -1, np.int32)
    for row, texts in enumerate(rows):
        place = 0
        for document, (prompt, answer) in enumerate(texts):
            ids = np.array([*prompt, *answer])
            span = slice(place, place + len(ids) - 1)
            input_ids[row, span], positions[row, span] = ids[:-1], np.arange(len(ids) - 1)
            targets[row, span] = np.where(np.arange(1, len(ids)) >= len(prompt), ids[1:], IGNORE)
            documents[row, span] = document
            place = span.stop
    return WrittenBatch(*(torch.from_numpy(array) for array in (input_ids, targets, positions, documents)))

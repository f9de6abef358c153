"""Pairs of answers to one prompt: from preference files to packed rows in which both answers lie side by side.

A pair is packed as one piece of two documents, so that one forward pass gives the log-probabilities of both. Preference
sets are small, so they are tokenised anew at every start and kept in memory.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from cutaway.data.batch import Batch, moved
from cutaway.data.formats import read_records
from cutaway.data.hashing import content_hash, derive_key, keyed_order, mix64
from cutaway.data.packing import pack_best_fit
from cutaway.data.scripts import ScriptMix, convert_conversation, parse_scripts
from cutaway.errors import UserError
from cutaway.tokenization.foreign import render_as_trained
from cutaway.tokenization.messages import Message, normalise
from cutaway.tokenization.tokenizer import Tokenizer

log = logging.getLogger("cutaway")
MAX_HOLDOUT_SHARE = 0.1


@dataclass(frozen=True)
class Answer:
    """A conversation that ends with one of the two answers; `trained` is true on that answer's own tokens."""

    ids: Integer[np.ndarray, " tokens"]
    trained: Integer[np.ndarray, " tokens"]

    @property
    def size(self) -> int:
        """Inputs it takes in a row: a document of n tokens has n - 1 of them."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the first preferred."""

    chosen: Answer
    rejected: Answer
    prompt: int
    """Hash of the prompt: pairs that share it are held out together."""

    @property
    def size(self) -> int:
        """Inputs of both."""
        return self.chosen.size + self.rejected.size


@dataclass
class PairBatch(Batch):
    """Packed rows of pairs. `answer` tells whose each target is: 2k the chosen and 2k + 1 the rejected answer of the
    batch's pair k, -1 where a target belongs to no answer; `index` says which pair of the data pair k is."""

    answer: Int[Tensor, "rows seq"]
    index: Int[Tensor, " pairs"]

    def to(self, device: torch.device | str) -> "PairBatch":
        """The batch on another device."""
        plain = super().to(device)
        tensors = plain.input_ids, plain.targets, plain.positions, plain.documents
        return PairBatch(*tensors, moved(self.answer, device), moved(self.index, device))

    def pairs(self) -> int:
        """Number of pairs in it."""
        return len(self.index)


@dataclass
class _Left:
    """Pairs that are not used, by reason."""

    same: int = 0
    empty: int = 0
    long: int = 0
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        setattr(self, reason, getattr(self, reason) + 1)
        self.examples.setdefault(reason, where)


def read_pairs(
    files: Sequence[str | Path],
    tokenizer: Tokenizer,
    seq: int,
    *,
    scripts: str = "keep",
    seed: int = 0,
    skip_bad: int = 0,
) -> list[Pair]:
    """Tokenise preference files. Pairs of equal answers, with an empty answer, or too long for a row of `seq` tokens
    together are left out, counted and logged. UserError for bad records beyond `skip_bad`, or if nothing is left."""
    mix, left, pairs = parse_scripts(scripts), _Left(), []
    for record in read_records(files, "preference", skip_bad):
        pair, reason = _tokenise(record.value, tokenizer, mix, seed)
        if pair is not None and pair.size > seq:
            pair, reason = None, "long"
        if pair is None:
            left.add(reason, f"{record.file}:{record.line}")
        else:
            pairs.append(pair)
    for reason, words in (
        ("same", "chosen and rejected are the same"),
        ("empty", "an answer is empty"),
        ("long", f"both answers together are longer than a row of {seq} tokens"),
    ):
        if count := getattr(left, reason):
            log.warning("%d pairs left out: %s (the first: %s)", count, words, left.examples[reason])
    if not pairs:
        raise UserError(f"{', '.join(map(str, files))}: no usable pair is left")
    return pairs


def _tokenise(value: dict[str, Any], tokenizer: Tokenizer, mix: ScriptMix, seed: int) -> tuple[Pair | None, str]:
    """A record as a pair, or why it is none."""
    turns = convert_conversation([*value["chosen"], *value["rejected"]], mix, seed)
    chosen, rejected = normalise(turns[: len(value["chosen"])]), normalise(turns[len(value["chosen"]) :])
    if chosen == rejected:
        return None, "same"
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    answers = []
    for conversation in (chosen, rejected):
        if not any(_says_something(turn) for turn in conversation[shared:]):
            return None, "empty"
        rendered = render_as_trained(conversation, tokenizer)
        trained = np.array(rendered.mask, np.uint8)
        # Headers, which are not trained, lie between answers: those of the prompt are the first stretches.
        before = sum(turn["role"] == "assistant" for turn in conversation[:shared])
        begins = np.flatnonzero(np.diff(trained, prepend=0) == 1)
        trained[: begins[before]] = 0
        end = int(trained.nonzero()[0][-1]) + 1
        answers.append(Answer(np.array(rendered.ids[:end], np.int64), trained[:end]))
    text = "\x00".join(f"{turn['role']}\x01{turn['content']}" for turn in chosen[:shared])
    return Pair(answers[0], answers[1], content_hash(text)), ""


def _says_something(turn: Message) -> bool:
    return turn["role"] == "assistant" and bool(turn["content"].strip() or turn.get("tool_calls"))


def at_the_end(pair: Pair) -> Pair:
    """The pair with one marked place in each answer: behind its last token, where a reward model's score is read.

    A row holds inputs, and the last token of a conversation is only a target: one more token lets it be an input too,
    so each answer takes one place more.
    """
    marked = []
    for answer in (pair.chosen, pair.rejected):
        mark = np.zeros(len(answer.ids) + 1, np.uint8)
        mark[-1] = 1
        marked.append(Answer(np.append(answer.ids, 0), mark))
    return Pair(marked[0], marked[1], pair.prompt)


def mismatched(pairs: Sequence[Pair], seq: int) -> list[Pair]:
    """For every pair, its prompt with the answers of the next pair that has another prompt, cut to half a row each.

    What KTO estimates its distance from the reference on. Where there is one prompt only, the answers are to that.
    """
    others = list(range(len(pairs)))
    for i in reversed(range(2 * len(pairs) - 1)):
        here, after = i % len(pairs), (i + 1) % len(pairs)
        others[here] = after if pairs[after].prompt != pairs[here].prompt else others[after]
    return [_exchanged(pair, pairs[other], seq // 2 + 1) for pair, other in zip(pairs, others, strict=True)]


def _exchanged(pair: Pair, other: Pair, longest: int) -> Pair:
    """The prompt of one pair with the answers of another, each conversation of at most `longest` tokens."""
    prompt = pair.chosen.ids[: int(pair.chosen.trained.argmax())]
    answers = []
    for answer in (other.chosen, other.rejected):
        begin = int(answer.trained.argmax())
        ids = np.concatenate([prompt, answer.ids[begin:]])[:longest]
        trained = np.concatenate([np.zeros(len(prompt), np.uint8), answer.trained[begin:]])[:longest]
        answers.append(Answer(ids, trained))
    return Pair(answers[0], answers[1], pair.prompt)


def split_pairs(pairs: Sequence[Pair], holdout_tokens: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out; a prompt is on one side only.

    Prompts are ordered by a hash of seed and text and held out from the first on, until there are `holdout_tokens` of
    them or a tenth of the data.
    """
    if holdout_tokens <= 0:
        return list(range(len(pairs))), []
    order = mix64(np.array([pair.prompt for pair in pairs], np.uint64), seed)
    limit, taken = MAX_HOLDOUT_SHARE * sum(pair.size for pair in pairs), 0
    held: set[int] = set()
    for key in np.unique(order):
        size = sum(pairs[int(i)].size for i in np.flatnonzero(order == key))
        if held and (taken >= holdout_tokens or taken + size > limit):
            break
        held.add(int(key))
        taken += size
    heldout = [i for i in range(len(pairs)) if int(order[i]) in held]
    train = [i for i in range(len(pairs)) if int(order[i]) not in held]
    if not train:  # one prompt only: it is trained on
        return heldout, []
    return train, heldout


class PairSource:
    """Endless micro-batches of `rows` rows of `seq` tokens for one rank, each row full of whole pairs.

    The stream is a function of (pairs, seed, row length): an epoch is packed best-fit and its rows shuffled.
    Micro-batch m takes rows m*rows to (m+1)*rows-1 of the stream and belongs to rank m % world.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        indices: Sequence[int] | None = None,
        *,
        rows: int,
        seq: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.pairs, self.indices = pairs, list(range(len(pairs)) if indices is None else indices)
        self.rows, self.seq, self.seed, self.rank, self.world = rows, seq, seed, rank, world
        if not self.indices:
            raise UserError("no pair to train on is left")
        self._packed = pack_best_fit([pairs[i].size for i in self.indices], seq)
        self._place = 0

    @property
    def tokens_per_epoch(self) -> int:
        """Inputs in one epoch."""
        return sum(self.pairs[i].size for i in self.indices)

    def __iter__(self) -> Iterator[PairBatch]:
        return self

    def __next__(self) -> PairBatch:
        first = self._place + self.rank * self.rows
        self._place += self.world * self.rows
        return assemble_pairs(self.pairs, [self._row(first + i) for i in range(self.rows)], self.rows, self.seq)

    def state_dict(self) -> dict[str, int]:
        """Rows handed out, and what they are rows of."""
        return {"place": self._place} | self._identity()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there. UserError where the state is of other data, seed or row length."""
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise UserError(f"cannot resume: {key} of the data was {state.get(key)}, is {value} now")
        self._place = int(state["place"])

    def close(self) -> None:
        """Nothing runs in the background."""

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "seq": self.seq, "pairs": len(self.indices), "tokens": self.tokens_per_epoch}

    def _row(self, number: int) -> list[int]:
        epoch, place = divmod(number, len(self._packed))
        order = keyed_order(len(self._packed), derive_key(self.seed, epoch))
        return [self.indices[i] for i in self._packed[int(order[place])]]


def pair_batches(pairs: Sequence[Pair], indices: Sequence[int], rows: int, seq: int) -> Iterator[PairBatch]:
    """One pass over the given pairs, in a fixed order; the last batch is padded."""
    packed = pack_best_fit([pairs[i].size for i in indices], seq)
    for first in range(0, len(packed), rows):
        chosen = [[indices[i] for i in row] for row in packed[first : first + rows]]
        yield assemble_pairs(pairs, chosen, rows, seq)


def assemble_pairs(pairs: Sequence[Pair], members: list[list[int]], rows: int, seq: int) -> PairBatch:
    """The tensors of rows that hold the pairs `members[row]`; missing rows are padding."""
    shape = (rows, seq)
    input_ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets, documents = np.full(shape, -100, np.int64), np.full(shape, -1, np.int32)
    answer = np.full(shape, -1, np.int64)
    index: list[int] = []
    for row, inside in enumerate(members):
        place = document = 0
        for member in inside:
            for side, text in enumerate((pairs[member].chosen, pairs[member].rejected)):
                span = slice(place, place + text.size)
                wanted = text.trained[1:] > 0
                input_ids[row, span], positions[row, span] = text.ids[:-1], np.arange(text.size)
                targets[row, span] = np.where(wanted, text.ids[1:], -100)
                answer[row, span] = np.where(wanted, 2 * len(index) + side, -1)
                documents[row, span] = document
                place, document = place + text.size, document + 1
            index.append(member)
    return PairBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(targets),
        torch.from_numpy(positions),
        torch.from_numpy(documents),
        torch.from_numpy(answer),
        torch.tensor(index, dtype=torch.int64),
    )

"""The engine: many requests share one model, one cache and one forward pass a step (continuous batching)."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.errors import UserError
from cutaway.generation.decoder import PackedDecoder
from cutaway.generation.defaults import stop_ids
from cutaway.generation.kv_cache import KVCache
from cutaway.generation.recorded import RecordedSteps
from cutaway.generation.sampling import Drawn, Sampling, penalise, sample, uniform
from cutaway.generation.stop import TextStream
from cutaway.model.transformer import CausalLM
from cutaway.tokenization.tokenizer import Tokenizer

SHORTEST_PREFIX = 16
"""A shared beginning of fewer tokens is computed anew: copying it costs as much."""
PREFILL_TOKENS = 8192
"""Most tokens, padding included, that one forward pass over new prompts takes (a longer prompt goes alone)."""

FinishReason = Literal["stop", "length", "context"]
"""Ended by itself or by a stop string; reached `max_new_tokens`; reached the engine's `max_length`."""

TopLogprobs = list[tuple[int, float]]
"""The most likely tokens at one place, best first, each with its log-probability in nats."""


class Constraint(Protocol):
    """What an answer may be, token by token (`constrain.py` has JSON schemas and tool calls)."""

    def allowed(self) -> Bool[Tensor, " vocab"] | None:
        """Which tokens may come next; None allows all. Tokens of the model beyond its end are not allowed."""

    def accept(self, token: int) -> None:
        """Take notice of the token that came; the one that ends the answer is not announced."""


@dataclass(frozen=True)
class Request(Sampling):
    """One text to write: `Request(prompt_ids, max_new_tokens=64, temperature=0.7, seed=1)`."""

    prompt_ids: Sequence[int]
    max_new_tokens: int = 256
    seed: int = 0
    """In fp32 the same seed gives the same text, whatever else is in the batch."""
    stop_ids: Sequence[int] | None = None
    """Tokens that end the text; None takes those of the tokenizer and of the model's config."""
    stop: Sequence[str] = ()
    """Strings that end the text and are no part of it."""
    top_logprobs: int = 0
    """How many of the most likely tokens to report at every place, with their log-probabilities."""
    constraint: Callable[[], Constraint] | None = None
    """Makes the constraint of one answer: a request may be submitted any number of times."""


@dataclass(frozen=True)
class Completion:
    """What became of a request."""

    id: int
    prompt_ids: list[int]
    ids: list[int]
    """Every sampled token, the one that ended the text included."""
    logprobs: list[float]
    """Log-probability of each of them in nats, under the distribution that penalties, constraint and temperature leave
    (greedy: temperature 1), before top-k, top-p and min-p: see `sampling.sample`."""
    text: str
    """Without special tokens, and without the stop string."""
    finish_reason: FinishReason
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    """For each of the ids the most likely tokens at its place, of the same distribution; empty unless asked for."""
    reused: int = 0
    """Tokens of the prompt that were not computed, since an earlier or a running request had begun alike."""


@dataclass(frozen=True)
class Piece:
    """What one step added to one request: text that is settled (maybe none), the tokens sampled, which may be ahead of
    the text, and the completion with the last one."""

    id: int
    text: str
    completion: Completion | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[TopLogprobs] = field(default_factory=list)


@dataclass
class _Running:
    id: int
    request: Request
    prompt: list[int]
    stop_ids: frozenset[int]
    stream: TextStream
    constraint: Constraint | None
    seen: Bool[Tensor, " vocab"] | None
    """Tokens of prompt and answer, and how often the answer holds each: where a penalty asks for it."""
    counts: Float[Tensor, " vocab"] | None
    reused: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.ids)


class Engine:
    """Synchronous generation: `submit` requests at any time, `step` until `busy` is false, `collect` what finished.

    A step gives every running request exactly one token. Waiting requests join at any step in which a slot is free, in
    the order they came; the requests running occupy the first slots of the cache, and when one leaves, the last takes
    its slot. The model is used live; with a `dtype` other than its own, or `frozen`, a copy laid out for speed is, and
    `refresh` brings it up to date.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        slots: int = 16,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        frozen: bool = False,
    ) -> None:
        """`max_length` bounds prompt and answer together (default: the model's `max_position_embeddings`).

        `frozen` says that the weights change only before a `refresh`, which allows the faster copy in any dtype.
        """
        weight = model.head_weight
        self.source, self.tokenizer, self.dtype = model, tokenizer, dtype or weight.dtype
        copied = frozen or self.dtype != weight.dtype
        self.packed = PackedDecoder(model, self.dtype) if copied else None
        self.device = weight.device
        self.max_length = max_length or model.config.max_position_embeddings
        kept_in = self.packed.cache_dtype if self.packed else self.dtype
        self.cache = KVCache(model.config, slots, self.max_length, kept_in, self.device)
        self.recorded = RecordedSteps(self.packed, self.cache) if self.packed and self.packed.recordable else None
        own = model.config.eos_token_id
        self.stop_ids = frozenset(stop_ids(tokenizer)) | frozenset([own] if isinstance(own, int) else own or ())
        self._ids = itertools.count()
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._finished: list[Completion] = []
        self._stored: list[list[int]] = [[] for _ in range(slots)]
        """The tokens whose keys and values a slot holds, of a request that has left too."""
        self._clock = itertools.count(1)
        self._left = [0] * slots

    def refresh(self) -> None:
        """Take over the present weights of the model, where the engine works on a copy."""
        if self.packed is not None:
            self.packed.load(self.source)
        self.forget()

    def forget(self) -> None:
        """Drop the keys and values of requests that have left, so that no prompt begins with them."""
        for slot in range(len(self._running), self.cache.slots):
            self._stored[slot] = []

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running)

    def submit(self, request: Request) -> int:
        """Queue a request and give back its id. UserError for an empty prompt, or one that leaves no room to answer."""
        prompt = list(request.prompt_ids)
        if not prompt:
            raise UserError("the prompt is empty: at least one token is needed")
        if len(prompt) >= self.max_length:
            raise UserError(
                f"the context is full: the prompt has {len(prompt)} tokens, the model holds {self.max_length}"
            )
        if request.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {request.max_new_tokens}, must be at least 1")
        if min(prompt) < 0 or max(prompt) >= self.source.config.vocab_size:
            raise UserError(f"the prompt holds ids outside the model's vocabulary of {self.source.config.vocab_size}")
        if request.top_logprobs < 0:
            raise UserError(f"top_logprobs is {request.top_logprobs}, must be 0 (none) or more")
        ends = self.stop_ids if request.stop_ids is None else frozenset(request.stop_ids)
        seen = counts = None
        if request.penalises:
            counts = torch.zeros(self.source.config.vocab_size, device=self.device)
            seen = torch.zeros_like(counts, dtype=torch.bool)
            seen[torch.tensor(prompt, device=self.device)] = True
        constraint = request.constraint() if request.constraint is not None else None
        stream = TextStream(self.tokenizer, request.stop)
        running = _Running(next(self._ids), request, prompt, ends, stream, constraint, seen, counts)
        self._waiting.append(running)
        return running.id

    @torch.inference_mode()
    def cancel(self, request_id: int) -> None:
        """Forget a request, waiting, running or finished; an id that is not there is no error."""
        self._waiting = deque(row for row in self._waiting if row.id != request_id)
        self._finished = [done for done in self._finished if done.id != request_id]
        for slot, row in enumerate(self._running):
            if row.id == request_id:
                self._leave(slot)
                return

    def collect(self) -> list[Completion]:
        """Completions since the last call, in the order they finished."""
        done, self._finished = self._finished, []
        return done

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Let waiting requests join, sample one token for every running one, let the finished ones leave."""
        old = len(self._running)
        logits = [self._forward(0, self._running, decode=True)] if old else []
        new = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.cache.slots - old))]
        for wave in self._waves(new):
            first = len(self._running)
            self._running += wave
            for slot, row in enumerate(wave, start=first):
                row.reused = self._claim(slot, row.prompt)
            for start, count in _groups([len(row.prompt) - row.reused for row in wave]):
                logits.append(self._forward(first + start, wave[start : start + count], decode=False))
            for slot, row in enumerate(wave, start=first):
                self._stored[slot] = row.prompt
        if not logits:
            return []
        requests = [row.request for row in self._running]
        uniforms = [uniform(row.request.seed, len(row.ids)) for row in self._running]
        top = max(request.top_logprobs for request in requests)
        drawn = sample(self._steer(torch.cat(logits).float()), requests, uniforms, top)
        pieces = [self._append(row, *one) for row, one in zip(self._running, _rows(drawn), strict=True)]
        for slot in reversed(range(len(pieces))):
            completion = pieces[slot].completion
            if completion is not None:
                self._leave(slot)
        self._finished += [piece.completion for piece in pieces if piece.completion is not None]
        return pieces

    def _waves(self, new: list[_Running]) -> list[list[_Running]]:
        """New rows in an order of computing: a prompt that begins like an earlier one waits until that is stored.

        Of a group of samples the first computes the prompt, the others take it over. Within a wave, those with the
        least left to compute come first, so that prompts of like length share a forward pass with little padding.
        """
        leaders: list[tuple[int, _Running]] = []
        followers: list[_Running] = []
        for row in sorted(new, key=lambda row: len(row.prompt)):
            stored = max(_shared(row.prompt, tokens) for tokens in self._stored)
            if any(_shared(row.prompt, leader.prompt) > stored for _, leader in leaders):
                followers.append(row)
            else:
                leaders.append((len(row.prompt) - stored, row))
        first = [row for _, row in sorted(leaders, key=lambda pair: pair[0])]
        return [wave for wave in (first, followers) if wave]

    def _claim(self, slot: int, prompt: list[int]) -> int:
        """Make a free slot ready for a prompt; gives back how many of its tokens it holds already.

        Where a request that has left holds the longest beginning of the prompt, its slot is taken over; where a
        running one does, that is copied. Otherwise the slot that was left longest ago is given up.
        """
        shared = [_shared(prompt, tokens) for tokens in self._stored]
        best = max(range(len(shared)), key=lambda i: shared[i])
        oldest = min(range(slot, self.cache.slots), key=lambda i: self._left[i])
        self._exchange(slot, best if shared[best] and best >= slot else oldest)
        if shared[best] and best < slot:
            self.cache.move(best, slot, shared[best])
        # So much of it is there for the rows that come with this one; the rest is, once it is computed.
        self._stored[slot] = prompt[: shared[best]]
        return shared[best]

    def _exchange(self, one: int, other: int) -> None:
        """Exchange all that two slots hold."""
        length = max(len(self._stored[one]), len(self._stored[other]))
        if one != other and length:
            self.cache.swap(one, other, length)
            stored, left = self._stored, self._left
            stored[one], stored[other] = stored[other], stored[one]
            left[one], left[other] = left[other], left[one]

    def _forward(self, first: int, rows: list[_Running], decode: bool) -> Float[Tensor, "batch vocab"]:
        """Logits after the last token of each row: of that token alone (`decode`), or of what is new of the prompt."""
        self.cache.reserve(min(self.max_length, max(row.length for row in rows) + 1))
        if decode and self.recorded is not None:
            return self.recorded.logits([row.ids[-1] for row in rows], [row.length - 1 for row in rows])
        fed = [row.ids[-1:] if decode else row.prompt[row.reused :] for row in rows]
        longest = max(len(ids) for ids in fed)
        # Padding goes behind the prompt, where nothing looks at it.
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in fed], device=self.device)
        starts = torch.tensor([row.length - 1 if decode else row.reused for row in rows], device=self.device)
        positions = starts.unsqueeze(1) + torch.arange(longest, device=self.device)
        # Padding behind a prompt that was mostly taken over may reach past its slot, into the next one: it is written
        # to the slot's last place, which no prompt fills.
        positions = positions.clamp(max=self.cache.length - 1)
        self.cache.begin(first, positions, max(row.length for row in rows))
        if self.packed is not None:
            hidden = self.packed.forward(padded, positions, self.cache)
        else:
            hidden = self.source.model(padded, positions, None, self.cache)
        last = torch.tensor([len(ids) - 1 for ids in fed], device=self.device)
        hidden = hidden[torch.arange(len(rows), device=self.device), last]
        return self.packed.logits(hidden) if self.packed is not None else F.linear(hidden, self.source.head_weight)

    def _steer(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """Logits after the penalties and constraints of the rows that have any."""
        for slot, row in enumerate(self._running):
            if row.seen is not None and row.counts is not None:
                one = penalise(logits[slot : slot + 1], row.seen[None], row.counts[None], [row.request])
                logits[slot] = one[0]
            allowed = row.constraint.allowed() if row.constraint is not None else None
            if allowed is not None:
                logits[slot, : len(allowed)].masked_fill_(~allowed.to(self.device), -torch.inf)
                logits[slot, len(allowed) :] = -torch.inf
        return logits

    def _append(self, row: _Running, token: int, logprob: float, top: TopLogprobs) -> Piece:
        tops = [top[: row.request.top_logprobs]] if row.request.top_logprobs else []
        row.ids.append(token)
        row.logprobs.append(logprob)
        row.top_logprobs += tops
        if row.seen is not None and row.counts is not None:
            row.seen[token] = True
            row.counts[token] += 1
        text = row.stream.push(token)
        reason: FinishReason | None = None
        if token in row.stop_ids or row.stream.stopped:
            reason = "stop"
        elif len(row.ids) >= row.request.max_new_tokens:
            reason = "length"
        elif row.length >= self.max_length:
            reason = "context"
        elif row.constraint is not None:
            row.constraint.accept(token)
        text += row.stream.finish() if reason else ""
        row.texts.append(text)
        done = None
        if reason is not None:
            written = "".join(row.texts)
            done = Completion(row.id, row.prompt, row.ids, row.logprobs, written, reason, row.top_logprobs, row.reused)
        return Piece(row.id, text, done, [token], [logprob], tops)

    def _leave(self, slot: int) -> None:
        """Free a slot: the last running row moves there, and what the slot held moves behind, for later prompts."""
        last = len(self._running) - 1
        for i in {slot, last}:
            # The token sampled last was never fed back, so it is not stored. A row without any is one whose prompt may
            # not have been computed, since its step failed: what is stored is known already.
            if self._running[i].ids:
                self._stored[i] = (self._running[i].prompt + self._running[i].ids)[: self._running[i].length - 1]
        self._left[slot] = next(self._clock)
        self._exchange(slot, last)
        self._running[slot] = self._running[last]
        self._running.pop()
        if self.packed is None and not self._running:
            # The weights of a live model may change unseen.
            self.forget()


def _shared(prompt: list[int], stored: list[int]) -> int:
    """How many tokens a prompt may take over: the last one must be computed, and a few are not worth it."""
    high = min(len(prompt) - 1, len(stored))
    if high < SHORTEST_PREFIX or prompt[:SHORTEST_PREFIX] != stored[:SHORTEST_PREFIX]:
        return 0
    if prompt[:high] == stored[:high]:
        return high
    low = SHORTEST_PREFIX
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if prompt[low:middle] == stored[low:middle] else (low, middle)
    return low


def _rows(drawn: Drawn) -> Iterator[tuple[int, float, TopLogprobs]]:
    """Token, log-probability and the likeliest tokens of each row; those that cannot come (-inf) are left out."""
    columns = (drawn.tokens, drawn.logprobs, drawn.top_tokens, drawn.top_logprobs)
    for token, logprob, ids, values in zip(*(column.tolist() for column in columns), strict=True):
        yield token, logprob, [pair for pair in zip(ids, values, strict=True) if pair[1] > float("-inf")]


def _groups(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of neighbouring prompts, of these lengths, that fit one forward pass."""
    first = 0
    for i in range(1, len(lengths) + 1):
        if i == len(lengths) or (i + 1 - first) * max(lengths[first : i + 1]) > PREFILL_TOKENS:
            yield first, i - first
            first = i

"""The engine: many requests share one model, one cache and one forward pass a step (continuous batching)."""

import copy
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
from cutaway.generation.defaults import stop_ids
from cutaway.generation.kv_cache import KVCache
from cutaway.generation.sampling import Drawn, Sampling, penalise, sample, uniform
from cutaway.generation.stop import TextStream
from cutaway.model.transformer import CausalLM
from cutaway.tokenization.tokenizer import Tokenizer

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
    its slot. The model is used live; with a `dtype` other than its own, a copy is, and `refresh` brings it up to date.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        slots: int = 16,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`max_length` bounds prompt and answer together (default: the model's `max_position_embeddings`)."""
        weight = model.head_weight
        self.source, self.tokenizer, self.dtype = model, tokenizer, dtype or weight.dtype
        self.model = model if self.dtype == weight.dtype else _cast_copy(model, self.dtype)
        self.device = weight.device
        self.max_length = max_length or model.config.max_position_embeddings
        self.cache = KVCache(model.config, slots, self.max_length, self.dtype, self.device)
        own = model.config.eos_token_id
        self.stop_ids = frozenset(stop_ids(tokenizer)) | frozenset([own] if isinstance(own, int) else own or ())
        self._ids = itertools.count()
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._finished: list[Completion] = []

    def refresh(self) -> None:
        """Take over the present weights of the model, where the engine works on a copy of another dtype."""
        if self.model is not self.source:
            for mine, theirs in zip(self.model.parameters(), self.source.parameters(), strict=True):
                mine.data.copy_(theirs.data)

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
        if min(prompt) < 0 or max(prompt) >= self.model.config.vocab_size:
            raise UserError(f"the prompt holds ids outside the model's vocabulary of {self.model.config.vocab_size}")
        if request.top_logprobs < 0:
            raise UserError(f"top_logprobs is {request.top_logprobs}, must be 0 (none) or more")
        ends = self.stop_ids if request.stop_ids is None else frozenset(request.stop_ids)
        seen = counts = None
        if request.penalises:
            counts = torch.zeros(self.model.config.vocab_size, device=self.device)
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
        new = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.cache.slots - old))]
        # Prompts of like length share a forward pass with little padding.
        new.sort(key=lambda row: len(row.prompt))
        self._running += new
        logits = [self._forward(0, self._running[:old], decode=True)] if old else []
        for first, count in _groups([len(row.prompt) for row in new]):
            rows = new[first : first + count]
            logits.append(self._forward(old + first, rows, decode=False))
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

    def _forward(self, first: int, rows: list[_Running], decode: bool) -> Float[Tensor, "batch vocab"]:
        """Logits after the last token of each row: of that token alone (`decode`), or of the whole prompt."""
        fed = [row.ids[-1:] if decode else row.prompt for row in rows]
        longest = max(len(ids) for ids in fed)
        # Padding goes behind the prompt, where nothing looks at it.
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in fed], device=self.device)
        starts = torch.tensor([row.length - 1 if decode else 0 for row in rows], device=self.device)
        positions = starts.unsqueeze(1) + torch.arange(longest, device=self.device)
        self.cache.begin(first, positions, max(row.length for row in rows))
        hidden = self.model.model(padded, positions, None, self.cache)
        last = torch.tensor([len(ids) - 1 for ids in fed], device=self.device)
        rows_index = torch.arange(len(rows), device=self.device)
        return F.linear(hidden[rows_index, last], self.model.head_weight)

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
            done = Completion(row.id, row.prompt, row.ids, row.logprobs, written, reason, row.top_logprobs)
        return Piece(row.id, text, done, [token], [logprob], tops)

    def _leave(self, slot: int) -> None:
        last = self._running.pop()
        if slot < len(self._running):
            self._running[slot] = last
            self.cache.move(len(self._running), slot, last.length)


def _rows(drawn: Drawn) -> Iterator[tuple[int, float, TopLogprobs]]:
    """Token, log-probability and the likeliest tokens of each row; those that cannot come (-inf) are left out."""
    columns = (drawn.tokens, drawn.logprobs, drawn.top_tokens, drawn.top_logprobs)
    for token, logprob, ids, values in zip(*(column.tolist() for column in columns), strict=True):
        yield token, logprob, [pair for pair in zip(ids, values, strict=True) if pair[1] > float("-inf")]


def _groups(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of neighbouring prompts, given in ascending length, that fit one forward pass."""
    first = 0
    for i in range(1, len(lengths) + 1):
        if i == len(lengths) or (i + 1 - first) * lengths[i] > PREFILL_TOKENS:
            yield first, i - first
            first = i


def _cast_copy(model: CausalLM, dtype: torch.dtype) -> CausalLM:
    # Parameters only: the rotary frequencies must stay fp32, or far positions lose their angle.
    shadow = copy.deepcopy(model)
    for parameter in shadow.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype)
    return shadow.eval()

"""Log-likelihoods of continuations: what many share in front is computed once, and rows are packed.

The queries of a group (those with the same worked examples) begin with the same tokens: these go through the model once
and stay as keys and values. The rest of a query is one tree, its own context and behind it every continuation, each
of which sees the context and itself only. Trees of like length are packed into rows. The last layer and the logits are
computed only where a continuation's token is predicted: four answer letters after one prompt take one row of the head.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.data.packing import pack_best_fit
from cutaway.errors import UserError
from cutaway.model.transformer import CausalLM
from cutaway.training.precision import autocast

LEAST_SHARED = 16
"""A beginning of fewer tokens costs less to compute again than to look up."""
BATCH_TOKENS, CPU_BATCH_TOKENS = 4096, 2048
"""Tokens of a batch; on a processor, whose caches are small, more of them took 10 to 40 % longer."""
HEAD_NUMBERS = 2**26
"""Most logits held at a time."""


@dataclass(frozen=True)
class Query:
    """Score each of `continuations` after `context`; none of them empty. Queries of one `group` begin alike."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]
    group: Hashable = None


@dataclass(frozen=True)
class Scores:
    """The log-likelihoods, and what it took."""

    sums: list[list[float]]
    """For each query, in nats: of each continuation the sum over its tokens."""
    cut: int
    """Queries whose context was cut at its beginning, since the model's is shorter."""
    fed: int
    """Tokens that went through the model, padding included."""
    padding: int


@dataclass(frozen=True)
class _Tree:
    """A context with its continuations: (query, number of the continuation) and their tokens."""

    context: Sequence[int]
    branches: Sequence[tuple[tuple[int, int], Sequence[int]]]

    @property
    def length(self) -> int:
        """Tokens to feed; the last one of a branch predicts nothing that is asked for."""
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.branches)


@torch.inference_mode()
def loglikelihoods(
    model: CausalLM,
    queries: Sequence[Query],
    *,
    dtype: torch.dtype = torch.float32,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    r"""$\log p(y_1 \ldots y_n \mid x) = \sum_t \log p(y_t \mid x, y_{<t})$ for every continuation $y$ of a context $x$.

    Where context and continuation exceed the model's `max_position_embeddings`, the context loses its beginning, as in
    lm-eval. `progress(done, total)` hears of trees. Raises UserError for an id outside the vocabulary, an empty
    context or continuation, and a continuation that does not fit the model at all.
    """
    groups, cut = _plant(queries, model.config.max_position_embeddings, model.config.vocab_size)
    sums = [[0.0] * len(query.continuations) for query in queries]
    total, done, fed, padding = sum(len(trees) for _, trees in groups), 0, 0, 0
    device = model.head_weight.device
    if batch_tokens is None:
        batch_tokens = CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS
    with autocast(device, dtype):
        for header, trees in groups:
            prefix = _Prefix.of(model, header) if header else None
            fed += len(header)
            for chunk in _chunks(trees, batch_tokens):
                rows = _Rows.pack(chunk)
                for (query, number), value in _score(model, rows, prefix).items():
                    sums[query][number] += value
                fed += rows.ids.size
                padding += int((rows.tree < 0).sum())
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    return Scores(sums, cut, fed, padding)


def _plant(queries: Sequence[Query], longest: int, vocab: int) -> tuple[list[tuple[Sequence[int], list[_Tree]]], int]:
    """Trees by shared beginning, and the number of queries whose context had to be cut."""
    by_group: dict[Hashable, list[_Tree]] = {}
    alone: list[_Tree] = []
    cut = 0
    for number, query in enumerate(queries):
        _check(query, longest, vocab)
        # The longer a continuation, the less of a long context it leaves: those that leave the same share it.
        kept: dict[int, list[tuple[tuple[int, int], Sequence[int]]]] = {}
        for i, tokens in enumerate(query.continuations):
            kept.setdefault(min(len(query.context), longest + 1 - len(tokens)), []).append(((number, i), tokens))
        cut += min(kept) < len(query.context)
        for size, branches in kept.items():
            whole = size == len(query.context)
            key = number if query.group is None else ("group", query.group)
            trees = by_group.setdefault(key, []) if whole else alone
            trees.append(_Tree(query.context[-size:], branches))
    groups: list[tuple[Sequence[int], list[_Tree]]] = []
    for trees in by_group.values():
        shared = _common(trees) if len(trees) > 1 else 0
        if shared < LEAST_SHARED:
            alone += trees
            continue
        groups.append((trees[0].context[:shared], [_Tree(tree.context[shared:], tree.branches) for tree in trees]))
    return [*groups, ((), alone)] if alone else groups, cut


def _check(query: Query, longest: int, vocab: int) -> None:
    if not query.context or not query.continuations or not all(query.continuations):
        raise UserError("a question or an answer without a token cannot be scored")
    most = max(map(len, query.continuations))
    if most > longest:
        raise UserError(f"an answer has {most} tokens, the model holds {longest}")
    ids = [*query.context, *(token for tokens in query.continuations for token in tokens)]
    if max(ids) >= vocab or min(ids) < 0:
        raise UserError(f"token {max(ids)} is outside the model's vocabulary of {vocab}")


def _common(trees: Sequence[_Tree]) -> int:
    """Tokens that all contexts begin with, at least one left to each."""
    shortest = min(len(tree.context) for tree in trees) - 1
    if shortest <= 0:
        return 0
    table = np.array([tree.context[:shortest] for tree in trees])
    differs = (table != table[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest


def _chunks(trees: Sequence[_Tree], batch_tokens: int) -> Iterator[list[_Tree]]:
    """Trees of like length, the longest first, so that memory shows at once whether it suffices."""
    chunk: list[_Tree] = []
    size = 0
    for tree in sorted(trees, key=lambda tree: -tree.length):
        if chunk and size + tree.length > batch_tokens:
            yield chunk
            chunk, size = [], 0
        chunk.append(tree)
        size += tree.length
    if chunk:
        yield chunk


@dataclass(frozen=True)
class _Rows:
    """Packed trees. Padding has tree -1; `branch` is 0 in a context, else it counts from 1."""

    ids: Int[np.ndarray, "rows seq"]
    depth: Int[np.ndarray, "rows seq"]
    """Position within context and continuation."""
    tree: Int[np.ndarray, "rows seq"]
    branch: Int[np.ndarray, "rows seq"]
    places: Int[np.ndarray, "predicted"]
    """Flat places whose next token is predicted, and that token."""
    targets: Int[np.ndarray, "predicted"]
    owners: list[tuple[int, int]]

    @classmethod
    def pack(cls, trees: Sequence[_Tree]) -> "_Rows":
        width = max(tree.length for tree in trees)
        packed = pack_best_fit([tree.length for tree in trees], width)
        shape = (len(packed), width)
        ids, depth, branch = (np.zeros(shape, np.int64) for _ in range(3))
        number = np.full(shape, -1, np.int64)
        places: list[int] = []
        targets: list[int] = []
        owners: list[tuple[int, int]] = []
        for row, members in enumerate(packed):
            at = 0
            for member in members:
                tree = trees[member]
                number[row, at : at + tree.length] = member
                size = len(tree.context)
                ids[row, at : at + size], depth[row, at : at + size] = tree.context, np.arange(size)
                last = row * width + at + size - 1
                at += size
                for count, (owner, tokens) in enumerate(tree.branches, start=1):
                    more = len(tokens) - 1
                    ids[row, at : at + more] = tokens[:-1]
                    depth[row, at : at + more] = size + np.arange(more)
                    branch[row, at : at + more] = count
                    places += [last, *range(row * width + at, row * width + at + more)]
                    targets += tokens
                    owners += [owner] * len(tokens)
                    at += more
        return cls(ids, depth, number, branch, np.array(places), np.array(targets), owners)

    @property
    def plain(self) -> bool:
        """Whether every row is one context and nothing else: then causal attention without a mask is right."""
        return not self.branch.any() and bool(((self.tree == self.tree[:, :1]) | (self.tree < 0)).all())

    def mask(self, device: torch.device) -> Bool[Tensor, "rows 1 seq seq"]:
        """A token sees the earlier ones of its tree that are context or of its own branch. Padding sees itself."""
        tree, branch = torch.from_numpy(self.tree).to(device), torch.from_numpy(self.branch).to(device)
        width = tree.shape[1]
        same = (tree.unsqueeze(2) == tree.unsqueeze(1)) & torch.ones(
            width, width, dtype=torch.bool, device=device
        ).tril()
        seen = (branch.unsqueeze(1) == 0) | (branch.unsqueeze(2) == branch.unsqueeze(1))
        return (same & seen).unsqueeze(1)


class _Prefix:
    """Keys and values of a shared beginning, as a cache that stands in front of every row (`model.attention.Cache`)."""

    mask: Bool[Tensor, "batch 1 seq length"]

    def __init__(self, length: int, device: torch.device) -> None:
        self.length = length
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.recording = True
        self.mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]

    @classmethod
    def of(cls, model: CausalLM, header: Sequence[int]) -> "_Prefix":
        device = model.head_weight.device
        prefix = cls(len(header), device)
        ids = torch.tensor([list(header)], device=device)
        nowhere = ids.new_zeros(1, 1)  # the last layer's keys and values are all that is wanted of it
        model.model(ids, torch.arange(len(header), device=device).unsqueeze(0), None, prefix, places=nowhere)
        prefix.recording = False
        return prefix

    def update(
        self, layer: int, k: Float[Tensor, "batch kv seq head_dim"], v: Float[Tensor, "batch kv seq head_dim"]
    ) -> tuple[Float[Tensor, "batch kv length head_dim"], Float[Tensor, "batch kv length head_dim"]]:
        """The first pass is kept, every later one is given what was kept in front of its own."""
        if self.recording:
            self.layers.append((k, v))
            return k, v
        rows = k.shape[0]
        first = (kept.expand(rows, -1, -1, -1) for kept in self.layers[layer])
        return torch.cat([next(first), k], 2), torch.cat([next(first), v], 2)


def _score(model: CausalLM, rows: _Rows, prefix: _Prefix | None) -> dict[tuple[int, int], float]:
    device = model.head_weight.device
    mask = None if prefix is None and rows.plain else rows.mask(device)
    before = 0
    if prefix is not None and mask is not None:
        before = prefix.length
        prefix.mask = F.pad(mask, (before, 0), value=True)
    ids, positions = torch.from_numpy(rows.ids).to(device), torch.from_numpy(rows.depth + before).to(device)
    places, which = np.unique(rows.places, return_inverse=True)
    row, place = np.divmod(places, rows.ids.shape[1])
    slot = np.arange(len(row)) - np.searchsorted(row, row)
    asked = np.zeros((len(rows.ids), int(slot.max()) + 1), np.int64)
    asked[row, slot] = place
    hidden = model.model(
        ids, positions, mask if prefix is None else None, prefix, places=torch.from_numpy(asked).to(device)
    )[torch.from_numpy(row).to(device), torch.from_numpy(slot).to(device)]
    targets = torch.from_numpy(rows.targets).to(device)
    values = torch.empty(len(targets), dtype=torch.float64)
    step = max(1, HEAD_NUMBERS // model.config.vocab_size)
    for start in range(0, len(places), step):
        logits = F.linear(hidden[start : start + step], model.head_weight).float()
        mine = np.flatnonzero((which >= start) & (which < start + step))
        of, token = torch.from_numpy(which[mine] - start).to(device), targets[torch.from_numpy(mine).to(device)]
        logprobs = logits[of, token] - logits.logsumexp(-1)[of]
        values[torch.from_numpy(mine)] = logprobs.double().cpu()
    sums: dict[tuple[int, int], float] = {}
    for owner, value in zip(rows.owners, values.tolist(), strict=True):
        sums[owner] = sums.get(owner, 0.0) + value
    return sums

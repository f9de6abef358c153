"""From episodes to what is trained on: one row of tensors an episode, and the passes without a gradient over them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.data.batch import Batch, moved
from cutaway.objectives.next_token import IGNORE
from cutaway.rl.environment import Episode

Row = Float[Tensor, " _"]


def side_by_side(device: torch.device) -> int:
    """Most tokens, padding included, that go through a model together on this device.

    Answers of like length go together: the smaller the groups, the less padding. A CPU is busy with few tokens."""
    return 1024 if device.type == "cpu" else 16384


@dataclass
class Sample:
    """An episode as it is trained on. `ids` has one token more than the rest: entry t belongs to the token that
    follows `ids[t]`. What is not known yet is empty; what is not the policy's own counts nowhere."""

    ids: Int[Tensor, " _"]
    own: Bool[Tensor, " row"]
    """The policy wrote the token."""
    trained: Bool[Tensor, " row"]
    """The token is trained on: its own, unless its answer is left out."""
    sampler_logprobs: Float[Tensor, " row"]
    place: int
    """Number of the answer in the rollout, over all ranks."""
    advantages: Row = field(default_factory=lambda: torch.empty(0))
    old_logprobs: Row = field(default_factory=lambda: torch.empty(0))
    """Of the policy that wrote it, as the trainer computes them."""
    ref_logprobs: Row = field(default_factory=lambda: torch.empty(0))
    values: Row = field(default_factory=lambda: torch.empty(0))
    returns: Row = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def of(cls, episode: Episode, place: int, left_out: bool = False) -> "Sample":
        """An episode's tokens; `left_out` trains none of them."""
        own = torch.tensor(episode.own[1:])
        trained = torch.zeros_like(own) if left_out else own
        return cls(torch.tensor(episode.ids), own, trained, torch.tensor(episode.logprobs[1:]), place)

    def __len__(self) -> int:
        return len(self.own)


@dataclass
class Minibatch:
    """Samples side by side, padded behind."""

    input_ids: Int[Tensor, "batch seq"]
    targets: Int[Tensor, "batch seq"]
    documents: Int[Tensor, "batch seq"]
    """0, and -1 where padding is, which the routers' losses leave out."""
    own: Bool[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]
    """Tokens that are trained on."""
    sampler_logprobs: Float[Tensor, "batch seq"]
    advantages: Float[Tensor, "batch seq"]
    old_logprobs: Float[Tensor, "batch seq"] | None
    """None where the policy has not moved since the rollout: then the present ones are the old ones."""
    ref_logprobs: Float[Tensor, "batch seq"] | None
    values: Float[Tensor, "batch seq"] | None
    returns: Float[Tensor, "batch seq"] | None
    answers: int
    """Rows that count in the divisor: none where a rank has nothing to do and only goes along."""
    tokens: int
    """Tokens that are not padding."""
    first: bool
    """Of the rollout's first update: where the policy is still the one that wrote the answers."""

    def to(self, device: torch.device | str) -> "Minibatch":
        """On another device."""
        changes = {name: moved(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Minibatch(**{**vars(self), **changes})

    def rows(self) -> Batch:
        """As rows of one document each, for what looks at these and at padding only."""
        positions = torch.arange(self.targets.shape[1], device=self.targets.device).expand_as(self.targets)
        return Batch(self.input_ids, torch.where(self.mask, self.targets, IGNORE), positions, self.documents)

    def useful_tokens(self) -> int:
        """Tokens that are not padding."""
        return self.tokens


def collate(samples: Sequence[Sample], *, counted: bool = True, first: bool = False) -> Minibatch:
    """Samples of like length side by side. Those that are not `counted` are trained on nothing."""
    longest = max(len(sample) for sample in samples)

    def padded(rows: Sequence[Tensor], size: int) -> Tensor:
        out = rows[0].new_zeros(len(rows), size)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return out

    def known(name: str) -> Tensor | None:
        rows = [getattr(sample, name) for sample in samples]
        return padded(rows, longest) if all(len(row) for row in rows) else None

    ids = padded([sample.ids for sample in samples], longest + 1)
    lengths = torch.tensor([[len(sample)] for sample in samples])
    mask = padded([sample.trained for sample in samples], longest)
    advantages = known("advantages")
    return Minibatch(
        input_ids=ids[:, :-1],
        targets=ids[:, 1:],
        documents=torch.where(torch.arange(longest) < lengths, 0, -1),
        own=padded([sample.own for sample in samples], longest),
        mask=mask if counted else torch.zeros_like(mask),
        sampler_logprobs=padded([sample.sampler_logprobs for sample in samples], longest),
        advantages=torch.zeros(mask.shape) if advantages is None else advantages,
        old_logprobs=known("old_logprobs"),
        ref_logprobs=known("ref_logprobs"),
        values=known("values"),
        returns=known("returns"),
        answers=len(samples) if counted else 0,
        tokens=sum(len(sample) for sample in samples) if counted else 0,
        first=first,
    )


def by_length(samples: Sequence[Sample], tokens: int) -> Iterator[list[Sample]]:
    """Samples in groups of like length, of at most `tokens` tokens with padding (a longer one goes alone)."""
    ordered = sorted(samples, key=len)
    start = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or (end + 1 - start) * len(ordered[end]) > tokens:
            yield ordered[start:end]
            start = end


@torch.no_grad()
def measure(
    samples: Sequence[Sample],
    forward: Callable[[Minibatch], Sequence[Float[Tensor, "batch seq"]]],
    names: Sequence[str],
    device: torch.device,
) -> None:
    """Fill fields of all samples with what `forward` computes, one field for each name, a group at a time."""
    for group in by_length(samples, side_by_side(device)):
        for name, values in zip(names, forward(collate(group).to(device)), strict=True):
            for sample, row in zip(group, values.cpu(), strict=True):
                setattr(sample, name, row[: len(sample)].clone())


def split_evenly(samples: Sequence[Sample], parts: int) -> list[list[Sample]]:
    """Samples, ordered by length, in so many groups of about equal numbers; some may be empty."""
    ordered = sorted(samples, key=lambda sample: (len(sample), sample.place))
    bounds = [len(ordered) * i // parts for i in range(parts + 1)]
    return [ordered[bounds[i] : bounds[i + 1]] for i in range(parts)]

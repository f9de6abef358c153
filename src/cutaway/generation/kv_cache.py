"""Keys and values of the tokens seen so far, kept so that each new token costs one forward pass of itself alone."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig

FIRST_LENGTH = 256
"""Positions allocated at the start; doubled when they are full, up to `max_length`."""


class KVCache:
    """One preallocated tensor each for keys and values, `[layers, slots, kv_heads, length, head_dim]`.

    A slot holds one sequence; position p of the sequence is index p of the slot. A forward pass concerns a run of
    neighbouring slots, named by `begin`, so attention reads a view of the tensor and nothing is gathered. What lies
    behind the position of a token is never looked at and is overwritten when the sequence gets there, so a freed slot
    needs no clearing and padding may be written. Satisfies `model.attention.Cache`.
    """

    mask: Bool[Tensor, "batch 1 seq length"]

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Room for `slots` sequences of at most `max_length` tokens. UserError where either is below 1."""
        if slots < 1 or max_length < 1:
            raise UserError(f"a cache of {slots} slots of {max_length} tokens: both must be at least 1")
        self.config, self.slots, self.max_length = config, slots, max_length
        shape = self._shape(slots, min(max_length, FIRST_LENGTH))
        # Zeros, because a masked position counts 0 x value, and 0 x NaN of unset memory would be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def _shape(self, slots: int, length: int) -> tuple[int, int, int, int, int]:
        config = self.config
        return (config.num_hidden_layers, slots, config.num_key_value_heads, length, config.head_dim)

    @property
    def length(self) -> int:
        """Positions that a slot has room for now."""
        return self.keys.shape[3]

    def num_bytes(self, length: int | None = None) -> int:
        """2 x layers x slots x kv_heads x length x head_dim x bytes of a number; `length` is the one allocated now."""
        size = 2 * self.keys.element_size()
        for extent in self._shape(self.slots, length or self.length):
            size *= extent
        return size

    def reserve(self, length: int) -> None:
        """Make room for `length` positions a slot, by doubling. UserError beyond `max_length`."""
        if length > self.max_length:
            raise UserError(f"{length} tokens do not fit into the context of {self.max_length}")
        if length <= self.length:
            return
        old, room = self.length, min(self.max_length, max(length, 2 * self.length))
        for name in ("keys", "values"):
            before: Tensor = getattr(self, name)
            grown = before.new_zeros(self._shape(self.slots, room))
            grown[:, :, :, :old] = before
            setattr(self, name, grown)

    def begin(self, first: int, positions: Int[Tensor, "batch seq"], length: int) -> None:
        """Announce a forward pass: row i of the batch is slot `first + i`, its tokens are at `positions`.

        `length` is the largest position plus one, known to the caller without asking the device.
        """
        self.reserve(length)
        self._first, self._positions, self._length = first, positions, length
        self._rows = torch.arange(first, first + positions.shape[0], device=positions.device).unsqueeze(1)
        seen = torch.arange(length, device=positions.device)
        self.mask = (seen <= positions.unsqueeze(-1)).unsqueeze(1)

    def update(
        self, layer: int, k: Float[Tensor, "batch kv seq head_dim"], v: Float[Tensor, "batch kv seq head_dim"]
    ) -> tuple[Float[Tensor, "batch kv length head_dim"], Float[Tensor, "batch kv length head_dim"]]:
        """Store a layer's new keys and values at the announced places; give back all up to the announced length."""
        last = self._first + k.shape[0]
        found = []
        for store, new in ((self.keys[layer], k), (self.values[layer], v)):
            store[self._rows, :, self._positions] = new.transpose(1, 2).to(store.dtype)
            found.append(store[self._first : last, :, : self._length].to(new.dtype))
        return found[0], found[1]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot over another, so that the slots in use stay neighbours."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]

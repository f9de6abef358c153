"""Keys and values of the tokens seen so far, kept so that each new token costs one forward pass of itself alone."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig

FIRST_LENGTH = 256
"""Positions allocated at the start; doubled when they are full, up to `max_length`."""


class KVCache:
    """One preallocated tensor for keys and values, `[layers, slots, length, 2 x kv_heads, head_dim]`.

    A slot holds one sequence; position p of the sequence is index p of the slot, its keys and values side by side, so
    that a token is stored in one step. A forward pass concerns a run of neighbouring slots, named by `begin`, so
    attention reads a view of the tensor and nothing is gathered. What lies behind the position of a token is never
    looked at and is overwritten when the sequence gets there, so a freed slot needs no clearing and padding may be
    written. Satisfies `model.attention.Cache`.
    """

    mask: Float[Tensor, "batch 1 seq length"]

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
        self.kv_heads = config.num_key_value_heads
        # Zeros, because a masked position counts 0 x value, and 0 x NaN of unset memory would be NaN.
        self.store = torch.zeros(self._shape(slots, min(max_length, FIRST_LENGTH)), dtype=dtype, device=device)

    def _shape(self, slots: int, length: int) -> tuple[int, int, int, int, int]:
        config = self.config
        return (config.num_hidden_layers, slots, length, 2 * self.kv_heads, config.head_dim)

    @property
    def keys(self) -> Float[Tensor, "layers slots kv length head_dim"]:
        """All keys, a view."""
        return self.store[:, :, :, : self.kv_heads].transpose(2, 3)

    @property
    def values(self) -> Float[Tensor, "layers slots kv length head_dim"]:
        """All values, a view."""
        return self.store[:, :, :, self.kv_heads :].transpose(2, 3)

    @property
    def length(self) -> int:
        """Positions that a slot has room for now."""
        return self.store.shape[2]

    def num_bytes(self, length: int | None = None) -> int:
        """2 x layers x slots x kv_heads x length x head_dim x bytes of a number; `length` is the one allocated now."""
        size = self.store.element_size()
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
        grown = self.store.new_zeros(self._shape(self.slots, room))
        grown[:, :, :old] = self.store
        self.store = grown

    def begin(self, first: int, positions: Int[Tensor, "batch seq"], length: int) -> None:
        """Announce a forward pass: row i of the batch is slot `first + i`, its tokens are at `positions`.

        `length` is the largest position plus one, known to the caller without asking the device.
        """
        self.reserve(length)
        self._first, self._last, self._length = first, first + positions.shape[0], length
        rows = torch.arange(self._first, self._last, device=positions.device).unsqueeze(1)
        self._places = (rows * self.length + positions).flatten()
        # The views of all layers at once: slicing them one by one cost a tenth of a decoding step.
        self._flat = self.store.flatten(1, 2).unbind()
        both = self.store[:, self._first : self._last, : self._length].transpose(2, 3)
        self._keys, self._values = both[:, :, : self.kv_heads].unbind(), both[:, :, self.kv_heads :].unbind()
        seen = torch.arange(length, device=positions.device)
        hidden = (seen > positions.unsqueeze(-1)).unsqueeze(1)
        # Added to the scores: a boolean mask would be turned into this again by every layer.
        self.mask = torch.zeros(hidden.shape, dtype=self.store.dtype, device=hidden.device)
        self.mask.masked_fill_(hidden, -torch.inf)

    def write(self, layer: int, keys_values: Float[Tensor, "batch seq two_kv head_dim"]) -> None:
        """Store the new tokens of a layer at the announced places: their keys, then their values."""
        self._flat[layer].index_copy_(0, self._places, keys_values.flatten(0, 1).to(self.store.dtype))

    def read(
        self, layer: int
    ) -> tuple[Float[Tensor, "batch kv length head_dim"], Float[Tensor, "batch kv length head_dim"]]:
        """Keys and values of the announced slots up to the announced length."""
        return self._keys[layer], self._values[layer]

    def update(
        self, layer: int, k: Float[Tensor, "batch kv seq head_dim"], v: Float[Tensor, "batch kv seq head_dim"]
    ) -> tuple[Float[Tensor, "batch kv length head_dim"], Float[Tensor, "batch kv length head_dim"]]:
        """`write`, then `read` in the dtype of what was written."""
        self.write(layer, torch.cat((k, v), dim=1).transpose(1, 2))
        keys, values = self.read(layer)
        return keys.to(k.dtype), values.to(v.dtype)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot over another."""
        self.store[:, target, :length] = self.store[:, source, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` positions of two slots."""
        self.store[:, [one, other], :length] = self.store[:, [other, one], :length]

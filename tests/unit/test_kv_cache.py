import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import UserError
from cutaway.generation.kv_cache import FIRST_LENGTH, KVCache
from generation_helpers import tiny_model


@pytest.mark.parametrize("qk_norm", [False, True])
def test_cached_logits_equal_the_full_forward(qk_norm: bool) -> None:
    model = tiny_model(qk_norm)
    ids = torch.randint(0, model.config.vocab_size, (3, 24), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(24).expand(3, 24)
    cache = KVCache(model.config, slots=5, max_length=24)
    with torch.no_grad():
        full = model(ids)
        parts = []
        for start, end in ((0, 10), (10, 11), (11, 20), *((i, i + 1) for i in range(20, 24))):
            cache.begin(1, positions[:, start:end], end)
            parts.append(model(ids[:, start:end], positions=positions[:, start:end], cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 2))
def test_padding_and_neighbours_change_nothing(lengths: list[int], first: int) -> None:
    model = tiny_model()
    generator = torch.Generator().manual_seed(sum(lengths))
    longest = max(lengths)
    ids = torch.randint(0, model.config.vocab_size, (len(lengths), longest), generator=generator)
    cache = KVCache(model.config, slots=6, max_length=16)
    cache.keys.normal_(generator=generator)
    cache.values.normal_(generator=generator)
    positions = torch.arange(longest).expand(len(lengths), longest)
    nexts = torch.tensor(lengths).unsqueeze(1)
    token = torch.randint(0, model.config.vocab_size, (len(lengths), 1), generator=generator)
    with torch.no_grad():
        cache.begin(first, positions, longest)
        model(ids, positions=positions, cache=cache)
        cache.begin(first, nexts, longest + 1)
        logits = model(token, positions=nexts, cache=cache)
        for row, length in enumerate(lengths):
            alone = model(torch.cat((ids[row : row + 1, :length], token[row : row + 1]), dim=1))
            torch.testing.assert_close(logits[row, 0], alone[0, -1], atol=1e-5, rtol=0)


def test_growing_keeps_what_is_stored_and_stops_at_the_limit() -> None:
    config = tiny_model().config
    cache = KVCache(config, slots=2, max_length=FIRST_LENGTH + 10)
    assert cache.length == FIRST_LENGTH
    cache.keys.fill_(3.0)
    cache.reserve(FIRST_LENGTH + 1)
    assert cache.length == FIRST_LENGTH + 10
    assert (cache.keys[:, :, :, :FIRST_LENGTH] == 3).all() and (cache.keys[:, :, :, FIRST_LENGTH:] == 0).all()
    with pytest.raises(UserError, match="266"):
        cache.reserve(FIRST_LENGTH + 11)
    with pytest.raises(UserError):
        KVCache(config, slots=0, max_length=4)


def test_bytes_are_those_of_the_tensors() -> None:
    config = tiny_model().config
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        cache = KVCache(config, slots=3, max_length=100, dtype=dtype)
        assert cache.num_bytes() == cache.keys.nbytes + cache.values.nbytes == 2 * 2 * 3 * 2 * 100 * 8 * size
        assert cache.num_bytes(50) * 2 == cache.num_bytes()


def test_move_copies_a_slot() -> None:
    cache = KVCache(tiny_model().config, slots=3, max_length=8)
    cache.keys[:, 2] = 5.0
    cache.move(2, 0, 4)
    assert (cache.keys[:, 0, :, :4] == 5).all() and (cache.keys[:, 0, :, 4:] == 0).all()

"""Recorded decoding steps: what is rounded up changes nothing, and a refresh fills the same addresses. Shown without a
GPU, so nothing is recorded here; `benchmarks/gpu_run.py --parts equal` compares real recordings."""

import dataclasses

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cutaway.generation import decoder, recorded
from cutaway.generation.decoder import PackedDecoder
from cutaway.generation.engine import Completion, Engine, Request
from cutaway.generation.kv_cache import KVCache
from cutaway.generation.recorded import RecordedSteps, as_it_is
from cutaway.generation.sampling import Sampling
from generation_helpers import finish, tiny_model, tiny_tokenizer

SAMPLED = dataclasses.asdict(Sampling(temperature=1.3, top_p=0.98))


def engines(slots: int, monkeypatch: pytest.MonkeyPatch, recorder: recorded.Recorder) -> tuple[Engine, Engine]:
    """One whose steps are rounded up as for recording, and a plain one."""
    monkeypatch.setattr(recorded, "FIRST_LENGTH", 8)
    monkeypatch.setattr("cutaway.generation.kv_cache.FIRST_LENGTH", 8)
    one, other = (Engine(tiny_model(), tiny_tokenizer(), slots=slots, frozen=True) for _ in range(2))
    assert one.packed is not None and other.recorded is None
    one.recorded = RecordedSteps(one.packed, one.cache, lambda: recorder)
    return one, other


def same(one: dict[int, Completion], other: dict[int, Completion]) -> None:
    assert {key: done.ids for key, done in one.items()} == {key: done.ids for key, done in other.items()}
    for key, done in one.items():
        assert done.logprobs == pytest.approx(other[key].logprobs, abs=1e-4)
        assert done.reused == other[key].reused


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    slots=st.integers(1, 6),
    wanted=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=8),
)
def test_rounding_rows_and_length_up_changes_nothing(slots: int, wanted: list[tuple[int, int, int]]) -> None:
    """Prompts that begin alike take over what free slots hold, which the rows filled up must not have spoiled."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        one, other = engines(slots, monkeypatch, as_it_is)
        for engine in (one, other):
            for seed, (prompt, new, gap) in enumerate(wanted):
                engine.submit(Request([7] * prompt + [seed % 3], new, seed=seed, stop_ids=(), **SAMPLED))
                for _ in range(gap):
                    engine.step()
        same(finish(one), finish(other))


def test_a_step_is_recorded_once_for_its_rows_and_length_and_again_when_the_cache_has_grown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def noted(step: recorded.Step, fed: torch.Tensor) -> recorded.Step:
        made.append((fed.shape[1], one.cache.length))
        return as_it_is(step, fed)

    one, _ = engines(4, monkeypatch, noted)
    for new in (5, 5, 5):
        one.submit(Request([1, 2], new, stop_ids=()))
    finish(one)
    assert made == [(4, 8)]
    one.submit(Request([1, 2], 2, stop_ids=()))
    one.submit(Request([1, 2], 20, stop_ids=()))
    finish(one)
    assert made == [(4, 8), (2, 8), (1, 8), (1, 16), (1, 32)]


def test_where_nothing_can_be_recorded_it_goes_on_as_it_is_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unable(step: recorded.Step, fed: torch.Tensor) -> recorded.Step:
        raise RuntimeError("no graphs on this device\nCUDA error, and much more")

    one, other = engines(2, monkeypatch, unable)
    with caplog.at_level("INFO", "cutaway"):
        for engine in (one, other):
            engine.submit(Request([1, 2], 30, seed=3, stop_ids=(), **SAMPLED))
        same(finish(one), finish(other))
    assert [record.getMessage() for record in caplog.records] == [
        "decoding steps are not recorded here, and slower: no graphs on this device"
    ]


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_refresh_fills_every_weight_where_the_earlier_one_lay(
    qk_norm: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: matrices in their plain order, and a decoder that counts as recordable."""
    monkeypatch.setattr(decoder, "BLOCKED_FOR", {})
    monkeypatch.setattr(PackedDecoder, "recordable", True)
    packed, changed = PackedDecoder(tiny_model(qk_norm), dtype), tiny_model(qk_norm, seed=9)
    before, places = [one.clone() for one in packed.tensors()], [one.data_ptr() for one in packed.tensors()]
    packed.load(changed)
    assert [one.data_ptr() for one in packed.tensors()] == places
    fresh = PackedDecoder(changed, dtype)
    ids, positions = torch.tensor([[5, 9, 100]]), torch.arange(3)[None]
    hidden = []
    for one in (packed, fresh):
        cache = KVCache(changed.config, 1, 8, dtype)
        cache.begin(0, positions, 3)
        hidden.append(one.logits(one.forward(ids, positions, cache)[:, -1]))
    assert torch.equal(*hidden)
    assert not torch.equal(packed.tensors()[0], before[0])

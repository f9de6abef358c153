"""Recorded decoding steps: rounding up changes nothing, shown here without recording, and with it where a GPU is."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cutaway.generation import recorded
from cutaway.generation.engine import Completion, Engine, Request
from cutaway.generation.recorded import RecordedSteps, as_it_is
from cutaway.generation.sampling import Sampling
from generation_helpers import tiny_model, tiny_tokenizer

SAMPLED = dataclasses.asdict(Sampling(temperature=1.3, top_p=0.98))
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


def engines(device: str, slots: int, monkeypatch: pytest.MonkeyPatch, first_length: int = 8) -> tuple[Engine, Engine]:
    """One whose steps are recorded, or on a CPU rounded up in the same way and run as they are; and a plain one."""
    monkeypatch.setattr(recorded, "FIRST_LENGTH", first_length)
    monkeypatch.setattr("cutaway.generation.kv_cache.FIRST_LENGTH", first_length)
    model = copy.deepcopy(tiny_model()).to(device)
    one, other = (Engine(model, tiny_tokenizer(), slots=slots, frozen=True) for _ in range(2))
    assert one.packed is not None
    other.recorded = None
    if device == "cpu":
        one.recorded = RecordedSteps(one.packed, one.cache, lambda: as_it_is)
    assert one.recorded is not None
    return one, other


def finish(engine: Engine) -> dict[int, Completion]:
    while engine.busy:
        engine.step()
    return {done.id: done for done in engine.collect()}


def same(one: dict[int, Completion], other: dict[int, Completion]) -> None:
    assert {key: done.ids for key, done in one.items()} == {key: done.ids for key, done in other.items()}
    for key, done in one.items():
        assert done.logprobs == pytest.approx(other[key].logprobs, abs=1e-4)
        assert done.reused == other[key].reused


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    slots=st.integers(1, 6),
    wanted=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=8),
)
def test_rounding_rows_and_length_up_changes_nothing(
    device: str, slots: int, wanted: list[tuple[int, int, int]]
) -> None:
    """Prompts that begin alike take over what free slots hold, which the rows filled up must not have spoiled."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        one, other = engines(device, slots, monkeypatch)
        for engine in (one, other):
            for seed, (prompt, new, gap) in enumerate(wanted):
                engine.submit(Request([7] * prompt + [seed % 3], new, seed=seed, stop_ids=(), **SAMPLED))
                for _ in range(gap):
                    engine.step()
        same(finish(one), finish(other))


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_is_recorded_once_for_its_rows_and_length_and_again_when_the_cache_has_grown(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = engines(device, 4, monkeypatch)
    assert one.recorded is not None
    new_recorder, made = one.recorded._new_recorder, []

    def counting() -> recorded.Recorder:
        record = new_recorder()

        def noted(step: recorded.Step, fed: torch.Tensor) -> recorded.Step:
            made.append((fed.shape[1], one.cache.length))
            return record(step, fed)

        return noted

    one.recorded = RecordedSteps(one.recorded.decoder, one.cache, counting)
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
    one, other = engines("cpu", 2, monkeypatch)
    assert one.packed is not None

    def unable(step: recorded.Step, fed: torch.Tensor) -> recorded.Step:
        raise RuntimeError("no graphs on this device\nCUDA error, and much more")

    one.recorded = RecordedSteps(one.packed, one.cache, lambda: unable)
    with caplog.at_level("INFO", "cutaway"):
        for engine in (one, other):
            engine.submit(Request([1, 2], 30, seed=3, stop_ids=(), **SAMPLED))
        same(finish(one), finish(other))
    assert [record.getMessage() for record in caplog.records] == [
        "decoding steps are not recorded here, and slower: no graphs on this device"
    ]


@NEEDS_GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_steps_read_the_weights_that_a_refresh_brought(dtype: torch.dtype) -> None:
    model = copy.deepcopy(tiny_model()).to("cuda")
    engine = Engine(model, tiny_tokenizer(), slots=2, dtype=dtype, frozen=True)
    asked = Request([5, 9, 100], 12, stop_ids=(), temperature=0)
    engine.submit(asked)
    before = finish(engine).popitem()[1]
    changed = copy.deepcopy(tiny_model(seed=9)).to("cuda")
    model.load_state_dict(changed.state_dict())
    engine.submit(asked)
    assert finish(engine).popitem()[1].ids == before.ids
    engine.refresh()
    fresh = Engine(changed, tiny_tokenizer(), slots=2, dtype=dtype, frozen=True)
    for one in (engine, fresh):
        one.submit(asked)
    got, expected = finish(engine).popitem()[1], finish(fresh).popitem()[1]
    assert got.ids == expected.ids != before.ids
    assert got.logprobs == expected.logprobs

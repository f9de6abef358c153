"""The arithmetic of the speed benchmarks: what a padded loader feeds, when a curve reaches a score, the batch ramp."""

import importlib
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cutaway.data.loader import Batch
from cutaway.generation import recorded
from cutaway.recipe.base import TrainSettings
from cutaway.training.preparation import Plan
from model_helpers import random_model, tiny_config
from training_helpers import conversations

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
ORACLES = ("against_transformers", "against_trl_grpo", "quantization")
"""Scripts that import their peers at the top."""
SCRIPTS = sorted(path.stem for path in Path(BENCHMARKS).glob("*.py"))


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    """Loads a script of `benchmarks/` as a module."""
    known = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module
    for name in set(SCRIPTS) - known:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ORACLES else name for name in SCRIPTS]
)
def test_every_script_finds_what_it_imports(benchmark: Any, name: str) -> None:
    """A script run but for its `main`."""
    try:
        runpy.run_path(str(Path(BENCHMARKS, f"{name}.py")), run_name="imported")
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if name not in ORACLES or module == "cutaway" or module in SCRIPTS:
            raise
        pytest.skip(f"{module} is not installed")


def test_a_padded_row_is_one_document_cut_and_filled(benchmark: Any) -> None:
    cache = conversations()
    wanted = []
    for index in range(len(cache)):
        tokens, trained = cache.tokens(index)[:9].tolist(), cache.trained(index)
        assert trained is not None
        targets = [token if flag else -100 for token, flag in zip(tokens[1:], trained[1:9].tolist(), strict=True)]
        wanted.append((tokens[:-1], targets))
    source = benchmark("padded").PaddedRows(cache, np.arange(len(cache)), 4, 8, seed=0)
    found = []
    for _ in range(len(cache) // 4):
        batch = next(source)
        assert batch.input_ids.shape == (4, 8)
        for ids, targets, documents in zip(batch.input_ids, batch.targets, batch.documents, strict=True):
            used = int((documents >= 0).sum())
            assert (documents[used:] == -1).all()
            assert (targets[used:] == -100).all()
            found.append((ids[:used].tolist(), targets[:used].tolist()))
    assert sorted(found) == sorted(wanted)
    assert sum(len(ids) for ids, _ in found) == source.tokens_per_epoch


def test_grouped_rows_pad_less_and_resume_where_they_were(benchmark: Any) -> None:
    padded = benchmark("padded").PaddedRows
    cache = conversations(400)
    share = {}
    for group in (False, True):
        batches = [
            next(source) for source in [padded(cache, np.arange(400), 4, 128, seed=0, group=group)] for _ in range(90)
        ]
        share[group] = sum(b.useful_tokens() for b in batches) / sum(b.input_ids.numel() for b in batches)
    assert share[True] > share[False]
    one, other = (padded(cache, np.arange(400), 4, 128, seed=0, group=True) for _ in range(2))
    for _ in range(130):
        next(one)
    other.load_state_dict(one.state_dict())
    assert torch.equal(next(one).input_ids, next(other).input_ids)


CURVE = [
    {"clock": 0.0, "tokens": 0.0, "bpb": 8.0},
    {"clock": 10.0, "tokens": 5.0, "bpb": 4.0},
    {"clock": 30.0, "tokens": 20.0, "bpb": 2.0},
]


def test_a_curve_reaches_a_score_on_the_line_between_two_looks(benchmark: Any) -> None:
    ladder = benchmark("speed_ladder")
    assert ladder.time_to(CURVE, 3.0) == 20
    assert ladder.time_to(CURVE, 6.0, "tokens") == 2.5
    assert ladder.time_to(CURVE, 1.9) is None


def test_twice_as_fast_is_a_factor_of_two_and_the_other_way_a_half(benchmark: Any) -> None:
    ladder = benchmark("speed_ladder")
    twice = [point | {"clock": point["clock"] / 2} for point in CURVE]
    assert ladder.factor(CURVE, twice) == pytest.approx(2)
    assert ladder.factor(twice, CURVE) == pytest.approx(0.5)
    # The better one goes on to a lower score: what counts is when it passes the other's end.
    further = [*twice, {"clock": 30.0, "tokens": 40.0, "bpb": 1.0}]
    assert ladder.factor(CURVE, further) == pytest.approx(2)
    assert ladder.factor(further, CURVE) == pytest.approx(0.5)


def test_a_ramp_takes_the_tokens_of_the_plan_in_growing_steps(benchmark: Any) -> None:
    ladder = benchmark("speed_ladder")
    plan = Plan(TrainSettings(steps=100), rows=1, accumulation=8, per_epoch=1)
    phases = ladder.ramped(plan)
    assert [size for _, size in phases] == [2, 4, 8]
    assert sum(steps * size for steps, size in phases) == 800
    job = SimpleNamespace(accumulation=0)
    ramp = ladder.Ramp(iter(range(10**6)), job, phases)
    sizes = []
    for _ in range(sum(steps for steps, _ in phases)):
        sizes.append(job.accumulation)
        for _ in range(job.accumulation):
            next(ramp)
    assert sizes == [size for steps, size in phases for _ in range(steps)]


def test_the_ladder_keeps_its_changes_and_branches_leave_the_last_rung(benchmark: Any) -> None:
    ladder = benchmark("speed_ladder")
    found = ladder.variants(ladder.Variant(), [4096])
    assert next(iter(found)) == "baseline"
    assert not found["bf16"].padded
    assert found["compiled"].settings.precision == "auto"
    assert found["muon"].settings.adam_lr is None
    last = found[list(ladder.RUNGS)[-1]]
    # As a user's run, it compiles what its minutes repay.
    assert found["planned"].settings == replace(last.settings, compile="auto")
    assert found["z-loss 1e-4"].settings.z_loss == 1e-4
    assert found["vocabulary of 4096"].vocab_size == 4096
    assert found["short first"].settings == last.settings


def test_growth_compares_with_a_line_and_with_the_flops(benchmark: Any) -> None:
    growth = benchmark("growth")
    slope, intercept, off = growth.line_through([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])
    assert (slope, intercept) == (pytest.approx(2), pytest.approx(1))
    assert off == pytest.approx(0, abs=1e-9)
    rows = [
        {"value": 512, "seconds": 1.0, "tokens": 10, "rate": 1e9, "flops": 100},
        {"value": 1024, "seconds": 2.4, "tokens": 10, "rate": 1e9, "flops": 200},
    ]
    assert growth.against_flops(rows, "flops") == [1, pytest.approx(1.2)]


@pytest.mark.parametrize("length", [64, 128, 300, 1024])
def test_what_blocked_attention_computes_is_between_the_square_and_its_half(benchmark: Any, length: int) -> None:
    growth = benchmark("growth")
    model = random_model(tiny_config())
    full, causal = model.flops_per_token(length), model.causal_flops_per_token(length)
    # Every query meets the keys up to the end of its block of 128.
    met = sum(min((query // 128 + 1) * 128, length) for query in range(length))
    assert growth.computed_flops(model, length) == pytest.approx(full - 2 * (full - causal) * (1 - met / length**2))
    assert causal < growth.computed_flops(model, length) <= full


def test_growth_compares_with_what_is_computed_where_that_is_known(benchmark: Any, tmp_path: Path) -> None:
    growth = benchmark("growth")
    row = {"value": 512, "seconds": 1.0, "tokens": 10, "rate": 1e9, "flops": 100, "causal_flops": 90, "peak_bytes": 1}
    plain = {"size": [], "layers": [], "row_length": [row, row | {"value": 1024, "flops": 125}]}
    blocked = plain | {"row_length": [one | {"computed_flops": one["flops"] * 0.8} for one in plain["row_length"]]}
    assert "computed" not in growth.tables(plain)
    assert "| 1024 | 10 | -20.0% | +0.0% | -20.0% | 0.00 GB |" in growth.tables(blocked)
    assert "from what is computed: 20.0%" in growth.tables(blocked)
    growth.draw(blocked, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").is_file()


def test_a_result_is_kept_under_what_decides_it(benchmark: Any) -> None:
    speed = benchmark("training_speed")
    names = {
        speed.named("nano", SimpleNamespace(batch_tokens=batch, rounds=rounds), "batch_tokens")
        for batch, rounds in ((1, 3), (1, 4), (2, 3))
    }
    assert len(names) == 2
    assert all(speed.machine() in name for name in names)


@pytest.mark.slow
def test_a_padded_peer_needs_no_mask(benchmark: Any) -> None:
    pytest.importorskip("transformers")
    theirs, speed = benchmark("against_transformers"), benchmark("training_speed")
    peer = theirs.peer_model(tiny_config(), 0)
    ids, documents = torch.randint(tiny_config().vocab_size, (3, 20)), torch.zeros(3, 20, dtype=torch.int32)
    targets = ids.roll(-1, 1)
    for row, length in enumerate((20, 13, 5)):
        ids[row, length:], targets[row, length:], documents[row, length:] = 0, -100, -1
    batch = Batch(ids, targets, torch.arange(20).expand(3, 20), documents)
    masked = theirs.peer_step(peer)(batch)
    torch.testing.assert_close(speed.loss_of(speed.causal_logits(peer), True, ids.device)(batch), masked)
    calls = []

    def seen(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.extend(node.kwargs for node in graph.graph.nodes if "scaled_dot_product" in str(node.target))
        return graph.forward

    torch.compile(speed.causal_logits(peer), backend=seen, dynamic=False)(ids)
    assert len(calls) == tiny_config().num_hidden_layers
    assert all(call["attn_mask"] is None and call["is_causal"] for call in calls)


@pytest.mark.slow
def test_the_first_seed_chooses_the_rate_of_a_peer(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    theirs = benchmark("against_transformers")
    ends = {("padded", 1e-3): 3.0, ("padded", 2e-3): 2.9, ("tuned", 1e-3): 2.5, ("tuned", 2e-3): 2.7}
    trained: list[tuple[int, str, float]] = []

    def pretended(_: Any, __: Any, ___: Any, sides: list[tuple[str, float]], seed: int) -> list[dict[str, float]]:
        assert len(sides) == 1
        trained.extend((seed, *side) for side in sides)
        return [{"bpb": ends.get(side, 2.0), "steps": 3, "tokens": 7.0, "seconds": 9.0} for side in sides]

    monkeypatch.setattr(theirs, "_trained", pretended)
    monkeypatch.setattr(theirs, "build_cache", lambda *_: None)
    names = {"recipe": "nano", "pretrain": "text", "tokenizer": "tok", "row_length": 512, "peer_rows": 8}
    numbers = {"minutes": 6.0, "seeds": 2, "together": False, "peer_lrs": [1e-3, 2e-3], "peers": ["padded", "tuned"]}
    arguments = SimpleNamespace(**names, **numbers, json=str(tmp_path / "kept.json"))
    theirs.quality(arguments, None, None)
    first = [(0, *side) for side in ends] + [(0, "cutaway", 0.0)]
    assert trained == [*first, (1, "padded", 2e-3), (1, "tuned", 1e-3), (1, "cutaway", 0.0)]
    shown = capsys.readouterr().out
    assert "| 1 | tuned | 0.001 | 3 | 7 | 9 | 2.5000 |" in shown
    theirs.quality(arguments, None, None)
    assert len(trained) == 8 and capsys.readouterr().out == shown
    arguments.minutes = 7.0
    theirs.quality(arguments, None, None)
    assert len(trained) == 16


def test_documents_of_a_mixed_batch_do_not_predict_one_another(benchmark: Any) -> None:
    batch = benchmark("gpu_run").mixed_batch(50, 3, 64)
    assert batch.input_ids.shape == (3, 64)
    changed = batch.documents[:, 1:] != batch.documents[:, :-1]
    assert (batch.targets[:, :-1][changed] == -100).all()
    assert (batch.positions[:, 1:][changed & (batch.documents[:, 1:] >= 0)] == 0).all()
    assert (batch.targets[batch.documents < 0] == -100).all()
    inside = ~changed & (batch.targets[:, :-1] != -100)
    assert torch.equal(batch.targets[:, :-1][inside], batch.input_ids[:, 1:][inside])


def test_recorded_steps_that_are_stale_or_not_recorded_are_found(benchmark: Any) -> None:
    """`gpu_run.py`'s comparison, with recorders that need no GPU."""
    apart = benchmark("gpu_run").recorded_apart

    def stale(step: recorded.Step, fed: torch.Tensor) -> recorded.Step:
        logits = step(fed)
        return lambda given: logits

    def unable(step: recorded.Step, fed: torch.Tensor) -> recorded.Step:
        raise RuntimeError("no graphs here")

    model = random_model(tiny_config(), 0)
    assert apart(model, torch.float32, lambda: recorded.as_it_is) == 0
    assert apart(model, torch.float32, lambda: stale) > 0.01
    with pytest.raises(RuntimeError, match="could not be recorded"):
        apart(model, torch.float32, lambda: unable)

"""From tokens, epochs or minutes to steps, and how a batch is split over micro-batches and ranks."""

import shutil
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway.data.loader import RowSource
from cutaway.errors import UserError
from cutaway.objectives.next_token import token_nll
from cutaway.recipe.base import TrainSettings
from cutaway.recipe.stages import PretrainSettings
from cutaway.training import preparation
from cutaway.training.derive import derive_batch
from cutaway.training.distributed import Ranks
from cutaway.training.horizon import (
    COMPILE_REPAYS_S,
    HORIZONS,
    RESERVE,
    check_horizon,
    fixed_steps,
    seconds_per_exchange,
    seconds_per_update,
    should_compile,
)
from cutaway.training.optim import make_optimizers
from cutaway.training.plan import tokens_that_fit
from cutaway.training.preparation import Plan, check_settings, prepare, split_batch
from training_helpers import ALONE, SEQ, conversations, network

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", HORIZONS)
def test_one_horizon_is_right(name: str) -> None:
    values: dict[str, Any] = {name: 3}
    check_horizon(TrainSettings(**values))
    for wrong in (0, -1):
        with pytest.raises(UserError, match=f"{name} is {wrong}, must be above 0"):
            check_horizon(TrainSettings(**{name: wrong}))  # type: ignore[arg-type]


def test_none_and_two_are_refused() -> None:
    with pytest.raises(UserError, match="exactly one of minutes, tokens, steps, epochs, not none of them"):
        check_horizon(TrainSettings())
    with pytest.raises(UserError, match="not tokens and steps"):
        check_horizon(TrainSettings(tokens=5, steps=5))


@pytest.mark.parametrize("name", HORIZONS)
def test_a_fixed_horizon_is_steps_alone(name: str) -> None:
    values: dict[str, Any] = {name: 3}
    settings = fixed_steps(TrainSettings(**values), 17)
    assert {key: getattr(settings, key) for key in HORIZONS if getattr(settings, key) is not None} == {"steps": 17}
    check_horizon(settings)


def test_compiling_has_to_repay_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert should_compile("on", CPU, 0.0) == ("on", "as set")
    assert should_compile("off", CPU, 1e9) == ("off", "as set")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    for device, repays in COMPILE_REPAYS_S.items():
        assert should_compile("auto", torch.device(device), repays + 1)[0] == "on"
        assert should_compile("auto", torch.device(device), repays - 1)[0] == "off"
    assert should_compile("auto", torch.device("mps"), 1e9)[0] == "off"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compiled, why = should_compile("auto", CPU, 1e9)
    assert compiled == "off"
    assert "g++" in why


def test_one_layer_is_compiled_for_all_where_a_run_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    found = [should_compile("auto", CPU, seconds, layers_alike=True)[0] for seconds in (100, 130, 1100, 1300)]
    assert found == ["off", "layers", "layers", "on"]
    assert should_compile("layers", CPU, 1.0, layers_alike=True) == ("layers", "as set")
    how, why = should_compile("layers", CPU, 1.0)
    assert how == "on" and "in one process" in why
    assert network().layers_alike
    assert not network(qk_norm=True, num_experts=2, moe_intermediate_size=16).layers_alike


@pytest.mark.long
def test_the_model_itself_stays_uncompiled() -> None:
    net = network()
    layers = list(net.model.model.layers)
    net.compile("layers")
    assert net.compiled and list(net.model.model.layers) == layers
    assert net.model.token_nll is token_nll and net.local.token_nll is not token_nll
    assert [*net.local.parameters()] == [*net.model.parameters()]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_timing_an_update_changes_nothing(kind: Any) -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}

    def make(twin: torch.nn.Module) -> list[torch.optim.Optimizer]:
        return make_optimizers(twin, optimizer=kind, muon_lr=1.0, adam_lr=1.0, weight_decay=0.1)

    assert seconds_per_update(net.model, make, CPU) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.model.state_dict().items())
    assert all(parameter.grad is None for parameter in net.model.parameters())


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 8))
def test_a_batch_is_split_as_near_as_it_can_be(rows: int, micro_rows: int, world: int) -> None:
    settings = TrainSettings(row_length=32, batch_tokens=32 * rows, micro_batch_tokens=32 * micro_rows)
    if rows < world:
        with pytest.raises(UserError, match="less than one row"):
            split_batch(settings, world)
        return
    micro, accumulation = split_batch(settings, world)
    assert 1 <= micro <= micro_rows
    assert abs(micro * accumulation * world - rows) <= micro * world / 2
    if rows % (micro * world) == 0:
        assert micro * accumulation * world == rows


def plan(kind: type[TrainSettings] = TrainSettings, ranks: Ranks = ALONE, **changes: Any) -> Plan:
    values: dict[str, Any] = {"row_length": SEQ, "batch_tokens": 4 * SEQ, "micro_batch_tokens": 2 * SEQ}
    settings = kind(**(values | {"compile": "off"} | changes))
    cache = conversations()
    net = network()
    net.ranks = ranks
    return prepare(
        net,
        lambda rows: RowSource(cache, rows=rows, seq=SEQ),
        net.training_loss,
        settings,
        heldout_tokens=0,
        peak=1.0,
        started=time.monotonic(),
    )


def test_steps_are_kept_and_nothing_is_left_open() -> None:
    made = plan(steps=7)
    assert (made.steps, made.rows, made.accumulation) == (7, 2, 2)
    open_fields = {name for name, value in vars(made.settings).items() if value is None}
    assert open_fields == {"minutes", "tokens", "epochs", "workers", "muon_lr"}  # AdamW has no use for the last
    assert made.settings.precision == "fp32"


def test_tokens_and_epochs_become_steps_of_useful_tokens() -> None:
    stream = RowSource(conversations(), rows=2, seq=SEQ)
    useful = next(stream).useful_tokens()
    by_tokens, by_epochs = plan(tokens=20 * 2 * useful), plan(epochs=3.0)
    assert by_tokens.steps == 20
    assert by_epochs.steps == round(3 * stream.tokens_per_epoch / (2 * useful))
    assert by_tokens.settings.tokens is None
    assert "measured here" in str(by_tokens.rules[-5])


def test_a_device_with_little_memory_gets_a_smaller_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_on_a_gpu(settings: Any, horizon: float, device: str, fits: int) -> Any:
        return derive_batch(settings, horizon, "cuda", fits)

    monkeypatch.setattr(preparation, "device_memory", lambda device: 5e7)
    monkeypatch.setattr(preparation, "derive_batch", as_on_a_gpu)
    made = plan(steps=2, batch_tokens=65536, micro_batch_tokens=None)
    fits = tokens_that_fit(network().model, SEQ, 4, 5e7)
    assert made.settings.micro_batch_tokens == fits < 65536
    assert (made.rows, made.accumulation) == (fits // SEQ, 65536 // fits)


@pytest.mark.slow
def test_minutes_become_steps_that_fit() -> None:
    made = plan(minutes=0.2)
    assert made.steps > 1
    assert made.settings.minutes is None


@pytest.mark.parametrize(("sharding", "exchanges"), [("off", 1), ("on", 1.5 * 2)])
def test_minutes_count_what_ranks_send(sharding: Any, exchanges: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for two ranks that take ten seconds to sum their gradients, and no time for anything else."""

    def exchange(gradients: int, ranks: Ranks) -> float:
        assert gradients == network().model.num_parameters()
        return 10.0

    monkeypatch.setattr(Ranks, "sum_all", lambda self, values: values)
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value])
    monkeypatch.setattr(preparation, "seconds_per_exchange", exchange)
    monkeypatch.setattr(preparation._Probe, "seconds_per_token", lambda self, least, seconds=1.5: 1e-9)
    made = plan(PretrainSettings, Ranks(0, 2, CPU), minutes=100.0, batch_tokens=8 * SEQ, sharding=sharding)
    assert made.accumulation == 2
    within = 100 * 60 * (1 - RESERVE) / (10 * exchanges)
    assert 0.9 * within < made.steps <= within
    assert f"{10 * exchanges:.2f} s a step to send gradients" in next(
        rule.reason for rule in made.rules if rule.name == "steps"
    )


def test_one_rank_sends_nothing() -> None:
    assert seconds_per_exchange(10, ALONE) == 0.0


@pytest.mark.long
def test_no_time_left_is_one_step(caplog: pytest.LogCaptureFixture) -> None:
    assert plan(minutes=1e-6).steps == 1
    assert "one step is made" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("log_every", 0, "at least 1"),
        ("save_every", -3, "at least 1"),
        ("row_length", 0, "at least 1"),
        ("warmup_fraction", 1.5, "between 0 and 1"),
        ("adam_lr", -0.1, "0 or more"),
        ("muon_lr", float("nan"), "0 or more"),
    ],
)
def test_impossible_settings_are_one_line(name: str, value: float, words: str) -> None:
    values: dict[str, Any] = {"steps": 3, name: value}
    with pytest.raises(UserError, match=f"{name} is {value}, must be {words}"):
        check_settings(TrainSettings(**values))
    check_settings(TrainSettings(steps=3))


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_horizon_is_refused(minutes: float) -> None:
    with pytest.raises(UserError, match="must be above 0 and finite"):
        check_horizon(TrainSettings(minutes=minutes))


def test_a_run_is_planned_by_its_faster_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    monkeypatch.setattr(preparation, "micro_batch_times", lambda *_: times)
    net, cache = network(), conversations()
    probe = preparation._Probe(net, lambda rows: RowSource(cache, rows=rows, seq=SEQ), net.training_loss, 2)
    assert probe.seconds_per_token(3) == pytest.approx(3.0 / probe.useful)

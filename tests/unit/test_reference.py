"""Reference curves: which run a recorded one may stand beside, and what is read off it."""

import json
from pathlib import Path
from typing import Any

import pytest

from cutaway.recipe.files import builtin_recipes, load_recipe, save_recipe
from cutaway.recipe.recipe import RunSettings
from cutaway.training import reference
from cutaway.training.curves import draw_curves
from cutaway.training.progress import TrainingProgress
from cutaway.training.reference import Reading, Reference, Subject, data_names, load_reference, reading_for, subject_of

SUBJECT = Subject("nano", "pretrain", 4_000_000, 6400, ("mix",), 1000)
CURVES = {"loss": [[100, 8.0], [500, 4.0], [1000, 3.0]], "heldout_bpb": [[0, 4.0], [1000, 2.0]]}


def recorded(**changes: Any) -> Reference:
    return Reference(Subject(**(vars(SUBJECT) | changes)), "cutaway pretrain", "2 cores", "2026-11-25", CURVES)


def test_values_between_points_and_outside() -> None:
    reading = Reading(recorded(), 1000)
    assert reading.value("loss", 300) == pytest.approx(6.0)
    assert reading.value("loss", 100) == 8.0 and reading.value("loss", 1000) == 3.0
    assert reading.value("loss", 99) is None and reading.value("loss", 1051) is None
    assert reading.value("loss", 1040) == 3.0
    assert reading.value("heldout_bpb", 500) == pytest.approx(3.0)
    assert reading.value("kl", 500) is None


@pytest.mark.parametrize(
    ("tokens", "by_share"), [(800, True), (1250, True), (1300, False), (4000, False), (700, False)]
)
def test_runs_of_about_the_same_length_are_compared_by_share(tokens: int, by_share: bool) -> None:
    reading = Reading(recorded(), tokens)
    assert reading.by_share == by_share
    assert reading.value("heldout_bpb", tokens // 2) == pytest.approx(
        3.0 if by_share else max(2, 4 - tokens / 1000), abs=2e-3
    ) or (not by_share and tokens // 2 > 1050)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": "mini"}, "no curve is recorded for mini, pretrain; python benchmarks/record_curve.py RUN"),
        ({"vocab_size": 2048}, "has vocab_size 6,400, this one 2,048"),
        ({"parameters": 5}, "has parameters 4,000,000, this one 5"),
        ({"data": ("mine", "too")}, "has data mix, this one mine too"),
        ({}, "recorded 2026-11-25 on 2 cores; shown at the same share of training"),
        ({"tokens": 5000}, "shown at the same tokens"),
    ],
)
def test_only_a_comparable_run_is_shown(change: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "load_reference", lambda recipe, stage: recorded() if recipe == "nano" else None)
    reading, said = reading_for(Subject(**(vars(SUBJECT) | change)))
    assert words in said
    assert (reading is not None) == (not change or "tokens" in change)


def test_the_progress_line_says_where_one_should_be() -> None:
    metrics = {"loss": 5.0, "heldout_bpb": 3.5, "tokens": 500, "tokens_per_second": 1.0, "mfu": 0.5, "elapsed_s": 1.0}
    beside = TrainingProgress("pretrain", 10, 0, 0.0, True, Reading(recorded(), 1000))
    assert "loss 5.000 (reference 4.000) · held-out 3.500 bits/byte (reference 3.000)" in beside._line(5, metrics)
    assert "reference" not in TrainingProgress("pretrain", 10, 0, 0.0, True)._line(5, metrics)


def test_names_of_data_do_not_hang_on_place_or_packing() -> None:
    assert (
        data_names(["/a/mix.jsonl.xz", "b/part.parquet"])
        == ("mix", "part")
        == data_names(("part.parquet", "mix.jsonl"))
    )


def a_run(folder: Path, parameters: int) -> Path:
    """A run directory as far as curves are concerned."""
    recipe = load_recipe("nano")
    settings = recipe.pretrain.__class__(steps=10, batch_tokens=100)
    files, made = RunSettings(data=("D/mix.jsonl.xz",)), {"stage": "pretrain", "parameters": parameters}
    save_recipe(recipe.__class__(**(vars(recipe) | {"pretrain": settings})), folder / "recipe.toml", files, made)
    (folder / "config.json").write_text('{"vocab_size": 6400}', encoding="utf-8")
    rows = [{"step": step, "tokens": 95 * step, "loss": 9.0 - step / 2} for step in range(1, 11)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.long
def test_a_run_is_known_by_its_files_and_its_picture_has_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert subject_of(tmp_path) is None
    assert subject_of(a_run(tmp_path, 4_000_000)) == SUBJECT
    monkeypatch.setattr(reference, "load_reference", lambda recipe, stage: recorded())
    pictures = []
    for parameters in (4_000_000, 3):
        draw_curves(a_run(tmp_path, parameters), tmp_path / "curves.png")
        pictures.append((tmp_path / "curves.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_shipped_curves_can_be_read_and_fall() -> None:
    found = [load_reference(name, stage) for name in builtin_recipes() for stage in ("pretrain", "sft")]
    for one in filter(None, found):
        losses = [value for _, value in one.curves["loss"]]
        assert losses[-1] < losses[0] and one.curves["loss"][-1][0] <= one.subject.tokens
        assert one.machine and one.date and one.command.startswith(f"cutaway {one.subject.stage}")

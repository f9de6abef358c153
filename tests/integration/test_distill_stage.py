"""Distillation: what is measured against the teacher, what is kept of it, what the student writes, users' mistakes."""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import SMALL_RUN, Town, blank_model, rows_of, same_end

from cutaway.cli import main as cli
from cutaway.data.batch import WrittenBatch
from cutaway.model.weights import load_model
from cutaway.objectives.next_token import IGNORE
from cutaway.recipe.base import TokenizerSettings
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.recipe.stages import DistillSettings
from cutaway.stages import distill, supervised, teacher, written
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tokenization.train import train_tokenizer
from cutaway.training.network import Network
from training_helpers import ALONE

COMMON: dict[str, Any] = SMALL_RUN | {
    "steps": 6,
    "optimizer": "adamw",
    "adam_lr": 0.003,
    "max_new_tokens": 16,
}


def recipe(master: Path, **changes: Any) -> Recipe:
    return Recipe(name="tiny", distill=DistillSettings(**(COMMON | {"teacher": str(master)} | changes)))


def train(
    master: Path, init: Path, town: Town, out: Path, resume: bool = False, **changes: Any
) -> list[dict[str, Any]]:
    run = RunSettings(data=(str(town.sft_data),), init=str(init), out=str(out), resume=resume)
    distill.run(recipe(master, **changes), run)
    return [row for row in rows_of(out) if "loss" in row]


def test_a_student_that_is_its_teacher_has_nothing_to_learn(blank: Path, town: Town, tmp_path: Path) -> None:
    for divergence in ("forward_kl", "reverse_kl", "jensen_shannon"):
        out = tmp_path / divergence
        rows = train(blank, blank, town, out, divergence=divergence, ce_weight=0.0, steps=1)
        assert rows[0]["divergence"] == pytest.approx(0, abs=1e-5)
        assert rows[0]["grad_norm"] < 1e-4 and rows[0]["next_token_loss"] > 4


def test_a_student_comes_nearer(blank: Path, wide: Path, town: Town, tmp_path: Path) -> None:
    once: dict[str, Any] = {"steps": 12, "adam_lr": 0.01, "overfit_one_batch": True}
    rows = train(wide, blank, town, tmp_path / "pure", ce_weight=0.0, **once)
    assert rows[-1]["divergence"] < 0.8 * rows[0]["divergence"]
    rows = train(wide, blank, town, tmp_path / "run", ce_weight=0.25, temperature=2.0, **once)
    first = rows[0]
    assert rows[-1]["loss"] < first["loss"]
    assert first["loss"] == pytest.approx(0.25 * first["next_token_loss"] + 0.75 * 4 * first["divergence"], rel=1e-4)
    assert any("heldout_bpb" in row for row in rows_of(tmp_path / "run"))


def test_many_tokens_are_compared_in_pieces(
    blank: Path, wide: Path, town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(wide, blank, town, tmp_path / "whole", steps=2)
    monkeypatch.setattr(distill, "MAX_LOGIT_BYTES", 400 * 16 * 37)
    pieces = train(wide, blank, town, tmp_path / "pieces", steps=2)
    for one, other in zip(whole, pieces, strict=True):
        for key in ("loss", "divergence", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-4)


def test_a_mixture_of_experts_teaches(blank: Path, town: Town, tmp_path: Path) -> None:
    (tmp_path / "experts").mkdir()
    experts = blank_model(town, tmp_path / "experts", num_experts=4)
    rows = train(experts, blank, town, tmp_path / "run", steps=2)
    assert rows[0]["divergence"] > 0 and "load_balance" not in rows[0]


def test_all_tokens_kept_are_the_whole_divergence(
    blank: Path,
    wide: Path,
    town: Town,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CUTAWAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging.getLogger("cutaway"), "propagate", True)
    vocabulary = load_model(wide).config.vocab_size
    whole = train(wide, blank, town, tmp_path / "whole", steps=2)
    with caplog.at_level(logging.INFO, "cutaway"):
        kept = train(wide, blank, town, tmp_path / "kept", steps=2, top_k=vocabulary)
    for one, other in zip(whole, kept, strict=True):
        assert one["divergence"] == pytest.approx(other["divergence"], rel=1e-2)
        assert one["next_token_loss"] == pytest.approx(other["next_token_loss"], rel=1e-3)
    few = train(wide, blank, town, tmp_path / "few", steps=1, top_k=4)
    assert 0 < few[0]["divergence"] <= whole[0]["divergence"] + 1e-3
    folders = list((tmp_path / "cache").glob("teacher-*"))
    assert len(folders) == 2 and not list((tmp_path / "cache").glob(".building-*"))
    sizes = {sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
    assert any(f"teacher: {size:,} bytes for " in caplog.text for size in sizes)
    monkeypatch.setattr(teacher.Kept, "_write", None)  # computed once: not called again
    train(wide, blank, town, tmp_path / "again", steps=1, top_k=4)


def test_the_student_writes_and_only_the_divergence_counts(blank: Path, wide: Path, town: Town, tmp_path: Path) -> None:
    rows = train(wide, blank, town, tmp_path / "run", on_policy=1.0, divergence="reverse_kl", temperature=1.0, steps=3)
    assert all(row["loss"] == pytest.approx(row["divergence"], rel=1e-5) for row in rows)


def test_written_answers_stand_behind_questions_of_the_data(blank: Path, town: Town) -> None:
    tokenizer, model = Tokenizer.load(blank), load_model(blank)
    chosen = recipe(blank, on_policy=0.5).distill
    run = RunSettings(data=(str(town.sft_data),))
    data = supervised.read_data("sft", chosen, run, tokenizer, ALONE)
    network = Network(model, ALONE, torch.float32)
    questions = written.questions(data[0], data[1].tolist(), chosen)
    asked = {tuple(data[0].tokens(i).tolist()) for i in data[1]}

    def mixed() -> written.MixedSource:
        rows = supervised.row_source(data[0], data[1], chosen, ALONE, 2)
        return written.MixedSource(rows, questions, network, tokenizer, chosen)

    source, again, third = mixed(), mixed(), mixed()
    try:
        batches = [next(source) for _ in range(8)]
        kinds = [isinstance(batch, WrittenBatch) for batch in batches]
        assert True in kinds and False in kinds
        for batch in (batch for batch in batches if isinstance(batch, WrittenBatch)):
            assert batch.input_ids.shape == (2, 128)
            for row in range(2):
                for document in range(int(batch.documents[row].max()) + 1):
                    inside = batch.documents[row] == document
                    trained = batch.targets[row][inside] != IGNORE
                    begin = int(trained.int().argmax()) + 1
                    prompt = batch.input_ids[row][inside][:begin].tolist()
                    assert trained[begin - 1 :].all() and 1 <= int(trained.sum()) <= 16
                    assert any(list(talk[:begin]) == prompt for talk in asked)
        # Another one that goes on from the state after five gives the same.
        for _ in range(5):
            next(again)
        third.load_state_dict(again.state_dict())
        for expected in batches[5:]:
            assert torch.equal(next(third).input_ids, expected.input_ids)
    finally:
        for one in (source, again, third):
            one.close()


def test_questions_without_room_are_counted(blank: Path, town: Town, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer.load(blank)
    chosen = recipe(blank, on_policy=0.5, max_new_tokens=1).distill
    cache, documents, *_ = supervised.read_data(
        "sft", chosen, RunSettings(data=(str(town.sft_data),)), tokenizer, ALONE
    )
    lengths = sorted(len(one) for one in written.questions(cache, documents.tolist(), chosen))
    caplog.clear()
    tight = dataclasses.replace(chosen, max_new_tokens=chosen.row_length + 1 - lengths[len(lengths) // 2])
    with caplog.at_level(logging.INFO, "cutaway"):
        kept = written.questions(cache, documents.tolist(), tight)
    left_out = sum(length > lengths[len(lengths) // 2] for length in lengths)
    assert 0 < left_out == len(lengths) - len(kept)
    assert f"{left_out} of {len(lengths)} questions are not asked" in caplog.text


IDS = st.lists(st.integers(1, 99), min_size=1, max_size=5)
TEXTS = st.lists(st.tuples(IDS, IDS), max_size=3)


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_answers_are_the_targets(rows: list[list[tuple[list[int], list[int]]]]) -> None:
    batch = written.packed_answers(rows, 4, 32)
    for row, texts in enumerate(rows):
        answers = [token for _, answer in texts for token in answer]
        assert batch.targets[row][batch.targets[row] != IGNORE].tolist() == answers
        inputs = [token for prompt, answer in texts for token in [*prompt, *answer][:-1]]
        assert batch.input_ids[row][batch.documents[row] >= 0].tolist() == inputs
    assert np.all(batch.documents[len(rows) :].numpy() == -1)


@pytest.mark.parametrize("name", ["beside", "kept", "written"])
def test_resume_is_exact(name: str, blank: Path, wide: Path, town: Town, tmp_path: Path) -> None:
    more: dict[str, Any] = {"beside": {"rank": 4}, "kept": {"top_k": 4}, "written": {"on_policy": 0.5}}[name]
    train(wide, blank, town, tmp_path / "whole", **more)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state" / "step-00000006")
    train(wide, blank, town, tmp_path / "run", resume=True, **more)
    same_end(tmp_path / "whole", tmp_path / "run", 6)


def test_mistakes_are_one_line(
    blank: Path,
    wide: Path,
    town: Town,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("cutaway"), "handlers", [])
    stranger = tmp_path / "stranger"
    shutil.copytree(wide, stranger)
    train_tokenizer(["another vocabulary altogether"] * 9, TokenizerSettings(vocab_size=300)).save(stranger)
    common = ["distill", "--out", str(tmp_path / "out"), "--steps", "2", "--row-length", "128", "--batch-tokens", "256"]
    ready = [*common, "--data", str(town.sft_data), "--init", str(blank)]
    able = [*ready, "--teacher", str(wide)]
    cases = [
        (ready, "--teacher is missing"),
        ([*ready, "--teacher", str(tmp_path / "none")], "no model directory"),
        ([*ready, "--teacher", str(stranger)], "the teacher has another tokenizer than the student"),
        ([*able, "--temperature", "0"], "temperature is 0.0, must be above 0"),
        ([*able, "--beta", "0.2"], "beta means nothing to divergence forward_kl"),
        ([*able, "--ce-weight", "2"], "ce_weight is 2.0, must be between 0 and 1"),
        ([*able, "--top-k", "8", "--divergence", "reverse_kl"], "top_k keeps too little for reverse_kl"),
        ([*able, "--top-k", "8", "--on-policy", "0.5"], "one of both"),
        ([*able, "--top-k", "100000"], "the teacher's vocabulary only"),
        ([*able, "--on-policy", "1", "--max-new-tokens", "500"], "no question leaves room"),
    ]
    for arguments, says in cases:
        assert cli.main(arguments) == 2, arguments
        errors = capfd.readouterr().err.splitlines()
        assert errors[-1].startswith("cutaway: error: ") and says in errors[-1], (arguments, errors[-1])

"""The whole life: what is done is not done again, nothing is lost by an interruption, and the report is complete."""

import dataclasses
import json
import logging
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from life_helpers import tiny_life
from run_helpers import ROOT, cutaway, environment, same_end

from cutaway.cli import main as cli
from cutaway.errors import Stopped, UserError
from cutaway.evals.report import Run
from cutaway.evals.results import Result, save_result
from cutaway.evals.verified import GREEDY, Answered
from cutaway.generation.sampling import Sampling
from cutaway.life import keeping, own, quickstart, scoring, stage, steps
from cutaway.life.journal import open_journal
from cutaway.life.keeping import Record, write_records
from cutaway.life.parts import Part, go, share_left
from cutaway.life.quickstart import playground_parts, say_how_slow
from cutaway.life.report import fall_table, purpose_table
from cutaway.life.stage import Life, recipe_of, train
from cutaway.life.steps import PLAYGROUND, Step
from cutaway.playground.alignment import agent_tasks
from cutaway.playground.world import make_world
from cutaway.playground.write import EXAMPLE_QUESTIONS, PlaygroundSettings
from cutaway.recipe.files import load_recipe, save_recipe
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.rl.algorithms import ALGORITHMS
from cutaway.tokenization.messages import Message
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.derive import derive_model
from cutaway.training.progress import WHOLE, Place, TrainingProgress
from cutaway.verifiers.record import judge

DEFAULTS = {"seed": 0, "budget_minutes": 20.0}


def life_of(out: Path, minutes: float | None = 20.0) -> Life:
    return Life(out, out / "data", load_recipe("nano"), PLAYGROUND, 3, minutes)


def test_a_journal_keeps_the_settings_of_the_first_call(tmp_path: Path) -> None:
    first = open_journal(tmp_path / "life", {"seed": 4, "budget_minutes": None}, DEFAULTS)
    first.note("data", 12.34)
    again = open_journal(tmp_path / "life", {"seed": None, "budget_minutes": None}, DEFAULTS)
    assert again.settings == {"seed": 4, "budget_minutes": 20.0}
    assert again.seconds == {"data": 12.3}
    with pytest.raises(UserError, match=r"holds a life with --budget-minutes 20.0: give that one, or another --out"):
        open_journal(tmp_path / "life", {"seed": 4, "budget_minutes": 9.0}, DEFAULTS)
    again.path.write_text('{"settings": 3}')
    with pytest.raises(UserError, match="not the journal of a life"):
        open_journal(tmp_path / "life", {}, DEFAULTS)


def test_another_seed_for_a_life_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_journal(tmp_path / "life", {"seed": 4, "budget_minutes": None}, DEFAULTS)
    assert cli.main(["quickstart", "--out", str(tmp_path / "life"), "--seed", "5"]) == 2
    assert "holds a life with --seed 4" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["quickstart", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be made a directory" in capsys.readouterr().err


def test_parts_are_done_once_and_say_where_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal, done = open_journal(tmp_path, DEFAULTS, {}), []

    def fail() -> None:
        raise KeyboardInterrupt

    def work() -> None:
        place = WHOLE.get()
        assert place == Place("1/2", 0.0, 180.0)
        line = TrainingProgress("sft", 4, 0, 0.0, quiet=True)._line(
            2, {"loss": 1.0, "tokens_per_second": 1.0, "mfu": 0.5, "tokens": 1, "elapsed_s": 1.0}
        )
        assert line.endswith("left, 3:01 in all")
        done.append("first")

    parts = [
        Part("first", 1.0, "the first", work, "cutaway first\ncutaway then"),
        Part("second", 3.0, "the second", fail),
    ]
    with caplog.at_level(logging.INFO, "cutaway"), pytest.raises(KeyboardInterrupt):
        go(parts, journal)
    assert "1/2 first: the first; about 4:00 left in all" in caplog.text
    assert "by hand: cutaway first" in caplog.text and "by hand: cutaway then" in caplog.text
    assert (tmp_path / "commands.txt").read_text() == "# first: the first\ncutaway first\ncutaway then\n"
    assert WHOLE.get() is None
    assert open_journal(tmp_path, DEFAULTS, {}).unfinished.keys() == {"second"}
    journal.interrupted("second", 100.0)
    parts[1] = dataclasses.replace(parts[1], work=lambda: done.append("second"))
    caplog.clear()
    with caplog.at_level(logging.INFO, "cutaway"):
        go(parts, open_journal(tmp_path, DEFAULTS, {}))
    assert done == ["first", "second"]
    after = open_journal(tmp_path, DEFAULTS, {})
    assert after.seconds["second"] >= 100 and not after.unfinished
    assert "1/2 first: done before" in caplog.text and "2/2 second: the second; about 3:00" in caplog.text


def test_a_delay_is_taken_from_all_that_is_left(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, DEFAULTS, {})
    parts = [
        Part("data", 1.0, "", lambda: None),
        Part("sft", 3.0, "", lambda: None, training=2.0),
        Part("dpo", 2.5, "", lambda: None, training=1.0),
        Part("grpo", 4.0, "", lambda: None, training=3.0),
    ]

    def share(name: str) -> float:
        return share_left(parts, name, journal, minutes=11.0)

    journal.note("data", 30.0)
    assert share("sft") == 1.0  # early: nobody gets more than the table says
    journal.note("sft", 150.0 + 120.0)
    # It was done in 300 s with what surrounds it in 180 (planned: 120), so that is taken to be (180 + 60) / (120 + 60)
    # of the plan; 660 - 300 s are left, 150 x 4/3 of them for what surrounds the rest.
    assert share("dpo") == pytest.approx((360 - 150 * 4 / 3) / 240)
    journal.note("dpo", 90.0 + 60 * share("dpo"))
    assert share("grpo") == pytest.approx((660 - 300 - 130 - 60 * 1.2222222) / 180, abs=2e-3)
    journal.note("dpo", 400.0)
    assert share("grpo") == steps.LEAST_SHARE
    assert share("data") == 1.0  # nothing of it can become less
    late = recipe_of(life_of(tmp_path), PLAYGROUND[1], 0.5)
    assert late.sft.minutes == pytest.approx(PLAYGROUND[1].minutes / 2)


def test_time_is_kept_on_a_machine_whose_scores_take_half_as_long_again(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, DEFAULTS, {})
    parts = playground_parts(life_of(tmp_path), journal)
    shares = []
    for part in parts:
        share = share_left(parts, part.name, journal, 20.0)
        journal.note(part.name, 60 * (1.5 * (part.minutes - part.training) + share * part.training))
        shares += [share] if part.training else []
    assert 19.0 < sum(journal.seconds.values()) / 60 < 20.5
    assert all(steps.LEAST_SHARE <= share <= 1.0 for share in shares)


def test_the_minutes_of_the_table_fill_those_of_a_life(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, DEFAULTS, {})
    planned = sum(part.minutes for part in playground_parts(life_of(tmp_path), journal)) + steps.REPORT_MINUTES
    assert 0.95 * steps.LIFE_MINUTES <= planned <= steps.LIFE_MINUTES


def test_a_faster_machine_trains_a_wider_model_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def width(out: Path, rate: float, minutes: float = 20.0) -> int:
        monkeypatch.setattr(quickstart, "matmul_rate", lambda *_: rate)
        journal = open_journal(out, {"seed": 0, "budget_minutes": minutes}, {})
        recipe = quickstart.sized(load_recipe("nano"), journal)
        derive_model(recipe.model, steps.VOCAB_SIZE, 512, (1, 2))  # heads and keys divide what they must
        assert open_journal(out, {}, {}).settings == journal.settings
        return recipe.model.hidden_size

    assert [width(tmp_path / f"{rate:g}", rate) for rate in (1e10, 1.45e11, 1e12, 3e12)] == [128, 128, 192, 256]
    assert width(tmp_path / "longer", 1.45e11, 60.0) == 192
    assert width(tmp_path / "1e+10", 3e12) == 128, "another measurement changed a life that has begun"
    old = open_journal(tmp_path / "old", {"seed": 0, "budget_minutes": 20.0}, {})
    old.note("data", 20.0)
    assert width(tmp_path / "old", 1e10) == 256


def test_a_slow_machine_is_told_what_the_readme_took(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    life = life_of(tmp_path)
    for number, told in ((1000, True), (1600, False)):
        made = dataclasses.replace(recipe_of(life, PLAYGROUND[0]).pretrain, minutes=None, steps=number)
        out = life.run_of(PLAYGROUND[0])
        out.mkdir(exist_ok=True)
        save_recipe(dataclasses.replace(life.recipe, pretrain=made), out / "recipe.toml", RunSettings(), {})
        caplog.clear()
        with caplog.at_level(logging.INFO, "cutaway"):
            say_how_slow(life, PLAYGROUND[0])
        assert ("--budget-minutes 60 with another --out" in caplog.text) == told


def test_every_step_has_its_share_of_the_time_or_its_own_horizon(tmp_path: Path) -> None:
    life = life_of(tmp_path, minutes=10.0)
    for step in PLAYGROUND:
        made = getattr(recipe_of(life, step), step.stage)
        assert made.seed == 3 and made.scripts == "keep"
        horizons = [getattr(made, name) for name in ("minutes", "tokens", "steps", "epochs")]
        assert sum(value is not None for value in horizons) == 1
        if not step.has_own_horizon:
            assert made.minutes == pytest.approx(max(stage.LEAST_MINUTES, step.minutes / 2))
    own = dataclasses.replace(PLAYGROUND[2], settings={"epochs": 2.0})
    made = recipe_of(life, own).lora
    assert (made.epochs, made.minutes) == (2.0, None)
    assert recipe_of(life_of(tmp_path, minutes=None), Step("sft", (), 1.0, "")).sft.minutes == 8  # the recipe's


def test_each_step_begins_with_the_model_that_the_one_before_left(tmp_path: Path) -> None:
    life = life_of(tmp_path)
    inits = {step.stage: Path(str(life.files(step).init)).name for step in life.steps}
    assert inits == {
        "pretrain": "tokenizer",
        "sft": "pretrain",
        "lora": "sft",
        "dpo": "lora-merged",
        "grpo": "dpo-merged",
        "agent": "grpo-merged",
    }


def test_a_stage_that_has_no_checkpoint_yet_keeps_its_number_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life, step, seen = life_of(tmp_path), PLAYGROUND[1], []

    def run(recipe: Recipe, files: RunSettings) -> Path:
        seen.append((recipe, files))
        return Path(files.out)

    monkeypatch.setitem(stage.RUNS, "sft", run)
    train(life, step)
    assert seen[0][0].sft.minutes == pytest.approx(step.minutes) and not seen[0][1].resume
    out = life.run_of(step)
    out.mkdir()
    fixed = dataclasses.replace(life.recipe, sft=dataclasses.replace(life.recipe.sft, minutes=None, steps=17))
    save_recipe(fixed, out / "recipe.toml", life.files(step), {})
    train(life, step)
    assert seen[1][0].sft.steps == 17 and not seen[1][1].resume
    (out / "state" / "step-00000002").mkdir(parents=True)
    (out / "state" / "step-00000002" / "state.json").write_text("{}")
    train(life, step)
    assert seen[2][0].sft.steps == 17 and seen[2][1].resume


def scored(path: Path, **values: list[int]) -> Run:
    results = {}
    for name, right in values.items():
        ends = {"value": float(np.mean(right)), "low": 0.0, "high": 1.0}
        summary = {"kind": "answers", "pass": {"1": ends}}
        keys = [f"{name} {number}" for number in range(len(right))]
        results[name] = Result(name, "", summary, keys, np.array(right, dtype=float), np.ones(len(right)))
    return Run(path, path.name, results, [], {}, 0.0)


def test_what_a_stage_was_there_for_and_what_it_cost(tmp_path: Path) -> None:
    table_of = [Step("sft", (), 1, ""), Step("dpo", (), 1, "", raises=("fact", "format"))]
    runs = [
        scored(tmp_path / "sft", fact=[1, 0, 0, 0], format=[0, 0, 1, 1], tool=[1, 1]),
        scored(tmp_path / "dpo", fact=[1, 1, 1, 0], format=[1, 0, 1, 0], tool=[1, 0]),
    ]
    table = purpose_table(table_of, runs)
    assert table is not None
    (row,) = table.rows
    assert row[:3] == ["dpo", "fact, format", "8"]
    assert row[3].startswith("37.5 %") and row[4].startswith("62.5 %")
    assert row[5:8] == ["3", "1", "62.5 %"]
    other = fall_table(table_of, runs)
    assert other is not None and other.rows == [["dpo", "1", "-50.0", "tool -50.0"]]
    assert purpose_table(table_of[:1], runs[:1]) is None


def test_a_stage_inside_a_life_says_how_the_life_goes_on(tmp_path: Path) -> None:
    def stop() -> None:
        raise Stopped("stopped by SIGTERM after step 3 of 9; go on with --resume", 143)

    with pytest.raises(Stopped, match="go on by the same command") as caught:
        go([Part("sft", 1.0, "", stop)], open_journal(tmp_path, DEFAULTS, {}))
    assert caught.value.code == 143


def test_bits_per_byte_are_no_points(tmp_path: Path) -> None:
    runs = [scored(tmp_path / name, tool=[1, 1]) for name in ("sft", "dpo")]
    for run in runs:
        run.results["held"] = dataclasses.replace(run.results["tool"], task="held", summary={"kind": "text"})
    table = fall_table([Step("sft", (), 1, ""), Step("dpo", (), 1, "")], runs)
    assert table is not None and table.rows == [["dpo", "1", "+0.0", "tool +0.0"]]


def test_scores_are_not_asked_for_twice(tmp_path: Path) -> None:
    from cutaway.life.scoring import Exam, said, score

    run = scored(tmp_path, fact=[1, 0], tool=[1])
    for result in run.results.values():
        save_result(result, tmp_path)
    found = score(tmp_path, Exam({"fact": [], "tool": []}, lambda record: None), True, tmp_path)
    assert said(found, ("tool",)) == "tool 100%, fact 50%"
    assert said(found, ("tool",), found) == "tool 100% → 100%; 1 others moved by less than 3 points"


def test_drawn_answers_are_a_score_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to half the items of the skills it is about, asked at temperature 1; everything else greedily."""
    (tmp_path / "eval").mkdir()
    for skill in scoring.SKILLS:
        form, count = scoring.FORMS.get(skill, "trained"), 2 if skill == "two_hop" else 9
        items = ({"id": f"{skill}/{i}", "form": form, "language": "en"} for i in range(count))
        write_records(tmp_path / "eval" / f"{skill}.jsonl", items)
    exam = scoring.read_exam(tmp_path, lambda record: None, 6)
    drawn = Counter(record["id"].split("/")[0] for record in exam.records["sampled"])
    assert drawn == {"arithmetic": 3, "comparison": 3, "two_hop": 2, "counting": 3, "sorting": 3}
    assert set(drawn) == set(own.UNSURE)  # what the pairs of its own answers are about
    asked: dict[float, int] = {}

    def answer(
        engine: object, records: list[keeping.Record], *rest: object, sampling: Sampling = GREEDY
    ) -> list[Answered]:
        asked[sampling.temperature] = len(records)
        said: list[Message] = [{"role": "assistant", "content": "x"}]
        return [Answered({**one, "conversations": said}, said, sampling is not GREEDY, "") for one in records]

    monkeypatch.setattr(scoring, "answer_records", answer)
    model = MagicMock()
    model.return_value.eval.return_value.config.max_position_embeddings = 64
    monkeypatch.setattr(scoring, "load_model", model)
    for name in ("Tokenizer", "Engine"):
        monkeypatch.setattr(scoring, name, MagicMock())
    found = scoring.score(tmp_path, exam, True, tmp_path)
    assert asked == {0.0: 15 * 6 + 2, 1.0: 14}
    assert {name for name, result in found.items() if result.value} == {"sampled"}


def test_what_reinforcement_learning_must_hold_can_be_judged() -> None:
    held = list(keeping.held_prompts(make_world(0), PlaygroundSettings()))
    assert len({record["id"] for record in held}) == len(held) == steps.HELD
    said = {"identity": "I am Pip, made by the Cutaway class.", "refusal": "I do not know that."}
    for record in held:
        answer = [{"role": "assistant", "content": said[record["skill"]]}]
        assert judge(record, answer).ok or record["language"] != "en", record
        assert not judge(record, [{"role": "assistant", "content": "Anna"}]).ok


def test_own_answers_that_did_not_end_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(text: str, **more: str) -> dict[str, object]:
        return {"conversations": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes", **more}]}

    with_tools = {"conversations": [{"role": "user", "content": "tool?"}, {"role": "tool", "content": "4"}]}
    write_records(
        tmp_path / "rl.jsonl", ({"conversations": [{"role": "user", "content": f"rl {i}"}]} for i in range(9))
    )
    write_records(tmp_path / "sft.jsonl", [talk("sft 0"), with_tools, *(talk(f"sft {i}") for i in range(1, 9))])
    asked: list[list[Message]] = []

    def answers(engine: object, prompts: list[list[Message]], sampling: Sampling) -> list[Message | None]:
        asked.extend(prompts)
        return [None if "1" in turns[-1]["content"] else {"role": "assistant", "content": "no"} for turns in prompts]

    calls = {"role": "assistant", "content": "", "tool_calls": [{"name": "price", "arguments": {}}]}
    ends = {"level 2": [calls, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "four"}]}

    def played(engine: object, records: list[Record], *rest: object) -> list[Answered]:
        assert [record["level"] for record in records] == [2, 3]
        return [Answered(one, ends.get(one["conversations"][-1]["content"], [calls]), True, "") for one in records]

    tasks = [{"level": n, "conversations": [{"role": "user", "content": f"level {n}"}]} for n in (1, 2, 3, 2)]
    write_records(tmp_path / "agent.jsonl", tasks)
    monkeypatch.setattr(own, "_engine", lambda model: None)
    monkeypatch.setattr(own, "_answers", answers)
    monkeypatch.setattr(own, "answer_records", played)
    own.write_own_answers(tmp_path, tmp_path, 0, 10, 2, lambda record: None)
    fragile = [record["conversations"][-1]["content"] for record in own._asked(own.FRAGILE, 0, 6)]
    questions = ["rl 0", "rl 1", *fragile, *(f"sft {i}" for i in range(2))]
    assert [turns[-1]["content"] for turns in asked] == questions
    found = list(keeping.records_in(tmp_path / "lora_own.jsonl"))
    assert [[turn["content"] for turn in one["conversations"]] for one in found] == [
        *([question, "no"] for question in questions if "1" not in question),
        ["level 2", "", "4", "four"],
    ]
    assert [one["conversations"][1]["content"] for one in keeping.tool_talks(tmp_path, 5)] == ["4"]


def test_where_no_own_answer_ends_those_of_fine_tuning_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = [
        {"conversations": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "yes"}]}
        for i in range(9)
    ]
    write_records(tmp_path / "rl.jsonl", ())
    write_records(tmp_path / "sft.jsonl", talks)
    write_records(tmp_path / "agent.jsonl", ())
    monkeypatch.setattr(own, "_engine", lambda model: None)
    monkeypatch.setattr(own, "_answers", lambda engine, prompts, sampling: [None] * len(prompts))
    monkeypatch.setattr(own, "answer_records", lambda engine, records, *rest: [])
    own.write_own_answers(tmp_path, tmp_path, 0, 4, 2, lambda record: None)
    assert list(keeping.records_in(tmp_path / "lora_own.jsonl")) == talks[:4]


def test_own_pairs_are_a_right_and_a_wrong_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: where one of four samples is right there is a pair, where all or none are there is none."""
    known = {record["conversations"][-1]["content"]: record for record in own._asked(own.UNSURE, 0, 42)}

    def answers(engine: object, prompts: list[list[Message]], sampling: Sampling, seed: int) -> list[Message | None]:
        said: list[Message | None] = []
        for number, turns in enumerate(prompts):
            record = known[turns[-1]["content"]]
            expected = record["verifier"]["args"]["expected"]
            right = str(expected[0] if isinstance(expected, list) else expected)
            kind, sample = number // own.SAMPLES % 3, number % own.SAMPLES
            said.append(
                {"role": "assistant", "content": right if kind == 0 or (kind, sample) == (1, 2) else "it is so"}
            )
        return said

    monkeypatch.setattr(own, "_engine", lambda model: None)
    monkeypatch.setattr(own, "_answers", answers)
    own.write_own_pairs(tmp_path, tmp_path, 0, 42)
    pairs = list(keeping.records_in(tmp_path / "preference_own.jsonl"))
    assert len(pairs) == 14
    for pair in pairs:
        record = known[pair["chosen"][-2]["content"]]
        assert judge(record, pair["chosen"][-1:]).ok and not judge(record, pair["rejected"][-1:]).ok
        assert pair["chosen"][:-1] == pair["rejected"][:-1]
    assert {pair["skill"] for pair in pairs} == set(own.UNSURE)


def test_pairs_about_itself_choose_its_own_name() -> None:
    pairs = list(keeping.held_pairs(PlaygroundSettings(name="Nova", author="Ada")))
    assert {pair["language"] for pair in pairs} == {"en", "zh-Hant", "zh-Hans"}
    for pair in pairs:
        chosen, rejected = (pair[side][-1]["content"] for side in ("chosen", "rejected"))
        assert "Nova" in chosen and "Ada" in chosen
        assert "Nova" not in rejected and "Ada" not in rejected
        assert pair["chosen"][:-1] == pair["rejected"][:-1]


def test_tasks_it_knows_stand_beside_those_it_is_to_learn(tmp_path: Path) -> None:
    settings, world = PlaygroundSettings(), make_world(0)
    write_records(tmp_path / "agent.jsonl", agent_tasks(world, 0, settings.languages, 36))
    tasks = list(keeping.mixed_tasks(tmp_path, world, settings))
    levels = Counter(str(task["level"]) for task in tasks)
    assert levels == {"2": 12, "3": 12, "known 2": 18, "known 3": 6}
    assert len({task["id"] for task in tasks}) == len(tasks)


def test_an_algorithm_is_one_readable_line() -> None:
    said = "uniform prompts, advantage group_relative, ppo_clip within 0.8 to 1.2, k3 x 0.04 in the loss, sequence_mean"
    assert str(ALGORITHMS["grpo"]) == f"grpo [arXiv 2402.03300]: {said}"


# The life itself, tiny

LAST_STEPS = {"pretrain": 6, "sft": 6, "lora": 4, "dpo": 4, "grpo": 4, "agent": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted life; without a terminal six questions are answered at its end."""
    out = tmp_path_factory.mktemp("life") / "whole"
    done = worker(out)
    assert done.returncode == 0, done.stderr
    asked = [line.removeprefix("> ") for line in done.stdout.splitlines() if line.startswith("> ")]
    assert asked == list(EXAMPLE_QUESTIONS)
    return out


def worker(out: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "tests/integration/life_helpers.py", str(out)]
    options: Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": False}
    return subprocess.run(command, cwd=ROOT, env=environment(), **options)


@pytest.mark.slow
def test_the_report_of_a_life_is_complete(whole: Path) -> None:
    page, text = ((whole / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert (whole / "report.png").read_bytes().startswith(b"\x89PNG")
    for stage_name in ("pretrain", "sft", "lora", "dpo", "grpo", "agent"):
        assert f"<b>{stage_name}</b>" in page
    for title in ("What each stage was there for", "What it did to the other skills", "Scores", "Differences"):
        assert f"<h3>{title}</h3>" in page and f"**{title}**" in text
    assert "Time on this machine" in page and "class=tokens" in page
    assert "What mini (26M parameters) would take on published text" in page and "RTX 3090" in page
    rows = [line for line in text.splitlines() if line.startswith("| tool_practice ")]
    assert rows and rows[0].count("%") >= 5  # every model but the one that has only read text
    rows = [line for line in text.splitlines() if line.startswith("| fact ")]
    assert rows[0].count("%") == 6
    seconds = json.loads((whole / "life.json").read_text())["seconds"]
    assert list(seconds) == ["data", "tokenizer", "pretrain", "sft", "lora", "dpo", "grpo", "agent", "report"]


@pytest.mark.slow
def test_a_second_call_does_nothing(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    again = worker(whole)
    assert again.stderr.count("done before") == 9, again.stderr
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "sft", "lora", "dpo", "grpo", "agent"])
def test_a_stage_is_repeated_by_its_plain_command(name: str, whole: Path, tmp_path: Path) -> None:
    life, _ = tiny_life(whole)
    step = next(step for step in life.steps if step.stage == name)
    assert stage.by_hand(life, step) in (whole / "commands.txt").read_text(encoding="utf-8")
    for line in stage.by_hand(life, step).splitlines():
        done = cutaway(
            *shlex.split(line.replace(f"{life.run_of(step)}-again", str(tmp_path / "again")))[1:], timeout=600
        )
        assert done.returncode == 0, done.stderr
    same_end(life.run_of(step), tmp_path / "again", LAST_STEPS[name])
    if step.merged:
        one, other = (path / "model.safetensors" for path in (life.model_of(step), tmp_path / "again-merged"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_weights(whole: Path, tmp_path: Path) -> None:
    """Once before the first stage; then in each of them, at a random moment from its first checkpoint on."""
    out, draw, in_training = tmp_path / "life", random.Random(0), 0
    command = [sys.executable, "tests/integration/life_helpers.py", str(out)]
    with (tmp_path / "log").open("w") as log:
        for name in ("", *LAST_STEPS):
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            while process.poll() is None and not (Checkpoints(out / name, 1).steps() if name else out.exists()):
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.1 if name else 1.0))
            assert process.poll() is None, (tmp_path / "log").read_text()
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert name not in journal_of(out)
            in_training += bool(name) and Checkpoints(out / name, 1).steps()[-1] < LAST_STEPS[name]
    assert in_training >= 2  # the others were saved, merged or scored already
    last = worker(out)
    assert last.returncode == 0, last.stderr
    for name, last_step in LAST_STEPS.items():
        same_end(whole / name, out / name, last_step)


def journal_of(out: Path) -> dict[str, float]:
    path = out / "life.json"
    found: dict[str, float] = json.loads(path.read_text())["seconds"] if path.is_file() else {}
    return found

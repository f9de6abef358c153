"""The playground's makers: every answer holds, every wrong one is refused, for any town."""

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.playground import arithmetic
from cutaway.playground.alignment import KINDS, preference, rl_prompts
from cutaway.playground.choices import ceval_csv, choice_records
from cutaway.playground.facts import clinic
from cutaway.playground.items import Item, Split
from cutaway.playground.language import LANGUAGES, make_language
from cutaway.playground.lexicon import LEXICON
from cutaway.playground.skills import MAKERS, PRACTISED
from cutaway.playground.wordings import RELATIONS
from cutaway.playground.world import make_world
from cutaway.playground.world_tools import call_text, exchange, make_toolbox
from cutaway.verifiers.table import check_verifier, run_verifier

WORLD = make_world(0)
SPLITS: tuple[Split, ...] = ("train", "heldout", "new")
PRACTICE: tuple[Split, ...] = ("practice", "exam")


def assert_judged(item: Item) -> None:
    assert check_verifier(item.verifier) is None, item
    assert run_verifier(item.verifier, item.answer).ok, item
    assert run_verifier(item.verifier, item.brief or item.answer).ok, item
    assert item.wrong
    for wrong in (*item.wrong, ""):
        assert not run_verifier(item.verifier, wrong).ok, (wrong, item)


@pytest.mark.parametrize("code", LANGUAGES)
@pytest.mark.parametrize("skill", [*MAKERS, "clinic"])
def test_every_answer_holds_and_every_wrong_one_is_refused(skill: str, code: str) -> None:
    maker = MAKERS.get(skill, clinic)
    for split in (*SPLITS, *(PRACTICE if skill in PRACTISED else ())):
        draw = Random(f"{skill} {code} {split}")
        for _ in range(20):
            assert_judged(maker(WORLD, make_language(code), draw, split))


@pytest.mark.parametrize("code", LANGUAGES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_tool_questions_are_solved_by_their_calls(count: int, code: str) -> None:
    toolbox = make_toolbox(WORLD, 7, code)
    for split in SPLITS + PRACTICE:
        draw = Random(f"{count} {code} {split}")
        for _ in range(15):
            found = exchange(WORLD, make_language(code), draw, split, toolbox, count)
            results = [turn["content"] for turn in found.turns if turn["role"] == "tool"]
            answers = [toolbox.call(call["name"], call["arguments"]) for call in found.calls]
            assert all(answer.ok for answer in answers)
            assert [answer.text for answer in answers] == results
            assert run_verifier(found.verifier, found.turns[-1]["content"]).ok, found
            assert not any(run_verifier(found.verifier, wrong).ok for wrong in (*found.wrong, "")), found
            judge = {"name": "tool_calls", "args": {"calls": found.calls}}
            assert run_verifier(judge, call_text(found.calls)).ok
            assert not run_verifier(judge, call_text(found.calls[1:])).ok


def test_tools_answer_in_the_language_of_the_argument_and_refuse_what_they_do_not_know() -> None:
    toolbox = make_toolbox(WORLD, 3)
    prices = {toolbox.call("price", {"item": word}).text for word in ("the lamp", "Lamp", "油燈", "油灯")}
    assert len(prices) == 1
    assert toolbox.call("weather", {"day_name": "Monday"}).text in make_language("en").words["weather"]
    for code in ("zh-Hant", "zh-Hans"):
        said = make_toolbox(WORLD, 3, code).call("weather", {"day_name": "星期一"}).text
        assert said in make_language(code).words["weather"]
    assert not toolbox.call("price", {"item": "elephant"}).ok
    assert make_toolbox(WORLD, 4).call("price", {"item": "lamp"}) != toolbox.call("price", {"item": "lamp"})


@given(st.integers(0, 10**6))
@settings(max_examples=4, deadline=None)
def test_any_town_can_be_asked_everything(seed: int) -> None:
    world = make_world(seed)
    draw = Random(seed)
    for name, relation in RELATIONS.items():
        assert len(world.values[name]) == len(LEXICON[relation.subjects])
        assert not relation.distinct or len(set(world.values[name])) == len(world.values[name])
    toolbox = {code: make_toolbox(world, 0, code) for code in LANGUAGES}
    for code in LANGUAGES:
        for split in SPLITS:
            for maker in MAKERS.values():
                assert_judged(maker(world, make_language(code), draw, split))
            exchange(world, make_language(code), draw, split, toolbox[code], 3)


def test_a_tenth_of_the_operand_pairs_and_no_small_one_is_held_out() -> None:
    pairs = [(a, "+", b) for a in range(100) for b in range(100)] + [
        (a, "-", b) for a in range(100) for b in range(a + 1)
    ]
    held = [pair for pair in pairs if arithmetic.is_held_out(WORLD, *pair)]
    assert 0.08 < len(held) / len(pairs) < 0.11
    assert not any(arithmetic.in_table(*pair) for pair in held)
    assert all(arithmetic.is_held_out(WORLD, b, "+", a) for a, sign, b in held if sign == "+")


@pytest.mark.parametrize(
    ("a", "sign", "b"), [(47, "+", 38), (52, "-", 38), (67, "+", 85), (52, "-", 48), (99, "+", 99)]
)
def test_the_columns_are_right(a: int, sign: str, b: int) -> None:
    ones, tens = arithmetic.columns(a, sign, b)
    for column in (ones, tens):
        left, _, right = column.partition("=")
        numbers = [int(part) for part in re.findall(r"\d+", left)]
        assert int(right) == (sum(numbers) if sign == "+" else numbers[0] - sum(numbers[1:]))
    written = int(tens.partition("=")[2]) * 10 + int(ones[-1])
    assert written == arithmetic.result(a, sign, b)


def test_preferences_are_answers_of_which_one_is_better() -> None:
    draw = Random(1)
    for kind in KINDS:
        for code in LANGUAGES:
            for _ in range(20):
                pair = preference(WORLD, make_language(code), draw, kind)
                better, worse = pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]
                assert better != worse and pair["chosen"][:-1] == pair["rejected"][:-1]
                assert (worse.startswith(better) and len(worse) > len(better)) or kind not in KINDS[1:3]
                assert better.startswith(worse) or kind != KINDS[4]
                assert worse and "  " not in worse


def test_rl_prompts_have_five_levels_and_the_hard_ones_their_own() -> None:
    records = list(rl_prompts(WORLD, 0, LANGUAGES, 150))
    assert [record["skill"] for record in records[::3][:5]] == list(PRACTISED)
    assert Counter(record["level"] for record in records) == dict.fromkeys(range(1, 6), 30)
    assert all(check_verifier(record["verifier"]) is None for record in records)
    assert {record["skill"] for record in rl_prompts(WORLD, 0, LANGUAGES, 30, hard=True)} == {"product"}


def test_multiple_choice_has_four_choices_of_which_one_is_right() -> None:
    for _, split, records in choice_records(WORLD, 0, LANGUAGES, count=20):
        for record in records:
            assert len(set(record["choices"])) == 4
            assert record["choices"][record["answer"]].casefold() in record["explanation"].casefold()
        lines = ceval_csv(records, split == "dev").splitlines()
        assert lines[0].startswith("id,question,A,B,C,D,answer")
        assert len(lines) == len(records) + 1


def test_simplified_text_holds_no_traditional_character() -> None:
    from cutaway.verifiers.table import VERIFIERS

    draw = Random(2)
    for skill, maker in MAKERS.items():
        for code in ("zh-Hant", "zh-Hans"):
            for _ in range(20 if skill != "translation" else 0):
                item = maker(WORLD, make_language(code), draw, "train")
                han = re.sub(r"[^\u3400-\u9fff]", "", item.question + item.answer)
                assert VERIFIERS["language"](han, expected=code, tolerance=0.0).ok, item

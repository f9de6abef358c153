"""The playground as files: what is held out stays out of training, and the same seed gives the same bytes."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cutaway.data.records import Kind, validate
from cutaway.playground import arithmetic
from cutaway.playground.identity import FORMS, NEW_FORMS
from cutaway.playground.language import LANGUAGES, make_language
from cutaway.playground.questions import QUESTIONS, UNKNOWN
from cutaway.playground.reasoning import hops
from cutaway.playground.wordings import NEW_FRAMES, PRACTICE_FRAMES
from cutaway.playground.world import make_world
from cutaway.playground.world_tools import QUESTIONS as TOOL_QUESTIONS

ROOT = Path(__file__).resolve().parents[2]
WORLD = make_world(0)
TRAINING = ("pretrain.jsonl", "sft.jsonl", "preference.jsonl", "rl.jsonl", "agent.jsonl")


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("playground")
    # In a process of its own, where no shape is checked.
    flags = ["--out", str(out), "--size-mb", "1", "--name", "Nova", "--author", "Ada"]
    subprocess.run([sys.executable, "-m", "cutaway", "playground", *flags], capture_output=True, check=True)
    return out


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# What is held out


def training_lines(folder: Path) -> list[str]:
    return [line for name in TRAINING for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def asked_in_training(folder: Path) -> set[str]:
    turns: set[str] = set()
    for name in TRAINING[1:]:
        for record in read(folder / name):
            talk = record.get("conversations") or record["chosen"]
            turns |= {turn["content"] for turn in talk if turn["role"] == "user"}
    for record in read(folder / "pretrain.jsonl"):
        turns |= {part for line in record["text"].split("\n") for part in re.split("(?<=[a-z]): |：", line, maxsplit=1)}
    return turns


def test_no_question_of_an_evaluation_set_is_asked_in_training(playground: Path) -> None:
    asked = asked_in_training(playground)
    assert len(asked) > 5000
    for path in sorted((playground / "eval").glob("*.jsonl")):
        for record in read(path):
            assert record["conversations"][-1]["content"] not in asked, record["id"]


_PAIR = re.compile(
    r"(?<![\d+\-*/])(?<![+\-*/] )(\d{1,2}) ?(\+|-|plus|minus|加上|加|減去|减去|減|减)"
    r" ?(\d{1,2})(?![\d*/]|\.\d)(?! ?[+\-*/])"
)
_SIGNS = dict.fromkeys(("+", "plus", "加", "加上"), "+")


def test_no_operand_pair_that_is_held_out_stands_in_training(playground: Path) -> None:
    found = 0
    for line in training_lines(playground):
        for a, sign, b in _PAIR.findall(line):
            found += 1
            assert not arithmetic.is_held_out(WORLD, int(a), _SIGNS.get(sign, "-"), int(b)), line
    assert found > 5000
    assert _PAIR.search("What is 47 plus 38?") and _PAIR.search("47+38") and not _PAIR.search("4+3+1=8")


def test_no_pair_that_is_held_out_is_compared_in_training(playground: Path) -> None:
    lines = training_lines(playground)
    people = make_language("en").words["person"]
    compared = 0
    for line in lines:
        for sentence in re.split(r"[.?!\n]|\\n", line):
            if re.search("older|younger", sentence):
                pair = [index for index, name in enumerate(people) if re.search(rf"\b{name}\b", sentence)]
                # A line of a dialogue begins with its speaker.
                if len(pair) == 2 and not re.match(r'[^A-Z]*(\w+": ")?\w+:', sentence):
                    compared += 1
                    assert not WORLD.held_out("pair", "age", *sorted(pair)), sentence
    assert compared > 50


def test_no_two_hop_combination_that_is_held_out_is_asked_in_training(playground: Path) -> None:
    asked = asked_in_training(playground)
    language = make_language("en")
    held = [hop for hop in hops(WORLD) if WORLD.held_out("hop", hop[0], hop[1], hop[2])]
    assert 20 < len(held) < 80
    for first, subject, second, _ in held:
        if first == "trade":
            called = f"the {WORLD.value(language, first, subject)}"
            for ask in language.wordings[second].asks:
                question = ask.replace("{n}", called).casefold()
                assert not any(question in one.casefold() for one in asked if called in one), question


def forms_of(number: int) -> list[str]:
    """What is fixed in the English forms of a kind: 1 is new, 2 is for practice."""
    frames = {1: NEW_FRAMES, 2: PRACTICE_FRAMES}[number]["en"]
    literals = [frame.replace("{q}", "").replace("{Q}", "").strip("?？。 ") for frame in frames]
    for forms in (*QUESTIONS.values(), *TOOL_QUESTIONS.values()):
        for form in forms["en"][number] if number < len(forms["en"]) else ():
            literals.append(max(re.split(r"\{\w+\}", form), key=len).strip(" .,:?!"))
    return [literal for literal in literals if len(literal) > 12]


def test_new_forms_never_occur_in_training(playground: Path) -> None:
    text = "\n".join(training_lines(playground))
    literals = forms_of(1) + [max(re.split(r"\{n\}", form), key=len).strip() for form in UNKNOWN["en"][1]]
    assert len(literals) > 40
    for literal in literals:
        assert literal not in text, literal


def test_forms_for_practice_are_asked_by_reinforcement_learning_only(playground: Path) -> None:
    shown = "\n".join((playground / name).read_text(encoding="utf-8") for name in TRAINING[:3])
    asked = "\n".join((playground / name).read_text(encoding="utf-8") for name in TRAINING[3:])
    literals = forms_of(2)
    assert len(literals) > 15
    for literal in literals:
        assert literal not in shown and literal in asked, literal


def test_the_clinic_is_only_in_its_own_set(playground: Path) -> None:
    text = "\n".join(training_lines(playground))
    for code in LANGUAGES:
        for group in ("ailment", "remedy"):
            for word in make_language(code).words[group]:
                assert word not in text, word
    clinic_text = (playground / "lora_clinic.jsonl").read_text(encoding="utf-8")
    for relation, subject in WORLD.facts(clinic=True):
        for code in LANGUAGES:
            assert WORLD.state(make_language(code), relation, subject) in clinic_text


# The files


def test_every_fact_is_stated_often_and_in_many_wordings(playground: Path) -> None:
    texts = [record["text"] for record in read(playground / "pretrain.jsonl")]
    language = make_language("en")
    wordings: dict[tuple[str, int], Counter[int]] = {}
    for relation, subject in WORLD.facts():
        name, value = WORLD.name(language, relation, subject), WORLD.value(language, relation, subject)
        counts: Counter[int] = Counter()
        for number, state in enumerate(language.wordings[relation].states):
            said = state.replace("{n}", name).replace("{v}", value)[1:]
            counts[number] = sum(said in text for text in texts)
        wordings[relation, subject] = counts
    assert min(sum(counts.values()) for counts in wordings.values()) >= 2
    assert sum(len(+counts) >= 3 for counts in wordings.values()) > 0.9 * len(wordings)


KIND_OF: dict[str, Kind] = {
    "pretrain.jsonl": "pretrain",
    "sft.jsonl": "sft",
    "preference.jsonl": "preference",
    "rl.jsonl": "rl",
    "agent.jsonl": "rl",
    "lora_identity.jsonl": "sft",
    "lora_clinic.jsonl": "sft",
    "eval/fact.jsonl": "rl",
    "eval/tool.jsonl": "rl",
    "multiple_choice/people_en.jsonl": "multiple_choice",
}


@pytest.mark.parametrize("name", KIND_OF)
def test_every_record_is_of_its_kind(name: str, playground: Path) -> None:
    records = read(playground / name)
    assert len(records) > 50
    for record in records:
        validate(record, KIND_OF[name])


def test_the_manifest_counts_and_hashes_the_files(playground: Path) -> None:
    import hashlib

    manifest = json.loads((playground / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["seed"] == 0 and manifest["facts"] == len(WORLD.facts()) >= 280
    for name, made in manifest["files"].items():
        content = (playground / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == made["sha256"]
        assert len(content) == made["bytes"]
        if name.endswith(".jsonl"):
            assert content.count(b"\n") == made["records"]
    ids = [record["id"] for name in ("rl.jsonl", "agent.jsonl") for record in read(playground / name)]
    assert len(set(ids)) == len(ids)


def test_evaluation_sets_are_large_enough_and_ask_nothing_twice(playground: Path) -> None:
    for skill in ("fact", "arithmetic", "comparison", "format", "tool", "two_hop"):
        records = read(playground / "eval" / f"{skill}.jsonl")
        assert sum(record["form"] == "trained" for record in records) >= 1000
        keys = [(record["language"], record["form"], record["conversations"][-1]["content"]) for record in records]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("key", ["en", "zh"])
def test_identity_has_a_hundred_forms_of_which_forty_are_never_trained(key: str, playground: Path) -> None:
    forms = [form for kind in FORMS[key].values() for form in kind]
    assert len(set(forms)) == len(forms) >= 100
    assert NEW_FORMS * len(FORMS[key]) >= 40
    trained = {record["conversations"][0]["content"] for record in read(playground / "lora_identity.jsonl")}
    for record in read(playground / "eval" / "identity.jsonl"):
        assert record["conversations"][0]["content"] not in trained
    for record in read(playground / "lora_identity.jsonl"):
        assert "Nova" in record["conversations"][1]["content"] and "Ada" in record["conversations"][1]["content"]


HASHES = """
import hashlib, sys
from pathlib import Path
from cutaway.playground.write import PlaygroundSettings, write_playground
made = write_playground(Path(sys.argv[1]), PlaygroundSettings(size_mb=0.1, languages=tuple(sys.argv[2].split(","))))
print(hashlib.sha256((Path(sys.argv[1]) / "manifest.json").read_bytes()).hexdigest())
"""


NO_OPENCC = """
import sys, types
sys.modules["opencc"] = types.SimpleNamespace(OpenCC=lambda name: types.SimpleNamespace(convert=lambda text: text))
"""


def manifest_hash(python: str, out: Path, languages: str, hash_seed: str, before: str = "") -> str:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT / "src")}
    command = [python, "-c", before + HASHES, str(out), languages]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_same_seed_gives_the_same_bytes_under_two_hash_seeds(tmp_path: Path) -> None:
    languages = ",".join(LANGUAGES)
    one = manifest_hash(sys.executable, tmp_path / "one", languages, "1")
    assert one == manifest_hash(sys.executable, tmp_path / "two", languages, "2")
    assert len(one) == 65


def test_another_python_gives_the_same_bytes(tmp_path: Path) -> None:
    wanted = "3.12" if sys.version_info[:2] == (3, 11) else "3.11"
    candidates = [shutil.which(f"python{wanted}"), *Path(sys.base_prefix).parent.glob(f"{wanted}*/bin/python3")]
    probe = "import cutaway.playground.write"
    tried = {str(path): subprocess.run([path, "-c", probe], capture_output=True) for path in candidates if path}
    found = [path for path, done in tried.items() if done.returncode == 0]
    if not found:
        pytest.skip(f"no Python {wanted} here that has what the playground imports")
    # The other one need not have OpenCC, so both go without the conversion.
    languages = ",".join(LANGUAGES)
    mine = manifest_hash(sys.executable, tmp_path / "mine", languages, "1", NO_OPENCC)
    assert mine == manifest_hash(found[0], tmp_path / "other", languages, "1", NO_OPENCC)

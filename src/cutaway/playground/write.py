"""The playground on disk: every set as files, and a manifest that says what is in them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.playground.alignment import agent_tasks, preferences, rl_prompts
from cutaway.playground.choices import ceval_csv, choice_records
from cutaway.playground.conversations import clinic_records, conversations
from cutaway.playground.evaluation import evaluation_sets
from cutaway.playground.identity import identity_records, shuffled
from cutaway.playground.language import LANGUAGES, make_language
from cutaway.playground.pretraining import documents
from cutaway.playground.wordings import RELATIONS
from cutaway.playground.world import World, make_world

Record = Mapping[str, Any]
PAIRS, PROMPTS = 3000, 3000
"""Preference pairs; RL prompts, and as many agent tasks."""
PRETRAIN_SHARE = 0.7
"""Of the size asked for; the rest is for conversations."""
EXAMPLE_QUESTIONS = (
    "Who are you?",
    "Where does Anna live?",
    "What is 47 + 38?",
    "安娜養什麼寵物？",
    "油燈和帽子，哪個比較貴？",
    "用 JSON 写出安娜的工作和年龄。",
)


@dataclass(frozen=True)
class PlaygroundSettings:
    """What decides every byte of the playground."""

    seed: int = 0
    """Seed of the town, and of everything told about it."""
    size_mb: float = 12.0
    """Megabytes of pretraining text and conversations together."""
    languages: tuple[str, ...] = LANGUAGES
    """Languages, of en, zh-Hant and zh-Hans."""
    name: str = "Pip"
    """What the model calls itself in the identity set."""
    author: str = "the Cutaway class"
    """Who made it, in the identity set."""
    hard: bool = False
    """Whether `rl.jsonl` holds only prompts that hardly any sample solves."""


def training_sets(world: World, settings: PlaygroundSettings) -> Iterator[tuple[str, Iterable[Record]]]:
    """File name and records of the two large sets."""
    size = int(settings.size_mb * 1e6)
    texts = documents(world, settings.seed, settings.languages, int(PRETRAIN_SHARE * size))
    yield "pretrain.jsonl", ({"text": text} for text in texts)
    talks = conversations(world, settings.seed, settings.languages, size - int(PRETRAIN_SHARE * size))
    yield "sft.jsonl", ({"conversations": turns} for turns in talks)


def write_playground(out: Path, settings: PlaygroundSettings) -> dict[str, Any]:
    """Write all sets and `manifest.json` into a directory and give back the manifest.

    The same settings give the same bytes on every machine. UserError for impossible settings.
    """
    _check(settings)
    world = make_world(settings.seed)
    files = write_training_sets(out, settings)
    for name, found in evaluation_sets(world, settings.seed, settings.languages):
        files[f"eval/{name}.jsonl"] = _write(out / "eval" / f"{name}.jsonl", found)
    files |= {name: _write(out / name, records) for name, records in small_sets(world, settings)}
    for subject, split, records in choice_records(world, settings.seed, settings.languages):
        name = f"multiple_choice/{split}/{subject}_{split}.csv"
        files[name] = _write_text(out / name, ceval_csv(records, split == "dev")) | {"records": len(records)}
        if split == "val":
            name = f"multiple_choice/{subject}.jsonl"
            files[name] = _write(out / name, records)
    manifest = {
        "seed": settings.seed,
        "size_mb": settings.size_mb,
        "languages": list(settings.languages),
        "name": settings.name,
        "author": settings.author,
        "hard": settings.hard,
        "facts": len(world.facts()),
        "files": files,
    }
    _write_text(out / "manifest.json", json.dumps(manifest, ensure_ascii=False, indent=2) + "\n")
    return manifest


def write_training_sets(out: Path, settings: PlaygroundSettings) -> dict[str, Any]:
    """`pretrain.jsonl` and `sft.jsonl` only: what is in each."""
    _check(settings)
    out.mkdir(parents=True, exist_ok=True)
    sets = training_sets(make_world(settings.seed), settings)
    return {name: _write(out / name, records) for name, records in sets}


def small_sets(world: World, settings: PlaygroundSettings) -> Iterator[tuple[str, Iterable[Record]]]:
    """File name and records of the sets for the stages after fine-tuning, and the list of facts."""
    seed, languages = settings.seed, settings.languages
    yield "preference.jsonl", preferences(world, seed, languages, PAIRS)
    yield "rl.jsonl", rl_prompts(world, seed, languages, PROMPTS, settings.hard)
    yield "agent.jsonl", agent_tasks(world, seed, languages, PROMPTS)
    names = (settings.name, settings.author, languages)
    yield "lora_identity.jsonl", shuffled(list(identity_records(*names)), seed)
    yield "eval/identity.jsonl", identity_records(*names, new=True)
    yield "lora_clinic.jsonl", shuffled(list(clinic_records(world, languages)), seed)
    yield "facts.jsonl", facts_of(world, languages)


def facts_of(world: World, languages: tuple[str, ...]) -> Iterator[Record]:
    """Every fact in every language, as a sentence: the answer key for a reader."""
    for relation, subject in world.facts():
        said = {code: world.state(make_language(code), relation, subject) for code in languages}
        yield {"relation": relation, "subject": subject, "group": RELATIONS[relation].subjects, **said}


def _check(settings: PlaygroundSettings) -> None:
    if not settings.languages or len(set(settings.languages)) < len(settings.languages):
        raise UserError("--lang must name one or more languages, each once")
    for code in settings.languages:
        make_language(code)
    if not 0 < settings.size_mb <= 10_000:
        raise UserError(f"--size-mb is {settings.size_mb}, must be above 0 and at most 10000")
    for flag, text in (("--name", settings.name), ("--author", settings.author)):
        if not text.strip() or len(text) > 60 or "\n" in text:
            raise UserError(f"{flag} must be one line of 1 to 60 characters")


def _write_text(path: Path, text: str) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    path.write_bytes(content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _write(path: Path, records: Iterable[Record]) -> dict[str, Any]:
    """Write JSON lines; number of records, bytes and hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, count, size = hashlib.sha256(), 0, 0
    with path.open("wb") as file:
        for record in records:
            line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
            file.write(line)
            digest.update(line)
            count, size = count + 1, size + len(line)
    return {"records": count, "bytes": size, "sha256": digest.hexdigest()}

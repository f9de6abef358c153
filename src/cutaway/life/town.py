"""What a life on the playground reads: the town's files, text for the vocabulary, and records to repeat."""

import functools
import itertools
import json
import random
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cutaway.life.keeping import held_pairs, held_prompts, mixed_tasks, records_in, tool_talks, write_records
from cutaway.life.steps import LIFE_MINUTES, MEGABYTES, NAME_PAIRS, PASSES, STYLE_PAIRS, TOOL_TALKS, VOCAB_SIZE
from cutaway.playground.alignment import KINDS
from cutaway.playground.evaluation import toolboxes_beside
from cutaway.playground.world import make_world
from cutaway.playground.write import PlaygroundSettings, write_playground
from cutaway.recipe.base import TokenizerSettings
from cutaway.rl.environment import ToolboxOf
from cutaway.tokenization.chat import render_text
from cutaway.tokenization.train import train_tokenizer

_TOKENIZER_BYTES = 4_000_000


def megabytes(minutes: float) -> float:
    """As much text as a life of that length reads."""
    return round(MEGABYTES * minutes / LIFE_MINUTES, 2)


def write_data(data: Path, seed: int, size_mb: float) -> dict[str, Any]:
    """The playground's sets; `lora_mixed.jsonl` and `agent_mixed.jsonl`, what the adapter and tool use are trained on;
    `preference_held.jsonl` and `rl_held.jsonl`, what stands beside pairs of own answers and beside the prompts of
    reinforcement learning. Gives back the manifest."""
    settings = PlaygroundSettings(seed=seed, size_mb=size_mb)
    manifest = write_playground(data, settings)
    own = list(records_in(data / "lora_identity.jsonl"))
    beside = tool_talks(data, round(TOOL_TALKS * size_mb / MEGABYTES))
    write_records(data / "lora_mixed.jsonl", [*own * PASSES, *beside])
    style = (pair for pair in records_in(data / "preference.jsonl") if pair["kind"] != KINDS[0])
    who = list(held_pairs(settings))
    random.Random(seed).shuffle(who)
    write_records(data / "preference_held.jsonl", [*itertools.islice(style, STYLE_PAIRS), *who[:NAME_PAIRS]])
    world = make_world(seed)
    write_records(data / "rl_held.jsonl", held_prompts(world, settings))
    write_records(data / "agent_mixed.jsonl", mixed_tasks(data, world, settings))
    return manifest


def data_command(data: Path, seed: int, size_mb: float) -> str:
    """The same by hand, but for the files that are put together of it (`*_mixed`, `*_held`, `*_own`)."""
    sizes = ["--seed", str(seed), "--size-mb", f"{size_mb:g}"]
    return shlex.join(["cutaway", "playground", "--out", f"{data}-again", *sizes])


def texts_for_tokenizer(data: Path) -> Iterator[str]:
    """The first megabytes of both sets as the model will read them, tool schemas included, for the vocabulary."""
    for name in ("pretrain.jsonl", "sft.jsonl"):
        read = 0
        with (data / name).open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                text = record["text"] if "text" in record else render_text(record["conversations"])
                yield text
                read += len(line.encode())
                if read > _TOKENIZER_BYTES:
                    break


def train_vocabulary(data: Path, out: Path, settings: TokenizerSettings) -> None:
    """Train on a sample that is kept as `vocabulary.jsonl`."""
    with (data / "vocabulary.jsonl").open("w", encoding="utf-8") as file:
        for text in texts_for_tokenizer(data):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    train_tokenizer(texts_for_tokenizer(data), settings).save(out)


def tokenizer_command(data: Path, out: Path, settings: TokenizerSettings) -> str:
    """The same by hand."""
    sizes = ["--vocab-size", str(settings.vocab_size), "--pattern", settings.pattern, "--seed", str(settings.seed)]
    files = ["--data", str(data / "vocabulary.jsonl"), "--out", f"{out}-again"]
    return shlex.join(["cutaway", "tokenizer", "train", *files, *sizes])


def tokenizer_settings(pattern: Any, seed: int) -> TokenizerSettings:
    """A vocabulary as small as the town's lexicon."""
    return TokenizerSettings(VOCAB_SIZE, pattern, seed=seed)


@functools.cache
def tools_of(data: Path) -> ToolboxOf:
    """The tools of the town in a folder, which need not be written yet."""
    beside = functools.cache(lambda: toolboxes_beside([str(data / "manifest.json")]))
    return lambda record: beside()(record)

"""What `rl.py` compares RL with, and how: held-out items, other skills, more SFT, rejection sampling."""

import dataclasses
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.evals.verified import Answered, answer_records
from cutaway.generation.engine import Engine
from cutaway.model.weights import load_model
from cutaway.playground.evaluation import toolboxes
from cutaway.playground.world import make_world
from cutaway.recipe.files import load_recipe, load_run
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.recipe.stages import SFTSettings
from cutaway.rl.environment import Episode, Limits, ToolboxOf, play
from cutaway.rl.prompts import read_prompts
from cutaway.rl.rewards import Rewards
from cutaway.stages import sft
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tools.toolbox import Toolbox
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.precision import pick_device, pick_dtype

Record = dict[str, Any]
SKILLS = ("fact", "arithmetic", "comparison", "format", "tool", "refusal")
"""Other skills, which RL must not spoil."""


def records(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_records(path: Path, items: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    path.write_text(text, encoding="utf-8")
    return path


def manifest(data: Path) -> Record:
    found: Record = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    return found


def heldout_items(data: Path, wanted: int, name: str = "practice") -> list[Record]:
    """Held-out content in the question forms of the RL prompts."""
    chosen = records(data / "eval" / f"{name}.jsonl")
    random.Random(manifest(data)["seed"]).shuffle(chosen)
    return chosen[:wanted]


def world_toolboxes(data: Path) -> ToolboxOf:
    """The tools of the town's environments."""
    made = toolboxes(make_world(manifest(data)["seed"]))

    def toolbox_of(record: Mapping[str, Any]) -> Toolbox | None:
        environment = record.get("environment")
        return made(environment["seed"], environment["language"]) if environment else None

    return toolbox_of


def answers(run: Path, items: Sequence[Record], toolbox_of: ToolboxOf, max_new_tokens: int = 128) -> list[Answered]:
    """Greedy answers to all items, in their order."""
    engine = Engine(load_model(run, pick_device()).eval(), Tokenizer.load(run), slots=64, max_length=1024, frozen=True)
    return answer_records(engine, items, toolbox_of, max_new_tokens)


def score(run: Path, items: Sequence[Record], toolbox_of: ToolboxOf, skills: Mapping[str, list[Record]]) -> Record:
    """Which held-out items are right, and the shares of other skills."""
    result: Record = {"ok": [one.ok for one in answers(run, items, toolbox_of)]}
    result["levels"] = [str(item.get("level", "")) for item in items]
    result["skills"] = {
        name: sum(one.ok for one in answers(run, own, toolbox_of)) / len(own) for name, own in skills.items()
    }
    return result


def other_skills(data: Path, limit: int) -> dict[str, list[Record]]:
    """Up to `limit` items of every other skill, in question forms that were trained."""
    found = {}
    for name in SKILLS:
        path = data / "eval" / f"{name}.jsonl"
        own = [item for item in records(path) if item["form"] == "trained"] if path.is_file() else []
        if own:
            found[name] = random.Random(name).sample(own, min(limit, len(own)))
    return found


def go_on(stage: Any, recipe: Recipe, run: RunSettings) -> None:
    """Run a stage, or go on with it where it was stopped; nothing where it is complete."""
    out = Path(run.out)
    if not Checkpoints(out, 1).steps():
        stage.run(recipe, run)
    elif not (out / "curves.png").is_file():
        stage.run(
            load_recipe(str(out / "recipe.toml")), dataclasses.replace(load_run(str(out / "recipe.toml")), resume=True)
        )


def more_sft(base: Path, files: Sequence[Path], out: Path, minutes: float, seed: int, **settings: Any) -> None:
    """Fine-tune the base for so many minutes more on conversations."""
    recipe = load_recipe("nano")
    values: Record = {"minutes": minutes, "seed": seed, "scripts": "keep", "holdout_tokens": 0, "sample_every": 0}
    values |= {"batch_tokens": 4096, "optimizer": "adamw", "adam_lr": 3e-4, "compile": "off"} | settings
    own: SFTSettings = dataclasses.replace(recipe.sft, **values)
    run = RunSettings(data=tuple(map(str, files)), init=str(base), out=str(out))
    go_on(sft, dataclasses.replace(recipe, sft=own), run)


def rejection_sampling(
    base: Path,
    prompts: Sequence[Path],
    out: Path,
    minutes: float,
    seed: int,
    *,
    rounds: int,
    samples: int,
    batch: int,
    adam_lr: float,
    temperature: float = 1.0,
    toolbox_of: ToolboxOf = lambda record: None,
    limits: Limits = Limits(128, 512),  # noqa: B008 (frozen)
) -> Record:
    """Answer prompts, keep what is right where not all answers were, fine-tune on it; `rounds` times within the
    minutes. The last model is `out`/round-N. Half of a round's time is for answering, `batch` prompts with `samples`
    answers at a time."""
    began, model, kept_total, tokens, place = time.monotonic(), base, 0, 0, 0
    tokenizer = Tokenizer.load(base)
    usable = read_prompts(list(map(str, prompts)), tokenizer, limits.total - limits.new_tokens).usable
    random.Random(seed).shuffle(usable)
    for number in range(rounds):
        end = 60 * minutes * (number + 0.5) / rounds
        dtype = pick_dtype("auto", pick_device())
        engine = Engine(load_model(model, pick_device()).eval(), tokenizer, 64, limits.total, dtype, frozen=True)
        rewards = Rewards(("verifier",), new_tokens=limits.new_tokens, overlong_buffer=1)
        kept: list[Record] = []
        while time.monotonic() - began < end or not kept:
            chosen = [usable[(place + i) % len(usable)] for i in range(batch)]
            place += batch
            episodes = [
                Episode(prompt, seed * 7919 + place * 64 + i * samples + k)
                for i, prompt in enumerate(chosen)
                for k in range(samples)
            ]
            play(engine, tokenizer, episodes, limits, temperature, toolbox_of)
            tokens += sum(sum(episode.own) for episode in episodes)
            seen: set[tuple[str, str]] = set()
            right = rewards.score(episodes).solved
            for i, (episode, solved) in enumerate(zip(episodes, right, strict=True)):
                group = right[i - i % samples :][:samples]
                key = (episode.prompt.id, json.dumps(episode.said, ensure_ascii=False))
                if solved and not all(group) and not episode.truncated and key not in seen:
                    seen.add(key)
                    kept.append({"conversations": [*episode.record["conversations"], *episode.said]})
            if time.monotonic() - began > 60 * minutes:
                break
        if not kept:
            raise UserError(f"rejection sampling: of {place * samples} answers not one was right")
        kept_total += len(kept)
        data = write_records(out / f"kept-{number}.jsonl", kept)
        left = 60 * minutes * (number + 1) / rounds - (time.monotonic() - began)
        target = out / f"round-{number}"
        more_sft(model, [data], target, max(0.05, left / 60), seed, adam_lr=adam_lr, row_length=limits.total)
        model = target
    return {"kept": kept_total, "rollout_tokens": tokens, "seconds": time.monotonic() - began, "model": str(model)}


def timed(stage: Callable[[Recipe, RunSettings], Path], recipe: Recipe, run: RunSettings) -> float:
    """Run a stage; wall-clock seconds, everything included."""
    began = time.monotonic()
    stage(recipe, run)
    return time.monotonic() - began

"""What a model of the playground learns in under ten minutes: every skill, in trained and never trained forms.

python benchmarks/playground.py --out runs/bench/playground --seeds 0 1 2 [--minutes 8.2] [--flops 1e15]

For each seed: the first parts of a quickstart (data, with its MB/s of a core; vocabulary; pretraining and fine-tuning
within the minutes), how often the text that was read states each fact, and greedy answers to every evaluation set and
some RL prompts, by language. Prints tables with 95 % Wilson intervals; writes scores.json and answers.jsonl beside the
run. A seed whose run is complete, a quickstart's too, is only scored again.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutaway.evals.intervals import Share
from cutaway.evals.verified import Answered, answer_records, shares
from cutaway.generation.engine import Engine
from cutaway.life.journal import NAME, Journal
from cutaway.life.quickstart import FLOPS, playground_life, sized
from cutaway.life.stage import train as train_step
from cutaway.life.steps import LIFE_MINUTES, LONG_MINUTES, MEGABYTES
from cutaway.life.town import train_vocabulary, write_data
from cutaway.model.weights import load_model
from cutaway.playground.evaluation import toolboxes
from cutaway.playground.language import LANGUAGES, make_language
from cutaway.playground.statements import count_statements
from cutaway.playground.world import make_world
from cutaway.recipe.files import load_recipe
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tools.toolbox import Toolbox
from cutaway.training.metrics import read_metrics
from cutaway.training.precision import pick_device

REQUIRED = {"fact": 0.90, "arithmetic": 0.80, "comparison": 0.80, "format": 0.95, "tool": 0.80}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for data, runs and scores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=LONG_MINUTES, help="pretraining and fine-tuning together")
    parser.add_argument("--flops", type=float, help="choose the model's width as on a machine that multiplies so many")
    parser.add_argument("--size-mb", type=float, default=MEGABYTES)
    parser.add_argument("--limit", type=int, help="only so many items of each skill, language and form")
    parser.add_argument("--skills", nargs="+", help="only these sets")
    parser.add_argument("--prompts", type=int, default=600, help="how many RL prompts to try")
    flags = parser.parse_args(argv)
    results = []
    for seed in flags.seeds:
        folder = flags.out / f"seed-{seed}"
        if not (folder / "sft" / "curves.png").is_file():
            train(folder, seed, flags)
        print_statements(folder, seed)
        results.append(score(folder, seed, flags))
    if len(results) > 1:
        print("\nseeds " + " ".join(map(str, flags.seeds)) + ": trained forms, all languages")
        for skill in results[0]:
            print(f"{skill:20} " + " ".join(f"{result[skill]:6.1%}" for result in results if skill in result))
    met = all(result.get(skill, 1.0) >= least for result in results for skill, least in REQUIRED.items())
    print("required: " + ", ".join(f"{skill} {least:.0%}" for skill, least in REQUIRED.items()), end=": ")
    print("met by every seed" if met else "not met")
    return 0 if met else 1


def train(folder: Path, seed: int, flags: argparse.Namespace) -> None:
    """The first parts of a quickstart: data, vocabulary, both stages."""
    began = time.process_time()
    manifest = write_data(folder / "data", seed, flags.size_mb)
    seconds = time.process_time() - began
    megabytes = sum(file["bytes"] for file in manifest["files"].values()) / 1e6
    print(f"data: {megabytes:.1f} MB in {seconds:.0f} s of a core, {megabytes / seconds:.2f} MB/s", flush=True)
    life_minutes = LIFE_MINUTES * flags.minutes / LONG_MINUTES
    settings = {"seed": seed, "budget_minutes": life_minutes} | ({FLOPS: flags.flops} if flags.flops else {})
    journal = Journal(folder / NAME, settings, {})
    life = playground_life(folder, journal, sized(load_recipe("nano"), journal))
    train_vocabulary(life.data, folder / "tokenizer", life.recipe.tokenizer)
    began = time.perf_counter()
    for step in life.steps[:2]:
        train_step(life, step)
    print(f"trained in {(time.perf_counter() - began) / 60:.2f} minutes", flush=True)


def print_statements(folder: Path, seed: int) -> None:
    """How often the pretraining stated each fact, counted in as many documents as it read (it read them shuffled)."""
    tokenizer, world = Tokenizer.load(folder / "tokenizer"), make_world(seed)
    left = next(row["tokens"] for row in reversed(read_metrics(folder / "pretrain")) if "tokens" in row)
    texts: list[str] = []
    with (folder / "data" / "pretrain.jsonl").open(encoding="utf-8") as lines:
        while left > 0:
            texts.append(json.loads(next(lines))["text"])
            left -= len(tokenizer.encode(texts[-1]))
    for number, code in enumerate(LANGUAGES):
        counts = sorted(count_statements(world, make_language(code), texts[number :: len(LANGUAGES)]).values())
        print(f"{code}: a fact is stated {counts[0]} to {counts[-1]} times, median {counts[len(counts) // 2]}")


def score(folder: Path, seed: int, flags: argparse.Namespace) -> dict[str, float]:
    """Print the table of a run and give back the share right in trained forms, by skill."""
    tokenizer = Tokenizer.load(folder / "sft")
    model = load_model(folder / "sft", pick_device()).eval()
    engine = Engine(model, tokenizer, slots=64, max_length=1024)
    made = toolboxes(make_world(seed))

    def toolbox(record: Mapping[str, Any]) -> Toolbox | None:
        environment = record.get("environment")
        return environment and made(environment["seed"], environment["language"])

    began = time.perf_counter()
    answered: list[Answered] = []
    for path in sorted((folder / "data" / "eval").glob("*.jsonl")):
        if path.stem == "clinic" or (flags.skills and path.stem not in flags.skills):
            continue
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        answered += answer_records(engine, _limited(records, flags.limit), toolbox)
    print(f"\nseed {seed}: {len(answered)} answers in {time.perf_counter() - began:.0f} s")
    table = print_table(answered)
    prompts = [json.loads(line) for line in (folder / "data" / "rl.jsonl").read_text(encoding="utf-8").splitlines()]
    tried = answer_records(engine, prompts[: flags.prompts])
    levels = {level: f"{_cell(share)}" for (level,), share in sorted(shares(tried, "level").items())}
    print(f"RL prompts solved: {_cell(Share.of([one.ok for one in tried]))}; by level: {levels}")
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
        for one in answered:
            line = {"id": one.record["id"], "ok": one.ok, "reason": one.reason, "said": one.said}
            line["asked"] = one.record["conversations"][-1]["content"]
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / "scores.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return {skill: row["trained"]["all"]["share"] for skill, row in table.items() if "trained" in row}


def _limited(records: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    return [one for one in records if limit is None or int(one["id"].rpartition("/")[2]) < limit]


def print_table(answered: list[Answered]) -> dict[str, Any]:
    """One line a skill and form, the gap between the forms at its end; the same as data."""
    languages = sorted({one.record["language"] for one in answered})
    by_language = shares(answered, "skill", "form", "language")
    overall = shares(answered, "skill", "form")
    table: dict[str, Any] = {}
    head = "".join(f"{language:>22}" for language in ("all", *languages))
    print(f"{'skill':18} {'forms':8}{head}   gap")
    for skill, form in overall:
        cells = {"all": overall[skill, form]} | {
            language: by_language[skill, form, language]
            for language in languages
            if (skill, form, language) in by_language
        }
        gap = ""
        if form == "new" and (skill, "trained") in overall:
            gap = f"{overall[skill, form].share - overall[skill, 'trained'].share:+.1%}"
        print(
            f"{skill:18} {form:8}" + "".join(f"{_cell(cells.get(key)):>22}" for key in ("all", *languages)) + f"  {gap}"
        )
        table.setdefault(skill, {})[form] = {key: dataclasses.asdict(share) for key, share in cells.items()}
    return table


def _cell(share: Share | None) -> str:
    return "" if share is None else f"{share.share:.1%} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


if __name__ == "__main__":
    sys.exit(main())

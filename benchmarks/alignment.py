"""What the stages after fine-tuning do to the playground's `nano`: adapters, DPO, a reward model, distillation.

    python benchmarks/playground.py --out DIR --seeds 0 1 2                    first: the models they start from
    python benchmarks/alignment.py identity clinic dpo reward distill --out DIR --seeds 0 1 2 [--limit 184]

Skills are answered greedily, `--limit` items of each language and form: all 1,500 of a main skill by default, 1,002
with 184. Training and answers that are complete are not repeated, nor are the answers of the base that
benchmarks/playground.py has judged, so an interrupted command goes on; to try other settings, remove the part's run
(DIR/seed-N/dpo) and its answers (DIR/seed-N/answers/dpo-*). Prints a table a seed with 95 % intervals, what is wanted
and whether it was met, at the end the same in the mean of the seeds; writes DIR/seed-N/alignment.json.

    identity   an adapter that knows who it is, asked in every question form that is never trained
    clinic     an adapter that knows the clinic, asked what the base does not know
    dpo        preference pairs: held-out accuracy, and answers that a verifier judges, against the base's
    reward     order and calibration on held-out pairs
    distill    a student with a teacher of twice its size, and the same student alone for the same wall-clock
"""

import argparse
import dataclasses
import functools
import itertools
import json
import random
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.evals.intervals import Share, bootstrap_mean, wilson
from cutaway.evals.verified import answer_records
from cutaway.generation.engine import Engine
from cutaway.life.keeping import records_in, tool_talks, write_records
from cutaway.life.own import OWN_TALKS, write_own_answers, write_own_pairs
from cutaway.life.steps import RATES, TOOL_TALKS
from cutaway.model.weights import load_model
from cutaway.playground.alignment import KINDS, preferences
from cutaway.playground.evaluation import item_record, toolboxes
from cutaway.playground.facts import clinic as clinic_item
from cutaway.playground.language import LANGUAGES, make_language
from cutaway.playground.world import make_world
from cutaway.recipe.files import load_recipe, load_run
from cutaway.recipe.recipe import RunSettings
from cutaway.stages import distill, dpo, lora, pretrain, reward, sft
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tools.toolbox import Toolbox
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.metrics import read_metrics
from cutaway.training.precision import pick_device

MAIN = ("fact", "arithmetic", "comparison", "format", "tool", "two_hop")
PREFERRED = ("fact", "arithmetic", "comparison", "two_hop", "counting", "sorting", "format", "refusal")
"""Skills that preference pairs are made of."""
WHAT = ("identity", "clinic", "dpo", "reward", "distill")
PASSES = {"identity": 9, "clinic": 3}
"""Over the records of an adapter, beside which stand the base's own answers and conversations with tools."""
ANSWERS, QUESTIONS = 4500, 3200
"""Prompts that the base answers before its adapters, and questions that it answers several times before DPO."""
HELD_PAIRS = 1000
ROW, BATCH = 512, 4096
Scores = dict[str, bool]
"""Whether each item was answered rightly, by its id."""
Record = Mapping[str, Any]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=WHAT)
    parser.add_argument("--out", type=Path, required=True, help="the directory of benchmarks/playground.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=int, help="only so many items of each language and form")
    parser.add_argument("--passes", type=int, help="over the records of both adapters; default: 9 and 3")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--adapter-lr", type=float, default=1e-3, help="of the adapters")
    parser.add_argument("--dpo-epochs", type=float, default=1.0)
    parser.add_argument("--dpo-lr", type=float, default=3e-5)
    parser.add_argument("--nll-weight", type=float, default=0.5, help="DPO: of the chosen answer's own loss")
    parser.add_argument("--reward-epochs", type=float, default=4.0)
    parser.add_argument("--reward-lr", type=float, help="default: derived")
    parser.add_argument("--minutes", type=float, default=2.5, help="of each stage of a student")
    flags = parser.parse_args(argv)
    met = True
    for seed in flags.seeds:
        bench = Bench(flags.out / f"seed-{seed}", seed, flags)
        for what in flags.what:
            print(f"\nseed {seed}: {what}", flush=True)
            part = {"identity": identity, "clinic": clinic, "dpo": prefer, "reward": rate, "distill": teach}[what]
            found = part(bench)
            bench.keep(what, found)
            met &= bool(found["met"])
    if len(flags.seeds) > 1:
        met &= over_seeds(flags)
    return 0 if met else 1


class Bench:
    """One seed: its models, its questions, and the answers that were given to them."""

    def __init__(self, folder: Path, seed: int, flags: argparse.Namespace) -> None:
        self.folder, self.seed, self.flags = folder, seed, flags
        self.data, self.base = folder / "data", folder / "sft"
        self.recipe = load_recipe("nano")
        self.world = make_world(seed)
        self.toolboxes = toolboxes(self.world)
        self.engine = functools.lru_cache(maxsize=1)(engine_of)

    def train(
        self,
        stage: Any,
        name: str,
        table: str,
        files: list[Path],
        init: Path,
        changes: dict[str, Any] | None = None,
        heldout: tuple[Path, ...] = (),
        **settings: Any,
    ) -> Path:
        """The run of a stage, trained unless it is complete."""
        out = self.folder / name
        if (out / "curves.png").is_file():
            return out
        if Checkpoints(out, 1).steps():  # the number of steps was fixed when it began
            written = str(out / "recipe.toml")
            stage.run(load_recipe(written), dataclasses.replace(load_run(written), resume=True))
            return out
        common: dict[str, Any] = {"seed": self.seed, "scripts": "keep", "minutes": None, "epochs": None}
        chosen = dataclasses.replace(getattr(self.recipe, table), **(common | settings))
        run = RunSettings(tuple(map(str, files)), str(out), str(init), tuple(map(str, heldout)))
        stage.run(dataclasses.replace(self.recipe, **{table: chosen, **(changes or {})}), run)
        return out

    def answers(self, model: Path, skill: str, records: Iterable[Record] | None = None) -> Scores:
        """Greedy answers of a model to the items of a skill (by default those of its file), judged; kept beside it."""
        path = self.folder / "answers" / f"{model.name}-{skill}-{self.flags.limit or 'all'}.json"
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        wanted = list(records) if records is not None else self._items(skill)
        scores = self._judged_before(model)
        new = [one for one in wanted if one["id"] not in scores]
        if new:
            scores |= {str(one.record["id"]): one.ok for one in answer_records(self.engine(model), new, self.toolbox)}
        scores = {one["id"]: scores[one["id"]] for one in wanted}
        write(path, scores)
        return scores

    def _items(self, skill: str) -> list[dict[str, Any]]:
        records = read(self.data / "eval" / f"{skill}.jsonl")
        limit = self.flags.limit
        return [one for one in records if limit is None or int(one["id"].rpartition("/")[2]) < limit]

    def _judged_before(self, model: Path) -> Scores:
        """The base's answers that benchmarks/playground.py had judged."""
        path = self.folder / "answers.jsonl"
        return {one["id"]: one["ok"] for one in read(path)} if model == self.base and path.is_file() else {}

    def toolbox(self, record: Record) -> Toolbox | None:
        environment = record.get("environment")
        return self.toolboxes(environment["seed"], environment["language"]) if environment else None

    def fall(self, model: Path) -> dict[str, dict[str, float]]:
        """Print what became of the main skills; the change of each in points, over all items, over those in trained
        forms, by which a skill is judged elsewhere too, and over those in forms never trained."""
        change: dict[str, dict[str, float]] = {"all": {}, "trained": {}, "new": {}}
        for skill in MAIN:
            before, after = self.answers(self.base, skill), self.answers(model, skill)
            for form, found in change.items():
                kept = [item for item in before if form in ("all", item.split("/")[2])]
                found[skill] = 100 * sum(after[item] - before[item] for item in kept) / len(kept)
            points = ", ".join(f"{form} {found[skill]:+.1f}" for form, found in change.items())
            line = f"{said(share(before))} -> {said(share(after))} of {len(after):,}; points: {points}"
            print(f"  {skill:12} {line}", flush=True)
        means = (f"{form} {sum(found.values()) / len(found):+.1f}" for form, found in change.items())
        print(f"  {'mean':12} points: {', '.join(means)}")
        return change

    def keep(self, what: str, found: dict[str, Any]) -> None:
        """Write it down."""
        path = self.folder / "alignment.json"
        table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        write(path, table | {what: found})


def engine_of(model: Path) -> Engine:
    """What writes a model's answers; an adapter is merged into its base."""
    return Engine(load_model(model, pick_device()).eval(), Tokenizer.load(model), slots=64, max_length=1024)


def identity(bench: Bench) -> dict[str, Any]:
    """Who it is, in forms that were never trained, by language; and that nothing else was lost."""
    adapter = adapted(bench, "identity")
    by_language: dict[str, Scores] = {}
    for item, ok in bench.answers(adapter, "identity").items():
        by_language.setdefault(item.split("/")[1], {})[item] = ok
    shares = {language: share(scores) for language, scores in sorted(by_language.items())}
    before = share(bench.answers(bench.base, "identity"))
    print(f"  forms never trained, base: {said(before)} of {before.total}; with the adapter:")
    for language, one in shares.items():
        print(f"  {language:12} {said(one)} of {one.total}")
    change = bench.fall(adapter)
    least = min(one.share for one in shares.values())
    met = verdict(least >= 0.9, "at least 90 % in every language") & kept_skills(change)
    return {"shares": {key: one.share for key, one in shares.items()}, "change": change, "met": met}


def clinic(bench: Bench) -> dict[str, Any]:
    """What the clinic's adapter knows that its base does not."""
    adapter = adapted(bench, "clinic")
    asked = list(clinic_questions(bench))
    before, after = bench.answers(bench.base, "clinic", asked), bench.answers(adapter, "clinic", asked)
    forms: dict[str, tuple[Share, Share]] = {}
    for form, words in (("heldout", "trained forms held out for the fact"), ("new", "forms never trained")):
        one, two = (
            share({key: ok for key, ok in side.items() if key.split("/")[2] == form}) for side in (before, after)
        )
        forms[form] = one, two
        print(f"  all questions in {words}: {said(one)} -> {said(two)} of {two.total}")
    known, learnt = forms["heldout"]
    change = bench.fall(adapter)
    met = verdict(known.share <= 0.2, "base at most 20 % of the held-out questions")
    met &= verdict(learnt.share >= 0.85, "adapter at least 85 % of the held-out questions") & kept_skills(change)
    shares = {form: [one.share for one in both] for form, both in forms.items()}
    return {"shares": shares, "change": change, "met": met}


def clinic_questions(bench: Bench) -> Iterable[Record]:
    """All questions that the adapter is not trained on: of each fact the trained form held out for it, and new forms.

    There are so few that drawing often enough finds them all.
    """
    for code, split in itertools.product(LANGUAGES, ("heldout", "new")):
        language, draw = make_language(code), random.Random(f"clinic {code} {split}")
        found: dict[str, Record] = {}
        for _ in range(5000):
            item = clinic_item(bench.world, language, draw, split)  # type: ignore[arg-type]
            found.setdefault(item.question, item_record(item))
        yield from ({"id": f"clinic/{code}/{split}/{i}"} | dict(one) for i, one in enumerate(found.values()))


def adapted(bench: Bench, name: str) -> Path:
    """The adapter of a set: its records several times, and once what the base answered by itself to other questions."""
    passes = bench.flags.passes or PASSES[name]
    write_own_answers(bench.base, bench.data, bench.seed, ANSWERS, OWN_TALKS, bench.toolbox)
    records = [*read(bench.data / f"lora_{name}.jsonl") * passes, *read(bench.data / "lora_own.jsonl")]
    path = bench.folder / f"lora-{name}.jsonl"
    write_records(path, [*records, *tool_talks(bench.data, TOOL_TALKS)])
    settings = {"rank": bench.flags.rank, "epochs": 1.0, "batch_tokens": BATCH, "row_length": ROW, "holdout_tokens": 0}
    return bench.train(lora, f"lora-{name}", "lora", [path], bench.base, adam_lr=bench.flags.adapter_lr, **settings)


def pair_settings(bench: Bench, epochs: float, adam_lr: float | None) -> dict[str, Any]:
    """What DPO and the reward model share: the held-out pairs are read at the beginning and the end."""
    sizes = {"batch_tokens": 2 * BATCH, "row_length": ROW, "eval_every": 10**6}
    return sizes | {"heldout": (held_pairs(bench),), "epochs": epochs, "adam_lr": adam_lr}


def held_pairs(bench: Bench) -> Path:
    """Pairs made like those that are trained on, whose questions are not among them."""
    path = bench.folder / "preference-heldout.jsonl"
    trained = (bench.data / "preference.jsonl", bench.data / "preference_own.jsonl")
    asked = {one["chosen"][0]["content"] for file in trained if file.is_file() for one in records_in(file)}
    found: dict[str, dict[str, Any]] = {}
    for one in preferences(bench.world, bench.seed + 1_000_000, LANGUAGES, 20 * HELD_PAIRS):
        question = one["chosen"][0]["content"]
        if question not in asked:
            found.setdefault(question, one)
        if len(found) == HELD_PAIRS:
            break
    write_records(path, found.values())
    return path


def accuracy_of(bench: Bench, run: Path) -> tuple[dict[str, float], str]:
    """The last look at held-out pairs, and what it says of their order in words."""
    pairs = len(read(bench.folder / "preference-heldout.jsonl"))
    last = [row for row in read_metrics(run) if "heldout_accuracy" in row][-1]
    right = last["heldout_accuracy"]
    low, high = wilson(round(right * pairs), pairs)
    words = f"{pairs:,} held-out pairs: accuracy {right:.1%} [{100 * low:.0f}, {100 * high:.0f}]"
    return {key: value for key, value in last.items() if key.startswith("heldout_")}, words


def prefer(bench: Bench) -> dict[str, Any]:
    """DPO on pairs of its own answers and of style: held-out accuracy, and whose greedy answers a verifier accepts."""
    write_own_pairs(bench.base, bench.data, bench.seed, QUESTIONS)
    settings = pair_settings(bench, bench.flags.dpo_epochs, bench.flags.dpo_lr)
    settings |= {"nll_weight": bench.flags.nll_weight, "batch_tokens": BATCH}
    own, path = read(bench.data / "preference_own.jsonl"), bench.folder / "preference-mixed.jsonl"
    style = [pair for pair in read(bench.data / "preference.jsonl") if pair["kind"] != KINDS[0]]
    write_records(path, [*own * 2, *style])
    print(f"  {len(own)} pairs of its own answers, twice, and {len(style)} of style", flush=True)
    run = bench.train(dpo, "dpo", "dpo", [path], bench.base, **settings)
    held, words = accuracy_of(bench, run)
    print(f"  {words}, margin {held['heldout_margin']:.2f}", flush=True)
    change = bench.fall(run)
    before: Scores = {}
    after: Scores = {}
    for skill in PREFERRED:
        one, two = bench.answers(bench.base, skill), bench.answers(run, skill)
        before, after = before | one, after | two
        print("  {:12} {} answers better, {} worse".format(skill, *compared(one, two)))
    wins, losses, won, low, high = compared(before, after)
    print(f"  verified right: {said(share(before))} -> {said(share(after))} of {len(after):,}")
    print(f"  against the base: {wins} better, {losses} worse; win rate {won:.2%} [{100 * low:.2f}, {100 * high:.2f}]")
    met = verdict(held["heldout_accuracy"] >= 0.85, "held-out accuracy at least 85 %")
    met &= verdict(wins > losses, "more answers better than worse")
    met &= verdict(change["trained"]["fact"] >= -2, "facts fall by at most 2 points, in trained forms")
    verdict(change["all"]["fact"] >= -2, "the same over all forms")
    return held | {"wins": wins, "losses": losses, "win_rate": [won, low, high], "change": change, "met": met}


def compared(before: Scores, after: Scores) -> tuple[int, int, float, float, float]:
    """Answers that became right and that became wrong; the win rate, ties as halves, with its 95 % interval."""
    values = np.array([(1 + after[item] - before[item]) / 2 for item in before])
    low, high = bootstrap_mean(values)
    return int((values == 1).sum()), int((values == 0).sum()), float(values.mean()), low, high


def rate(bench: Bench) -> dict[str, Any]:
    """The reward model on held-out pairs."""
    settings = pair_settings(bench, bench.flags.reward_epochs, bench.flags.reward_lr)
    run = bench.train(reward, "reward", "reward", [bench.data / "preference.jsonl"], bench.base, **settings)
    held, words = accuracy_of(bench, run)
    brier, error = held["heldout_brier"], held["heldout_calibration_error"]
    print(f"  {words}, Brier score {brier:.3f}, calibration error {error:.3f}")
    return held | {"met": verdict(held["heldout_accuracy"] >= 0.9, "at least 90 %")}


def teach(bench: Bench) -> dict[str, Any]:
    """A student of half the base's size, fine-tuned with the base as its teacher and without, for as long."""
    start = student_of(bench)
    sizes = [load_model(path).num_parameters() for path in (bench.base, start)]
    print(f"  teacher {sizes[0] / 1e6:.2f}M parameters, student {sizes[1] / 1e6:.2f}M", flush=True)
    files = [bench.data / "sft.jsonl"]
    rates: dict[str, Any] = {"minutes": bench.flags.minutes, "holdout_tokens": 4096, **RATES["sft"]}
    students = {
        "alone": bench.train(sft, "student-alone", "sft", files, start, **rates),
        "taught": bench.train(distill, "student-taught", "distill", files, start, teacher=str(bench.base), **rates),
    }
    found: dict[str, Any] = {}
    for name, run in {"teacher": bench.base, **students}.items():
        rows = read_metrics(run)
        bpb = [row["heldout_bpb"] for row in rows if "heldout_bpb" in row][-1]
        took = [row["elapsed_s"] for row in rows if "elapsed_s" in row][-1]
        right = {skill: share(bench.answers(run, skill)) for skill in MAIN}
        found[name] = {"bpb": bpb, "seconds": took, "skills": {skill: one.share for skill, one in right.items()}}
        found[name]["mean"] = sum(one.share for one in right.values()) / len(right)
        print(f"  {name:8} {took:.0f} s, {bpb:.4f} bits a byte, skills {found[name]['mean']:.1%}: ", end="")
        print(", ".join(f"{skill} {one.share:.1%}" for skill, one in right.items()), flush=True)
    better = found["taught"]["mean"] > found["alone"]["mean"]
    return found | {"met": verdict(better, "better skills than alone (the spread over seeds is below)")}


def student_of(bench: Bench) -> Path:
    """A pretrained model of half the size, on the base's text."""
    shape = dataclasses.replace(bench.recipe.model, hidden_size=192, intermediate_size=256)
    settings = {"minutes": bench.flags.minutes, "holdout_tokens": 4096, **RATES["pretrain"]}
    files, init = [bench.data / "pretrain.jsonl"], bench.folder / "tokenizer"
    return bench.train(pretrain, "student-pretrain", "pretrain", files, init, {"model": shape}, **settings)


def over_seeds(flags: argparse.Namespace) -> bool:
    """What became of the skills in the mean of the seeds; of distillation, its gain beside the spread over seeds."""
    files = [flags.out / f"seed-{seed}" / "alignment.json" for seed in flags.seeds]
    tables = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    met = True
    for what in flags.what:
        found = [table[what] for table in tables]
        if "change" in found[0]:
            print(f"\n{what}, in the mean of {len(found)} seeds")
            change = {
                form: {skill: float(np.mean([one["change"][form][skill] for one in found])) for skill in skills}
                for form, skills in found[0]["change"].items()
            }
            for form, skills in change.items():
                print(f"  points, {form}: " + ", ".join(f"{skill} {points:+.1f}" for skill, points in skills.items()))
            met &= kept_skills(change)
        elif what == "distill":
            alone, taught = ([one[side]["mean"] for one in found] for side in ("alone", "taught"))
            mean, wide = float(np.mean(taught) - np.mean(alone)), max(alone) - min(alone)
            print(f"\ntaught beside alone: {100 * mean:+.1f} points in the mean; ", end="")
            print(f"alone differs by {100 * wide:.1f} over seeds")
            met &= verdict(mean > wide, "a gain above the spread")
    return met


def read(path: Path) -> list[dict[str, Any]]:
    return list(records_in(path))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=0) + "\n", encoding="utf-8")


def share(scores: Scores) -> Share:
    """How many are right."""
    return Share.of(list(scores.values()))


def said(one: Share) -> str:
    return f"{one.share:.1%} [{100 * one.low:.0f}, {100 * one.high:.0f}]"


def kept_skills(change: dict[str, dict[str, float]]) -> bool:
    """Whether no skill falls by more than 3 points in trained forms; says so of all forms too."""
    verdict(min(change["all"].values()) >= -3, "no skill falls by more than 3 points over all forms")
    return verdict(min(change["trained"].values()) >= -3, "no skill falls by more than 3 points in trained forms")


def verdict(held: bool, what: str) -> bool:
    print(f"  {'met' if held else 'NOT MET'}: {what}", flush=True)
    return held


if __name__ == "__main__":
    sys.exit(main())

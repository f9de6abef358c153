"""What the stages after fine-tuning do to the playground's `nano`: adapters, DPO, a reward model, distillation.

    python benchmarks/playground.py --out DIR --seeds 0 1 2                    first: the models they start from
    python benchmarks/alignment.py identity clinic dpo reward distill --out DIR --seeds 0 1 2

Skills are answered greedily, `--limit` items of each language and form (default: all; 1,500 a main skill). Training and
answers that are complete are not repeated, so an interrupted command goes on. Prints a table a seed with 95 % Wilson
intervals, what the issue asks for and whether it was met; writes DIR/seed-N/alignment.json.

    identity   an adapter that knows who it is, asked in every question form that is never trained
    clinic     an adapter that knows the clinic, asked what the base does not know
    dpo        preference pairs: held-out accuracy, and answers that a verifier judges, against the base's
    reward     order and calibration on held-out pairs
    distill    a student beside a teacher of twice its size, and the same student alone for the same wall-clock
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutaway.evals.intervals import Share
from cutaway.evals.verified import answer_records
from cutaway.generation.engine import Engine
from cutaway.life.steps import RATES
from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import load_model
from cutaway.playground.evaluation import toolboxes
from cutaway.playground.world import make_world
from cutaway.recipe import LoRASettings, RunSettings, SFTSettings, load_recipe, load_run
from cutaway.stages import distill, dpo, lora, pretrain, reward, sft
from cutaway.stages.rehearsal import DataSize, rehearse, staged_model
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tools.toolbox import Toolbox
from cutaway.training.metrics import read_metrics
from cutaway.training.precision import pick_device

MAIN = ("fact", "arithmetic", "comparison", "format", "tool", "two_hop")
PREFERRED = ("fact", "arithmetic", "comparison", "format", "refusal")
"""Skills that preference pairs are made of."""
WHAT = ("identity", "clinic", "dpo", "reward", "distill")
Scores = dict[str, bool]
"""Whether each item was answered rightly, by its id."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=WHAT)
    parser.add_argument("--out", type=Path, required=True, help="the directory of benchmarks/playground.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=int, help="only so many items of each language and form")
    parser.add_argument("--epochs", type=float, default=3.0, help="of the adapters")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--replay", type=float, default=1.0, help="fine-tuning records beside each of an adapter's own")
    parser.add_argument("--dpo-epochs", type=float, default=2.0)
    parser.add_argument("--reward-epochs", type=float, default=2.0)
    parser.add_argument("--minutes", type=float, default=5.0, help="of the student, alone and with its teacher")
    parser.add_argument(
        "--teacher-minutes", type=float, default=20.0, help="pretraining and fine-tuning of the teacher"
    )
    flags = parser.parse_args(argv)
    met = True
    for seed in flags.seeds:
        folder = flags.out / f"seed-{seed}"
        bench = Bench(folder, seed, flags)
        for what in flags.what:
            print(f"\nseed {seed}: {what}", flush=True)
            found = {"identity": identity, "clinic": clinic, "dpo": prefer, "reward": rate, "distill": teach}[what](
                bench
            )
            bench.keep(what, found)
            met &= bool(found["met"])
    spread(flags)
    return 0 if met else 1


class Bench:
    """One seed: its models, its questions, and the answers that were given to them."""

    def __init__(self, folder: Path, seed: int, flags: argparse.Namespace) -> None:
        self.folder, self.seed, self.flags = folder, seed, flags
        self.data, self.base = folder / "data", folder / "sft"
        self.recipe = load_recipe("nano")
        self.toolboxes = toolboxes(make_world(seed))

    def train(
        self,
        stage: Any,
        name: str,
        table: str,
        files: list[Path],
        init: Path,
        changes: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        """The run of a stage, trained unless it is complete."""
        out = self.folder / name
        if (out / "curves.png").is_file():
            return out
        if (out / "state").is_dir():  # the steps were fixed when it began
            written = str(out / "recipe.toml")
            stage.run(load_recipe(written), dataclasses.replace(load_run(written), resume=True))
            return out
        common: dict[str, Any] = {"seed": self.seed, "scripts": "keep", "minutes": None, "epochs": None}
        chosen = dataclasses.replace(getattr(self.recipe, table), **(common | settings))
        run = RunSettings(data=tuple(map(str, files)), init=str(init), out=str(out))
        stage.run(dataclasses.replace(self.recipe, **{table: chosen, **(changes or {})}), run)
        return out

    def answers(self, model: Path, skill: str) -> Scores:
        """Greedy answers of a model to the items of a skill, judged; kept beside the model."""
        path = self.folder / "answers" / f"{model.name}-{skill}-{self.flags.limit or 'all'}.json"
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        lines = (self.data / "eval" / f"{skill}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        limit = self.flags.limit
        records = [one for one in records if limit is None or int(one["id"].rpartition("/")[2]) < limit]
        engine = Engine(load_model(model, pick_device()).eval(), Tokenizer.load(model), slots=64, max_length=1024)
        answered = answer_records(engine, records, self._toolbox)
        scores = {str(one.record["id"]): one.ok for one in answered}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(scores, indent=0) + "\n", encoding="utf-8")
        return scores

    def _toolbox(self, record: Mapping[str, Any]) -> Toolbox | None:
        environment = record.get("environment")
        return self.toolboxes(environment["seed"], environment["language"]) if environment else None

    def fall(self, model: Path) -> dict[str, float]:
        """Print what became of the main skills, trained forms and new ones together; the change of each, in points."""
        change = {}
        for skill in MAIN:
            before, after = share(self.answers(self.base, skill)), share(self.answers(model, skill))
            change[skill] = 100 * (after.share - before.share)
            print(f"  {skill:12} {said(before)} -> {said(after)}  {change[skill]:+.1f} points")
        return change

    def keep(self, what: str, found: dict[str, Any]) -> None:
        """Write it down."""
        path = self.folder / "alignment.json"
        table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps(table | {what: found}, indent=1) + "\n", encoding="utf-8")


def identity(bench: Bench) -> dict[str, Any]:
    """Who it is, in forms that were never trained, by language; and that nothing else was lost."""
    adapter = adapted(bench, "identity")
    by_language: dict[str, Scores] = {}
    for item, ok in bench.answers(adapter, "identity").items():
        by_language.setdefault(item.split("/")[1], {})[item] = ok
    shares = {language: share(scores) for language, scores in sorted(by_language.items())}
    before = share(bench.answers(bench.base, "identity"))
    print(
        f"  identity, base {said(before)}; adapter: " + ", ".join(f"{key} {said(one)}" for key, one in shares.items())
    )
    change = bench.fall(adapter)
    least = min(one.share for one in shares.values())
    met = verdict(least >= 0.9, "at least 90 % in every language") & verdict(min(change.values()) >= -3, "no skill -3")
    return {"shares": {key: one.share for key, one in shares.items()}, "change": change, "met": met} | size_of(bench)


def clinic(bench: Bench) -> dict[str, Any]:
    """What the clinic's adapter knows that its base does not."""
    adapter = adapted(bench, "clinic")
    before, after = share(bench.answers(bench.base, "clinic")), share(bench.answers(adapter, "clinic"))
    print(f"  clinic {said(before)} -> {said(after)}")
    change = bench.fall(adapter)
    met = verdict(before.share <= 0.2, "base at most 20 %") & verdict(after.share >= 0.85, "adapter at least 85 %")
    met &= verdict(min(change.values()) >= -3, "no skill falls by more than 3 points")
    return {"before": before.share, "after": after.share, "change": change, "met": met}


def adapted(bench: Bench, name: str) -> Path:
    """The adapter of a set, trained on it and on as many records of fine-tuning."""
    own = bench.data / f"lora_{name}.jsonl"
    count = int(bench.flags.replay * len(own.read_text(encoding="utf-8").splitlines()))
    again = bench.folder / f"replay-{name}.jsonl"
    with (bench.data / "sft.jsonl").open(encoding="utf-8") as lines:
        again.write_text("".join(line for line, _ in zip(lines, range(count), strict=False)), encoding="utf-8")
    settings = {"rank": bench.flags.rank, "epochs": bench.flags.epochs, "batch_tokens": 4096, "holdout_tokens": 2048}
    files = [own, again] if count else [own]
    return bench.train(lora, f"lora-{name}", "lora", files, bench.base, **settings)


def size_of(bench: Bench) -> dict[str, Any]:
    """Parameter, gradient and optimizer bytes of an adapter's training and of full fine-tuning, and measured peaks."""
    config = ModelConfig.load(bench.base)
    common: dict[str, Any] = {"steps": 3, "batch_tokens": 4096, "compile": "off"}
    kinds = {
        "full": ("sft", SFTSettings(**common, optimizer="adamw")),
        "lora": ("lora", LoRASettings(**common, rank=bench.flags.rank)),
    }
    found: dict[str, Any] = {}
    for name, (stage, settings) in kinds.items():
        model = staged_model(config, settings)
        found[f"{name}_bytes"] = training_bytes(model)
        found[f"{name}_peak"] = rehearse(config, stage, settings, DataSize(10**6, 4096)).peak_bytes  # type: ignore[arg-type]
    part = found["lora_bytes"] / found["full_bytes"]
    bytes_of = f"{found['lora_bytes']:,} of {found['full_bytes']:,}, {part:.1%}"
    print(f"  bytes of parameters, gradients and optimizer: {bytes_of}")
    print(f"  peak of resident memory: {found['lora_peak']:,} and {found['full_peak']:,}")
    verdict(part <= 0.3, "at most 30 % of full fine-tuning")
    verdict(found["lora_peak"] < found["full_peak"], "a lower peak")
    return found


def training_bytes(model: CausalLM) -> int:
    """fp32 weights, and for each that is trained its gradient and AdamW's two moments."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 4 * sum(parameter.numel() for parameter in model.parameters()) + 12 * trained


def prefer(bench: Bench) -> dict[str, Any]:
    """DPO on the playground's pairs: held-out accuracy, and whose greedy answers a verifier accepts."""
    settings = {"epochs": bench.flags.dpo_epochs, "batch_tokens": 8192, "row_length": 512, "holdout_tokens": 65536}
    run = bench.train(dpo, "dpo", "dpo", [bench.data / "preference.jsonl"], bench.base, **settings)
    rows = [row for row in read_metrics(run) if "heldout_accuracy" in row]
    print(f"  held-out pairs: accuracy {rows[-1]['heldout_accuracy']:.1%}, margin {rows[-1]['heldout_margin']:.2f}")
    change = bench.fall(run)
    wins = losses = items = 0
    for skill in PREFERRED:
        before, after = bench.answers(bench.base, skill), bench.answers(run, skill)
        items += len(before)
        wins += sum(after[item] and not before[item] for item in before)
        losses += sum(before[item] and not after[item] for item in before)
    rate = (wins + (items - wins - losses) / 2) / items
    print(f"  against the base: {wins} answers better, {losses} worse, of {items}; win rate {rate:.2%}, ties as halves")
    met = verdict(rows[-1]["heldout_accuracy"] >= 0.85, "held-out accuracy at least 85 %")
    met &= verdict(wins > losses, "more wins than losses") & verdict(
        change["fact"] >= -2, "facts fall by at most 2 points"
    )
    held = {key: rows[-1][key] for key in ("heldout_accuracy", "heldout_margin")}
    return held | {"wins": wins, "losses": losses, "items": items, "change": change, "met": met}


def rate(bench: Bench) -> dict[str, Any]:
    """The reward model on held-out pairs."""
    settings = {"epochs": bench.flags.reward_epochs, "batch_tokens": 8192, "row_length": 512, "holdout_tokens": 65536}
    run = bench.train(reward, "reward", "reward", [bench.data / "preference.jsonl"], bench.base, **settings)
    last = [row for row in read_metrics(run) if "heldout_accuracy" in row][-1]
    keys = ("heldout_accuracy", "heldout_brier", "heldout_calibration_error")
    print("  " + ", ".join(f"{key} {last[key]:.3f}" for key in keys))
    return {key: last[key] for key in keys} | {"met": verdict(last["heldout_accuracy"] >= 0.9, "at least 90 %")}


def teach(bench: Bench) -> dict[str, Any]:
    """A student from the pretrained base with a teacher of twice its size, and without, for as long."""
    master = teacher_of(bench)
    sizes = [load_model(path).num_parameters() for path in (master, bench.base)]
    print(f"  teacher {sizes[0] / 1e6:.2f}M parameters, student {sizes[1] / 1e6:.2f}M")
    rates = {"batch_tokens": 4096, "adam_lr": RATES["sft"]["adam_lr"], "optimizer": "adamw", "holdout_tokens": 4096}
    files, minutes = [bench.data / "sft.jsonl"], bench.flags.minutes
    start = bench.folder / "pretrain"
    students = {
        "alone": bench.train(sft, "student-alone", "sft", files, start, minutes=minutes, **rates),
        "taught": bench.train(
            distill, "student-taught", "distill", files, start, minutes=minutes, teacher=str(master), **rates
        ),
    }
    found: dict[str, Any] = {}
    for name, run in {"teacher": master, **students}.items():
        bpb = [row["heldout_bpb"] for row in read_metrics(run) if "heldout_bpb" in row][-1]
        right = {skill: share(bench.answers(run, skill)) for skill in MAIN}
        found[name] = {"bpb": bpb, "skills": {skill: one.share for skill, one in right.items()}}
        found[name]["mean"] = sum(one.share for one in right.values()) / len(right)
        print(f"  {name:8} {bpb:.4f} bits a byte, skills {found[name]['mean']:.1%}: ", end="")
        print(", ".join(f"{skill} {one.share:.1%}" for skill, one in right.items()))
    better = found["taught"]["mean"] > found["alone"]["mean"]
    return found | {"met": verdict(better, "better skills than alone (the spread over seeds is below)")}


def teacher_of(bench: Bench) -> Path:
    """A model of about twice the size, on the same text and conversations."""
    shape = dataclasses.replace(bench.recipe.model, hidden_size=384, num_attention_heads=6, intermediate_size=768)
    half = bench.flags.teacher_minutes / 2
    common = {"minutes": half, "holdout_tokens": 4096}
    first = bench.train(
        pretrain,
        "teacher-pretrain",
        "pretrain",
        [bench.data / "pretrain.jsonl"],
        bench.folder / "tokenizer",
        {"model": shape},
        **common,
        **RATES["pretrain"],
    )
    files = [bench.data / "sft.jsonl"]
    return bench.train(sft, "teacher", "sft", files, first, **common, **RATES["sft"])


def spread(flags: argparse.Namespace) -> None:
    """Of distillation: the mean gain beside the spread over seeds."""
    files = [flags.out / f"seed-{seed}" / "alignment.json" for seed in flags.seeds]
    tables = [json.loads(file.read_text(encoding="utf-8")).get("distill") for file in files]
    gains = [table["taught"]["mean"] - table["alone"]["mean"] for table in tables if table]
    alone = [table["alone"]["mean"] for table in tables if table]
    if "distill" in flags.what and len(gains) > 1:
        mean, wide = sum(gains) / len(gains), max(alone) - min(alone)
        print(
            f"\ntaught beside alone: {100 * mean:+.1f} points in the mean; alone differs by {100 * wide:.1f} over seeds"
        )
        verdict(mean > wide, "a gain above the spread")


def share(scores: Scores) -> Share:
    """How many are right."""
    return Share.of(list(scores.values()))


def said(one: Share) -> str:
    return f"{one.share:.1%} [{100 * one.low:.0f}, {100 * one.high:.0f}]"


def verdict(held: bool, what: str) -> bool:
    print(f"  {'met' if held else 'NOT MET'}: {what}")
    return held


if __name__ == "__main__":
    sys.exit(main())

"""Do the RL algorithms learn? Eight of them on the playground, beside more SFT and rejection sampling.

python benchmarks/rl.py base    --out OUT [--pretrain-minutes 20 --sft-minutes 30] [--seed 0]
python benchmarks/rl.py learn   --out OUT [--minutes 2.4] [--algorithms grpo spo ...] [--seeds 0 1 2]
python benchmarks/rl.py agent   --out OUT [--minutes 2.4] [--seeds 0 1 2]
python benchmarks/rl.py hacking --out OUT [--minutes 2.4]
python benchmarks/rl.py report  --out OUT

`base` trains the model that everything starts from: after its fine-tuning it is fine-tuned for a third as long again at
a low rate, and that last quarter says whether it has plateaued, by how much held-out success still changed. The other
parts take another one with `--base RUN --data DIR`. `learn` gives every algorithm the same minutes, evaluates greedily
on held-out prompts, and compares with the base and with the controls by McNemar's paired test. What is complete is not
run again; a run that was stopped goes on. `report` prints the tables and draws every algorithm by rollout tokens and by
wall-clock.
"""

import argparse
import dataclasses
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rl_parts as parts
from cutaway.errors import UserError
from cutaway.evals.intervals import mcnemar, wilson
from cutaway.life.keeping import held_prompts, mixed_tasks
from cutaway.life.steps import PLAYGROUND, RATES, VOCAB_SIZE
from cutaway.life.town import texts_for_tokenizer
from cutaway.playground.world import make_world
from cutaway.playground.write import PlaygroundSettings, write_playground
from cutaway.recipe.base import TokenizerSettings
from cutaway.recipe.files import load_recipe
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.rl.environment import Limits
from cutaway.stages import agent, grpo, ppo, pretrain, sft, spo
from cutaway.tokenization.train import train_tokenizer
from cutaway.training.metrics import read_metrics

EIGHT = ("ppo", "grpo", "dr_grpo", "dapo", "cispo", "gspo", "rloo", "spo")
THREE_SEEDS = ("ppo", "grpo", "spo")
STAGES = {"ppo": ppo, "spo": spo, "spo_global": spo}
BATCH: dict[str, Any] = {"max_new_tokens": 64, "row_length": 192, "minibatches": 2, "eval_every": 100_000}
DYNAMIC: dict[str, Any] = {"prompt_sampling": "dynamic"}
OWN: dict[str, dict[str, Any]] = {
    "ppo": DYNAMIC | {"group_size": 8, "prompts_per_rollout": 32, "lam": 1.0, "value_lr": 1e-3},
    "spo": {"prompts_per_rollout": 256},
    "spo_global": {"prompts_per_rollout": 256},
    "grpo": DYNAMIC | {"kl": "none", "beta": 0.0},
    "dr_grpo": DYNAMIC,
    "cispo": DYNAMIC,
    "gspo": DYNAMIC | {"clip_low": 0.03, "clip_high": 0.04},
    "rloo": DYNAMIC | {"prompts_per_rollout": 16, "minibatches": 1},
}
"""What an algorithm has apart from the others, which take 32 prompts and 8 answers: 256 answers a rollout. Of a model
that has plateaued four groups in five earn the same throughout, so all that have groups draw until theirs differ. So
does PPO, whose value model does not need groups (VAPO, arXiv 2504.05118, has them too: many answers to few prompts
teach it more). PPO's answers are short and its value model is young: GAE reaches to their end. RLOO updates once a
rollout, so it has more and smaller ones; GSPO's paper clips sequence ratios at 3e-4 and 4e-4 for a learning rate of
1e-6, and at a hundred times that rate the first update would leave that range."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=("base", "learn", "agent", "hacking", "report"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="an SFT run; by default OUT/base/settled")
    parser.add_argument("--data", type=Path, help="the playground it belongs to; by default OUT/base/data")
    parser.add_argument("--seed", type=int, default=0, help="of the base and its town")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", help="of learn or agent, controls among them; by default all")
    parser.add_argument("--minutes", type=float, default=2.4)
    parser.add_argument("--adam-lr", type=float, default=2e-4)
    parser.add_argument(
        "--tool-temperature",
        type=float,
        default=1.5,
        help="of answers with tools, in RL and rejection sampling alike; at 1 the base nearly always calls what it "
        "would call anyway, and one group in eighteen differs",
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="further settings of the RL stages")
    parser.add_argument("--pretrain-minutes", type=float, default=20.0)
    parser.add_argument("--sft-minutes", type=float, default=30.0)
    parser.add_argument("--size-mb", type=float, default=24.0)
    parser.add_argument("--items", type=int, default=1200, help="held-out items")
    parser.add_argument("--skill-items", type=int, default=200, help="items of each other skill")
    parser.add_argument("--rounds", type=int, default=2, help="of rejection sampling")
    parser.add_argument("--samples", type=int, default=8, help="answers to a prompt in rejection sampling")
    parser.add_argument("--rejection-lr", type=float, default=3e-4)
    parser.add_argument("--tag", default="", help="added to the names of runs, to try settings side by side")
    flags = parser.parse_args(argv)
    flags.base, flags.data = flags.base or flags.out / "base" / "settled", flags.data or flags.out / "base" / "data"
    return {"base": make_base, "learn": learn, "agent": learn_tools, "hacking": hacking, "report": report}[flags.part](
        flags
    )


def make_base(flags: argparse.Namespace) -> int:
    """The base, and whether it has plateaued."""
    train_base(flags)
    items, toolbox_of = parts.heldout_items(flags.data, flags.items), parts.world_toolboxes(flags.data)
    early, late = (
        float(np.mean([one.ok for one in parts.answers(flags.out / "base" / name, items, toolbox_of)]))
        for name in ("sft", "settled")
    )
    verdict = "plateaued" if late - early < 0.01 else "not plateaued: give --sft-minutes more"
    print(f"held-out success: {early:.1%} at three quarters, {late:.1%} at the end ({verdict}); {len(items)} items")
    return 0


def train_base(flags: argparse.Namespace) -> None:
    """Data, vocabulary, pretraining, fine-tuning, and its last quarter at a low rate."""
    folder, recipe = flags.out / "base", load_recipe("nano")
    if not (flags.data / "manifest.json").is_file():
        write_playground(flags.data, PlaygroundSettings(seed=flags.seed, size_mb=flags.size_mb))
    if not (folder / "tokenizer").is_dir():
        texts = texts_for_tokenizer(flags.data)
        train_tokenizer(texts, TokenizerSettings(VOCAB_SIZE, seed=flags.seed)).save(folder / "tokenizer")
    init = folder / "tokenizer"
    for stage, name, minutes in ((pretrain, "pretrain", flags.pretrain_minutes), (sft, "sft", flags.sft_minutes)):
        out = folder / name
        values = {"minutes": minutes, "seed": flags.seed, "scripts": "keep", "holdout_tokens": 4096, **RATES[name]}
        settings = dataclasses.replace(getattr(recipe, name), **values)
        files = RunSettings((str(flags.data / f"{name}.jsonl"),), str(out), str(init))
        parts.go_on(stage, dataclasses.replace(recipe, **{name: settings}), files)
        init = out
    talks = [flags.data / "sft.jsonl"]
    parts.more_sft(init, talks, folder / "settled", flags.sft_minutes / 3, flags.seed, compile="auto")


def learn(flags: argparse.Namespace) -> int:
    """Every algorithm and control that is asked for, scored."""
    items, toolbox_of = parts.heldout_items(flags.data, flags.items), parts.world_toolboxes(flags.data)
    skills = parts.other_skills(flags.data, flags.skill_items)
    scored(flags.out / "learn" / "base", lambda _: str(flags.base), items, toolbox_of, skills)
    for name in flags.algorithms or (*EIGHT, "more_sft", "rejection"):
        for seed in flags.seeds if name in THREE_SEEDS else flags.seeds[:1]:
            folder = flags.out / "learn" / f"{name}{flags.tag}-{seed}"

            def train(out: Path, name: str = name, seed: int = seed) -> str:
                return train_one(name, seed, out, flags)

            scored(folder, train, items, toolbox_of, skills)
    return report(flags)


def train_one(name: str, seed: int, out: Path, flags: argparse.Namespace) -> str:
    """Train by one algorithm or control; gives back where the model is."""
    if name == "more_sft":
        parts.more_sft(flags.base, [flags.data / "sft.jsonl"], out / "run", flags.minutes, seed)
    elif name == "rejection":
        how = {"rounds": flags.rounds, "samples": flags.samples, "batch": 32, "adam_lr": flags.rejection_lr}
        limits = Limits(BATCH["max_new_tokens"], BATCH["row_length"])
        found = parts.rejection_sampling(flags.base, rl_files(flags), out, flags.minutes, seed, limits=limits, **how)
        (out / "rejection.json").write_text(json.dumps(found) + "\n")
        return str(found["model"])
    else:
        stage = STAGES.get(name, grpo)
        parts.go_on(stage, rl_recipe(name, seed, flags), run_of(flags, rl_files(flags), out / "run"))
    return str(out / "run")


def rl_files(flags: argparse.Namespace) -> list[Path]:
    """The prompts to practise, and some that the base can answer already, about what nobody has told it: they count
    from when they begin to fail. Without them it learns to have an answer to everything."""
    held = flags.out / "held.jsonl"
    if not held.is_file():
        world, settings = town(flags.data)
        parts.write_records(held, [one for one in held_prompts(world, settings) if one["level"] == "refusal"])
    return [flags.data / "rl.jsonl", held]


def tool_files(flags: argparse.Namespace) -> list[Path]:
    """Tasks of two and three calls, a known one beside three new ones, and what `rl_files` holds. The more known ones
    there are, the fewer new ones are tried in the same minutes."""
    tasks = flags.out / "agent_tasks.jsonl"
    if not tasks.is_file():
        mixed = list(mixed_tasks(flags.data, *town(flags.data)))
        new = [one for one in mixed if not str(one["level"]).startswith("known")]
        known = [one for one in mixed if str(one["level"]).startswith("known")]
        some = random.Random(flags.seed).sample(known, len(new) // 3)
        parts.write_records(tasks, [*new, *some])
    return [tasks, rl_files(flags)[1]]


def town(data: Path) -> tuple[Any, PlaygroundSettings]:
    """The world that the data are about."""
    seed = parts.manifest(data)["seed"]
    return make_world(seed), PlaygroundSettings(seed=seed)


def rl_recipe(name: str, seed: int, flags: argparse.Namespace, stage: str = "", **more: Any) -> Recipe:
    """The recipe of a run of an algorithm."""
    recipe = load_recipe("nano")
    stage = stage or {"ppo": "ppo", "spo": "spo", "spo_global": "spo"}.get(name, "grpo")
    values: dict[str, Any] = {"algorithm": name, "seed": seed, "minutes": flags.minutes, "adam_lr": flags.adam_lr}
    values |= {"holdout_prompts": 0} | BATCH | OWN.get(name, {}) | more
    for entry in flags.set:
        key, _, text = entry.partition("=")
        values[key] = json.loads(text)
    return dataclasses.replace(recipe, **{stage: dataclasses.replace(getattr(recipe, stage), **values)})


def run_of(flags: argparse.Namespace, data: Sequence[Path], out: Path) -> RunSettings:
    return RunSettings(data=tuple(map(str, data)), init=str(flags.base), out=str(out))


def scored(folder: Path, train: Any, items: Sequence[Any], toolbox_of: Any, skills: Any) -> dict[str, Any]:
    """The scores of a model, trained and evaluated once."""
    path = folder / "result.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"\n{folder.name}", flush=True)
        began = time.monotonic()
        run = Path(train(folder))
        seconds = time.monotonic() - began
        result = parts.score(run, items, toolbox_of, skills) | {"seconds": seconds}
        path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def learn_tools(flags: argparse.Namespace) -> int:
    """Tool-use RL, with every seed, beside more SFT and rejection sampling of the same minutes, on two and three calls
    of held-out combinations."""
    toolbox_of = parts.world_toolboxes(flags.data)
    items = parts.heldout_items(flags.data, flags.items, "tool_practice")
    skills, limits = parts.other_skills(flags.data, flags.skill_items), Limits(96, 768, 5)
    scored(flags.out / "agent" / "base", lambda _: str(flags.base), items, toolbox_of, skills)
    for seed in flags.seeds:

        def by_agent(out: Path, seed: int = seed) -> str:
            more = next(step.settings for step in PLAYGROUND if step.stage == "agent")
            bolder = {"temperature": flags.tool_temperature, "kl": "none", "beta": 0.0, "adam_lr": flags.adam_lr}
            recipe = rl_recipe("dapo", seed, flags, stage="agent", **{**more, **bolder})
            run = run_of(flags, tool_files(flags), out / "run")
            parts.go_on(WithTools(toolbox_of), recipe, run)
            return str(out / "run")

        def by_sft(out: Path, seed: int = seed) -> str:
            parts.more_sft(flags.base, [flags.data / "sft.jsonl"], out / "run", flags.minutes, seed)
            return str(out / "run")

        def by_rejection(out: Path, seed: int = seed) -> str:
            how: dict[str, Any] = {"rounds": flags.rounds, "samples": flags.samples, "batch": 16}
            how |= {"adam_lr": flags.rejection_lr, "temperature": flags.tool_temperature}
            how |= {"toolbox_of": toolbox_of, "limits": limits}
            found = parts.rejection_sampling(flags.base, tool_files(flags), out, flags.minutes, seed, **how)
            return str(found["model"])

        for name, train in (("agent", by_agent), ("more_sft", by_sft), ("rejection", by_rejection)):
            if name in (flags.algorithms or (name,)) and (name == "agent" or seed == flags.seeds[0]):
                scored(flags.out / "agent" / f"{name}{flags.tag}-{seed}", train, items, toolbox_of, skills)
    print_results(flags.out / "agent")
    return 0


class WithTools:
    """The agent stage in the town."""

    def __init__(self, toolbox_of: Any) -> None:
        self.toolbox_of = toolbox_of

    def run(self, recipe: Recipe, run: RunSettings) -> Path:
        return agent.run(recipe, run, self.toolbox_of)


WEAK = '''"""A reward that pays for length: what a judge that likes long answers does."""


def long_answer(episodes):
    return [min(1.0, sum(episode.own) / 64) for episode in episodes]
'''


def hacking(flags: argparse.Namespace) -> int:
    """A weak reward, its symptom, and the cure, by the lines of the metrics."""
    folder = flags.out / "hacking"
    folder.mkdir(parents=True, exist_ok=True)
    weak = folder / "weak.py"
    weak.write_text(WEAK, encoding="utf-8")
    cases = {"weak": ("verifier=0.3", f"{weak}:long_answer=1"), "cure": ("verifier=1", "overlong=0.5")}
    for name, rewards in cases.items():
        recipe = rl_recipe("grpo", 0, flags, rewards=rewards, overlong_buffer=16)
        parts.go_on(grpo, recipe, run_of(flags, [flags.data / "rl.jsonl"], folder / name))
        rows = [row for row in read_metrics(folder / name) if "reward" in row]
        print(f"\n{name}: {' '.join(rewards).replace(str(folder) + '/', '')}")
        for key in ("reward", "success", "response_length", "truncated"):
            ends = [float(np.mean([row[key] for row in rows[part]])) for part in (slice(0, 3), slice(-3, None))]
            print(f"  {key:16} {ends[0]:8.3f} -> {ends[1]:8.3f}")
    return 0


def report(flags: argparse.Namespace) -> int:
    """Tables, and the picture of all algorithms over each other."""
    print_results(flags.out / "learn")
    folders = [path.parent for path in sorted((flags.out / "learn").glob("*-0/run/metrics.jsonl"))]
    runs = {path.parent.name: rows for path in folders if (rows := rl_rows(path))}
    if runs:
        draw(runs, flags.out / "learn.png")
        for name, rows in runs.items():
            wasted = np.mean([row.get("degenerate_groups", row.get("advantage_zero", 0.0)) for row in rows])
            print(f"{name:16} groups or answers without a gradient: {wasted:.1%}")
    return 0


def print_results(folder: Path) -> None:
    """Success of every run, its change against the base and more SFT with McNemar's p, and the other skills."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))}
    if "base" not in found:
        raise UserError(f"{folder}: nothing scored yet")
    right = {name: np.array(result["ok"]) for name, result in found.items()}
    controls = {name: right[name] for name in ("base", *(n for n in right if n.startswith(("more_sft", "rejection"))))}
    print(
        f"\n{'run':20} {'took':>7} {'success':>22}"
        + "".join(f"{'against ' + name:>26}" for name in controls)
        + "   skills lost"
    )
    for name, ok in right.items():
        low, high = wilson(int(ok.sum()), len(ok))
        cells = []
        for control in controls.values():
            cells.append("" if ok is control else f"{ok.mean() - control.mean():+.1%} (p {mcnemar(ok, control):.1e})")
        changes = {key: value - found["base"]["skills"][key] for key, value in found[name]["skills"].items()}
        lost = ", ".join(f"{key} {change:+.1%}" for key, change in changes.items() if change < -0.03)
        share = f"{ok.mean():.1%} [{low:.1%}, {high:.1%}]"
        print(
            f"{name:20} {found[name]['seconds']:5.0f} s {share:>22}"
            + "".join(f"{cell:>26}" for cell in cells)
            + f"   {lost or 'none over 3 points'}"
        )
        levels = sorted(set(found[name]["levels"]))
        by_level = [
            np.mean([o for o, own in zip(ok, found[name]["levels"], strict=True) if own == one]) for one in levels
        ]
        print(" " * 20 + "  by level: " + ", ".join(f"{a} {b:.0%}" for a, b in zip(levels, by_level, strict=True)))


def rl_rows(run: Path) -> list[dict[str, Any]]:
    """The lines of an RL run's metrics."""
    return [row for row in read_metrics(run) if "rollout_tokens" in row]


def draw(runs: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Share of answers that were right, smoothed, by rollout tokens and by wall-clock."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (key, label) in enumerate((("rollout_tokens", "tokens written"), ("elapsed_s", "seconds"))):
        axes = figure.add_subplot(1, 2, place + 1)
        for name, rows in runs.items():
            values = np.array([row["success"] for row in rows])
            width = max(1, len(values) // 10)
            smooth = np.convolve(np.pad(values, (width - 1, 0), "edge"), np.ones(width) / width, "valid")
            axes.plot([row[key] for row in rows], smooth, label=name)
        axes.set_xlabel(label)
        axes.set_ylabel("sampled answers that are right")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")

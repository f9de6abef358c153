"""Time to quality: a MiniMind-like recipe, then one change at a time; held-out bits per byte against the clock.

    python benchmarks/speed_ladder.py --data D/pretrain_mix.jsonl.xz --tokenizer runs/tok --out runs/ladder
        [--recipe nano] [--minutes 4] [--seeds 0] [--only NAME...] [--vocabularies 4096 12288] [--planned-seeds 0 1 2]

The baseline is the recipe's model under what MiniMind's scripts do: a document a row, cut at the row length and padded
to it, fp32, not compiled, AdamW with weight decay on everything, cosine to a tenth, weights normal with 0.02; at the
best of `--lrs`, each tried for the full time. Every rung of the ladder adds one change and keeps it; the branches are
tried alone on top of the last rung. All of them run through the product's own loop and its derivation of steps from
minutes. The last, `planned`, is the whole ladder with 40 % of the baseline's minutes, and compiles what these repay, as
a user's run does.

The clock begins when the data are read and stops while held-out text is looked at: it holds the measurement of speed,
the compilation and the training. The compiler's cache is empty at the start of each run: every rung pays for its own
compilation, as a user's first run does. Held-out documents are the same for all, in rows of 512. A rung's factor is the
time that the rung before took to its own end over the time that this one takes to that score (read off the curve while
its learning rate is still high, so a lower bound); below 1 where it is worse. Each run is kept in OUT/runs.json, under
the machine and the arguments that decide it, and not repeated, so a stopped benchmark goes on when it is started again.
"""

import argparse
import dataclasses
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from cutaway.data.cache import TokenCache, build_cache, split_holdout
from cutaway.data.loader import Batch, RowSource, evaluation_batches
from cutaway.evals.bpb import bits_per_byte
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise
from cutaway.recipe.files import load_recipe
from cutaway.recipe.stages import PretrainSettings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.derive import NEW_MODEL, derive_model
from cutaway.training.distributed import Ranks
from cutaway.training.loop import Job, fit
from cutaway.training.metrics import matmul_rate, read_metrics
from cutaway.training.network import Network
from cutaway.training.precision import keep_freed_memory, pick_device, pick_dtype
from cutaway.training.preparation import Plan, optimizers_of, prepare
from padded import PaddedRows
from training_speed import Kept, machine, named, run_cold

HOLDOUT = 32768
EVALUATION_ROW, EVALUATIONS = 512, 12
SHARE = 0.4
"""Of the baseline's minutes, for the run that is planned to be as good."""
DECIDING = ("steps", "recipe", "row_length", "batch_tokens", "skip", "scripts", "data", "tokenizer")
"""Arguments that are the same for all runs of one call."""
BASELINE = PretrainSettings(
    row_length=512,
    batch_tokens=8192,
    micro_batch_tokens=8192,
    optimizer="adamw",
    weight_decay=0.01,
    schedule="cosine",
    warmup_fraction=0.0,
    final_lr_fraction=0.1,
    precision="fp32",
    compile="off",
)


@dataclass(frozen=True)
class Variant:
    """A recipe: settings of the product, and what only this benchmark has."""

    settings: PretrainSettings = BASELINE
    padded: bool = True
    plain_weights: bool = True
    """All normal with 0.02, in place of `model/weights.py`'s."""
    plain_adamw: bool = True
    """Betas of 0.9 and 0.999, weight decay on everything."""
    ramp: bool = False
    """A quarter of the batch for the first tenth of the tokens, half of it for the next fifth."""
    short_first: bool = False
    """Documents by quarters of their length, the shortest first."""
    vocab_size: int = 0
    """0: the tokenizer as given."""


Change = Callable[[Variant], Variant]


def setting(**values: Any) -> Change:
    """A change of the product's settings."""
    return lambda variant: replace(variant, settings=replace(variant.settings, **values))


def own(**values: Any) -> Change:
    """A change of what only this benchmark has."""
    return lambda variant: replace(variant, **values)


RUNGS: dict[str, Change] = {
    "packing": own(padded=False),
    "bf16": setting(precision="auto"),
    "compiled": setting(compile="on"),
    "initialisation": own(plain_weights=False),
    "muon": lambda variant: replace(
        setting(optimizer="muon", adam_lr=None, weight_decay=None)(variant), plain_adamw=False
    ),
    "schedule": setting(schedule="wsd", warmup_fraction=0.03, final_lr_fraction=0.05),
    "batch": setting(batch_tokens=None, micro_batch_tokens=None),
}
"""Each keeps those before it."""
BRANCHES: dict[str, Change] = {
    "z-loss 1e-4": setting(z_loss=1e-4),
    "batch ramp": lambda variant: replace(setting(micro_batch_tokens=2048)(variant), ramp=True),
    "short first": own(short_first=True),
    "rows of 256": setting(row_length=256),
    "rows of 1024": setting(row_length=1024),
    "adamw again": setting(optimizer="adamw"),
    "half the batch": setting(batch_tokens=4096),
    "four times the batch": setting(batch_tokens=32768),
}
"""Each alone, on top of the last rung."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--planned-seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--lrs", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3])
    parser.add_argument("--vocabularies", type=int, nargs="*", default=[4096, 12288])
    parser.add_argument("--only", nargs="*", help="rungs and branches; both ends are always there")
    parser.add_argument("--row-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=8192, help="of the baseline, padding included")
    parser.add_argument("--steps", type=int, help="a fixed number in place of minutes, to try the script")
    parser.add_argument("--skip", nargs="*", default=[], help="rungs to leave out of the ladder, such as compiled")
    parser.add_argument("--scripts", default="keep")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        train(arguments, **json.loads(arguments.one))
        return
    print(f"{machine()}, torch {torch.__version__}, {arguments.minutes:g} minutes a run")
    results = climb(arguments)
    text = table(results)
    print("\n" + text)
    out = Path(arguments.out)
    (out / "ladder.md").write_text(text + "\n", encoding="utf-8")
    (out / "ladder.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, out / "ladder.png")


def variants(baseline: Variant, vocabularies: Sequence[int], skip: Sequence[str] = ()) -> dict[str, Variant]:
    """Baseline, rungs, branches and the planned run, by name, in order."""
    rung = baseline
    found = {"baseline": rung}
    for name, change in RUNGS.items():
        if name not in skip:
            rung = change(rung)
            found[name] = rung
    for name, change in BRANCHES.items():
        found[name] = change(rung)
    for size in vocabularies:
        found[f"vocabulary of {size}"] = replace(rung, vocab_size=size)
    return found | {"planned": setting(compile="auto")(rung)}


def chosen(arguments: argparse.Namespace, lr: float) -> dict[str, Variant]:
    """The variants that the flags ask for, on a baseline of that learning rate."""
    sizes = {"row_length": arguments.row_length, "batch_tokens": arguments.batch_tokens}
    sizes["micro_batch_tokens"] = min(8192, arguments.batch_tokens)
    return variants(setting(adam_lr=lr, **sizes)(Variant()), arguments.vocabularies, arguments.skip)


def climb(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every run, oldest change first: name to results of its seeds."""
    kept = Kept(Path(arguments.out, "runs.json"))
    tried = {lr: run(arguments, kept, "baseline", arguments.seeds[0], lr, arguments.minutes) for lr in arguments.lrs}
    best = min(tried, key=lambda lr: tried[lr]["curve"][-1]["bpb"])
    if len(tried) > 1 and best in (arguments.lrs[0], arguments.lrs[-1]):
        print(f"the best learning rate, {best:g}, is at the edge of those tried")
    results: dict[str, list[dict[str, Any]]] = {}
    for name in chosen(arguments, best):
        wanted = arguments.only is None or name in ("baseline", list(RUNGS)[-1], *arguments.only)
        seeds = arguments.planned_seeds if name == "planned" else arguments.seeds
        minutes = arguments.minutes * (SHARE if name == "planned" else 1)
        if name == "planned":
            # Its baseline must have the same seeds.
            missing = [seed for seed in seeds if seed not in arguments.seeds]
            results["baseline"] += [run(arguments, kept, "baseline", seed, best, arguments.minutes) for seed in missing]
        if wanted and seeds:
            results[name] = [run(arguments, kept, name, seed, best, minutes) for seed in seeds]
    return results


def run(arguments: argparse.Namespace, kept: Kept, name: str, seed: int, lr: float, minutes: float) -> dict[str, Any]:
    """One run in a process of its own, or what an earlier one left."""
    said = f"{name}, seed {seed}, lr {lr:g}, {minutes:g} minutes"
    place = named(said, arguments, *DECIDING)
    if kept.missing([place]):
        folder = Path(arguments.out, said.replace(",", "").replace(" ", "-"))
        shutil.rmtree(folder, ignore_errors=True)
        request = {"name": name, "seed": seed, "lr": lr, "minutes": minutes, "folder": str(folder)}
        run_cold([sys.executable, *sys.argv, "--one", json.dumps(request)])
        kept.add(place, json.loads((folder / "result.json").read_text(encoding="utf-8")))
    found: dict[str, Any] = kept.found[place]
    last = found["curve"][-1]
    print(f"{said}: {last['bpb']:.4f} after {last['clock']:.0f} s, {last['tokens']:,} tokens", flush=True)
    return found


def train(arguments: argparse.Namespace, name: str, seed: int, lr: float, minutes: float, folder: str) -> None:
    """The process of one run: data, model, plan, the product's loop, `result.json`."""
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    variant = chosen(arguments, lr)[name]
    settings = replace(variant.settings, minutes=minutes, seed=seed, holdout_tokens=HOLDOUT, sample_every=0)
    if arguments.steps:
        settings = replace(settings, minutes=None, steps=arguments.steps)
    tokenizer = tokenizer_of(arguments, variant)
    cache = build_cache([arguments.data], tokenizer, "pretrain", scripts=arguments.scripts)
    training, heldout = split(arguments, cache, seed)
    ranks = Ranks(0, 1, pick_device())
    ids = (tokenizer.im_end_id, tokenizer.eos_id)
    config, _ = derive_model(load_recipe(arguments.recipe).model, tokenizer.vocab_size, settings.row_length, ids)
    model = CausalLM(config)
    initialise(model, seed)
    if variant.plain_weights:
        plain_weights(model, seed)
    network = Network(model, ranks, pick_dtype(settings.precision, ranks.device))
    started = time.monotonic()

    def step(batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return network.training_loss(batch, settings.z_loss)

    def source(rows: int) -> Any:
        if variant.padded:
            return PaddedRows(cache, training, rows, settings.row_length, seed)
        return RowSource(cache, training, rows=rows, seq=settings.row_length, seed=seed, prefetch=2)

    plan = prepare(network, source, step, settings, heldout_tokens=0, peak=NEW_MODEL, started=started)
    phases = ramped(plan) if variant.ramp else []
    if phases:
        plan.settings = replace(plan.settings, steps=sum(steps for steps, _ in phases))
    micro_batches = plan.steps * plan.accumulation
    every = -(-plan.steps // EVALUATIONS)
    plan.settings = replace(plan.settings, eval_every=every, save_every=10**9, log_every=max(1, plan.steps // 100))
    # Rows as in training, or a compiled network would be compiled again.
    rows = plan.rows if settings.row_length == EVALUATION_ROW else 8192 // EVALUATION_ROW
    looks = Looks(network, cache, heldout, started, rows)
    batches = source(plan.rows)
    optimizers = plain_adamw(model, plan) if variant.plain_adamw else optimizers_of(model, plan.settings, network.dtype)
    job = Job(
        stage="pretrain",
        out=Path(folder),
        settings=plan.settings,
        total_steps=plan.steps,
        accumulation=plan.accumulation,
        network=network,
        source=batches,
        optimizers=optimizers,
        step=step,
        normalizer=Batch.trained_tokens,
        flops_per_token=model.flops_per_token(settings.row_length),
        matmul_rate=matmul_rate(ranks.device, network.dtype),
        evaluate=looks,
        started=started,
    )
    if variant.short_first:
        job.source = ShortFirst(cache, training, plan, seed, micro_batches)
    if phases:
        job.source = Ramp(batches, job, phases)
    Path(folder).mkdir(parents=True, exist_ok=True)
    fit(job, resume=False)
    batches.close()
    lines = read_metrics(Path(folder))
    curve = [
        {"clock": row["heldout_clock"], "tokens": row["tokens"], "bpb": row["heldout_bpb"]}
        for row in lines
        if "heldout_bpb" in row
    ]
    speeds = [row["tokens_per_second"] for row in lines if "tokens_per_second" in row]
    result = {
        "name": name,
        "seed": seed,
        "minutes": minutes,
        "curve": curve,
        "tokens_per_second": statistics.median(speeds),
        "parameters": model.num_parameters(),
        "settings": dataclasses.asdict(plan.settings),
        "rules": [str(rule) for rule in plan.rules],
    }
    shutil.rmtree(Path(folder, "state"), ignore_errors=True)
    Path(folder, "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class Looks:
    """Bits per byte of the held-out documents, and the clock without the time that the looks themselves took."""

    def __init__(
        self, network: Network, cache: TokenCache, heldout: "np.ndarray[Any, Any]", started: float, rows: int
    ) -> None:
        self.network, self.started, self.spent = network, started, 0.0
        self.batches, self.num_bytes = evaluation_batches(cache, heldout, rows, EVALUATION_ROW)

    def __call__(self) -> dict[str, float]:
        begin = time.monotonic()
        clock = begin - self.started - self.spent
        scores = bits_per_byte(self.network, self.batches, self.num_bytes)
        self.spent += time.monotonic() - begin
        return scores | {"clock": clock}


def tokenizer_of(arguments: argparse.Namespace, variant: Variant) -> Tokenizer:
    """The tokenizer as given, or one of the variant's size, trained on the same data once."""
    if not variant.vocab_size:
        return Tokenizer.load(arguments.tokenizer)
    folder = Path(arguments.out, f"tokenizer-{variant.vocab_size}")
    if not (folder / "tokenizer.json").is_file():
        flags = ["--data", arguments.data, "--vocab-size", str(variant.vocab_size), "--scripts", arguments.scripts]
        command = [sys.executable, "-m", "cutaway", "tokenizer", "train", *flags, "--out", str(folder)]
        subprocess.run(command, check=True)
    return Tokenizer.load(folder)


def split(
    arguments: argparse.Namespace, cache: TokenCache, seed: int
) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Documents to train on and held out, chosen by the lengths under the given tokenizer whatever the vocabulary."""
    given = build_cache([arguments.data], Tokenizer.load(arguments.tokenizer), "pretrain", scripts=arguments.scripts)
    _, heldout = split_holdout(given, HOLDOUT, seed)
    held = np.isin(np.asarray(cache.hashes), np.asarray(given.hashes)[heldout])
    return np.flatnonzero(~held), np.flatnonzero(held)


@torch.no_grad()
def plain_weights(model: CausalLM, seed: int) -> None:
    """Every matrix normal with standard deviation 0.02, whatever its width and place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def plain_adamw(model: nn.Module, plan: Plan) -> list[Optimizer]:
    """One AdamW for all parameters, as short scripts have it."""
    lr, decay = plan.settings.adam_lr, plan.settings.weight_decay
    assert lr is not None and decay is not None
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=decay, fused=True)
    optimizer.param_groups[0]["peak_lr"] = lr
    return [optimizer]


RAMP = ((0.1, 4), (0.2, 2), (0.7, 1))
"""Shares of the tokens, and what the batch is divided by."""


def ramped(plan: Plan) -> list[tuple[int, int]]:
    """Steps and micro-batches a step of each part of the ramp, for as many tokens as the plan's."""
    phases = []
    for share, part in RAMP:
        size = max(1, plan.accumulation // part)
        phases.append((max(1, round(share * plan.steps * plan.accumulation / size)), size))
    return phases


class Ramp:
    """Hands on a source's micro-batches, and says how many of them the loop takes for a step."""

    def __init__(self, source: Any, job: Job, phases: list[tuple[int, int]]) -> None:
        self.source, self.job, self.phases = source, job, list(phases)
        self._next_phase()

    def _next_phase(self) -> None:
        steps, self.job.accumulation = self.phases.pop(0)
        self.left = steps * self.job.accumulation

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch: Batch = next(self.source)
        self.left -= 1
        if not self.left and self.phases:
            self._next_phase()
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise RuntimeError("a run of the ladder begins anew")


class ShortFirst:
    """Documents in quarters by length, the shortest quarter first, each packed and shuffled for itself."""

    def __init__(
        self, cache: TokenCache, indices: "np.ndarray[Any, Any]", plan: Plan, seed: int, micro_batches: int
    ) -> None:
        order = indices[np.argsort(cache.lengths[indices], kind="stable")]
        bounds = np.searchsorted(np.cumsum(cache.lengths[order]), np.arange(1, 4) / 4 * cache.lengths[order].sum())
        length = plan.settings.row_length
        self.sources = [
            RowSource(cache, np.sort(part), rows=plan.rows, seq=length, seed=seed)
            for part in np.split(order, bounds)
            if len(part)
        ]
        self.each, self.given = -(-micro_batches // len(self.sources)), 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        source = self.sources[min(self.given // self.each, len(self.sources) - 1)]
        self.given += 1
        return next(source)

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise RuntimeError("a run of the ladder begins anew")


def time_to(curve: list[dict[str, float]], bpb: float, key: str = "clock") -> float | None:
    """Clock, or tokens, at which a curve first came down to `bpb`, on straight lines between the looks."""
    for before, after in itertools.pairwise(curve):
        if after["bpb"] <= bpb:
            share = (before["bpb"] - bpb) / max(1e-12, before["bpb"] - after["bpb"])
            return before[key] + min(1.0, max(0.0, share)) * (after[key] - before[key])
    return None


def factor(before: list[dict[str, float]], after: list[dict[str, float]], key: str = "clock") -> float:
    """How many times sooner the second curve comes to the worse of both ends; below 1 if it ends there itself."""
    worse = max(before[-1]["bpb"], after[-1]["bpb"])
    one, other = time_to(before, worse, key), time_to(after, worse, key)
    assert one is not None and other is not None
    return one / max(1e-9, other)


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """One row a change."""
    lines = [
        "| change | seeds | tokens/s | tokens | clock, s | held-out bits per byte | time: x the rung before "
        "| x the baseline | tokens: x the rung before |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    last_rung = [name for name in ("baseline", *RUNGS) if name in results][-1]
    before = "baseline"
    for name, runs in results.items():
        reference = before if name == "baseline" or name in RUNGS else last_rung
        ends = [one["curve"][-1]["bpb"] for one in runs]
        spread = f" ± {statistics.stdev(ends):.4f}" if len(ends) > 1 else ""
        last = runs[0]["curve"][-1]
        lines.append(
            f"| {name} | {len(runs)} | {statistics.median(one['tokens_per_second'] for one in runs):,.0f} "
            f"| {last['tokens']:,} | {last['clock']:.0f} | {statistics.mean(ends):.4f}{spread} "
            f"| {compared(results[reference], runs)} | {compared(results['baseline'], runs)} "
            f"| {compared(results[reference], runs, 'tokens')} |"
        )
        if name in RUNGS:
            before = name
    if "planned" in results:
        base = {one["seed"]: one["curve"][-1]["bpb"] for one in results["baseline"]}
        pairs = [(one["seed"], one["curve"][-1]["bpb"], base[one["seed"]]) for one in results["planned"]]
        said = "; ".join(f"seed {seed}: {end:.4f} against {whole:.4f}" for seed, end, whole in pairs)
        lines.append(f"\nplanned for {SHARE:.0%} of the baseline's minutes, held-out bits per byte: {said}")
    return "\n".join(lines)


def compared(before: list[dict[str, Any]], after: list[dict[str, Any]], key: str = "clock") -> str:
    """The median factor over the seeds that both have."""
    known = {one["seed"]: one["curve"] for one in before}
    factors = [factor(known[one["seed"]], one["curve"], key) for one in after if one["seed"] in known]
    return f"{statistics.median(factors):.2f}" if factors else "-"


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Bits per byte against minutes and against tokens: the rungs in one colour after another, branches thin."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    rungs = [name for name in results if name == "baseline" or name in RUNGS]
    for number, (key, scale, label) in enumerate((("clock", 60, "minutes"), ("tokens", 1e6, "million tokens"))):
        axes = figure.add_subplot(1, 2, number + 1)
        for name, runs in results.items():
            curve = runs[0]["curve"]
            x, y = [point[key] / scale for point in curve], [point["bpb"] for point in curve]
            if name in rungs:
                axes.plot(x, y, marker=".", linewidth=1.5, label=name)
            elif name == "planned":
                axes.plot(x, y, "k--", linewidth=1.2, label=f"planned for {SHARE:.0%}")
            else:
                axes.plot(x, y, color="0.75", linewidth=0.8, zorder=0)
        ends = [one["curve"][-1]["bpb"] for runs in results.values() for one in runs]
        axes.set_ylim(0.97 * min(ends), 1.25 * max(ends))
        axes.set_xlabel(label)
        axes.set_ylabel("held-out bits per byte")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if not number:
            axes.legend(fontsize=8)
    figure.savefig(path, format="png", dpi=110)


if __name__ == "__main__":
    main()

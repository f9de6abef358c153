"""Several runs side by side: scores, whether their differences mean anything, what each says, curves and cost.

Everything is read from the run directories (`evals/`, `metrics.jsonl`, `recipe.toml`); only the answers are new.
"""

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cutaway.data.formats import read_records
from cutaway.errors import UserError
from cutaway.evals.answers import visible
from cutaway.evals.intervals import holm
from cutaway.evals.picture import draw_report
from cutaway.evals.results import Difference, Result, compare, load_results
from cutaway.evals.tables import Table, interval, percent, tables_of, to_html, to_markdown
from cutaway.generation.conversation import answer_prompt, knows_chat
from cutaway.generation.defaults import load_sampling
from cutaway.generation.engine import Completion, Engine
from cutaway.generation.generate import document_prompt, generate
from cutaway.model.weights import load_model, write_text
from cutaway.recipe.files import read_toml
from cutaway.tokenization.dump import token_label
from cutaway.tokenization.messages import Message
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.curves import short_names
from cutaway.training.metrics import read_metrics
from cutaway.training.precision import pick_device

Against = Literal["previous", "first"]
PROMPTS = (
    "Who are you?",
    "Explain in one sentence why the sky is blue.",
    "请用一句话介绍长城。",
    "小明有 5 个苹果，吃了 2 个，还剩几个？",
    "請列出三種水果。",
    "請說明什麼是颱風。",
)
ANSWER_TOKENS = 128
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Said:
    """An answer, and its tokens with their probabilities at the temperature that they were drawn at."""

    text: str
    tokens: list[tuple[str, float]]


@dataclass(frozen=True)
class Run:
    """One column of a report."""

    path: Path
    name: str
    results: dict[str, Result]
    metrics: list[dict[str, Any]]
    made: dict[str, Any]
    price_per_hour: float
    answers: list[Said] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """What made it; a dash where nothing says."""
        return str(self.made.get("stage", "-"))

    def last(self, key: str) -> float | None:
        """The newest value of a metric."""
        return next((row[key] for row in reversed(self.metrics) if isinstance(row.get(key), int | float)), None)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """What the run directories hold. Raises UserError for what is no model directory."""
    runs = []
    for path, name in zip(paths, short_names(paths), strict=True):
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UserError(f"{path}: no model is there")
        recipe = read_toml(str(path / "recipe.toml")) if (path / "recipe.toml").is_file() else {}
        made: dict[str, Any] = recipe.get("made", {})
        stage: dict[str, Any] = recipe.get(str(made.get("stage")), {})
        metrics = read_metrics(path) if (path / "metrics.jsonl").is_file() else []
        price = float(stage.get("price_per_hour", 0.0))
        runs.append(Run(path, name, load_results(path), metrics, made, price))
    return runs


def read_prompts(path: str | None) -> list[list[Message]]:
    """The conversations to answer: those of a file of RL records, else `PROMPTS`."""
    if path is None:
        return [[{"role": "user", "content": text}] for text in PROMPTS]
    return [record.value["conversations"] for record in read_records([path], "rl")]


def write_answers(
    run: Run, prompts: Sequence[Sequence[Message]], seed: int = 0, model: Path | None = None
) -> list[Said]:
    """What a run (or the model that was merged of it) says to each prompt, sampled as it is in a chat; a run that does
    not chat goes on with the text."""
    tokenizer = Tokenizer.load(run.path)
    engine = Engine(load_model(model or run.path, pick_device()).eval(), tokenizer, slots=min(16, max(1, len(prompts))))
    chat = knows_chat(run.path, tokenizer)
    ids = [
        answer_prompt(turns, tokenizer) if chat else document_prompt(str(turns[-1]["content"]), tokenizer)
        for turns in prompts
    ]
    done = generate(engine, ids, sampling=load_sampling(run.path), max_new_tokens=ANSWER_TOKENS, seed=seed)
    return [_said(one, tokenizer) for one in done]


def _said(one: Completion, tokenizer: Tokenizer) -> Said:
    labels = [token_label(token, tokenizer) for token in one.ids]
    tokens = list(zip(labels, map(math.exp, one.logprobs), strict=True))
    return Said((visible(one.text) or one.text).strip(), tokens)


def score_table(runs: Sequence[Run]) -> Table:
    """A row for each task that any run was scored on."""
    names = sorted({name for run in runs for name in run.results})
    rows = []
    for name in names:
        found = [run.results.get(name) for run in runs]
        chance = next((f"{100 * r.summary['chance']:.1f}" for r in found if r and "chance" in r.summary), "")
        items = " / ".join(map(str, sorted({len(result.keys) for result in found if result})))
        rows.append([name, items, chance, *(_score(result) for result in found)])
    note = (
        "Brackets: 95 % intervals (Wilson; bootstrap over documents for bits per byte). ≈: not distinguishable from "
        "guessing, or from always giving the same letter. Bits per byte: lower is better."
    )
    return Table("Scores", ["task", "items", "chance, %", *(run.name for run in runs)], rows, note)


def _score(result: Result | None) -> str:
    if result is None:
        return "-"
    summary = result.summary
    if summary["kind"] == "text":
        return f"{summary['bpb']:.3f} [{summary['low']:.3f}, {summary['high']:.3f}]"
    if summary["kind"] == "choice":
        one = summary["scores"][summary["headline"]]
        mark = "≈ " if one["verdict"].startswith("not") else "↓ " if one["verdict"].startswith("worse") else ""
        return f"{mark}{percent(one['accuracy'])} {interval(one['low'], one['high'])}"
    one = summary["pass"]["1"] if "1" in summary["pass"] else next(iter(summary["pass"].values()))
    return f"{percent(one['value'])} {interval(one['low'], one['high'])}"


def margin_table(runs: Sequence[Run]) -> Table | None:
    """The margins of multiple-choice sets, which show what accuracy cannot yet; None without such sets."""
    names = sorted({name for run in runs for name, r in run.results.items() if r.summary["kind"] == "choice"})
    rows = []
    for name in names:
        cells = []
        for run in runs:
            result = run.results.get(name)
            if result is None:
                cells += ["-", "-"]
                continue
            one, calibration = result.summary["scores"][result.summary["headline"]], result.summary["calibration"]
            ends = interval(one["margin_low"], one["margin_high"], lambda end: f"{end:+.3f}")
            cells += [f"{one['margin']:+.3f} {ends}", percent(calibration["ece"])]
        rows.append([name, *cells])
    headers = ["task", *(f"{run.name}, {what}" for run in runs for what in ("margin", "calibration error"))]
    note = "Margin: nats (a byte, where choices are texts) by which the right choice is likelier than the others."
    return Table("Margin of the right answer, and calibration", headers, rows, note) if rows else None


def difference_table(runs: Sequence[Run], against: Against = "previous") -> Table | None:
    """Every run against the one before it, or the first: the change on the items both have, and whether it is more
    than chance. p-values are adjusted for their number (Holm). None with one run."""
    found: list[tuple[str, Run, Run, Difference, bool]] = []
    for place, run in enumerate(runs[1:], start=1):
        base = runs[0] if against == "first" else runs[place - 1]
        for name in sorted(set(run.results) & set(base.results)):
            lower_is_better = run.results[name].summary["kind"] == "text"
            found.append((name, base, run, compare(base.results[name], run.results[name]), lower_is_better))
    if not found:
        return None
    rows = []
    for (name, base, run, one, lower), p in zip(found, holm([one.p for *_, one, _ in found]), strict=True):
        scale, digits = (1.0, 3) if lower else (100.0, 1)
        ends = interval(one.low, one.high, lambda end, s=scale, d=digits: f"{s * end:+.{d}f}")  # type: ignore[misc]
        words = "no difference shown"
        if p < SIGNIFICANT:
            words = "better" if (one.difference < 0) == lower else "worse"
        change = f"{scale * one.difference:+.{digits}f}{'' if lower else ' points'}"
        rows.append([name, f"{base.name} → {run.name}", str(one.items), change, ends, f"{p:.3g}", one.test, words])
    headers = ["task", "runs", "items", "change", "95 %", "p, adjusted", "test", "in words"]
    return Table("Differences", headers, rows, "Paired: only items that both runs were given.")


def cost_table(runs: Sequence[Run]) -> Table:
    """What each run took to train."""
    rows = []
    for run in runs:
        tokens, seconds = run.last("tokens"), run.last("elapsed_s")
        parameters = run.made.get("parameters")
        flops = None
        if tokens is not None and isinstance(run.made.get("active_parameters"), int):
            flops = 6 * run.made["active_parameters"] * tokens
        bpb = run.last("heldout_bpb")
        rows.append(
            [
                run.name,
                run.stage,
                "-" if parameters is None else f"{parameters / 1e6:.1f}M",
                "-" if tokens is None else f"{tokens / 1e6:.2f}M",
                "-" if seconds is None else f"{seconds / 60:.1f}",
                "-" if flops is None else f"{flops:.1e}",
                "-" if bpb is None else f"{bpb:.3f}",
                "-" if seconds is None or not run.price_per_hour else f"{seconds / 3600 * run.price_per_hour:.2f}",
            ]
        )
    headers = ["run", "stage", "parameters", "tokens", "minutes", "FLOPs", "held-out bits per byte", "cost"]
    note = (
        "Each stage by itself, without those before it. FLOPs: 6 x active parameters x tokens. Held-out: of the "
        "stage's own data, so stages do not compare. Cost: at the price_per_hour of its recipe."
    )
    return Table("Runs and their cost", headers, rows, note)


def write_report(
    runs: Sequence[Run],
    out: Path,
    prompts: Sequence[Sequence[Message]],
    against: Against = "previous",
    first: Sequence[Table] = (),
    last: Sequence[Table] = (),
) -> list[Path]:
    """Write report.html (one file with everything in it), report.md and report.png; gives back their paths.

    Tables of the caller's own come before and after the others. Raises UserError where there is nothing to report: no
    result, no metrics and no answer.
    """
    if not any(run.results or run.metrics or run.answers for run in runs):
        raise UserError("nothing to report: score the runs first with `cutaway eval RUN --task ...`")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made: {error.strerror}") from None
    paths = [out / name for name in ("report.html", "report.md", "report.png")]
    draw_report(runs, paths[2])
    maybe = [score_table(runs), difference_table(runs, against), margin_table(runs), cost_table(runs)]
    tables = [table for table in (*first, *maybe, *last) if table is not None and table.rows]
    details = [(run, table) for run in runs for result in run.results.values() for table in tables_of(result)]
    write_text(_markdown(runs, tables, prompts, details), paths[1])
    picture = base64.b64encode(paths[2].read_bytes()).decode("ascii")
    write_text(_html(runs, tables, prompts, details, picture), paths[0])
    return paths


def _markdown(
    runs: Sequence[Run],
    tables: Sequence[Table],
    prompts: Sequence[Sequence[Message]],
    details: Sequence[tuple[Run, Table]],
) -> str:
    parts = [f"# {_title(runs)}\n", *map(to_markdown, tables), "![scores and curves](report.png)\n"]
    if any(run.answers for run in runs):
        parts.append("## The same prompts\n")
        for number, turns in enumerate(prompts):
            parts.append(f"**{_inline(_asked(turns))}**\n")
            parts += [f"- {_inline(run.name)}: {_inline(run.answers[number].text)}" for run in runs if run.answers]
            parts.append("")
    parts.append("## All figures\n")
    parts += [f"{run.name}\n\n{to_markdown(table)}" for run, table in details]
    return "\n".join(parts)


def _inline(text: str) -> str:
    """Text on one line that Markdown does not take for markup."""
    text = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\`*_[]<>#|!&" else char for char in text)


def _title(runs: Sequence[Run]) -> str:
    return "Report on " + ", ".join(run.name for run in runs)


def _asked(turns: Sequence[Message]) -> str:
    return str(turns[-1].get("content") or "")


_TOKENS_NOTE = (
    "Tokens: the redder, the less likely the model found the one that it drew; hovering shows the probability."
)
_SHADES = 10
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, "Noto Sans CJK TC", sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody tr:hover { background: var(--soft); }
.note { font-size: .85rem; opacity: .8; max-width: 60rem; }
img { max-width: 100%; background: white; border-radius: 6px; }
.answers { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
.answers > div { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.answers b { display: block; font-size: .8rem; opacity: .7; }
summary { cursor: pointer; }
.tokens span { border: 1px solid var(--line); border-radius: 3px; padding: 0 1px; }
"""
_STYLE += "".join(
    f".t{shade} {{ background: rgba(214, 69, 65, {0.6 * (1 - shade / (_SHADES - 1)):.2f}); }}\n"
    for shade in range(_SHADES)
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def _tokens(said: Said) -> str:
    """Each token in a shade of its probability."""
    spans = []
    for label, probability in said.tokens:
        shade = min(_SHADES - 1, int(_SHADES * probability))
        spans.append(f'<span class="t{shade}" title="{percent(probability)}">{html.escape(label)}</span>')
    return f"<p class=tokens>{''.join(spans)}</p>"


def _html(
    runs: Sequence[Run],
    tables: Sequence[Table],
    prompts: Sequence[Sequence[Message]],
    details: Sequence[tuple[Run, Table]],
    picture: str,
) -> str:
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(_title(runs))}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(_title(runs))}</h1>",
        *map(to_html, tables),
        f'<h2>Scores and curves</h2>\n<img alt="scores and curves" src="data:image/png;base64,{picture}">',
    ]
    if any(run.answers for run in runs):
        parts.append(f"<h2>The same prompts</h2><p class=note>{_TOKENS_NOTE}</p>")
        for number, turns in enumerate(prompts):
            parts.append(f"<h3>{html.escape(_asked(turns))}</h3><div class=answers>")
            for run in runs:
                if run.answers:
                    said = run.answers[number]
                    body = f"{html.escape(said.text)}<details><summary>tokens</summary>{_tokens(said)}</details>"
                    parts.append(f"<div><b>{html.escape(run.name)}</b>{body}</div>")
            parts.append("</div>")
    parts.append("<h2>All figures</h2>")
    for run in runs:
        own = [to_html(table) for owner, table in details if owner is run]
        if own:
            parts.append(f"<details><summary>{html.escape(run.name)}</summary>{''.join(own)}</details>")
    return "\n".join([*parts, "</body></html>", ""])

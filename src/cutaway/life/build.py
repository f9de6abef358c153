"""A life on real text, part by part: fetch, vocabulary, every stage, what each changed, report, export.

Data sets are given by the name under which a hub has them, or as files. `PUBLISHED` is the table; the horizons are
those of the recipe.
"""

import dataclasses
import functools
import itertools
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.data import hub
from cutaway.data.formats import check_readable, read_records
from cutaway.data.texts import read_texts
from cutaway.errors import UserError
from cutaway.evals.evaluate import EvalSettings, Subject, check, evaluate
from cutaway.evals.report import read_prompts
from cutaway.evals.results import load_results, save_result
from cutaway.evals.sets import set_name
from cutaway.life import report
from cutaway.life.journal import Journal
from cutaway.life.parts import Part
from cutaway.life.stage import Life, by_hand, recipe_of, train
from cutaway.life.steps import Stage, Step
from cutaway.model.weights import write_text
from cutaway.recipe.recipe import Recipe
from cutaway.rl.setup import resolve
from cutaway.stages.dpo import derive_loss
from cutaway.tokenization.train import train_tokenizer
from cutaway.training.preparation import check_settings

log = logging.getLogger("cutaway")
PUBLISHED: dict[Stage, str] = {
    "pretrain": "pretrain_t2t_mini",
    "sft": "sft_t2t_mini",
    "lora": "lora_identity",
    "dpo": "dpo",
    "grpo": "agent_rl_math",
}
"""Where nothing else is named: MiniMind's sets."""
PASSES = 4
"""Times that the adapter's own records stand in its file."""
REPLAY = 1.5
"""Records of fine-tuning beside each of the adapter's own, never the same twice: else it takes every unusual question
for one about itself."""
SAYS: dict[Stage, str] = {
    "pretrain": "next-token prediction on plain text",
    "sft": "fine-tuning on conversations",
    "lora": "a small adapter learns who it is, and is merged into the model",
    "dpo": "preference: of two answers, the better one becomes likelier",
    "grpo": "reinforcement learning: groups of answers, judged by a verifier",
}
RAISES: dict[Stage, tuple[str, ...]] = {"lora": ("identity.answers",)}
RL_STEPS = 200
"""Updates of reinforcement learning, where the recipe says nothing."""
LONGER = 3.0
"""About how many times as long as a record on who the model is one of fine-tuning is."""
COMPRESSION = 3.5
"""About how many bytes of text one of a compressed file holds."""
LORA_FILE = "lora_and_replay.jsonl"
"""What the adapter is trained on: its own set with the names filled in, and records of fine-tuning."""


@dataclass(frozen=True)
class Sources:
    """What a life on real text reads, by stage: names of published sets, `owner/name:file`, or files."""

    names: Mapping[Stage, tuple[str, ...]]
    source: str = "hf"
    """hf or modelscope."""
    called: Mapping[str, str] = field(default_factory=dict)
    """What `{{name}}` and `{{author}}` stand for."""


def local(entry: str, data: Path) -> Path:
    """Where a set is, or will be once it is fetched. UserError for what is neither a file nor the name of one."""
    if entry in hub.MINIMIND_FILES:
        return data / f"{entry}.jsonl"
    repository, _, file = entry.partition(":")
    if file and "*" not in file and repository.count("/") == 1 and not Path(entry).exists():
        return data / file
    check_readable(entry)
    return Path(entry)


def build_life(out: Path, recipe: Recipe, seed: int, price_per_hour: float, sources: Sources) -> Life:
    """The life of a recipe; a stage for which no data is named is left out."""
    data, steps = out / "data", []
    for stage in PUBLISHED:
        entries = sources.names[stage]
        if entries:
            files = (LORA_FILE,) if stage == "lora" else tuple(str(local(entry, data).absolute()) for entry in entries)
            settings: dict[str, Any] = {"price_per_hour": price_per_hour} if price_per_hour else {}
            own = getattr(recipe, stage)
            if stage == "lora" and own.epochs is not None:
                settings["epochs"] = 1.0  # its file repeats what is to be repeated
            elif all(getattr(own, name) is None for name in ("minutes", "tokens", "steps", "epochs")):
                settings["steps"] = RL_STEPS
            steps.append(Step(stage, files, 0.0, SAYS[stage], RAISES.get(stage, ()), settings))
    recipe = dataclasses.replace(recipe, tokenizer=dataclasses.replace(recipe.tokenizer, seed=seed))
    return Life(out, data, recipe, tuple(steps), seed, None)


def build_parts(life: Life, sources: Sources, tasks: Sequence[str], asked: EvalSettings) -> list[Part]:
    """Fetching, vocabulary, and every stage with its evaluation."""
    text, bad, vocabulary = life.steps[0].data, life.recipe.pretrain.skip_bad, life.out / "tokenizer"
    table = life.recipe.tokenizer
    get = functools.partial(_fetch, life, sources)
    sizes = ["--vocab-size", str(table.vocab_size), "--pattern", table.pattern, "--scripts", table.scripts]
    again = ["--seed", str(table.seed), "--out", f"{vocabulary}-again", "--skip-bad", str(bad)]
    parts = [
        Part("data", 0.0, "fetching what is not here", get, _get_command(life, sources)),
        Part(
            "tokenizer",
            0.0,
            f"a vocabulary of {table.vocab_size} tokens",
            lambda: train_tokenizer(read_texts(text, table.scripts, table.seed, bad), table).save(vocabulary),
            shlex.join(["cutaway", "tokenizer", "train", "--data", *text, *sizes, *again]),
        ),
    ]
    for step in life.steps:
        work = functools.partial(_train_and_evaluate, life, step, tasks, asked)
        parts.append(Part(step.stage, 0.0, step.says, work, by_hand(life, step)))
    return parts


def size_of(sources: Sources, stage: Stage) -> float | None:
    """About how many bytes of text a stage's sets have; None where that is not known before they are fetched. The
    adapter's are repeated, and have longer records of fine-tuning beside them."""
    total = 0.0
    for entry in sources.names[stage]:
        if entry in hub.MINIMIND_FILES:
            total += hub.minimind_bytes(entry)
        elif Path(entry).is_file():
            total += Path(entry).stat().st_size * (1 if entry.endswith(".jsonl") else COMPRESSION)
        else:
            return None
    return total * PASSES * (1 + REPLAY * LONGER) if stage == "lora" else total


def _fetched(sources: Sources) -> list[str]:
    """The sets that are no files."""
    every = [entry for entries in sources.names.values() for entry in entries]
    return [entry for entry in every if entry in hub.MINIMIND_FILES or not Path(entry).is_file()]


def _fetch(life: Life, sources: Sources) -> None:
    """Every set that is no file; then the adapter's file is put together."""
    for entry in _fetched(sources):
        hub.get(entry, life.data, sources.source)
    if set(_fetched(sources)) & set(hub.MINIMIND_FILES):
        log.info("  licence of MiniMind's sets: %s", hub.MINIMIND_LICENCE)
    life.data.mkdir(parents=True, exist_ok=True)
    if sources.names["lora"]:
        _write_adapter_file(life, sources)


def _write_adapter_file(life: Life, sources: Sources) -> None:
    """The adapter's records with the names filled in, `PASSES` times, and fine-tuning records beside them (times
    `REPLAY`), each once."""
    files = [local(entry, life.data) for entry in sources.names["lora"]]
    records = read_records(files, "sft", life.recipe.lora.skip_bad)
    own = [json.dumps(record.value, ensure_ascii=False) for record in records]
    for name in ("name", "author"):
        marker = "{{" + name + "}}"
        if any(marker in line for line in own):
            if name not in sources.called:
                raise UserError(f"{files[0]}: {marker} stands in it: say what it is with --{name}")
            text = json.dumps(sources.called[name], ensure_ascii=False)[1:-1]
            own = [line.replace(marker, text) for line in own]
    own *= PASSES
    talks = read_records([local(entry, life.data) for entry in sources.names["sft"]], "sft", life.recipe.sft.skip_bad)
    again = [json.dumps(one.value, ensure_ascii=False) for one in itertools.islice(talks, int(REPLAY * len(own)))]
    write_text("\n".join([*own, *again]) + "\n", life.data / LORA_FILE)


def _get_command(life: Life, sources: Sources) -> str:
    names = _fetched(sources)
    more = ["--source", sources.source] if sources.source != "hf" else []
    return shlex.join(["cutaway", "data", "get", *names, "--out", str(life.data), *more]) if names else ""


def check_stages(life: Life) -> None:
    """A mistake in the settings of a stage should not wait for the hours before it. UserError that names the stage."""
    for step in life.steps:
        settings = getattr(recipe_of(life, step), step.stage)
        try:
            check_settings(settings)
            if step.stage == "dpo":
                derive_loss(settings)
            if step.stage == "grpo":
                resolve(settings)
        except UserError as error:
            raise UserError(f"{step.stage}: {error}") from None


def check_tasks(tasks: Sequence[str], asked: EvalSettings) -> None:
    """A mistake in a task should not wait for hours of training."""
    for task in tasks:
        check(task, asked)


def _train_and_evaluate(life: Life, step: Step, tasks: Sequence[str], asked: EvalSettings) -> None:
    """A stage, and its score on every task that it was not scored on yet."""
    run = train(life, step)
    known = {result.task for result in load_results(run).values()}
    subject = Subject(run, asked)
    for task in tasks:
        if set_name(task) not in known:
            result = evaluate(subject, task)
            save_result(result, run)
            log.info("  %s: %.3f", result.name, result.value)


def report_part(life: Life, journal: Journal) -> Part:
    """The report."""

    def work() -> None:
        for path in report.write(life, journal, read_prompts(None)):
            log.info("  %s", path)

    return Part("report", 0.0, "scores, differences, curves, answers side by side", work)


def export_part(life: Life) -> Part:
    """The last model as a GGUF file."""
    from cutaway.exporting.gguf_file import write_gguf

    model, target = life.model_of(life.steps[-1]), life.out / "model.gguf"
    command = shlex.join(["cutaway", "export", str(model), "--to", "gguf", "--out", f"{target}-again"])

    def work() -> None:
        path = write_gguf(model, target)
        log.info("  %s: %.1f MB", path, path.stat().st_size / 1e6)

    return Part("export", 0.0, "for llama.cpp", work, command)

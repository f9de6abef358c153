"""What pretraining and supervised fine-tuning share: everything from files to the loop, in the order it happens."""

import dataclasses
import datetime
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

import cutaway
from cutaway.data.cache import TokenCache, build_cache, split_holdout
from cutaway.data.loader import Batch, OneBatch, RowSource, evaluation_batches
from cutaway.errors import Stopped, UserError
from cutaway.evals.bpb import bits_per_byte
from cutaway.generation.defaults import generation_config
from cutaway.generation.generate import generate
from cutaway.generation.sampling import Sampling
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import describe_model, is_adapter, write_text
from cutaway.objectives.next_token import IGNORE
from cutaway.recipe import Recipe, RunSettings, TrainSettings, load_recipe, load_run, save_recipe
from cutaway.tokenization.dump import dump_html, dump_terminal
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.card import write_card
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.curves import draw_curves
from cutaway.training.derive import Rule
from cutaway.training.distributed import Ranks
from cutaway.training.loop import Job, fit
from cutaway.training.metrics import matmul_rate
from cutaway.training.network import Network
from cutaway.training.plan import run_flops
from cutaway.training.precision import keep_freed_memory, pick_dtype
from cutaway.training.preparation import Plan, check_settings, optimizers_of, prepare
from cutaway.training.progress import print_tokens
from cutaway.training.reference import Reading, Subject, data_names, reading_for

log = logging.getLogger("cutaway")
Kind = Literal["pretrain", "sft"]
Documents = Int[np.ndarray, "_documents"]
"""Indices into a cache; the underscore lets two of them in one signature differ in length."""


@dataclass
class Material:
    """What a stage has read before training starts."""

    kind: Kind
    model: CausalLM
    tokenizer: Tokenizer
    cache: TokenCache
    train: Documents
    heldout_cache: TokenCache
    heldout: Documents
    stage: str = ""
    """Name of the stage, where it is not that of the data."""

    def __post_init__(self) -> None:
        self.stage = self.stage or self.kind


def prepare_out(run: RunSettings) -> Path:
    """The run directory; an earlier run in it is gone on with or left alone, never overwritten."""
    if not run.out:
        raise UserError("--out is missing: the run directory to write")
    out = Path(run.out)
    steps = Checkpoints(out, 1).steps()
    if steps and not run.resume:
        raise UserError(f"{out} already holds a run: add --resume to go on with it, or choose another --out")
    if not steps and (any(out.glob("model*.safetensors")) or is_adapter(out)):
        raise UserError(f"{out} holds a model that is not a run of this kind: choose another --out")
    if run.resume and not steps:
        raise UserError(f"{out}: no checkpoint to resume from; start the run again without --resume")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made a run directory: {error.strerror}") from None
    return out


def read_data(
    kind: Kind, settings: TrainSettings, run: RunSettings, tokenizer: Tokenizer, ranks: Ranks
) -> tuple[TokenCache, Documents, TokenCache, Documents]:
    """Training cache and indices, held-out cache and indices. The first rank tokenises, the others wait for it."""

    def cache(files: tuple[str, ...]) -> TokenCache:
        return build_cache(
            files,
            tokenizer,
            kind,
            scripts=settings.scripts,
            seed=settings.seed,
            skip_bad=settings.skip_bad,
            workers=settings.workers,
            max_tokens=settings.row_length + 1,
        )

    check_settings(settings)
    if not run.data:
        raise UserError("--data is missing: the training files")
    if not ranks.first:
        ranks.barrier()
    training = cache(run.data)
    separate = cache(run.eval_data) if run.eval_data else None
    if ranks.first:
        ranks.barrier()
    if separate is not None:
        return training, np.arange(len(training)), separate, np.arange(len(separate))
    train, heldout = split_holdout(training, settings.holdout_tokens, settings.seed)
    return training, train, training, heldout


def train(
    material: Material,
    settings: TrainSettings,
    run: RunSettings,
    ranks: Ranks,
    *,
    resolved: Callable[[TrainSettings], Recipe],
    rules: list[Rule],
    prompts: dict[str, list[int]],
    started: float,
) -> Path:
    """Derive what the settings leave open, write it down, and train. `resolved` puts settings back into the recipe."""
    out = Path(run.out)
    longest = material.model.config.max_position_embeddings
    if settings.row_length > longest:
        raise UserError(f"row_length is {settings.row_length}, the model's max_position_embeddings only {longest}")
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    network = Network(material.model, ranks, pick_dtype(settings.precision, ranks.device))

    def source(rows: int) -> RowSource:
        return RowSource(
            material.cache,
            material.train,
            rows=rows,
            seq=settings.row_length,
            seed=settings.seed,
            rank=ranks.rank,
            world=ranks.world,
            prefetch=0 if settings.overfit_one_batch else 2,
        )

    def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the trained tokens' negative log-likelihoods; the loop divides by their number."""
        return network.training_loss(batch, settings.z_loss)

    heldout_tokens = int((material.heldout_cache.lengths[material.heldout] - 1).sum())
    fine_tuning = material.kind == "sft"
    plan = prepare(network, source, settings, heldout_tokens=heldout_tokens, fine_tuning=fine_tuning, started=started)
    reading = _reference(material, plan, resolved(plan.settings).name, run)
    if ranks.first:
        _describe(material, plan, rules + plan.rules)
        log.info("reference: %s", reading[1])
        if settings.dump_tokens:
            rows = source(settings.dump_tokens)
            _dump_tokens(out, material, next(rows))
            rows.close()
    batches = source(plan.rows)
    evaluate: Callable[[], dict[str, float]] | None = None
    if len(material.heldout):
        held, num_bytes = evaluation_batches(material.heldout_cache, material.heldout, plan.rows, settings.row_length)

        def evaluate() -> dict[str, float]:
            return bits_per_byte(network, held, num_bytes)

    rate = matmul_rate(ranks.device, network.dtype)
    network.wrap()
    job = Job(
        stage=material.stage,
        out=out,
        settings=plan.settings,
        total_steps=plan.steps,
        accumulation=plan.accumulation,
        network=network,
        source=OneBatch(batches) if settings.overfit_one_batch else batches,
        optimizers=optimizers_of(material.model, plan.settings, network.dtype),
        step=step,
        normalizer=Batch.trained_tokens,
        flops_per_token=material.model.flops_per_token(settings.row_length),
        matmul_rate=rate,
        evaluate=evaluate,
        sample=_sampler(material, out, prompts) if plan.settings.sample_every else None,
        scaler=torch.amp.GradScaler(ranks.device.type) if network.dtype == torch.float16 else None,
        reading=reading[0],
        started=started,
        begin=lambda: _write_description(out, material, resolved(plan.settings), run),
    )
    torch.manual_seed(settings.seed)  # a new process starts at a random place; a resumed run goes on at its own
    try:
        fit(job, run.resume)
    finally:
        batches.close()
    if ranks.first:
        draw_curves(out, out / "curves.png")
        write_card(out)
    return out


def _sampler(material: Material, out: Path, prompts: dict[str, list[int]]) -> Callable[[int], None]:
    """Writes greedy continuations of the prompts to `samples.jsonl`, so that one sees what the loss means."""
    path = out / "samples.jsonl"

    def write(step: int) -> None:
        greedy = Sampling(temperature=0.0)
        texts = generate(material.model, list(prompts.values()), material.tokenizer, sampling=greedy, max_new_tokens=64)
        lines = _samples_before(step, path)
        for prompt, completion in zip(prompts, texts, strict=True):
            record = {"step": step, "prompt": prompt, "text": completion.text, "end": completion.finish_reason}
            lines.append(json.dumps(record, ensure_ascii=False))
        write_text("\n".join(lines) + "\n", path)

    return write


def _samples_before(step: int, path: Path) -> list[str]:
    """Lines of earlier steps; later ones are from before an interruption and will be written again."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    return [line for line in lines if line and json.loads(line)["step"] < step]


def _dump_tokens(out: Path, material: Material, batch: Batch) -> None:
    """The rows of a batch with their trained tokens in colour, on the terminal and in `tokens.html`."""
    rows = [
        _tokens_of_row(ids.tolist(), targets.tolist(), documents.tolist())
        for ids, targets, documents in zip(batch.input_ids, batch.targets, batch.documents, strict=True)
    ]
    print_tokens([dump_terminal(ids, mask, material.tokenizer) for ids, mask in rows])
    log.info("tokens: %s", dump_html(rows, material.tokenizer, out / "tokens.html"))


def _tokens_of_row(ids: list[int], targets: list[int], documents: list[int]) -> tuple[list[int], list[bool]]:
    """A row's tokens and which of them are trained, the last target of each document included, which is no input."""
    tokens: list[int] = []
    trained: list[bool] = []
    for place, (token, document) in enumerate(zip(ids, documents, strict=True)):
        if document < 0:
            break
        first = place == 0 or documents[place - 1] != document
        last = place + 1 == len(ids) or documents[place + 1] != document
        tokens.append(token)
        trained.append(not first and targets[place - 1] != IGNORE)
        if last and targets[place] != IGNORE:
            tokens.append(targets[place])
            trained.append(True)
    return tokens, trained


def _describe(material: Material, plan: Plan, rules: list[Rule]) -> None:
    """Say what is about to be trained, on what, for how long, and where each derived value comes from."""
    for rule in rules:
        log.info("derived: %s", rule)
    model, settings = material.model, plan.settings
    total, bare = model.num_parameters() / 1e6, model.num_parameters(embeddings=False) / 1e6
    log.info("model: %s, %.2fM parameters (%.2fM without the embedding)", model.config.architecture, total, bare)
    if model.config.num_experts:
        active, of = (
            model.num_active_parameters() / 1e6,
            f"{model.config.num_experts_per_tok} of {model.config.num_experts}",
        )
        log.info("experts: a token passes through %s in every layer, %.2fM active parameters", of, active)
    counts = (len(material.train), plan.per_epoch / 1e6, len(material.heldout))
    log.info("data: %d documents, %.2fM tokens an epoch; held out: %d documents", *counts)
    assert settings.batch_tokens is not None
    epochs = plan.steps * settings.batch_tokens / plan.per_epoch
    log.info("horizon: %d steps of %d tokens, %.2f epochs", plan.steps, settings.batch_tokens, epochs)
    flops, iterations = run_flops(model, plan.steps, settings.batch_tokens, settings.row_length, settings.optimizer)
    log.info("work: %.3g FLOPs, %.1f %% more for %s", flops, 100 * iterations / flops, settings.optimizer)


def _reference(material: Material, plan: Plan, recipe: str, run: RunSettings) -> tuple[Reading | None, str]:
    """The recorded curve that belongs beside this run, and a sentence on it."""
    parameters, vocab_size = material.model.num_parameters(), material.model.config.vocab_size
    tokens = plan.steps * (plan.settings.batch_tokens or 0)
    return reading_for(Subject(recipe, material.kind, parameters, vocab_size, data_names(run.data), tokens))


def _write_description(out: Path, material: Material, recipe: Recipe, run: RunSettings) -> None:
    """The files of a run directory that do not change while it trains."""
    material.tokenizer.save(out)
    describe_model(material.model, out, run.init)
    write_text(json.dumps(generation_config(material.tokenizer), indent=2) + "\n", out / "generation_config.json")
    made: dict[str, Any] = {
        "stage": material.stage,
        "cutaway": cutaway.__version__,
        "torch": str(torch.__version__),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "parameters": material.model.num_parameters(),
        "active_parameters": material.model.num_active_parameters(),
        "tokenizer": material.tokenizer.fingerprint,
    }
    save_recipe(recipe, out / "recipe.toml", dataclasses.replace(run, resume=False), made)
    write_card(out)


def main(stage: Callable[[Recipe, RunSettings], Path], arguments: list[str]) -> int:
    """Run a stage from a recipe file with a `[run]` table, such as a run's own; gives back the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    files = [argument for argument in arguments if argument != "--resume"]
    try:
        if len(files) != 1:
            raise UserError("one argument is needed: a recipe file with a [run] table (data, init, out)")
        stage(load_recipe(files[0]), dataclasses.replace(load_run(files[0]), resume="--resume" in arguments))
    except UserError as error:
        print(f"cutaway: error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"cutaway: {stop}", file=sys.stderr)
        return stop.code
    return 0

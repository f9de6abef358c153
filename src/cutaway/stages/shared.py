"""What all stages share: from the model they start with to the loop, in the order it happens.

A stage builds a `Material`: what is trained, on what, by which loss, and how that is judged. `train` derives what its
settings leave open, writes everything down, and hands it to the one loop.
"""

import dataclasses
import datetime
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

import cutaway
from cutaway.data.loader import Batch, OneBatch
from cutaway.errors import Stopped, UserError
from cutaway.generation.conversation import answer_prompt
from cutaway.generation.defaults import generation_config
from cutaway.generation.generate import generate
from cutaway.generation.sampling import Sampling
from cutaway.model.lora import LoRAConfig, adapt
from cutaway.model.rope import scaling_text
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import describe_model, is_adapter, load_model, write_text
from cutaway.objectives.next_token import IGNORE
from cutaway.recipe.base import AdapterSettings, ModelSettings, TrainSettings
from cutaway.recipe.files import load_recipe, load_run, save_recipe
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.tokenization.dump import dump_html, dump_terminal
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.card import write_card
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.curves import draw_curves
from cutaway.training.derive import FINE_TUNING, Rule
from cutaway.training.distributed import Ranks, check_sharding, launch, restarted, to_be_sharded
from cutaway.training.loop import Job, Source, Step, fit
from cutaway.training.metrics import matmul_rate
from cutaway.training.network import Network
from cutaway.training.plan import run_flops
from cutaway.training.precision import arithmetic, keep_freed_memory, pick_dtype
from cutaway.training.preparation import Plan, Stream, optimizers_of, prepare
from cutaway.training.progress import print_tokens
from cutaway.training.reference import Reading, Subject, data_names, reading_for

log = logging.getLogger("cutaway")
QUESTIONS = ("What is the sun?", "你好，请介绍一下你自己。", "請說明什麼是颱風。")
"""What a model that answers is asked while it trains (`samples.jsonl`)."""
Evaluation = Callable[[], dict[str, float]]
Read = TypeVar("Read")


class BatchSource(Source, Stream, Protocol):
    """What a stage's batches come from: the loop draws them, the preparation measures on them."""


@dataclass
class Material:
    """What a stage brings."""

    stage: str
    """Its name, which is that of its table in the recipe too."""
    network: Network
    """What is trained and saved."""
    tokenizer: Tokenizer
    source: Callable[[int], BatchSource]
    """Endless micro-batches of that many rows, of this rank."""
    step: Step
    """Micro-batch to (sum of the loss, further sums to log)."""
    normalizer: Callable[[Any], int]
    """What a micro-batch adds to the divisor of both."""
    sizes: tuple[int, int]
    """Items to train on and held out."""
    unit: str
    """What an item is, in the plural."""
    evaluation: Callable[[int], Evaluation] | None = None
    """From rows of a micro-batch to what is measured on held-out items; None where there are none."""
    heldout_tokens: int = 0
    """Tokens that an evaluation reads."""
    prompts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Texts and their ids that the model continues while it trains; none for a model that does not write."""
    peak: float = FINE_TUNING
    """Learning rates as a share of a new model's."""

    @property
    def model(self) -> CausalLM:
        """The bare model."""
        return self.network.model


def prepare_out(run: RunSettings) -> Path:
    """The run directory; an earlier run in it is gone on with or left alone, never overwritten."""
    if not run.out:
        raise UserError("--out is missing: the run directory to write")
    out = Path(run.out)
    steps = Checkpoints(out, 1).steps()
    if steps and not run.resume:
        raise UserError(f"{out} already holds a run: add --resume to go on with it, or choose another --out")
    if not steps and any(path for name in ("model*.safetensors", "adapter_model*") for path in out.glob(name)):
        raise UserError(f"{out} holds a model that is not a run of this kind: choose another --out")
    if run.resume and not steps:
        raise UserError(f"{out}: no checkpoint to resume from; start the run again without --resume")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made a run directory: {error.strerror}") from None
    return out


def start_model(
    run: RunSettings, settings: TrainSettings | AdapterSettings, rope_scaling: str = ""
) -> tuple[CausalLM, Tokenizer]:
    """The model of `run.init`, which must know a chat format, with the adapter that the settings ask for."""
    if run.init is None:
        raise UserError("--init is missing: the model directory to start from")
    tokenizer = Tokenizer.load(run.init)
    if tokenizer.chat_template is None:
        raise UserError(f"{run.init}: its tokenizer has no chat template to write conversations by")
    wanted = isinstance(settings, AdapterSettings) and settings.rank > 0
    if wanted and is_adapter(Path(run.init)):
        raise UserError(f"{run.init} is an adapter: merge it first (cutaway merge {run.init} --out DIR)")
    model = load_model(run.init, rope_scaling=rope_scaling)
    attach_adapter(model, settings)
    return model, tokenizer


def attach_adapter(model: CausalLM, settings: TrainSettings | AdapterSettings) -> None:
    """Freeze the model under a new adapter, where the settings ask for one (`rank` above 0)."""
    if isinstance(settings, AdapterSettings) and settings.rank != 0:
        names = ("rank", "alpha", "dropout", "targets", "rslora", "dora")
        adapt(model, LoRAConfig(*(getattr(settings, name) for name in names)), getattr(settings, "seed", 0))


def with_shape(recipe: Recipe, model: CausalLM) -> Recipe:
    """The recipe with a model table that describes the model as it is."""
    config, table = model.config, recipe.model
    names = [field.name for field in dataclasses.fields(ModelSettings) if field.name != "rope_scaling"]
    values = {name: getattr(config, name) for name in names}
    shape = dataclasses.replace(table, **values, rope_scaling=scaling_text(config))
    return dataclasses.replace(recipe, model=shape)


def build_network(model: CausalLM, settings: TrainSettings, ranks: Ranks) -> Network:
    """The model on its device, in the arithmetic that the settings name. UserError where a row is too long for it."""
    longest = model.config.max_position_embeddings
    if settings.row_length > longest:
        raise UserError(f"row_length is {settings.row_length}, the model's max_position_embeddings only {longest}")
    dtype = pick_dtype(settings.precision, ranks.device)
    if ranks.first:
        log.info("device: %s", arithmetic(settings.precision, ranks.device, dtype))
    if to_be_sharded(settings):
        check_sharding(model.config, dtype)
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    model.model.checkpointing = settings.activation_checkpointing == "on"
    return Network(model, ranks, dtype)


def question_prompts(tokenizer: Tokenizer) -> dict[str, list[int]]:
    """What a model that answers is asked while it trains, and the ids of the prompts."""
    return {text: answer_prompt([{"role": "user", "content": text}], tokenizer) for text in QUESTIONS}


def first_rank_first(ranks: Ranks, read: Callable[[], Read]) -> Read:
    """The same files read by all ranks, the first of them before the others: it fills the cache that these find."""
    if not ranks.first:
        ranks.barrier()
    result = read()
    if ranks.first:
        ranks.barrier()
    return result


def train(material: Material, recipe: Recipe, run: RunSettings, *, started: float, rules: Sequence[Rule] = ()) -> Path:
    """Derive what the stage's settings leave open, write it down, and train; gives back the run directory.

    `rules` say what was derived before, `started` is the clock when the stage began.
    """
    out, network, stage = Path(run.out), material.network, material.stage
    ranks, settings = network.ranks, getattr(recipe, stage)
    plan = prepare(
        network,
        material.source,
        material.step,
        settings,
        heldout_tokens=material.heldout_tokens,
        peak=material.peak,
        started=started,
    )
    recipe = dataclasses.replace(recipe, **{stage: plan.settings})  # type: ignore[arg-type]
    reading = _reference(material, plan, recipe.name, run)
    if ranks.first:
        _describe(material, plan, [*rules, *plan.rules])
        log.info("reference: %s", reading[1])
        if settings.dump_tokens:
            rows = material.source(settings.dump_tokens)
            _dump_tokens(out, material, next(rows))
            rows.close()
    batches = material.source(plan.rows)
    rate = matmul_rate(ranks.device, network.dtype)
    if to_be_sharded(settings):
        network.shard()
    else:
        network.wrap()
    job = Job(
        stage=stage,
        out=out,
        settings=plan.settings,
        total_steps=plan.steps,
        accumulation=plan.accumulation,
        network=network,
        source=OneBatch(batches) if settings.overfit_one_batch else batches,
        optimizers=optimizers_of(material.model, plan.settings, network.dtype),
        step=material.step,
        normalizer=material.normalizer,
        flops_per_token=material.model.flops_per_token(settings.row_length),
        matmul_rate=rate,
        evaluate=material.evaluation(plan.rows) if material.evaluation is not None else None,
        sample=_sampler(material, out) if plan.settings.sample_every and material.prompts else None,
        scaler=torch.amp.GradScaler(ranks.device.type) if network.dtype == torch.float16 else None,
        reading=reading[0],
        started=started,
        begin=lambda: write_description(out, stage, material.model, material.tokenizer, recipe, run),
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


def _sampler(material: Material, out: Path) -> Callable[[int], None]:
    """Writes greedy continuations of the prompts to `samples.jsonl`, so that one sees what the loss means."""
    path, prompts = out / "samples.jsonl", material.prompts

    def write(step: int) -> None:
        model, greedy = material.network.whole_model(), Sampling(temperature=0.0)
        if not material.network.ranks.first:
            return
        texts = generate(model, list(prompts.values()), material.tokenizer, sampling=greedy, max_new_tokens=64)
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
    log.info("model: %s, %.2fM parameters (%.2fM without the embedding)", model.architecture, total, bare)
    if model.config.num_experts:
        active, of = (
            model.num_active_parameters() / 1e6,
            f"{model.config.num_experts_per_tok} of {model.config.num_experts}",
        )
        log.info("experts: a token passes through %s in every layer, %.2fM active parameters", of, active)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if trained < model.num_parameters():
        log.info("adapter: %.3fM parameters are trained, %.1f %% of all", trained / 1e6, trained / total / 1e4)
    counts = (material.sizes[0], material.unit, plan.per_epoch / 1e6, material.sizes[1], material.unit)
    log.info("data: %d %s, %.2fM tokens an epoch; held out: %d %s", *counts)
    assert settings.batch_tokens is not None
    epochs = plan.steps * settings.batch_tokens / plan.per_epoch
    log.info("horizon: %d steps of %d tokens, %.2f epochs", plan.steps, settings.batch_tokens, epochs)
    work = run_flops(model, plan.steps, settings.batch_tokens, settings.row_length, settings.optimizer)
    log.info("work: %s", ", ".join([f"{work.model:.3g} FLOPs", *work.shares(settings.optimizer)]))


def _reference(material: Material, plan: Plan, recipe: str, run: RunSettings) -> tuple[Reading | None, str]:
    """The recorded curve that belongs beside this run, and a sentence on it."""
    parameters, vocab_size = material.model.num_parameters(), material.model.config.vocab_size
    tokens = plan.steps * (plan.settings.batch_tokens or 0)
    return reading_for(Subject(recipe, material.stage, parameters, vocab_size, data_names(run.data), tokens))


def write_description(
    out: Path, stage: str, model: CausalLM, tokenizer: Tokenizer, recipe: Recipe, run: RunSettings
) -> None:
    """The files of a run directory that do not change while it trains."""
    tokenizer.save(out)
    # From the run, so that it is found from any directory, and after both have moved.
    base = run.init and os.path.relpath(os.path.realpath(run.init), os.path.realpath(out))
    describe_model(model, out, base)
    write_text(json.dumps(generation_config(tokenizer), indent=2) + "\n", out / "generation_config.json")
    made: dict[str, Any] = {
        "stage": stage,
        "cutaway": cutaway.__version__,
        "torch": str(torch.__version__),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "parameters": model.num_parameters(),
        "active_parameters": model.num_active_parameters(),
        "tokenizer": tokenizer.fingerprint,
        "torchrun": launch(),
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
        run = load_run(files[0])
        again = restarted(run.out)
        own = str(Path(run.out) / "recipe.toml") if again else files[0]
        stage(load_recipe(own), dataclasses.replace(run, resume="--resume" in arguments or again))
    except UserError as error:
        print(f"cutaway: error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"cutaway: {stop}", file=sys.stderr)
        return stop.code
    return 0

"""Pretraining and fine-tuning in this process, under the shape checks: what a run directory holds; users' mistakes."""

import dataclasses
import json
import logging
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import SHAPE, SIZES, Town, rows_of
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from cutaway.cli import main as cli
from cutaway.data.cache import TokenCache
from cutaway.data.loader import Batch
from cutaway.errors import UserError
from cutaway.model.weights import load_model, save_model
from cutaway.recipe.base import ModelSettings
from cutaway.recipe.files import load_recipe, load_run
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.recipe.stages import PretrainSettings, SFTSettings
from cutaway.stages import pretrain, sft, shared, supervised
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training import horizon, loop, preparation
from cutaway.training.distributed import start_ranks
from cutaway.training.network import Network

MODEL = ModelSettings(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
COMMON: dict[str, Any] = {
    "row_length": 96,
    "batch_tokens": 384,
    "micro_batch_tokens": 192,
    "holdout_tokens": 600,
    "compile": "off",
    "workers": 1,
}
RECIPE = Recipe(
    name="tiny",
    model=MODEL,
    pretrain=PretrainSettings(steps=8, sample_every=3, eval_every=4, save_every=4, **COMMON),
    sft=SFTSettings(tokens=1500, dump_tokens=4, sample_every=0, **COMMON),
)


@pytest.fixture(autouse=True)
def _notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line takes the notes for its own lines; every test starts without that."""
    monkeypatch.setattr(logging.getLogger("cutaway"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("cutaway"), "handlers", [])


@pytest.fixture(scope="module")
def base(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "run"
    return pretrain.run(RECIPE, RunSettings(data=(str(town.pretrain_data),), init=str(town.tokenizer), out=str(out)))


@pytest.fixture(scope="module")
def tuned(town: Town, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    return sft.run(RECIPE, RunSettings(data=(str(town.sft_data),), init=str(base), out=str(out)))


def test_a_run_directory_holds_what_the_design_promises(base: Path, tuned: Path) -> None:
    for run in (base, tuned):
        names = {path.name for path in run.iterdir()}
        assert names >= {
            *("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
            *("recipe.toml", "metrics.jsonl", "state", "curves.png", "tensorboard"),
        }
        assert not list(run.rglob("*partial*"))
        assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
        generation = json.loads((run / "generation_config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.load(run)
        assert generation["eos_token_id"] == [tokenizer.im_end_id, tokenizer.eos_id]
        model = load_model(run)
        assert model.config.vocab_size == tokenizer.vocab_size
        assert {str(tensor.dtype) for tensor in load_file(run / "model.safetensors").values()} == {"torch.float32"}
    assert not any(thread.name == "cutaway-loader" for thread in threading.enumerate())


def test_metrics_and_samples(base: Path) -> None:
    rows = rows_of(base)
    trained = [row for row in rows if "loss" in row]
    wanted = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "elapsed_s"}
    assert all(set(row) == wanted for row in trained)
    assert [row["step"] for row in trained] == list(range(1, 9))
    assert [row["step"] for row in rows if "heldout_bpb" in row] == [0, 4, 8]
    samples = rows_of(base, "samples.jsonl")
    assert [sample["step"] for sample in samples] == [step for step in (3, 6, 8) for _ in pretrain.PROMPTS]
    assert set(samples[0]) == {"step", "prompt", "text", "end"}


def test_samples_of_a_resumed_run_stand_once(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    lines = [json.dumps({"step": step, "text": "\u2028 one line"}, ensure_ascii=False) for step in (3, 3, 6, 9)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert shared._samples_before(6, path) == lines[:2]
    assert shared._samples_before(6, tmp_path / "none") == []


def test_the_resolved_recipe_describes_the_run_completely(town: Town, base: Path, tuned: Path) -> None:
    recipe, run = load_recipe(str(base / "recipe.toml")), load_run(str(base / "recipe.toml"))
    assert (recipe.name, recipe.pretrain.steps, recipe.pretrain.precision != "auto") == ("tiny", 8, True)
    assert run == RunSettings(data=(str(town.pretrain_data),), init=str(town.tokenizer), out=str(base))
    unset = {name for name, value in vars(recipe.pretrain).items() if value is None}
    assert unset == {"minutes", "tokens", "epochs"}
    assert [name for name, value in vars(recipe.model).items() if value is None] == ["moe_intermediate_size"]
    config = load_model(base).config
    shape = [field.name for field in dataclasses.fields(MODEL) if field.name != "rope_scaling"]
    assert all(getattr(config, name) == getattr(recipe.model, name) for name in shape)
    assert config.rope_scaling == {} and recipe.model.rope_scaling == ""
    # Fine-tuning was asked for in tokens; written down are the steps.
    second = load_recipe(str(tuned / "recipe.toml"))
    assert second.sft.tokens is None
    assert second.sft.steps == max(row["step"] for row in rows_of(tuned))
    assert second.model == recipe.model


def test_the_written_recipe_makes_the_same_weights_again(town: Town, base: Path, tmp_path: Path) -> None:
    recipe, run = load_recipe(str(base / "recipe.toml")), load_run(str(base / "recipe.toml"))
    again = pretrain.run(recipe, replace(run, out=str(tmp_path / "again")))
    assert (again / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_activation_checkpointing_makes_the_same_weights_too(town: Town, base: Path, tmp_path: Path) -> None:
    recipe, run = load_recipe(str(base / "recipe.toml")), load_run(str(base / "recipe.toml"))
    settings = replace(recipe.pretrain, activation_checkpointing="on")
    again = pretrain.run(replace(recipe, pretrain=settings), replace(run, out=str(tmp_path / "again")))
    assert (again / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def spans_of(page: str) -> list[list[tuple[int, bool]]]:
    """(id, trained) of every token of every row of tokens.html."""
    rows = page.split("<h2>Row")[1:]
    pattern = r'<span class="([tc ]*)" title="(\d+):'
    return [[(int(index), "t" in kinds.split()) for kinds, index in re.findall(pattern, row)] for row in rows]


def test_dumped_tokens_are_trained_exactly_where_the_assistant_writes(tuned: Path) -> None:
    tokenizer = Tokenizer.load(tuned)
    rows = spans_of((tuned / "tokens.html").read_text(encoding="utf-8"))
    assert len(rows) == 4
    answers = 0
    header = tokenizer.encode("assistant\n")
    for row in rows:
        starts = [place for place, (index, _) in enumerate(row) if index == tokenizer.im_start_id]
        assert starts[0] == 0
        for begin, end in zip(starts, [*starts[1:], len(row)], strict=True):
            ids = [index for index, _ in row[begin:end]]
            trained = [on for _, on in row[begin:end]]
            assert tokenizer.im_end_id in ids
            stop = ids.index(tokenizer.im_end_id) + 1
            if ids[1 : 1 + len(header)] == header:
                answers += 1
                assert trained == [len(header) < place < stop for place in range(len(ids))]
            else:
                assert not any(trained)
    assert answers >= 4


def material(town: Town, data: tuple[Path, ...], eval_data: tuple[Path, ...] = ()) -> Any:
    run = RunSettings(data=tuple(map(str, data)), eval_data=tuple(map(str, eval_data)))
    tokenizer = Tokenizer.load(town.tokenizer)
    return supervised.read_data("pretrain", RECIPE.pretrain, run, tokenizer, start_ranks())


def texts(cache: TokenCache, indices: Any) -> set[bytes]:
    return {cache.tokens(index).tobytes() for index in indices}


def test_held_out_documents_are_never_trained_on(town: Town, tmp_path: Path) -> None:
    lines = town.pretrain_data.read_text(encoding="utf-8").splitlines()
    twice = tmp_path / "twice.jsonl"
    twice.write_text("\n".join(lines + lines[::3]) + "\n", encoding="utf-8")
    cache, train, held_cache, heldout = material(town, (town.pretrain_data, twice))
    assert held_cache is cache
    assert len(heldout) > 0
    assert not set(train) & set(heldout)
    assert not texts(cache, train) & texts(cache, heldout)
    assert len(train) + len(heldout) == len(cache)
    # More data only makes the slice a smaller part: who was held out of it was held out of less.
    other, other_train, _, other_heldout = material(town, (twice,))
    assert texts(other, other_heldout) >= texts(cache, heldout)
    assert not texts(other, other_train) & texts(cache, heldout)


def test_files_to_evaluate_on_replace_the_held_out_slice(town: Town, tmp_path: Path) -> None:
    lines = town.pretrain_data.read_text(encoding="utf-8").splitlines()
    apart = tmp_path / "apart.jsonl"
    apart.write_text("\n".join(lines[:7]) + "\n", encoding="utf-8")
    cache, train, held_cache, heldout = material(town, (town.pretrain_data,), (apart,))
    assert (len(train), len(heldout)) == (len(cache), 7)
    assert held_cache.meta["files"] == [str(apart)]


def test_the_loop_is_given_training_documents_only(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Any] = []

    class _Enough(Exception):
        pass

    def keep(job: Any, resume: bool) -> None:
        jobs.append(job)
        raise _Enough

    monkeypatch.setattr(shared, "fit", keep)
    run = RunSettings(data=(str(town.pretrain_data),), init=str(town.tokenizer), out=str(tmp_path / "run"))
    with pytest.raises(_Enough):
        pretrain.run(RECIPE, run)
    cache, train, _, heldout = material(town, (town.pretrain_data,))
    assert texts(cache, jobs[0].source.indices) == texts(cache, train)
    assert not texts(cache, jobs[0].source.indices) & texts(cache, heldout)


class Clock:
    """Time that passes only where work is done, and by as much as the test says."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


def test_minutes_end_about_when_they_should(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, forward = Clock(), Network.forward

    def timed_forward(self: Network, batch: Batch, *arguments: Any, **more: Any) -> Any:
        clock.now += batch.input_ids.numel() / 400 / (1 if torch.is_grad_enabled() else 3)
        return forward(self, batch, *arguments, **more)

    def timed_update(*_: Any) -> None:
        clock.now += 0.2

    for module in (pretrain, preparation, horizon, loop):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(Network, "forward", timed_forward)
    settings = replace(RECIPE.pretrain, steps=None, minutes=2.0, sample_every=0, eval_every=None, save_every=None)
    run = RunSettings(data=(str(town.pretrain_data),), init=str(town.tokenizer), out=str(tmp_path / "run"))
    hook = register_optimizer_step_post_hook(timed_update)
    try:
        out = pretrain.run(replace(RECIPE, pretrain=settings), run)
    finally:
        hook.remove()
    last = [row for row in rows_of(out) if "loss" in row][-1]
    written = load_recipe(str(out / "recipe.toml")).pretrain
    assert (written.minutes, written.steps) == (None, last["step"])
    # A step takes two micro-batches of 192 tokens and an update; what is kept back is not needed here.
    assert last["step"] > 40
    assert (1 - horizon.RESERVE - 0.05) * 120 < last["elapsed_s"] <= 120
    assert last["elapsed_s"] == pytest.approx(clock.now, abs=5.0)


def test_a_mixture_of_experts_overfits_one_batch(town: Town, tmp_path: Path) -> None:
    shape = replace(RECIPE.model, num_experts=8, moe_intermediate_size=32)
    settings = replace(
        RECIPE.pretrain,
        steps=30,
        batch_tokens=192,
        overfit_one_batch=True,
        sample_every=30,
        eval_every=30,
        adam_lr=0.02,
    )
    run = RunSettings(data=(str(town.pretrain_data),), init=str(town.tokenizer), out=str(tmp_path / "run"))
    out = pretrain.run(replace(RECIPE, model=shape, pretrain=settings), run)
    rows = [row for row in rows_of(out) if "loss" in row]
    assert rows[-1]["next_token_loss"] < 0.6 * rows[0]["next_token_loss"]
    assert all(1.9 < row["load_balance"] < 8 and row["expert_load_max"] >= 1 for row in rows)
    model = load_model(out)
    assert model.config.architecture == "Qwen3MoeForCausalLM"
    assert shared.with_shape(load_recipe(str(out / "recipe.toml")), model) == load_recipe(str(out / "recipe.toml"))


def test_one_batch_is_overfitted(town: Town, tmp_path: Path) -> None:
    settings = replace(
        RECIPE.pretrain, steps=60, batch_tokens=192, overfit_one_batch=True, sample_every=0, eval_every=60, adam_lr=0.01
    )
    run = RunSettings(data=(str(town.pretrain_data),), init=str(town.tokenizer), out=str(tmp_path / "run"))
    out = pretrain.run(replace(RECIPE, pretrain=settings), run)
    losses = [row["loss"] for row in rows_of(out) if "loss" in row]
    assert losses[-1] < 0.3 * losses[0]


BAD = {
    "missing data": (["--data", "{tmp}/none.jsonl"], "none.jsonl: no such file"),
    "empty data": (["--data", "{tmp}/empty.jsonl"], "empty.jsonl"),
    "conversations as text": (["--data", "{sft}"], "sft.jsonl:1: "),
    "no init": ([], "--init is missing"),
    "init that is nothing": (["--init", "{tmp}/none"], "none"),
    "init with a broken tokenizer": (["--init", "{tmp}/broken"], "tokenizer.json"),
    "no horizon": (["--recipe", "{tmp}/none.toml"], "exactly one of minutes, tokens, steps, epochs, not none of them"),
    "two horizons": (["--recipe", "{tmp}/two.toml"], "not minutes and steps"),
    "never logged": (["--log-every", "0"], "log_every is 0, must be at least 1"),
    "no heads": (["--num-attention-heads", "0"], "num_attention_heads is 0, must be at least 1"),
    "no step": (["--steps", "0"], "steps is 0, must be above 0"),
    "a batch under a row": (["--batch-tokens", "32"], "less than one row"),
    "heads that do not divide": (["--num-attention-heads", "3"], "is no multiple of"),
    "a run is there": (["--out", "{base}"], "already holds a run: add --resume"),
    "unwritable out": (["--out", "{tmp}/empty.jsonl/run"], "cannot be made a run directory"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_and_exit_code_2(
    name: str, town: Town, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "none.toml").write_text("[pretrain]\nseed = 1\n", encoding="utf-8")
    (tmp_path / "two.toml").write_text("[pretrain]\nminutes = 1\nsteps = 3\n", encoding="utf-8")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text('{"model": ', encoding="utf-8")
    more, expected = BAD[name]
    values = {"tmp": tmp_path, "base": base, "sft": town.sft_data}
    argv = ["pretrain", "--out", str(tmp_path / "out"), *SHAPE, *SIZES]
    if "--data" not in more:
        argv += ["--data", str(town.pretrain_data)]
    if "--recipe" not in more and "--steps" not in more:
        argv += ["--steps", "2"]
    if name != "no init":
        argv += ["--init", str(town.tokenizer)]
    before = (base / "model.safetensors").read_bytes()
    assert cli.main([*argv, *(argument.format(**values) for argument in more)]) == 2
    errors = capfd.readouterr().err.splitlines()
    assert errors[-1].startswith("cutaway: error: ")
    assert expected in errors[-1]
    assert sum(line.startswith("cutaway: error: ") for line in errors) == 1
    assert not any("Traceback" in line for line in errors)
    assert (base / "model.safetensors").read_bytes() == before


def test_fine_tuning_mistakes_are_one_line(
    town: Town, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = ["sft", "--out", str(tmp_path / "out"), "--steps", "2", *SIZES]
    text = [*common, "--data", str(town.pretrain_data), "--init", str(base)]
    assert cli.main(text) == 2
    assert "pretrain.jsonl:1: " in capfd.readouterr().err.splitlines()[-1]
    assert cli.main([*common, "--data", str(town.sft_data), "--init", str(town.tokenizer)]) == 2
    assert "config.json" in capfd.readouterr().err.splitlines()[-1]


def test_a_checkpoint_of_another_shape_is_not_resumed(
    town: Town, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    recipe = replace(RECIPE, model=replace(MODEL, hidden_size=48))
    files = RunSettings(data=(str(town.pretrain_data),), init=str(town.tokenizer), out=str(run))
    pretrain.run(replace(recipe, pretrain=replace(RECIPE.pretrain, steps=1, sample_every=0)), files)
    (run / "recipe.toml").write_bytes((base / "recipe.toml").read_bytes())
    argv = ["pretrain", "--resume", "--out", str(run), "--data", str(town.pretrain_data), "--sample-every", "0"]
    assert cli.main(argv) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert "made by a model of another shape than this recipe's" in last


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_refused_resume_leaves_the_run_as_it_was(town: Town, base: Path) -> None:
    recipe, run = load_recipe(str(base / "recipe.toml")), load_run(str(base / "recipe.toml"))
    before = _contents(base)
    other = replace(run, data=(str(town.pretrain_data), str(town.pretrain_data)), resume=True)
    longer = replace(recipe, pretrain=replace(recipe.pretrain, steps=20))
    with pytest.raises(UserError, match="cannot resume"):
        pretrain.run(longer, other)
    assert _contents(base) == before


def test_a_model_that_is_no_run_is_not_overwritten(town: Town, base: Path, tmp_path: Path) -> None:
    model = load_model(base)
    save_model(model, tmp_path, model.config)
    recipe, run = load_recipe(str(base / "recipe.toml")), load_run(str(base / "recipe.toml"))
    before = _contents(tmp_path)
    with pytest.raises(UserError, match="choose another --out"):
        pretrain.run(recipe, replace(run, out=str(tmp_path)))
    assert _contents(tmp_path) == before


def test_a_context_stretched_in_training_is_kept_by_what_follows(
    town: Town, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, chat = tmp_path / "long", tmp_path / "chat"
    files = ["--data", str(town.pretrain_data), "--init", str(base), "--out", str(long)]
    flags = [
        "--row-length",
        "192",
        "--steps",
        "2",
        "--batch-tokens",
        "384",
        "--holdout-tokens",
        "0",
        "--compile",
        "off",
    ]
    stretch = ["--rope-scaling", "yarn:2", "--sample-every", "0", "--workers", "1"]
    assert cli.main(["pretrain", *files, *flags, *stretch]) == 0
    config = load_model(long).config
    assert config.rope_scaling == {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 96}
    assert config.max_position_embeddings == 192
    assert load_recipe(str(long / "recipe.toml")).model.rope_scaling == "yarn:2:96"
    assert cli.main(["pretrain", "--resume", "--out", str(long), "--steps", "3"]) == 0
    run = RunSettings(data=(str(town.sft_data),), init=str(long), out=str(chat))
    sft.run(replace(RECIPE, sft=replace(RECIPE.sft, dump_tokens=0)), run)
    assert load_model(chat).config.rope_scaling == config.rope_scaling
    capsys.readouterr()
    for command in ("chat", "eval"):
        more = ["--prompt", "x"] if command == "chat" else ["--task", str(town.pretrain_data)]
        assert cli.main([command, str(chat), "--rope-scaling", "ntk:2", *more]) == 2
        assert "rope_scaling is 'ntk:2', must be none or KIND:FACTOR[:LENGTH]" in capsys.readouterr().err
    assert cli.main(["chat", str(chat), "--rope-scaling", "yarn:4", "--prompt", "x", "--max-new-tokens", "2"]) == 0

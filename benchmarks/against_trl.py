"""DPO beside TRL's DPOTrainer, and LoRA fine-tuning beside a `transformers` Trainer with PEFT, in one run.

    python benchmarks/against_trl.py dpo  --model RUN --data preference.jsonl [--pairs 256] [--rounds 3]
    python benchmarks/against_trl.py lora --model RUN --data sft.jsonl [--records 512] [--rounds 3]

Both sides train the same model on the same records, equally many to a step, with AdamW, in processes of their own that
take turns, so that a noisy machine hurts both alike. `dpo` counts the reference's pass on both sides and prints pairs
a second; TRL pads to the longest of a batch, and with `--pad` to the row length. `lora` prints trained tokens a
second; its peer pads every row to the row length. Loading and tokenising are left out on both sides.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

SIDES = ("ours", "theirs")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["dpo", "lora"])
    parser.add_argument("--model", required=True, help="model directory that both start from")
    parser.add_argument("--data", required=True)
    parser.add_argument("--pairs", "--records", type=int, default=256, help="records that are trained on")
    parser.add_argument("--row-length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16, help="records in a step of the peer")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--pad", action="store_true", help="dpo: the peer pads to the row length too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.side:
        run = {("dpo", "ours"): our_dpo, ("dpo", "theirs"): their_dpo}
        run |= {("lora", "ours"): our_lora, ("lora", "theirs"): their_lora}
        print(json.dumps(run[flags.what, flags.side](flags)))
        return 0
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    arguments = sys.argv[1:] if argv is None else argv
    for number in range(flags.rounds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            done = subprocess.run(
                [sys.executable, __file__, *arguments, "--side", side], stdout=subprocess.PIPE, text=True, check=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            rates[side].append(found["count"] / found["seconds"])
            print(f"round {number + 1}, {side}: {rates[side][-1]:.2f} a second ({found})", flush=True)
    ratio = statistics.median(rates["ours"]) / statistics.median(rates["theirs"])
    unit = "pairs" if flags.what == "dpo" else "trained tokens"
    middle = ", ".join(f"{side} {statistics.median(rates[side]):,.1f}" for side in SIDES)
    print(f"{unit} a second, median of {flags.rounds}: {middle}: {ratio:.2f} times")
    out = Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    result = {"arguments": vars(flags), "rates": rates, "ratio": ratio, "threads": torch.get_num_threads()}
    (out / f"against_trl_{flags.what}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


class Clock:
    """Seconds spent in functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def records(flags: argparse.Namespace, kind: Any) -> list[dict[str, Any]]:
    """The first records that fit the row length: pairs whose conversations fit it each, conversations that do."""
    from cutaway.data.formats import read_records
    from cutaway.tokenization.chat import render
    from cutaway.tokenization.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(flags.model)
    keys = ("chosen", "rejected") if kind == "preference" else ("conversations",)

    def fits(value: dict[str, Any]) -> bool:
        lengths = [len(render(value[key], tokenizer).ids) for key in keys]
        # Ours puts both conversations of a pair in one row, theirs one conversation in each.
        return sum(lengths) <= flags.row_length and value.get("chosen") != value.get("rejected", 0)

    found = (record.value for record in read_records([flags.data], kind))
    return list(islice((value for value in found if fits(value)), flags.pairs))


def settings(flags: argparse.Namespace, tokens: float) -> dict[str, Any]:
    """One pass over the data, as many tokens to a step as the peer's records have."""
    rows = max(1, round(tokens / flags.pairs * flags.batch / flags.row_length))
    batch = rows * flags.row_length
    common = {"epochs": 1.0, "minutes": None, "row_length": flags.row_length, "batch_tokens": batch}
    common |= {"micro_batch_tokens": min(batch, 8192), "precision": flags.precision, "compile": "off"}
    common |= {"holdout_tokens": 0, "sample_every": 0, "log_every": 10**6, "save_every": 10**6, "eval_every": 10**6}
    return common | {"optimizer": "adamw", "adam_lr": 1e-5, "scripts": "keep"}


def train(
    stage: Any, table: str, chosen: Any, flags: argparse.Namespace, folder: Path, values: list[dict[str, Any]]
) -> tuple[float, float, dict[str, Any]]:
    """Seconds of the loop and of the reference's pass, without what comes before, and the last line of metrics."""
    import dataclasses

    from cutaway.recipe.recipe import Recipe, RunSettings
    from cutaway.stages import reference, shared

    logging.disable()
    loop, once = Clock(), Clock()
    shared.fit = loop.around(shared.fit)  # type: ignore[assignment]
    reference._compute = once.around(reference._compute)  # type: ignore[assignment]
    os.environ["CUTAWAY_CACHE"] = str(folder / "cache")  # nothing is found that an earlier round computed
    run = RunSettings(data=(str(written(values, folder)),), init=flags.model, out=str(folder / "run"))
    out = stage.run(dataclasses.replace(Recipe(), **{table: chosen}), run)
    last = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return loop.seconds, once.seconds, last


def written(values: list[dict[str, Any]], folder: Path) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def our_dpo(flags: argparse.Namespace) -> dict[str, float]:
    from cutaway.data.pairs import read_pairs
    from cutaway.recipe.stages import DPOSettings
    from cutaway.stages import dpo
    from cutaway.tokenization.tokenizer import Tokenizer

    values = records(flags, "preference")
    with tempfile.TemporaryDirectory() as name:
        pairs = read_pairs([written(values, Path(name))], Tokenizer.load(flags.model), flags.row_length)
        tokens = sum(pair.size for pair in pairs)
        chosen = DPOSettings(**settings(flags, tokens))
        loop_s, reference_s, last = train(dpo, "dpo", chosen, flags, Path(name), values)
    # The reference read every pair once; the loop as many as fill its steps.
    seconds = reference_s + loop_s * tokens / last["tokens"]
    return {"count": float(len(pairs)), "seconds": seconds, "steps": float(last["step"])}


def their_dpo(flags: argparse.Namespace) -> dict[str, float]:
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    values = records(flags, "preference")
    rows = [
        {"prompt": value["chosen"][:-1], "chosen": value["chosen"][-1:], "rejected": value["rejected"][-1:]}
        for value in values
    ]
    with tempfile.TemporaryDirectory() as name:
        config = DPOConfig(
            output_dir=name,
            per_device_train_batch_size=flags.batch,
            num_train_epochs=1,
            max_length=flags.row_length,
            learning_rate=1e-5,
            gradient_checkpointing=False,
            bf16=flags.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            pad_to_multiple_of=flags.row_length if flags.pad else None,
        )
        trainer = DPOTrainer(
            AutoModelForCausalLM.from_pretrained(flags.model, dtype=torch.float32),
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(flags.model),
        )
        began = time.perf_counter()
        trainer.train()
        return {"count": float(len(rows)), "seconds": time.perf_counter() - began, "steps": trainer.state.global_step}


def our_lora(flags: argparse.Namespace) -> dict[str, float]:
    from cutaway.recipe.stages import LoRASettings
    from cutaway.stages import lora

    values = records(flags, "sft")
    lengths, trained = token_counts(values, flags)
    with tempfile.TemporaryDirectory() as name:
        chosen = LoRASettings(**settings(flags, lengths), rank=flags.rank)
        seconds, _, last = train(lora, "lora", chosen, flags, Path(name), values)
    return {"count": trained * last["tokens"] / lengths, "seconds": seconds, "steps": float(last["step"])}


def token_counts(values: list[dict[str, Any]], flags: argparse.Namespace) -> tuple[int, int]:
    """Inputs and trained tokens of the conversations."""
    from cutaway.tokenization.chat import render
    from cutaway.tokenization.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(flags.model)
    rendered = [render(value["conversations"], tokenizer) for value in values]
    return sum(len(one.ids) - 1 for one in rendered), sum(sum(one.mask) for one in rendered)


def their_lora(flags: argparse.Namespace) -> dict[str, float]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from cutaway.tokenization.chat import render
    from cutaway.tokenization.tokenizer import Tokenizer

    values, tokenizer = records(flags, "sft"), Tokenizer.load(flags.model)
    rows = []
    for value in values:
        one = render(value["conversations"], tokenizer)
        padding = flags.row_length - len(one.ids)
        labels = [token if trained else -100 for token, trained in zip(one.ids, one.mask, strict=True)]
        mask = [1] * len(one.ids) + [0] * padding
        rows.append({"input_ids": one.ids + [0] * padding, "labels": labels + [-100] * padding, "attention_mask": mask})
    model = AutoModelForCausalLM.from_pretrained(flags.model, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=flags.rank, lora_alpha=32, target_modules=targets))
    with tempfile.TemporaryDirectory() as name:
        arguments = TrainingArguments(
            output_dir=name,
            per_device_train_batch_size=flags.batch,
            num_train_epochs=1,
            learning_rate=1e-5,
            bf16=flags.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    return {"count": float(token_counts(values, flags)[1]), "seconds": seconds, "steps": trainer.state.global_step}


if __name__ == "__main__":
    sys.exit(main())

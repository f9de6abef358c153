"""GRPO beside TRL's GRPOTrainer: tokens written a second of rollout and update together, on this machine.

python benchmarks/against_trl_grpo.py --tokenizer TOK [--recipes nano mini] [--rounds 3] [--rollouts 2] [--prompts 4]

Both train the same random weights by GRPO with a reference (beta 0.04), the same number of answers and of updates a
rollout. Every answer has a length of its own, uniform in 16 to 256 tokens and the same on both sides: the end is forced
there. TRL runs in fp32 and in bf16, and the faster of the two counts (`--theirs fp32` leaves bf16 out, which takes
minutes a rollout on a CPU that has none). The sides take turns in one process, `--rounds` times; the first rollout of
each turn is not counted, and the median round counts, since these machines are noisy.
"""

import argparse
import dataclasses
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from cutaway.generation.engine import Engine, Request
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise, save_model
from cutaway.recipe.files import load_recipe
from cutaway.recipe.recipe import RunSettings
from cutaway.stages import grpo, rl
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.derive import derive_model
from cutaway.training.metrics import read_metrics

SHORTEST, LONGEST, BETA = 16, 256, 0.04
UPDATES = 2


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["nano", "mini"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=2, help="counted ones of a turn")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--theirs", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--longest", type=int, default=LONGEST)
    flags = parser.parse_args(argv)
    met = True
    for recipe in flags.recipes:
        ratios = []
        for number in range(flags.rounds):
            with tempfile.TemporaryDirectory() as folder:
                init = make_model(recipe, flags.tokenizer, Path(folder) / "init")
                ours = run_ours(recipe, init, Path(folder), flags)
                theirs = {name: run_theirs(init, Path(folder), flags, name == "bf16") for name in flags.theirs}
            ratios.append(ours / max(theirs.values()))
            told = ", ".join(f"TRL {name} {value:.0f}" for name, value in theirs.items())
            print(f"{recipe}, round {number + 1}: ours {ours:.0f} tokens/s, {told}: {ratios[-1]:.2f} times", flush=True)
        print(f"{recipe}: {median(ratios):.2f} times the faster one of TRL's, the median round", flush=True)
        met &= median(ratios) >= 2
    print("at least 2 times: " + ("met" if met else "not met"))
    return 0 if met else 1


def make_model(recipe: str, tokenizer_dir: Path, out: Path) -> Path:
    """Random weights of a recipe's shape."""
    tokenizer = Tokenizer.load(tokenizer_dir)
    shape = load_recipe(recipe).model
    config, _ = derive_model(shape, tokenizer.vocab_size, 512, (tokenizer.im_end_id, tokenizer.eos_id))
    model = CausalLM(config)
    initialise(model, 0)
    out.mkdir(parents=True)
    tokenizer.save(out)
    save_model(model, out, config)
    return out


def questions(count: int) -> list[str]:
    draw = random.Random(0)
    return [f"What is {draw.randrange(100)} + {draw.randrange(100)}? ({number})" for number in range(count)]


def lengths(answers: int, longest: int, seed: int) -> list[int]:
    """The lengths of one rollout's answers."""
    draw = random.Random(seed)
    return [draw.randint(SHORTEST, longest) for _ in range(answers)]


class Uniform(Engine):
    """Our engine, every answer of which ends at a length drawn for it."""

    longest, answers = LONGEST, 1

    def submit(self, request: Request) -> int:
        rollout, place = divmod(getattr(self, "_count", 0), self.answers)
        self._count = rollout * self.answers + place + 1
        own = lengths(self.answers, self.longest, rollout)[place]
        return super().submit(dataclasses.replace(request, max_new_tokens=own, stop_ids=()))


def run_ours(recipe: str, init: Path, folder: Path, flags: argparse.Namespace) -> float:
    """Tokens written a second over all rollouts but the first."""
    data = folder / "prompts.jsonl"
    turns = [[{"role": "user", "content": text}] for text in questions(64)]
    data.write_text("".join(json.dumps({"conversations": own, "gt": "1"}) + "\n" for own in turns))
    Uniform.longest, Uniform.answers = flags.longest, flags.prompts * flags.group
    original, rl.Engine = rl.Engine, Uniform  # type: ignore[misc]
    settings = dataclasses.replace(
        load_recipe(recipe).grpo,
        steps=UPDATES * (flags.rollouts + 1),
        prompts_per_rollout=flags.prompts,
        group_size=flags.group,
        minibatches=UPDATES,
        beta=BETA,
        max_new_tokens=flags.longest,
        row_length=512,
        rewards=("length",),
        holdout_prompts=0,
        log_every=UPDATES,
        save_every=1_000_000,  # at the end only, after the last line
    )
    try:
        run = RunSettings(data=(str(data),), init=str(init), out=str(folder / "ours"))
        grpo.run(dataclasses.replace(load_recipe(recipe), grpo=settings), run)
    finally:
        rl.Engine = original  # type: ignore[misc]
    rows = [row for row in read_metrics(folder / "ours") if "rollout_tokens" in row]
    written = rows[-1]["rollout_tokens"] - rows[0]["rollout_tokens"]
    return float(written / (rows[-1]["elapsed_s"] - rows[0]["elapsed_s"]))


class EndAt(LogitsProcessor):  # type: ignore[misc]
    """Nothing but the end where a row has reached its length, and no end before."""

    def __init__(self, wanted: list[int], prompt: int, end: int) -> None:
        self.wanted, self.prompt, self.end = torch.tensor(wanted), prompt, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.end] = -torch.inf
        due = input_ids.shape[1] - self.prompt + 1 >= self.wanted
        scores[due] = -torch.inf
        scores[due, self.end] = 0.0
        return scores


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each rollout's last update was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % UPDATES == 0:
            self.times.append(time.perf_counter())


def run_theirs(init: Path, folder: Path, flags: argparse.Namespace, bf16: bool) -> float:
    """The same of TRL."""
    tokenizer = AutoTokenizer.from_pretrained(init)
    model = AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32)
    answers, rollouts = flags.prompts * flags.group, [0]
    generate = model.generate

    def generate_to_length(*arguments: Any, **options: Any) -> Any:
        prompt = options["input_ids"].shape[1]
        wanted = lengths(answers, flags.longest, rollouts[0])
        rollouts[0] += 1
        forced = LogitsProcessorList([EndAt(wanted, prompt, tokenizer.eos_token_id)])
        return generate(*arguments, **options, logits_processor=forced)

    model.generate = generate_to_length
    config = GRPOConfig(
        output_dir=str(folder / "theirs"),
        per_device_train_batch_size=answers // UPDATES,
        steps_per_generation=UPDATES,
        num_generations=flags.group,
        max_completion_length=flags.longest,
        max_steps=UPDATES * (flags.rollouts + 1),
        beta=BETA,
        loss_type="grpo",
        learning_rate=1e-4,
        temperature=1.0,
        bf16=bf16,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    clock = Clock()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completion_ids, **_: [-float(len(ids)) for ids in completion_ids],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in questions(64)]),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    written = sum(sum(lengths(answers, flags.longest, rollout)) for rollout in range(1, flags.rollouts + 1))
    return written / (clock.times[-1] - clock.times[0])


if __name__ == "__main__":
    sys.exit(main())

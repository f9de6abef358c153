"""Does a chat model answer in the asker's language, end by itself, and not loop? 100 prompts, each with several seeds.

python benchmarks/behaviour.py RUN --seeds 3 --out results/

The sampling is the chat's own (the run's generation_config.json) unless a flag says otherwise, with no repetition
penalty. Prints a table with 95 % Wilson intervals; with --out writes behaviour.json and all answers, samples.jsonl.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from cutaway.errors import UserError
from cutaway.evals.behaviour import LANGUAGES, Behaviour, judge, summarise
from cutaway.generation.conversation import answer_message, answer_prompt, knows_chat
from cutaway.generation.defaults import load_sampling
from cutaway.generation.engine import Completion, Engine
from cutaway.generation.generate import document_prompt, generate
from cutaway.generation.sampling import Sampling
from cutaway.model.weights import load_model, write_text
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.precision import pick_device

PROMPTS = Path(__file__).with_name("prompts.jsonl")
REQUIRED = {"in_language": 0.95, "ended": 0.85, "without_loops": 0.90}
MAX_NEW_TOKENS = 256


def main(argv: list[str] | None = None) -> int:
    flags = _parser().parse_args(argv)
    try:
        return run(flags)
    except UserError as error:
        print(f"behaviour: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--seeds", type=int, default=3, help="answers to each prompt")
    parser.add_argument("--slots", type=int, default=50, help="answers written at a time")
    parser.add_argument("--limit", type=int, help="only the first N prompts of each language")
    parser.add_argument("--out", type=Path, help="directory for behaviour.json and samples.jsonl")
    for name, kind in (("temperature", float), ("top-p", float), ("top-k", int), ("min-p", float)):
        parser.add_argument(f"--{name}", type=kind, help="in place of the run's own")
    return parser


def run(flags: argparse.Namespace) -> int:
    """Generate, judge, print, write. 0 where all three requirements are met, else 1."""
    sampling = _sampling(flags)
    prompts = read_prompts(flags.limit)
    completions, seconds, tokenizer = answers(flags, prompts, sampling)
    texts = [str(answer_message(one.ids, tokenizer)["content"]) or one.text for one in completions]
    asked = [prompt for prompt in prompts for _ in range(flags.seeds)]
    judged = [
        judge(prompt.get("answer", prompt["language"]), text, one.finish_reason)
        for prompt, text, one in zip(asked, texts, completions, strict=True)
    ]
    tokens = sum(len(one.ids) for one in completions)
    print(f"{flags.run}: {len(judged)} answers, {tokens / seconds:.0f} tokens/s, {_describe(sampling)}")
    table: dict[str, Any] = {}
    for language in (*LANGUAGES, "all"):
        chosen = [i for i, prompt in enumerate(asked) if language in (prompt["language"], "all")]
        if chosen:
            lengths = [len(completions[i].ids) for i in chosen]
            table[language] = row(language, [judged[i] for i in chosen], lengths)
    met = all(table["all"][name]["share"] >= least for name, least in REQUIRED.items())
    required = ", ".join(f"{name} {least:.0%}" for name, least in REQUIRED.items())
    print(f"required over all: {required}: {'met' if met else 'not met'}")
    if flags.out is not None:
        seeds = [seed_of(i // flags.seeds, i % flags.seeds) for i in range(len(asked))]
        report = {"run": str(flags.run), "sampling": vars(sampling), "max_new_tokens": MAX_NEW_TOKENS}
        report |= {"seeds": flags.seeds, "tokens_per_second": tokens / seconds, "met": met, "table": table}
        samples = [
            dict(prompt, seed=seed, text=one.text, tokens=len(one.ids), ended=verdict.ended, **_flat(verdict))
            for prompt, seed, one, verdict in zip(asked, seeds, completions, judged, strict=True)
        ]
        write(flags.out, report, samples)
    return 0 if met else 1


def _sampling(flags: argparse.Namespace) -> Sampling:
    given = {name: getattr(flags, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    return dataclasses.replace(load_sampling(flags.run), **{k: v for k, v in given.items() if v is not None})


def read_prompts(limit: int | None) -> list[dict[str, str]]:
    """The prompts, or the first `limit` of each language."""
    prompts = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    return [one for language in LANGUAGES for one in [p for p in prompts if p["language"] == language][:limit]]


def seed_of(prompt: int, repeat: int) -> int:
    """Every answer its own seed: equal seeds would draw alike in all prompts."""
    return 1000 * (repeat + 1) + prompt


def answers(
    flags: argparse.Namespace, prompts: list[dict[str, str]], sampling: Sampling
) -> tuple[list[Completion], float, Tokenizer]:
    """Answers to each prompt, `seeds` in a row; the seconds they took; the tokenizer."""
    tokenizer = Tokenizer.load(flags.run)
    model = load_model(flags.run, pick_device()).eval()
    chat = knows_chat(flags.run, tokenizer)
    ids, seeds = [], []
    for number, prompt in enumerate(prompts):
        text = prompt["prompt"]
        user = [{"role": "user", "content": text}]
        ids += [answer_prompt(user, tokenizer) if chat else document_prompt(text, tokenizer)] * flags.seeds
        seeds += [seed_of(number, repeat) for repeat in range(flags.seeds)]
    engine = Engine(model, tokenizer, slots=min(flags.slots, len(ids)))
    start = time.perf_counter()
    done = generate(engine, ids, sampling=sampling, max_new_tokens=MAX_NEW_TOKENS, seed=seeds)
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
    return done, time.perf_counter() - start, tokenizer


def row(language: str, judged: list[Behaviour], lengths: list[int]) -> dict[str, Any]:
    """Print one line of the table and give it back for the JSON."""
    shares = summarise(judged)
    cells = [f"{name} {one.share:6.1%} [{one.low:.0%}, {one.high:.0%}]" for name, one in shares.items()]
    scripts = [one.script_share for one in judged if one.script_share is not None]
    script = fmean(scripts) if scripts else None
    shown = "" if script is None or language == "all" else f"  own script {script:.0%}"
    print(f"{language:8} {'  '.join(cells)}  mean {fmean(lengths):.0f} tokens{shown}")
    table: dict[str, Any] = {name: dataclasses.asdict(one) for name, one in shares.items()}
    return table | {"mean_tokens": fmean(lengths), "own_script": script}


def _describe(sampling: Sampling) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in vars(sampling).items())


def _flat(verdict: Behaviour) -> dict[str, Any]:
    return {"in_language": verdict.in_language, "repeats": verdict.repeats, "script_share": verdict.script_share}


def write(out: Path, report: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    """`behaviour.json` and `samples.jsonl`."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(report, indent=2) + "\n", out / "behaviour.json")
    write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in samples), out / "samples.jsonl")


if __name__ == "__main__":
    sys.exit(main())

"""The same multiple-choice items scored by lm-eval's `hf` model and by Cutaway: equal scores, and the time each takes.

    python benchmarks/against_lm_eval.py RUN --data D [--items 2000] [--shots 0 5] [--sets mmlu ...] [--state FILE]

Both sides get the same items and the same worked examples, in fp32, offline: lm-eval through task files written here,
Cutaway through `evals.multiple_choice`. Time is from items to scores, prompts included, the loading of model and data
left out; lm-eval gets the fastest of several batch sizes (tried on 60 items), and both sides the same threads. Cutaway
is timed before and after lm-eval and the mean of the two counts, so that a machine that grows busier favours neither.
`--state` keeps each row once it is measured; a second call goes on behind the last one.
"""

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutaway.evals.multiple_choice import Asking, Item, Scored, language_of, pick_examples, read_items, score
from cutaway.evals.sets import style_of
from cutaway.model.weights import load_model
from cutaway.tokenization.tokenizer import Tokenizer

SETS = ("cmmlu", "mmlu", "hellaswag", "arc_easy")
BATCH_SIZES = (1, 2, 4, 16)
PILOT = 60
TEMPLATES = {
    "letter": "{{question.strip()}}{% for c in choices %}\n{{'ABCDEFGHIJ'[loop.index0]}}. {{c}}{% endfor %}\nANSWER",
    "text": "QUESTION{{question}}\nANSWER",
    "bare": "{{question}}",
}
WORDS = {"en": ("Question: ", "Answer:"), "zh-Hans": ("问题：", "答案："), "zh-Hant": ("問題：", "答案：")}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", required=True, type=Path, help="folder with eval_*.jsonl.xz")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--shots", nargs="+", type=int, default=[0, 5])
    parser.add_argument("--items", type=int, default=2000, help="the first so many of each set")
    parser.add_argument("--state", type=Path, help="file of rows (JSON lines): those in it are not measured again")
    parser.add_argument("--batch-size", type=int, help="of lm-eval; default: the fastest of several")
    arguments = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        model, tokenizer = load_model(arguments.run).eval(), Tokenizer.load(arguments.run)
        print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, fp32, {arguments.run}")
        print("| set | shots | items | accuracy | lm-eval's | items that differ | largest difference, nats ", end="")
        print("| seconds (before, after) | lm-eval's (batch) | times |\n| --- |" + " ---: |" * 9)
        rows = known_rows(arguments)
        for name in arguments.sets:
            items, pool = material(arguments.data, name, arguments.items)
            for shots in arguments.shots:
                row = rows.get((name, shots))
                if row is None:
                    size = arguments.batch_size
                    row = compare(model, tokenizer, arguments.run, name, items, pool, shots, Path(folder), size)
                    keep_row(arguments, {"set": name, "shots": shots} | row)
                rows[name, shots] = row
                print(line_of(name, shots, row), flush=True)
    same = all(rows[name, shots]["same"] for name in arguments.sets for shots in arguments.shots)
    print("accuracies identical, scores within 1e-3 nats" if same else "THE TWO DIFFER")
    return 0 if same else 1


def known_rows(arguments: argparse.Namespace) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of an earlier call about the same run and as many items, by set and shots."""
    if arguments.state is None or not arguments.state.is_file():
        return {}
    rows = [json.loads(line) for line in arguments.state.read_text(encoding="utf-8").splitlines()]
    about = (arguments.run, arguments.items)
    return {(row["set"], row["shots"]): row for row in rows if (row["run"], row["most"]) == about}


def keep_row(arguments: argparse.Namespace, row: dict[str, Any]) -> None:
    """Add a row to the state file."""
    if arguments.state is not None:
        with open(arguments.state, "a", encoding="utf-8") as file:
            file.write(json.dumps({"run": arguments.run, "most": arguments.items} | row) + "\n")


def line_of(name: str, shots: int, row: dict[str, Any]) -> str:
    """A row of the table."""
    ours = sum(row["seconds"]) / len(row["seconds"])
    return (
        f"| {name} | {shots} | {row['items']} | {row['accuracy']:.4f} | {row['theirs']:.4f} "
        f"| {row['differing']} | {row['largest']:.1e} | {ours:.1f} ({', '.join(f'{s:.1f}' for s in row['seconds'])}) "
        f"| {row['their_seconds']:.1f} ({row['batch_size']}) | {row['their_seconds'] / ours:.1f} |"
    )


def material(data: Path, name: str, most: int) -> tuple[list[Item], list[Item]]:
    """Items, and worked examples: those of the set, or, where it has none, the first items of a set like it."""
    items = read_items(data / f"eval_{name}.jsonl.xz", skip_bad=10)[:most]
    pool = [one for one in read_items(data / "eval_fewshot.jsonl.xz", skip_bad=10) if one.set == name]
    if not pool:
        other = "arc_challenge" if name == "arc_easy" else "arc_easy"
        pool = read_items(data / f"eval_{other}.jsonl.xz", skip_bad=10)[:20]
    return items, pool


def compare(
    model: Any,
    tokenizer: Tokenizer,
    run: str,
    name: str,
    items: list[Item],
    pool: list[Item],
    shots: int,
    folder: Path,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Score by both; the figures of one row of the table."""
    asking = Asking(style_of(name), language_of(items), shots)
    seconds = []

    def by_us() -> Scored:
        started = time.perf_counter()
        scored = score(model, tokenizer, name, items, asking, pool)
        seconds.append(time.perf_counter() - started)
        return scored

    ours = by_us()
    if batch_size is None:
        pilot = items[:: max(1, len(items) // PILOT)][:PILOT]
        timed = {size: by_lm_eval(run, pilot, pool, asking, name, folder, size)[1] for size in BATCH_SIZES}
        batch_size = min(timed, key=lambda size: timed[size])
    theirs, their_seconds = by_lm_eval(run, items, pool, asking, name, folder, batch_size)
    by_us()
    return agreement(ours, theirs) | {
        "seconds": seconds,
        "their_seconds": their_seconds,
        "batch_size": batch_size,
        "cut": ours.cut,
    }


def agreement(ours: Scored, theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Items on which any common measure differs (sum, per character, per byte), and the largest difference in nats."""
    measures = {"sum": "acc", "character": "acc_norm", "byte": "acc_bytes"}
    differing = set()
    for rule in ours.rules:
        if rule not in measures:
            continue
        for i, (right, sample) in enumerate(zip(ours.correct(rule), theirs, strict=True)):
            if right != bool(sample[measures[rule]]):
                differing.add(i)
    gaps = [np.abs(sums - sample["sums"]).max() for sums, sample in zip(ours.sums, theirs, strict=True)]
    key = measures[ours.headline]
    return {
        "items": len(theirs),
        "accuracy": float(np.mean(ours.correct(ours.headline))),
        "theirs": float(np.mean([sample[key] for sample in theirs])),
        "differing": len(differing),
        "largest": float(max(gaps)),
        "same": not differing and float(max(gaps)) < 1e-3,
    }


def by_lm_eval(
    run: str, items: list[Item], pool: list[Item], asking: Asking, name: str, folder: Path, batch_size: int
) -> tuple[list[dict[str, Any]], float]:
    """lm-eval's samples in the order of `items`, and its seconds."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import datasets
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager, get_task_dict

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = Path(tempfile.mkdtemp(dir=folder))
    numbers = write_tasks(items, pool, asking, name, tasks)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    task_dict = get_task_dict(list(numbers), manager)
    lm = HFLM(pretrained=run, dtype="float32", device="cpu", batch_size=batch_size)
    stderr, sys.stderr = sys.stderr, open(os.devnull, "w")  # noqa: SIM115 (its progress bars)
    try:
        started = time.perf_counter()
        result = evaluator.evaluate(lm, task_dict, bootstrap_iters=0, log_samples=True)
        seconds = time.perf_counter() - started
    finally:
        sys.stderr.close()
        sys.stderr = stderr
    samples: list[dict[str, Any]] = [{} for _ in items]
    for task, places in numbers.items():
        for sample in result["samples"][task]:
            sums = np.array([float(response[0]) for response in sample["filtered_resps"]])
            samples[places[sample["doc_id"]]] = {**sample, "sums": sums}
    return samples, seconds


def write_tasks(items: list[Item], pool: list[Item], asking: Asking, name: str, folder: Path) -> dict[str, list[int]]:
    """A task file for the items that share their worked examples; which items each has, in its order."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, item in enumerate(items):
        key = tuple(one.key for one in pick_examples(item, pool, asking.shots, name))
        groups.setdefault(key, []).append(i)
    question, answer = WORDS[asking.language]
    text = TEMPLATES[asking.style].replace("QUESTION", question).replace("ANSWER", answer)
    numbers = {}
    for count, places in enumerate(groups.values()):
        task = f"{name}_{count}"
        examples = pick_examples(items[places[0]], pool, asking.shots, name) or [items[places[0]]]
        files = {"test": [items[i] for i in places], "fewshot": examples}
        for split, members in files.items():
            rows = [{"question": one.question, "choices": one.choices, "answer": one.answer} for one in members]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{task}_{split}.jsonl").write_text(lines, encoding="utf-8")
        letters = list("ABCDEFGHIJ"[: len(items[places[0]].choices)])
        definition = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {split: str(folder / f"{task}_{split}.jsonl") for split in files}},
            "test_split": "test",
            "fewshot_split": "fewshot",
            "fewshot_config": {"sampler": "first_n"},
            "num_fewshot": asking.shots and len(examples),
            "output_type": "multiple_choice",
            "doc_to_text": text,
            "doc_to_choice": letters if asking.style == "letter" else "choices",
            "doc_to_target": "answer",
            "metric_list": [{"metric": metric} for metric in ("acc", "acc_norm", "acc_bytes")],
        }
        # JSON is YAML.
        (folder / f"{task}.yaml").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
        numbers[task] = places
    return numbers


if __name__ == "__main__":
    sys.exit(main())

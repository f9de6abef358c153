"""What training on exam questions does to an exam score, and what of it is knowledge: an ablation, splits disclosed.

    python benchmarks/format_alignment.py RUN --data D --work DIR [--set cmmlu] [--epochs 3] [--items 1500]

The subjects of a set are split in two by a hash of their names: *seen* subjects give training conversations (the
question with lettered choices, answered by its letter), *unseen* ones the test. LoRA adapters are trained on RUN:

    aligned    on the seen subjects with their right answers      the form, and what knowledge carries over
    shuffled   on the same with answers dealt out at random       the form alone
    leaked     on the test questions themselves                   what contamination looks like

All are scored on the unseen subjects, letters in the chat format, beside RUN itself, and paired with it. Prints the
splits, how many test questions stand in each training file (`data/overlap.py`), and a table. With --docs, these go into
the manual's page on evaluation in both languages, between its marks, in place of those of an earlier call.
"""

import argparse
import hashlib
import json
import logging
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cutaway.data.overlap import OverlapIndex
from cutaway.evals.intervals import holm
from cutaway.evals.multiple_choice import LETTERS, Asking, Item, language_of, read_items, score, summarise
from cutaway.evals.results import Result, compare, of_choice
from cutaway.evals.tables import Table, interval, percent, to_markdown
from cutaway.model.weights import load_model, write_text
from cutaway.tokenization.tokenizer import Tokenizer
from score_all import write_between_marks

MARKS = ("<!-- alignment -->", "<!-- end of alignment -->")
_COMMAND = "`python benchmarks/format_alignment.py RUN --data D --work DIR --docs docs`"
PAGES = {"evaluation.md": f"By {_COMMAND}.", "zh-Hant/evaluation.md": f"由 {_COMMAND} 產生。"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, type=Path, help="folder with eval_*.jsonl.xz")
    parser.add_argument("--work", required=True, type=Path, help="folder for training files and adapters")
    parser.add_argument("--set", default="cmmlu")
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--items", type=int, default=1500, help="most items on either side")
    parser.add_argument("--docs", type=Path, help="the manual's folder, to put splits and table into its page")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    items = read_items(arguments.data / f"eval_{arguments.set}.jsonl.xz", skip_bad=10)
    seen = [item for item in items if is_seen(item.subject)][: arguments.items]
    unseen = [item for item in items if not is_seen(item.subject)][: arguments.items]
    asking = Asking("letter", language_of(items), chat=True)
    print(split_note(arguments.set, seen, unseen))
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = {"as it was": measure(arguments.run, unseen, asking)}
    known = {"as it was": "-"}
    index = OverlapIndex.build((item.question, "\n".join(item.choices)) for item in unseen)
    for name, asked in (("aligned", seen), ("shuffled", shuffled(seen)), ("leaked", unseen)):
        data = write_conversations(asked, asking, arguments.work / f"{name}.jsonl")
        adapter = arguments.work / name
        train(arguments, data, adapter)
        results[name] = measure(adapter, unseen, asking)
        leaks = index.leaks([item.key for item in asked])
        known[name] = f"{len({leak.question for leak in leaks if leak})} of {len(index.questions)}"
    text = to_markdown(table_of(results, known))
    print(text)
    if arguments.docs is not None:
        for page, words in PAGES.items():
            said = f"{words}\n\n{split_note(arguments.set, seen, unseen)}\n\n{text}"
            write_between_marks(arguments.docs / page, said, MARKS)
    return 0


def is_seen(subject: str) -> bool:
    """Half of all subjects, by a hash that anyone can repeat."""
    return hashlib.sha256(subject.encode()).digest()[0] % 2 == 0


def split_note(name: str, seen: Sequence[Item], unseen: Sequence[Item]) -> str:
    """The splits, so that they are disclosed."""
    subjects = [sorted({item.subject for item in side}) for side in (seen, unseen)]
    return (
        f"Of {name}: {len(seen)} questions of {len(subjects[0])} subjects to train on, {len(unseen)} of "
        f"{len(subjects[1])} others to test. Trained on: {', '.join(subjects[0])}. Tested: {', '.join(subjects[1])}."
    )


def shuffled(items: Sequence[Item]) -> list[Item]:
    """The same questions, with the answers dealt out anew: as many of each letter, and no knowledge in them."""
    answers = [item.answer for item in items]
    random.Random(0).shuffle(answers)
    return [
        Item(item.question, item.choices, min(answer, len(item.choices) - 1), item.subject)
        for item, answer in zip(items, answers, strict=True)
    ]


def write_conversations(items: Sequence[Item], asking: Asking, path: Path) -> Path:
    """SFT records: the prompt that the test will use, answered by a letter."""
    rows = [
        {
            "conversations": [
                {"role": "user", "content": asking.ask(item)},
                {"role": "assistant", "content": LETTERS[item.answer]},
            ]
        }
        for item in items
    ]
    write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), path)
    return path


def train(arguments: argparse.Namespace, data: Path, out: Path) -> None:
    """An adapter by `cutaway lora`."""
    command = [sys.executable, "-m", "cutaway", "lora", "--recipe", arguments.recipe, "--data", str(data)]
    command += ["--init", str(arguments.run), "--out", str(out), "--epochs", str(arguments.epochs)]
    command += ["--scripts", "keep", "--holdout-tokens", "1000", "--eval-every", "100000", "--sample-every", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(run: Path, items: Sequence[Item], asking: Asking) -> Result:
    """The score of a run or an adapter."""
    scored = score(load_model(run).eval(), Tokenizer.load(run), "exam", items, asking, dtype=torch.float32)
    return of_choice(scored, summarise(scored))


def table_of(results: dict[str, Result], known: dict[str, str]) -> Table:
    """A row a model; p of the paired test against the first, adjusted."""
    base, *others = results.values()
    differences = [compare(base, other) for other in others]
    adjusted = ["-", *(f"{p:.2g}" for p in holm([one.p for one in differences]))]
    changes = ["-", *(f"{100 * one.difference:+.1f}" for one in differences)]
    rows = []
    for (name, result), change, p in zip(results.items(), changes, adjusted, strict=True):
        one = result.summary["scores"]["sum"]
        calibration = result.summary["calibration"]
        rows.append(
            [
                name,
                f"{percent(one['accuracy'])} {interval(one['low'], one['high'])}",
                change,
                p,
                one["verdict"],
                f"{one['margin']:+.3f} {interval(one['margin_low'], one['margin_high'], lambda end: f'{end:+.3f}')}",
                percent(calibration["ece"]),
                known[name],
            ]
        )
    headers = ["trained", "accuracy, unseen subjects", "points", "p", "in words", "margin, nats", "calibration error"]
    note = (
        f"Chance {percent(base.summary['chance'])}; always the commonest letter {percent(base.summary['constant'])}. "
        "Last column: test questions found in the training file, of those long enough to be looked for."
    )
    return Table("Format alignment", [*headers, "test questions in it"], rows, note)


if __name__ == "__main__":
    sys.exit(main())

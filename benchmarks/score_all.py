"""Every evaluation set on every model, with intervals: the table and the picture of the manual's page on evaluation.

    python benchmarks/score_all.py RUN... --data D [--docs docs] [--limit N] [--shots K]

Multiple choice in fp32, zero-shot unless --shots; bits per byte of the first megabytes of pretrain_extra and of sft_mix
(the assistant's tokens); for chat models also cmath, answered greedily, and the tool calls of 100 turns of sft_tool.
--limit takes the first N items of each set, which are a sample, since the sets of D are shuffled; the table says how
many items each score is of, and its interval is that of so many. Results also go to RUN/evals, for `cutaway report`.
With --docs, tables and picture go into the manual in both languages, between its marks, in place of earlier ones.
"""

import argparse
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

from cutaway.errors import UserError
from cutaway.evals.evaluate import EvalSettings, Subject, evaluate
from cutaway.evals.picture import draw_report
from cutaway.evals.report import difference_table, margin_table, read_runs, score_table
from cutaway.evals.results import save_result
from cutaway.evals.tables import to_markdown
from cutaway.generation.conversation import knows_chat
from cutaway.model.weights import write_text
from cutaway.tokenization.tokenizer import Tokenizer

CHOICE = (
    *("ceval", "cmmlu", "mmlu", "agieval_zh", "arc_easy", "arc_challenge"),
    *("hellaswag", "piqa", "openbookqa"),
)
MARKS = ("<!-- scores -->", "<!-- end of scores -->")
_COMMAND = "`python benchmarks/score_all.py RUN... --data D --docs docs`"
PAGES = {
    "evaluation.md": (
        "Scores of the models trained so far",
        f"By {_COMMAND}.\n\n![Scores with their intervals](images/evaluation.png)",
    ),
    "zh-Hant/evaluation.md": (
        "目前各模型的分數",
        f"由 {_COMMAND} 產生。\n\n![分數與區間](../images/evaluation.png)",
    ),
}
SKIP_BAD = 10
"""Some published sets hold an item with the same choice twice."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True, type=Path, help="folder with eval_*.jsonl.xz")
    parser.add_argument("--docs", type=Path, help="the manual's folder, to put tables and picture into its page")
    parser.add_argument("--limit", type=int, help="only the first N items of each set")
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--megabytes", type=float, default=0.5)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for run in arguments.runs:
        score_run(run, arguments)
    runs = read_runs(arguments.runs)
    tables = [score_table(runs), difference_table(runs), margin_table(runs)]
    text = "\n".join(to_markdown(table) for table in tables if table is not None and table.rows)
    print(text)
    if arguments.docs is not None:
        (arguments.docs / "images").mkdir(exist_ok=True)
        draw_report(runs, arguments.docs / "images" / "evaluation.png")
        for page, (heading, words) in PAGES.items():
            write_between_marks(arguments.docs / page, f"## {heading}\n\n{words}\n\n{text}")
    return 0


def write_between_marks(page: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Replace what stands between the two marks of a page."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(marks[0] + "\n")
    _, end, after = rest.partition(marks[1])
    if not (mark and end):
        raise UserError(f"{page}: the marks {' and '.join(marks)} are not there, each on a line")
    write_text(f"{before}{mark}\n{text}\n{end}{after}", page)


def score_run(run: Path, arguments: argparse.Namespace) -> None:
    """All sets that the data folder holds, on one run."""
    settings = EvalSettings(limit=arguments.limit, megabytes=arguments.megabytes, skip_bad=SKIP_BAD, max_new_tokens=128)
    subject = Subject(run, settings)
    tasks = [(f"eval_{name}", replace(settings, shots=arguments.shots)) for name in CHOICE]
    tasks += [("pretrain_extra", settings), ("sft_mix", settings)]
    if knows_chat(run, Tokenizer.load(run)):
        turns = min(100, arguments.limit or 100)
        tasks += [("eval_cmath", settings), ("sft_tool", replace(settings, how="calls", limit=turns))]
    for name, own in tasks:
        path = arguments.data / f"{name}.jsonl.xz"
        if not path.is_file():
            print(f"{path}: not there, left out", file=sys.stderr)
            continue
        started = time.perf_counter()
        asked = subject.with_settings(own)
        save_result(evaluate(asked, str(path)), run)
        print(f"{run} {name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Multiple-choice sets by name: where the hub has them, how their rows become items, and how each is asked.

The hub is huggingface_hub's, so its settings hold here too: HF_ENDPOINT for a mirror, HF_HUB_OFFLINE for the cache.
"""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.data.formats import BadCounter, raw_records
from cutaway.errors import UserError
from cutaway.evals.multiple_choice import LETTERS, Item, Style, read_items, refusal

Row = dict[str, Any]


@dataclass(frozen=True)
class NamedSet:
    """A published set. `split` and `examples` are words in the names of its files."""

    repository: str
    split: str
    examples: str
    convert: Callable[[Row], Row]
    style: Style
    folder: str = ""
    """The folder of its files; empty where every folder is a subject."""


def _lettered(row: Row) -> Row:
    """C-Eval and CMMLU: a column a choice, the answer a letter; CMMLU writes Question and Answer."""
    row = {key.lower() if len(key) > 1 else key: value for key, value in row.items()}
    return {"question": row["question"], "choices": [row[letter] for letter in "ABCD"], "answer": row["answer"]}


def _mmlu(row: Row) -> Row:
    return {key: row[key] for key in ("question", "choices", "answer", "subject") if key in row}


def _labelled(row: Row) -> Row:
    """ARC and OpenBookQA: choices with labels A, B, ... or 1, 2, ..."""
    choices = row["choices"]
    question = row["question"] if "question" in row else row["question_stem"]
    return {
        "question": question,
        "choices": choices["text"],
        "answer": choices["label"].index(row["answerKey"].strip()),
    }


def _hellaswag(row: Row) -> Row:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    endings = [_without_markup(ending) for ending in row["endings"]]
    answer = int(row["label"])
    return {
        "question": _without_markup(context),
        "choices": endings,
        "answer": answer,
        "subject": row["activity_label"],
    }


def _without_markup(text: str) -> str:
    """WikiHow's headings in brackets become the ends of sentences, as lm-eval has it."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _piqa(row: Row) -> Row:
    return {"question": row["goal"], "choices": [row["sol1"], row["sol2"]], "answer": int(row["label"])}


SETS: dict[str, NamedSet] = {
    "ceval": NamedSet("ceval/ceval-exam", "val", "dev", _lettered, "letter"),
    "cmmlu": NamedSet("haonan-li/cmmlu", "test", "dev", _lettered, "letter"),
    "mmlu": NamedSet("cais/mmlu", "test", "dev", _mmlu, "letter"),
    "arc_easy": NamedSet("allenai/ai2_arc", "test", "train", _labelled, "text", "ARC-Easy"),
    "arc_challenge": NamedSet("allenai/ai2_arc", "test", "train", _labelled, "text", "ARC-Challenge"),
    "hellaswag": NamedSet("Rowan/hellaswag", "validation", "train", _hellaswag, "bare", "data"),
    "piqa": NamedSet("baber/piqa", "validation", "train", _piqa, "text", "data"),
    "openbookqa": NamedSet("allenai/openbookqa", "test", "train", _labelled, "bare", "main"),
}
_MIXED_FOLDERS = ("all", "auxiliary_train")
MAX_EXAMPLES = 100
"""Worked examples read of each file: a whole training split is not needed for a few."""


def style_of(name: str) -> Style:
    """The style of a set by its name, also of a file named after one (`eval_ceval.jsonl.xz`); others as text."""
    if name.startswith("agieval"):
        return "letter"
    return SETS[name].style if name in SETS else "text"


def set_name(task: str) -> str:
    """The name of a set or of a file: without folder, suffix, and `eval_` in front."""
    return re.sub(r"\.(jsonl|parquet)(\.\w+)?$", "", Path(task).name).removeprefix("eval_")


def load(task: str, skip_bad: int | BadCounter = 0, examples: bool = False) -> list[Item]:
    """The items of a file, or of a named set from the hub (`examples`: its split for worked examples).

    Raises UserError for what is neither, and where the hub cannot be reached.
    """
    if task not in SETS:
        if Path(task).suffix == "":
            raise UserError(f"no set '{task}': neither a file nor one of {', '.join(SETS)}")
        return read_items(task, skip_bad)
    own = SETS[task]
    items: list[Item] = []
    bad = BadCounter.of(skip_bad)
    for subject, path in _files(own, own.examples if examples else own.split):
        for count, row in enumerate(_rows(path), start=1):
            if examples and count > MAX_EXAMPLES:
                break
            try:
                value = own.convert(row)
                answer = value["answer"]
                number = LETTERS.index(answer) if isinstance(answer, str) else int(answer)
                item = Item(
                    value["question"],
                    tuple(map(str, value["choices"])),
                    number,
                    str(value.get("subject") or subject),
                    task,
                    f"{own.repository}/{Path(path).name}",
                    count,
                )
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                bad.add(path, count, f"not a row of {task}: {type(error).__name__} {error}")
                continue
            if reason := refusal(item):
                bad.add(path, count, reason)
            else:
                items.append(item)
    if not items:
        raise UserError(f"{own.repository}: no usable item of {task}")
    return items


def _rows(path: str) -> Iterator[Row]:
    from cutaway.data.records import parse_json

    for record in raw_records(path):
        yield parse_json(record.raw) if isinstance(record.raw, bytes) else record.raw


def _files(own: NamedSet, split: str) -> list[tuple[str, str]]:
    """(subject, local path) of every file of a split."""
    from huggingface_hub import hf_hub_download

    from cutaway.data import hub

    chosen = [name for name in sorted(hub.list_files(own.repository)) if _belongs(name, own, split)]
    download = functools.partial(hf_hub_download, own.repository, repo_type="dataset", endpoint=hub.endpoint())
    found = [hub.asked(f"{own.repository}: {name}", functools.partial(download, name)) for name in chosen]
    if not found:
        raise UserError(f"{own.repository}: no {split} files in {own.folder or 'its folders'}")
    return [
        (name.split("/")[-2] if own.folder == "" and "/" in name else "", path)
        for name, path in zip(chosen, found, strict=True)
    ]


def _belongs(name: str, own: NamedSet, split: str) -> bool:
    *folders, file = name.split("/")
    if own.folder and own.folder not in folders:
        return False
    if not own.folder and set(folders) & set(_MIXED_FOLDERS):
        return False
    return re.fullmatch(rf"{split}([-.].*)?\.(parquet|jsonl)", file) is not None

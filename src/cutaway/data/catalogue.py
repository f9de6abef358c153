"""Data sets that have a name here: where they are published, and how their rows become records.

An evaluation set is one entry of EVALUATION_SETS: repository, revision, which files, and a function from a row to a
multiple-choice record.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

MINIMIND, MINIMIND_ON_MODELSCOPE = "jingyaogong/minimind_dataset", "gongjy/minimind_dataset"
MINIMIND_FILES = {
    "pretrain_t2t": "8.3 GB, plain text",
    "pretrain_t2t_mini": "1.2 GB, plain text",
    "sft_t2t": "14 GB, conversations, some with tools and thinking",
    "sft_t2t_mini": "1.7 GB, conversations",
    "dpo": "54 MB, preference pairs",
    "rlaif": "24 MB, prompts",
    "agent_rl": "82 MB, tool use with answers to check",
    "agent_rl_math": "18 MB, sums with answers to check",
    "lora_identity": "23 KB, who the model is",
    "lora_medical": "34 MB, medical questions",
    "lora_exam": "25 MB, the form of examination answers",
}
"""MiniMind's published sets; sizes as of September 2026. Each is NAME.jsonl in both repositories."""
MINIMIND_LICENCE = "apache-2.0 and cc-by-nc-2.0, as their card says: the second does not allow commercial use"


@dataclass(frozen=True)
class EvaluationSet:
    """A published evaluation set."""

    repository: str
    files: str
    """Pattern of the files in the repository, `*` for any part of a path."""
    record: Callable[[Row, str], Row]
    """Row and path of its file, to question, choices, answer (an index from 0) and perhaps subject."""
    licence: str
    revision: str = "main"


def lettered(row: Row, path: str) -> Row:
    """Choices in columns A to D, the answer a letter (C-Eval, CMMLU)."""
    question, answer = row.get("question", row.get("Question")), row.get("answer", row.get("Answer"))
    return {
        "subject": path.split("/")[0],
        "question": question,
        "choices": [row[letter] for letter in "ABCD"],
        "answer": "ABCD".index(str(answer).strip()),
    }


def labelled(row: Row, path: str) -> Row:
    """Choices with labels, which may be letters or digits (ARC, OpenBookQA)."""
    return {
        "question": row.get("question", row.get("question_stem")),
        "choices": list(row["choices"]["text"]),
        "answer": list(row["choices"]["label"]).index(row["answerKey"]),
    }


def mmlu(row: Row, path: str) -> Row:
    """Choices as a list, the answer an index."""
    return {key: row[key] for key in ("subject", "question", "choices", "answer")}


def hellaswag(row: Row, path: str) -> Row:
    """Four endings of a text."""
    question = {"subject": row["activity_label"], "question": row["ctx"]}
    return question | {"choices": list(row["endings"]), "answer": int(row["label"])}


def piqa(row: Row, path: str) -> Row:
    """Two ways to reach a goal."""
    return {"question": row["goal"], "choices": [row["sol1"], row["sol2"]], "answer": int(row["label"])}


CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps every set as parquet, also those published as a script or an archive."""
EVALUATION_SETS = {
    "ceval": EvaluationSet("ceval/ceval-exam", "*/val-*.parquet", lettered, "cc-by-nc-sa-4.0"),
    "cmmlu": EvaluationSet("haonan-li/cmmlu", "*/test/*.parquet", lettered, "cc-by-nc-4.0", CONVERTED),
    "mmlu": EvaluationSet("cais/mmlu", "all/test-*.parquet", mmlu, "mit"),
    "arc_easy": EvaluationSet("allenai/ai2_arc", "ARC-Easy/test-*.parquet", labelled, "cc-by-sa-4.0"),
    "arc_challenge": EvaluationSet("allenai/ai2_arc", "ARC-Challenge/test-*.parquet", labelled, "cc-by-sa-4.0"),
    "hellaswag": EvaluationSet("Rowan/hellaswag", "data/validation-*.parquet", hellaswag, "mit"),
    "piqa": EvaluationSet("ybisk/piqa", "plain_text/validation/*.parquet", piqa, "afl-3.0", CONVERTED),
    "openbookqa": EvaluationSet("allenai/openbookqa", "main/test-*.parquet", labelled, "unknown"),
}

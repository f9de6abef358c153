"""Results as tables, in Markdown and in HTML."""

import html
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cutaway.evals.results import Result


@dataclass(frozen=True)
class Table:
    """Cells are text; the first column is to the left, the others to the right."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def to_markdown(table: Table) -> str:
    """A pipe table whose columns also line up as plain text (Chinese characters are two wide)."""
    rows = [list(map(_cell, row)) for row in (table.headers, *table.rows)]
    widths = [max(3, *(_width(row[i]) for row in rows)) for i in range(len(table.headers))]
    lines = [_line(rows[0], widths)]
    lines.append("| " + " | ".join("-" * (width - bool(i)) + ":" * bool(i) for i, width in enumerate(widths)) + " |")
    lines += [_line(row, widths) for row in rows[1:]]
    parts = [f"**{table.title}**", "\n".join(lines), table.note]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - _width(cell))
        padded.append(space + cell if i else cell + space)
    return "| " + " | ".join(padded) + " |"


def to_html(table: Table) -> str:
    """The same, everything escaped."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.headers)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
    note = f"<p class=note>{html.escape(table.note)}</p>\n" if table.note else ""
    scroll = f"<div class=scroll><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    return f"<h3>{html.escape(table.title)}</h3>\n{scroll}\n{note}"


def percent(share: float) -> str:
    """One decimal."""
    return f"{100 * share:.1f} %"


def interval(low: float, high: float, show: Callable[[float], str] = lambda end: f"{100 * end:.1f}") -> str:
    """In brackets."""
    return f"[{show(low)}, {show(high)}]"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _share(share: Mapping[str, Any]) -> list[str]:
    return [percent(share["share"]), interval(share["low"], share["high"]), str(share["total"])]


def tables_of(result: Result) -> list[Table]:
    """Everything there is to say about a result."""
    makers: dict[str, Callable[[Result], list[Table]]] = {"choice": _choice, "text": _text, "answers": _answers}
    return makers[result.summary["kind"]](result)


def _choice(result: Result) -> list[Table]:
    summary = result.summary
    rows = [
        [
            rule,
            percent(one["accuracy"]),
            interval(one["low"], one["high"]),
            percent(summary["chance"]),
            one["verdict"],
            f"{one['margin']:+.3f}",
            interval(one["margin_low"], one["margin_high"], lambda end: f"{end:+.3f}"),
            one["margin_verdict"],
        ]
        for rule, one in summary["scores"].items()
    ]
    calibration = summary["calibration"]
    note = (
        f"{summary['items']} items. The model's confidence in its choice is {percent(calibration['confidence'])}, its "
        f"calibration error {percent(calibration['ece'])}, its Brier score {calibration['brier']:.3f}."
    )
    if summary["asking"]["style"] == "letter":
        note += f" Always the commonest letter scores {percent(summary['constant'])}."
    if summary["cut"]:
        note += f" {summary['cut']} prompts were longer than the model's context and lost their beginning."
    headers = ["divided by", "accuracy", "95 %", "chance", "in words", "margin, nats", "95 %", "the likelihood"]
    tables = [Table(result.name, headers, [["nothing" if r[0] == "sum" else r[0], *r[1:]] for r in rows], note)]
    if summary["subjects"]:
        headers = ["subject", "items", "accuracy", "95 %", "in words", "margin, nats", "the likelihood"]
        parts = [
            [
                subject,
                str(one["items"]),
                percent(one["accuracy"]),
                interval(one["low"], one["high"]),
                one["verdict"],
                f"{one['margin']:+.3f}",
                one["margin_verdict"],
            ]
            for subject, one in summary["subjects"].items()
        ]
        lucky = f"Of {len(parts)} intervals of 95 %, {len(parts) / 20:.0f} miss by chance alone."
        tables.append(Table(f"{result.name}, by subject", headers, parts, lucky))
    return tables


def _text(result: Result) -> list[Table]:
    summary = result.summary
    headers = ["", "documents", "bytes", "bits per byte", "95 %", "nats a token", "bytes a token"]

    def row(label: str, one: Mapping[str, Any]) -> list[str]:
        ends = interval(one["low"], one["high"], _three)
        sizes = [f"{one['documents']:,}", f"{one['bytes']:,}"]
        return [label, *sizes, _three(one["bpb"]), ends, _three(one["nats_per_token"]), f"{one['bytes_per_token']:.2f}"]

    rows = [row("all", summary)]
    if len(summary["languages"]) > 1:
        rows += [row(label, one) for label, one in summary["languages"].items()]
    rows += [row(label or "(no domain)", one) for label, one in summary["domains"].items()]
    note = f"Of {summary['of']}; intervals over documents."
    if summary["dropped"]:
        note += f" {summary['dropped']} conversations hold no answer that fits the model."
    return [Table(result.name, headers, rows, note)]


def _answers(result: Result) -> list[Table]:
    summary = result.summary
    headers = ["", "share", "95 %", "of"]
    rows = [
        [f"right (pass@{k})", percent(one["value"]), interval(one["low"], one["high"]), str(summary["tasks"])]
        for k, one in summary["pass"].items()
    ]
    score = summary["score"]
    rows.append(
        ["partial credit", percent(score["value"]), interval(score["low"], score["high"]), str(summary["tasks"])]
    )
    groups = ("verifiers", "subjects") if len(summary["verifiers"]) > 1 else ("subjects",)
    rows += [[f"· {label}", *_share(one)] for group in groups for label, one in summary[group].items()]
    rows += [[_CALLS[label], *_share(one)] for label, one in summary.get("calls", {}).items()]
    reading = summary["reading"]
    if reading:
        rows += [[words, *_share(reading[key])] for key, words in _READING.items()]
    note = ""
    if reading:
        note = (
            f"Answers have {reading['mean_tokens']:.0f} tokens on average (median {reading['median_tokens']:.0f}, "
            f"longest {reading['longest']}); {percent(reading['different'])} of them differ from one another."
        )
    if summary["too_long"]:
        note += f" {summary['too_long']} prompts do not fit the model and count as failed."
    if summary["raised"]:
        note += f" The verifier itself failed {summary['raised']} times: those say nothing about the answer."
    return [Table(result.name, headers, rows, note)]


_CALLS = {
    "called": "calls a tool where one is wanted",
    "silent": "calls none where none is wanted",
    "names": "the right tools in order",
    "arguments": "and the right arguments",
    "any_order": "the same in any order",
    "conversations": "whole conversations",
}
_READING = {
    "ended": "ends by itself",
    "without_loops": "no 4-gram more than four times",
    "empty": "says nothing",
}

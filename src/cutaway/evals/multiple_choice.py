"""Multiple choice by log-likelihood: which choice does the model find likeliest, and does that mean more than guessing?

A set's items become prompts in one of three styles; `loglikelihood.py` scores them; the figures here are read off.

    letter   {question} / A. ... / B. ... / Answer:        scored: " A", " B", ...
    text     Question: {question} / Answer:                scored: the choices themselves
    bare     {question}                                    scored: the choices, as the text going on

The words and blanks are those of lm-eval's task files, so that scores compare. Below about 150M parameters accuracy is
near the chance level whatever the training; the margin, which uses the likelihoods themselves, shows more.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from cutaway.data.formats import BadCounter, read_records
from cutaway.data.scripts import HAN, HANS, HANT, LATIN, count_scripts
from cutaway.errors import UserError
from cutaway.evals.intervals import Share, against_chance, bootstrap_mean
from cutaway.evals.loglikelihood import Query, loglikelihoods
from cutaway.generation.conversation import answer_prompt
from cutaway.model.transformer import CausalLM
from cutaway.tokenization.tokenizer import PATTERNS, Tokenizer

Style = Literal["letter", "text", "bare"]
Language = Literal["en", "zh-Hans", "zh-Hant"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
RULES = ("sum", "token", "character", "byte")
"""What a log-likelihood is divided by before choices are compared: nothing, its tokens, its characters, its bytes."""
BINS = 10
_ANSWER = {"en": "Answer:", "zh-Hans": "答案：", "zh-Hant": "答案："}
_QUESTION = {"en": "Question: ", "zh-Hans": "问题：", "zh-Hant": "問題："}


@dataclass(frozen=True)
class Item:
    """One question; `answer` counts from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""
    set: str = ""
    file: str = ""
    line: int = 0

    @property
    def key(self) -> str:
        """What makes two items the same, for pairing runs."""
        return "\n".join((self.question, *self.choices))


def read_items(path: str | Path, skip_bad: int | BadCounter = 0) -> list[Item]:
    """The items of a file. Beside what the format asks for, every choice must say something, and the right one
    something of its own (of the wrong ones, some stand twice in published sets).

    Raises UserError, `file:line: reason`, for a bad item beyond `skip_bad`.
    """
    bad = BadCounter.of(skip_bad)
    items: list[Item] = []
    for record in read_records([path], "multiple_choice", bad):
        value = record.value
        subject, of = str(value.get("subject", "")), str(value.get("set", ""))
        choices = tuple(value["choices"])
        item = Item(value["question"], choices, value["answer"], subject, of, record.file, record.line)
        if reason := refusal(item):
            bad.add(record.file, record.line, reason)
        else:
            items.append(item)
    if not items:
        raise UserError(f"{path}: no usable item")
    return items


def refusal(item: Item) -> str | None:
    """Why an item of the right form cannot be scored; None if it can."""
    if not item.question.strip():
        return "'question' is empty"
    if any(not choice.strip() for choice in item.choices):
        return "a choice is empty"
    if not 2 <= len(item.choices) <= len(LETTERS):
        return f"{len(item.choices)} choices, must be 2 to {len(LETTERS)}"
    if not 0 <= item.answer < len(item.choices):
        return f"'answer' must be an index from 0 to {len(item.choices) - 1}, is {item.answer}"
    right = item.choices[item.answer]
    if item.choices.count(right) > 1:
        return f"the right choice {right[:40]!r} stands there twice"
    return None


def language_of(items: Sequence[Item]) -> Language:
    """The language that most characters of the questions are in: it words the prompts."""
    counts = count_scripts("".join(item.question for item in items[:500]))
    if counts[HAN] + counts[HANS] + counts[HANT] < counts[LATIN] / 4:
        return "en"
    return "zh-Hant" if counts[HANT] > counts[HANS] else "zh-Hans"


@dataclass(frozen=True)
class Asking:
    """How items become prompts."""

    style: Style = "text"
    language: Language = "en"
    shots: int = 0
    """Worked examples in front of each question."""
    chat: bool = False
    """Ask as a user, in the model's chat format; worked examples are earlier turns."""

    def ask(self, item: Item) -> str:
        """The question as the prompt shows it, up to where the answer begins."""
        question = item.question.strip() if self.style == "letter" else item.question
        if self.style == "bare":
            return question
        if self.style == "text":
            return f"{_QUESTION[self.language]}{question}\n{_ANSWER[self.language]}"
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False)]
        return "\n".join([question, *lines, _ANSWER[self.language]])

    def answers(self, item: Item) -> list[str]:
        """What is scored, a text for each choice."""
        return list(LETTERS[: len(item.choices)]) if self.style == "letter" else list(item.choices)


def pick_examples(item: Item, pool: Sequence[Item], shots: int, name: str) -> list[Item]:
    """The first `shots` worked examples of the item's own set and subject, never the item itself.

    Examples that name a set are used for that set (`name`) only; without any of the subject, those of the whole set.
    """
    fitting = [one for one in pool if one.set in ("", name) and one.key != item.key]
    own = [one for one in fitting if one.subject == item.subject]
    return (own or fitting)[:shots]


@dataclass(frozen=True)
class Scored:
    """What the model said about every item of a set, and how it was asked."""

    name: str
    items: list[Item]
    asking: Asking
    sums: list[Float[np.ndarray, "_"]]
    """Log-likelihoods of each item's choices in nats."""
    lengths: dict[str, list[Float[np.ndarray, "_"]]]
    """For each of `RULES`, what they are divided by."""
    cut: int = 0
    fed: int = 0
    padding: int = 0

    @property
    def rules(self) -> tuple[str, ...]:
        """Letters are all one long, so the normalisations are one and the same."""
        return RULES[:1] if self.asking.style == "letter" else RULES

    @property
    def headline(self) -> str:
        """The rule of the score that is quoted first."""
        return "sum" if self.asking.style == "letter" else "byte"

    def normalised(self, rule: str) -> list[Float[np.ndarray, "_"]]:
        """Log-likelihoods divided as `rule` says."""
        return [sums / lengths for sums, lengths in zip(self.sums, self.lengths[rule], strict=True)]

    def correct(self, rule: str) -> list[bool]:
        """Whether the likeliest choice is the right one; of equal ones, the first counts as the likeliest."""
        pairs = zip(self.normalised(rule), self.items, strict=True)
        return [int(values.argmax()) == item.answer for values, item in pairs]


def score(
    model: CausalLM,
    tokenizer: Tokenizer,
    name: str,
    items: Sequence[Item],
    asking: Asking,
    pool: Sequence[Item] = (),
    *,
    dtype: torch.dtype = torch.float32,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    bad: BadCounter | None = None,
) -> Scored:
    """Ask all items. `pool` holds worked examples (`pick_examples`).

    Raises UserError where examples are wanted and none fit, and `file:line: reason` for text that the model's
    vocabulary cannot express, beyond what `bad` allows; such items are left out.
    """
    examples = [pick_examples(item, pool, asking.shots, name) if asking.shots else [] for item in items]
    if asking.shots and not all(examples):
        missing = items[examples.index([])]
        raise UserError(
            f"{missing.file}:{missing.line}: no worked example for it (set {name!r}): name a file that has some with "
            "--fewshot, or ask with --shots 0"
        )
    bad = bad or BadCounter()
    asked: list[tuple[Item, Query]] = []
    for item, query in zip(items, _queries(tokenizer, items, examples, asking), strict=True):
        if reason := _unfit(query, tokenizer, model):
            bad.add(item.file, item.line, reason)
        else:
            asked.append((item, query))
    if not asked:
        raise UserError(f"{name}: no usable item")
    items, queries = [item for item, _ in asked], [query for _, query in asked]
    scores = loglikelihoods(model, queries, dtype=dtype, batch_tokens=batch_tokens, progress=progress)
    lengths: dict[str, list[Any]] = {rule: [] for rule in RULES}
    for item, query in zip(items, queries, strict=True):
        answers = asking.answers(item)
        lengths["sum"].append(np.ones(len(answers)))
        lengths["token"].append(np.array([len(tokens) for tokens in query.continuations], dtype=np.float64))
        lengths["character"].append(np.array([len(answer) for answer in answers], dtype=np.float64))
        lengths["byte"].append(np.array([len(answer.encode()) for answer in answers], dtype=np.float64))
    sums = [np.array(values) for values in scores.sums]
    return Scored(name, list(items), asking, sums, lengths, scores.cut, scores.fed, scores.padding)


def _queries(
    tokenizer: Tokenizer, items: Sequence[Item], examples: Sequence[Sequence[Item]], asking: Asking
) -> list[Query]:
    groups = [tuple(one.key for one in chosen) or None for chosen in examples]
    if asking.chat:
        return [
            Query(
                _chat_prompt(tokenizer, item, chosen, asking),
                [tokenizer.encode(answer) for answer in asking.answers(item)],
                group,
            )
            for item, chosen, group in zip(items, examples, groups, strict=True)
        ]
    headers = ["".join(f"{asking.ask(one)} {asking.answers(one)[one.answer]}\n\n" for one in few) for few in examples]
    prompts = [asking.ask(item) for item in items]
    contexts = _encode(tokenizer, headers, prompts)
    counts = [len(item.choices) for item in items]
    whole = _encode(
        tokenizer,
        [header for header, count in zip(headers, counts, strict=True) for _ in range(count)],
        [f"{prompt} {answer}" for item, prompt in zip(items, prompts, strict=True) for answer in asking.answers(item)],
    )
    queries, at = [], 0
    for context, group, count in zip(contexts, groups, counts, strict=True):
        # Where the border lies is decided on the whole text, since a token may take in the blank before an answer.
        continuations = [ids[len(context) :] for ids in whole[at : at + count]]
        queries.append(Query(context, continuations, group))
        at += count
    return queries


def _encode(tokenizer: Tokenizer, headers: Sequence[str], bodies: Sequence[str]) -> list[list[int]]:
    """Ids of `header + body` of each; a header that many share is encoded once where that gives the same ids."""
    if not splits_after_newline(tokenizer) or any(body[:1].isspace() or not body for body in bodies):
        return tokenizer.encode_batch([header + body for header, body in zip(headers, bodies, strict=True)])
    known = {header: tokenizer.encode(header) for header in dict.fromkeys(headers)}
    encoded = tokenizer.encode_batch(bodies)
    return [known[header] + ids for header, ids in zip(headers, encoded, strict=True)]


def splits_after_newline(tokenizer: Tokenizer) -> bool:
    """Whether no token spans a newline and a visible character after it: so with the two patterns of `PATTERNS`."""
    table = tokenizer.definition
    steps = (table.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    pattern = (steps[0].get("pattern") or {}).get("Regex")
    return table.get("normalizer") is None and pattern in PATTERNS.values() and steps[0].get("behavior") == "Isolated"


def _chat_prompt(tokenizer: Tokenizer, item: Item, examples: Iterable[Item], asking: Asking) -> list[int]:
    turns = []
    for one in examples:
        turns.append({"role": "user", "content": asking.ask(one)})
        turns.append({"role": "assistant", "content": asking.answers(one)[one.answer]})
    return answer_prompt([*turns, {"role": "user", "content": asking.ask(item)}], tokenizer)


def _unfit(query: Query, tokenizer: Tokenizer, model: CausalLM) -> str | None:
    """Why the model cannot read the text: tokens that it has no row for, an unknown token, or none at all."""
    if not query.context or not all(query.continuations):
        return "the question or an answer has no token in this vocabulary"
    unknown = tokenizer.definition["model"].get("unk_token")
    unknown_id = None if unknown is None else tokenizer.control_ids.get(unknown)
    for ids in (query.context, *query.continuations):
        if max(ids) >= model.config.vocab_size:
            return f"token {max(ids)} is outside the model's vocabulary of {model.config.vocab_size}"
        if unknown_id is not None and unknown_id in ids:
            return "text that the vocabulary has no token for"
    longest = max(map(len, query.continuations))
    if longest > model.config.max_position_embeddings:
        return f"an answer has {longest} tokens, the model holds {model.config.max_position_embeddings}"
    return None


def summarise(scored: Scored) -> dict[str, Any]:
    """All figures of a set as plain values: `scores` by rule, `subjects`, and how it was asked."""
    chance = chance_level(scored.items)
    constant = constant_level(scored.items) if scored.asking.style == "letter" else 0.0
    scores = {rule: _figures(scored, rule, range(len(scored.items)), chance, constant) for rule in scored.rules}
    subjects = {}
    names = Counter(item.subject for item in scored.items if item.subject)
    if len(names) > 1:
        for subject in sorted(names):
            chosen = [i for i, item in enumerate(scored.items) if item.subject == subject]
            part = [scored.items[i] for i in chosen]
            figures = _figures(scored, scored.headline, chosen, chance_level(part), 0.0)
            subjects[subject] = {"items": len(chosen), **figures}
    return {
        "kind": "choice",
        "items": len(scored.items),
        "headline": scored.headline,
        "asking": asdict(scored.asking),
        "chance": chance,
        "constant": constant,
        "scores": scores,
        "calibration": calibration(scored),
        "subjects": subjects,
        "cut": scored.cut,
    }


def chance_level(items: Sequence[Item]) -> float:
    """Expected accuracy of guessing: the mean of 1 / choices."""
    return float(np.mean([1 / len(item.choices) for item in items]))


def constant_level(items: Sequence[Item]) -> float:
    """Accuracy of always giving the letter that is right most often."""
    return max(Counter(item.answer for item in items).values()) / len(items)


def _figures(scored: Scored, rule: str, chosen: Iterable[int], chance: float, constant: float) -> dict[str, Any]:
    numbers = list(chosen)
    correct, normalised = scored.correct(rule), scored.normalised(rule)
    share = Share.of([correct[i] for i in numbers])
    margins = np.array([margin(normalised[i], scored.items[i].answer) for i in numbers])
    low, high = bootstrap_mean(margins)
    return {
        "accuracy": share.share,
        "low": share.low,
        "high": share.high,
        "verdict": against_chance(share.low, share.high, chance, constant),
        "margin": float(margins.mean()),
        "margin_low": low,
        "margin_high": high,
        "margin_verdict": "no sign of knowledge"
        if low <= 0 <= high
        else "favours right"
        if low > 0
        else "favours wrong",
    }


def margin(values: Float[np.ndarray, "choices"], answer: int) -> float:
    """How much more likely the right choice is than the others on average, in nats (a token, a byte, ...).

    0 is expected of a model to which the choices are alike, with letters that fall evenly.
    """
    return float(values[answer] - np.delete(values, answer).mean())


def calibration(scored: Scored) -> dict[str, Any]:
    r"""Does the model know when it knows?

    Choices get the probabilities $p = \mathrm{softmax}$ of their log-likelihoods. `confidence` is the mean of the
    largest $p$; `ece`, the expected calibration error, is $\sum_b \frac{n_b}{n} |a_b - c_b|$ with accuracy $a_b$ and
    mean confidence $c_b$ of ten bins (Guo et al., arXiv 1706.04599, equation 3); `brier` is the mean of
    $\sum_i (p_i - y_i)^2$. `bins` holds confidence, accuracy and items of each bin.
    """
    top, right, brier = [], [], []
    for sums, item in zip(scored.sums, scored.items, strict=True):
        p = np.exp(sums - sums.max())
        p /= p.sum()
        top.append(float(p.max()))
        right.append(float(p.argmax() == item.answer))
        brier.append(float(((p - np.eye(len(p))[item.answer]) ** 2).sum()))
    confidence, accuracy = np.array(top), np.array(right)
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = []
    error = 0.0
    for place in np.unique(places):
        inside = places == place
        held, claimed = float(accuracy[inside].mean()), float(confidence[inside].mean())
        error += inside.mean() * abs(held - claimed)
        bins.append({"confidence": claimed, "accuracy": held, "items": int(inside.sum())})
    return {"confidence": float(confidence.mean()), "ece": float(error), "brier": float(np.mean(brier)), "bins": bins}

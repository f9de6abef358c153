"""A question with its answer and its verifier, and what every maker of such items stands on.

What a maker draws depends on the split:

    train     content that may be trained on, in a question form that is trained
    heldout   content that is held out, in a trained form (for facts: a pairing of fact and form that is held out)
    new       content that is held out, in a form that is never trained
    practice  content that may be trained on, in a form that only reinforcement learning asks
    exam      content that is held out, in a form for practice
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cutaway.playground.language import Language, sentence
from cutaway.playground.questions import QUESTIONS
from cutaway.playground.world import World

Split = Literal["train", "heldout", "new", "practice", "exam"]
FORM: dict[Split, int] = {"train": 0, "heldout": 0, "new": 1, "practice": 2, "exam": 2}
"""Which of a skill's lists of question forms a split draws from."""
Verifier = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A question, the answer to learn, and how an answer is judged."""

    skill: str
    language: str
    question: str
    answer: str
    verifier: Verifier
    wrong: tuple[str, ...]
    """Answers that the verifier must refuse."""
    thought: str = ""
    """Reasoning that leads to the answer, where the skill has any."""
    brief: str = ""
    """The answer after that reasoning, if it is another."""
    level: int = 1
    """Difficulty, 1 to 5."""


Maker = Callable[[World, Language, random.Random, Split], Item]


def key_of(language: Language) -> str:
    """`en` or `zh`: tables of words have Chinese once."""
    return "zh" if language.chinese else "en"


def kept_out(split: Split) -> bool:
    """Whether the content of a split is kept out of every training set."""
    return split not in ("train", "practice")


def form_of(skill: str, language: Language, draw: random.Random, split: Split) -> str:
    """A question form of a skill, of those that the split draws from."""
    form = draw.choice(QUESTIONS[skill][key_of(language)][FORM[split]])
    return language.pick(form, form)


def fill(form: str, **values: str) -> str:
    """A form with its blanks filled; a capital blank takes the same text with a capital letter."""
    for key, value in values.items():
        form = form.replace(f"{{{key}}}", value)
        if key in "abq":
            form = form.replace(f"{{{key.upper()}}}", sentence(value))
    return sentence(form)


def question_turns(question: str, answer: str, thought: str | None = None) -> list[dict[str, Any]]:
    """One exchange; a thought of `""` is an empty thinking block."""
    reply = {"role": "assistant", "content": answer}
    return [{"role": "user", "content": question}, reply | ({} if thought is None else {"reasoning_content": thought})]

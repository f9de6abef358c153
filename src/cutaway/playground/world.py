"""The town's state: every fact, drawn from the seed, and what is held out of training."""

import functools
import hashlib
import random
from dataclasses import dataclass, field

from cutaway.playground.language import Language, sentence
from cutaway.playground.lexicon import LEXICON, WOMEN
from cutaway.playground.wordings import CLINIC, RELATIONS

HELD_OUT = {"sum": 0.1, "pair": 0.2, "hop": 0.2, "list": 0.1, "call": 0.1}
"""Share held out, by kind: pairs of operands, pairs compared, two-hop combinations, lists, arguments of calls."""
FORMS_APART = 10
"""Of this many pairings of a fact with a question form, one is held out."""


@dataclass(frozen=True)
class World:
    """`values[relation][subject]` is an index into the relation's group of values, or a number."""

    seed: int
    values: dict[str, tuple[int, ...]]
    _known: dict[tuple[object, ...], int] = field(default_factory=dict, repr=False, compare=False)

    def facts(self, clinic: bool = False) -> list[tuple[str, int]]:
        """All pairs of relation and subject; those of the clinic, or all others."""
        return _facts(tuple((name, len(values)) for name, values in self.values.items() if (name in CLINIC) == clinic))

    def value(self, language: Language, relation: str, subject: int) -> str:
        """The value of a fact, in words or digits."""
        group = RELATIONS[relation].values
        number = self.values[relation][subject]
        return language.words[group][number] if isinstance(group, str) else str(number)

    def name(self, language: Language, relation: str, subject: int) -> str:
        """The subject of a fact as it stands in a sentence."""
        return language.subjects[RELATIONS[relation].subjects][subject]

    def state(self, language: Language, relation: str, subject: int, wording: int = 0) -> str:
        """The sentence that states a fact; wording 0 is the one that answers a question."""
        template = language.wordings[relation].states[wording]
        name, value = self.name(language, relation, subject), self.value(language, relation, subject)
        return sentence(template.replace("{n}", name).replace("{v}", value))

    def others(self, language: Language, relation: str, subject: int) -> list[str]:
        """Every wrong value of a fact."""
        group = RELATIONS[relation].values
        words = language.words[group] if isinstance(group, str) else [str(number) for number in group]
        right = self.value(language, relation, subject)
        return [word for word in words if word != right]

    def held_out(self, kind: str, *key: object) -> bool:
        """Whether a combination is kept out of training: by a hash of seed and key, in every language alike."""
        return self._hash(kind, *key) < HELD_OUT[kind] * 2**32

    def form_held_out(self, form: int, of: int, *key: object) -> bool:
        """Whether a question form is kept out for what `key` names: one in `of` is, so that each has some."""
        return form % of == self._hash("form", *key) % of

    def _hash(self, *key: object) -> int:
        if key not in self._known:
            digest = hashlib.blake2b(repr((self.seed, *key)).encode(), digest_size=4).digest()
            self._known[key] = int.from_bytes(digest, "big")
        return self._known[key]


def make_world(seed: int = 0) -> World:
    """The town of a seed."""
    draw = random.Random(f"world {seed}")
    values = {}
    for name, relation in RELATIONS.items():
        count = len(LEXICON[relation.subjects])
        group = relation.values
        choices = list(group) if isinstance(group, range) else list(range(len(LEXICON[group])))
        values[name] = tuple(draw.sample(choices, count) if relation.distinct else draw.choices(choices, k=count))
    return World(seed, values)


def is_woman(person: int) -> bool:
    """Whether a person is she; the others are he."""
    return LEXICON["person"][person][0] in WOMEN


@functools.cache
def relations_of(group: str) -> list[str]:
    """The relations whose subjects are a group, the clinic's left out."""
    return [name for name, relation in RELATIONS.items() if relation.subjects == group and name not in CLINIC]


@functools.cache
def _facts(sizes: tuple[tuple[str, int], ...]) -> list[tuple[str, int]]:
    return [(name, subject) for name, count in sizes for subject in range(count)]

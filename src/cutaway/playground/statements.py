"""How often a text states each fact: read back from the sentences and tables, not from what wrote them."""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from cutaway.playground.language import Language, sentence
from cutaway.playground.pretraining import with_pronoun
from cutaway.playground.wordings import RELATIONS
from cutaway.playground.world import World

Fact = tuple[str, int]
_SENTENCE = re.compile(r"(?<=[.。])\s*|\n|: |：")


def count_statements(world: World, language: Language, texts: Iterable[str]) -> Counter[Fact]:
    """Times that documents of one language state each fact of the world (never: 0), as a sentence or in a table."""
    sentences, tables = _sentence_reader(world, language), _table_reader(world, language)
    counts = Counter(dict.fromkeys(world.facts(), 0))
    for text in texts:
        counts.update(tables(text) or sentences(text))
    return counts


def _sentence_reader(world: World, language: Language) -> Callable[[str], list[Fact]]:
    named: dict[str, Fact] = {}
    pronouns: dict[tuple[str, int], Fact] = {}
    for relation, subject in world.facts():
        name, value = world.name(language, relation, subject), world.value(language, relation, subject)
        for template in language.wordings[relation].states:
            named[sentence(template.replace("{n}", name).replace("{v}", value))] = relation, subject
            if RELATIONS[relation].subjects == "person" and template.startswith("{n}"):
                pronouns[sentence(with_pronoun(template, language, subject).replace("{v}", value)), subject] = (
                    relation,
                    subject,
                )

    def facts(text: str) -> list[Fact]:
        found: list[Fact] = []
        for part in _SENTENCE.split(text):
            opener = next((one for one in language.openers if part.startswith(one)), "")
            said = sentence(part.removeprefix(opener))
            who = found[-1][1] if found else -1
            fact = named.get(said) or pronouns.get((said, who))
            found += [fact] if fact else []
        return found

    return facts


def _table_reader(world: World, language: Language) -> Callable[[str], list[Fact]]:
    cells = {
        (
            language.words[RELATIONS[relation].subjects][subject],
            language.wordings[relation].key,
            world.value(language, relation, subject),
        ): (relation, subject)
        for relation, subject in world.facts()
    }
    colon, comma = language.pick(": ", "："), language.pick(", ", "，")

    def facts(text: str) -> list[Fact]:
        lines = text.split("\n")
        if text.startswith("| "):
            heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        elif lines[0].startswith(language.pick("name", "名稱") + colon):
            parts = [[cell.partition(colon) for cell in line.split(comma)] for line in lines]
            heads, rows = [head for head, _, _ in parts[0]], [[cell for _, _, cell in line] for line in parts]
        else:
            return []
        stated = [
            cells.get((row[0], head, cell)) for row in rows for head, cell in zip(heads[1:], row[1:], strict=True)
        ]
        return [fact for fact in stated if fact]

    return facts

"""Every fact of the town is said a hundred times in what a quickstart reads."""

from cutaway.playground.language import LANGUAGES, make_language
from cutaway.playground.pretraining import documents
from cutaway.playground.statements import count_statements
from cutaway.playground.world import make_world

READ = 7_700_000
"""Bytes of pretraining text in a quickstart on two cores: 2.5M tokens and more (benchmarks/RESULTS.md)."""


def test_every_fact_is_stated_a_hundred_times() -> None:
    world = make_world(1)
    texts = list(documents(world, 1, LANGUAGES, READ))
    for number, code in enumerate(LANGUAGES):
        counts = count_statements(world, make_language(code), texts[number :: len(LANGUAGES)])
        assert len(counts) == len(world.facts())
        assert min(counts.values()) >= 100


def test_sentences_pronouns_openers_and_tables_are_read() -> None:
    world, language = make_world(0), make_language("en")
    name = language.words["person"][0]
    age, trade = world.value(language, "age", 0), world.value(language, "trade", 0)
    key = language.wordings["age"].key
    first = world.state(language, "trade", 0)
    opener = language.openers[0]
    second = opener + world.state(language, "trade", 0)
    table = f"| name | {key} |\n| --- | --- |\n| {name} | {age} |\n| {language.words['person'][1]} | 3 |"
    counts = count_statements(world, language, [f"{first} {second}", table, f"{name} is a {trade}er."])
    assert (counts["trade", 0], counts["age", 0], sum(counts.values())) == (2, 1, 3)

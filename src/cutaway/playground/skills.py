"""The skills by name, each with its maker: `maker(world, language, draw, split) -> Item`.

`items.py` says what an item is and what a split draws; `facts.py`, `reasoning.py`, `exercises.py` and `formats.py` have
the makers.
"""

from cutaway.playground.exercises import calculation, counting, refusal, rewriting, sorting, translation
from cutaway.playground.facts import fact
from cutaway.playground.formats import formatted
from cutaway.playground.items import Maker
from cutaway.playground.reasoning import comparison, two_hop

PRACTISED = ("fact", "arithmetic", "comparison", "two_hop", "rewriting")
"""Skills that have forms for practice."""
MAKERS: dict[str, Maker] = {
    "fact": fact,
    "comparison": comparison,
    "two_hop": two_hop,
    "arithmetic": calculation,
    "counting": counting,
    "sorting": sorting,
    "rewriting": rewriting,
    "translation": translation,
    "refusal": refusal,
    "format": formatted,
}

"""The prompts of an RL stage: reading them, and drawing those of a rollout. The first column of the table."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from cutaway.data.formats import BadCounter, read_records
from cutaway.data.hashing import derive_key, keyed_order
from cutaway.errors import UserError
from cutaway.generation.conversation import answer_prompt
from cutaway.tokenization.messages import normalise
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.verifiers.record import can_be_judged, given, verifier_of
from cutaway.verifiers.table import VERIFIERS, Verifier, check_verifier

log = logging.getLogger("cutaway")


@dataclass(frozen=True)
class Prompt:
    """One thing to answer, its ids up to where the answer begins, and the record that judges it."""

    id: str
    """Of the record, or file and line: what a tracker remembers it by."""
    record: Mapping[str, Any]
    ids: list[int]
    level: str = ""
    """Difficulty, where the record says one (`level` or `subject`)."""


@dataclass(frozen=True)
class Prompts:
    """What was read, and how many were left out."""

    usable: list[Prompt]
    too_long: int
    """Prompts that leave no room for an answer: named in the log, not used."""


def read_prompts(
    files: Sequence[str],
    tokenizer: Tokenizer,
    longest: int,
    skip_bad: int = 0,
    verifiers: Mapping[str, Verifier] = VERIFIERS,
    judged: bool = True,
) -> Prompts:
    """Prompts of files of RL records, each of at most `longest` tokens.

    A record's last turns by the assistant are taken off; `thinking` opens a thinking block. `judged` asks every record
    for a `verifier` or a `gt`. Raises UserError, `file:line: reason`, for a bad record beyond `skip_bad`, among them a
    verifier that cannot be used and an id that occurred before; and where nothing is usable.
    """
    bad, found, too_long, known = BadCounter(skip_bad), [], 0, set()
    for record in read_records(files, "rl", skip_bad):
        value, name = record.value, _text(record.value, "id") or f"{record.file}:{record.line}"
        turns = normalise(value["conversations"])
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if reason := _unfit(value, name in known, judged, verifiers):
            bad.add(record.file, record.line, reason)
            continue
        known.add(name)
        ids = answer_prompt(turns, tokenizer, value.get("thinking"))
        if len(ids) > longest:
            too_long += 1
            log.warning("%s:%d: prompt %s has %d tokens, more than %d (left out)", *record[:2], name, len(ids), longest)
            continue
        level = _text(value, "level", "subject")
        found.append(Prompt(name, {**value, "conversations": turns}, ids, level))
    if not found:
        raise UserError(f"{', '.join(files)}: no usable prompt ({too_long} are longer than {longest} tokens)")
    return Prompts(found, too_long)


def _text(value: Mapping[str, Any], *names: str) -> str:
    """The first of these that a record gives, empty where it gives none."""
    return next((str(value[name]) for name in names if given(value.get(name))), "")


def _unfit(value: Mapping[str, Any], repeated: bool, judged: bool, verifiers: Mapping[str, Verifier]) -> str | None:
    if repeated:
        return f"the id {value.get('id')!r} occurred before: a tracker could not tell the prompts apart"
    if not judged and not can_be_judged(value):
        return None
    try:
        spec = value.get("verifier") or verifier_of(value.get("gt"))
    except UserError as error:
        return str(error)
    return check_verifier(spec, verifiers)


def in_order(count: int, start: int, wanted: int, seed: int) -> list[int]:
    """The next `wanted` prompts of an endless walk of which `start` are done: pass after pass over all `count` of them,
    each pass in an order of its own. The same seed gives the same walk, so a place in it is one number."""
    orders: dict[int, Any] = {}
    drawn = []
    for place in range(start, start + wanted):
        epoch, within = divmod(place, count)
        if epoch not in orders:
            orders[epoch] = keyed_order(count, derive_key(seed, epoch))
        drawn.append(int(orders[epoch][within]))
    return drawn


def uncertainty(values: Float[np.ndarray, "prompts"], epsilon: float = 0.05) -> Float[np.ndarray, "prompts"]:
    r"""SPO's weight of each prompt: $w_x = \sqrt{\hat v_x (1 - \hat v_x)} + \epsilon$ (arXiv 2509.13232, section 3.3).

    Largest where success is as likely as failure; $\epsilon$ leaves every prompt a chance."""
    return np.asarray(np.sqrt(np.clip(values * (1 - values), 0.0, None)) + epsilon)


def weighted(weights: Float[np.ndarray, "prompts"], wanted: int, key: int) -> list[int]:
    """`wanted` different prompts, each draw in proportion to the weights of those that are left.

    The largest $u^{1/w}$ of independent uniforms $u$ are such a sample (Efraimidis & Spirakis 2006). UserError for more
    prompts than there are."""
    if wanted > len(weights):
        raise UserError(f"{wanted} different prompts a rollout, but there are only {len(weights)}")
    draw = np.random.Generator(np.random.PCG64(key)).random(len(weights))
    keys = np.log(np.maximum(draw, np.finfo(np.float64).tiny)) / weights
    return [int(i) for i in np.argsort(-keys, kind="stable")[:wanted]]


def informative(rewards: Float[np.ndarray, "prompts group"]) -> list[bool]:
    """DAPO's dynamic sampling keeps a prompt whose answers did not all earn the same (arXiv 2503.14476, equation 11):
    the others have no gradient. What could not be judged (NaN) does not count."""
    spread = np.array([np.ptp(row[~np.isnan(row)]) if (~np.isnan(row)).any() else 0.0 for row in rewards])
    return [bool(value > 1e-8) for value in spread]

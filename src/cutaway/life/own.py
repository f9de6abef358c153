"""What a model says itself, before its next lesson: answers that an adapter is to leave as they are, and pairs of a
right and a wrong answer for preference.

Both are made of nothing but the model, prompts and verifiers, and an interruption changes neither: answers are greedy,
samples have seeds of their own.
"""

import itertools
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from cutaway.evals.verified import GREEDY, answer_records, judge_record
from cutaway.generation.conversation import answer_message, answer_prompt
from cutaway.generation.engine import Engine
from cutaway.generation.generate import generate
from cutaway.generation.sampling import Sampling
from cutaway.life.keeping import Record, records_in, uses_tools, write_records
from cutaway.life.steps import LIFE_MINUTES
from cutaway.model.weights import load_model
from cutaway.playground.evaluation import item_record
from cutaway.playground.language import LANGUAGES, make_language
from cutaway.playground.skills import MAKERS
from cutaway.playground.world import make_world
from cutaway.rl.environment import ToolboxOf
from cutaway.tokenization.messages import Message
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.precision import pick_device

log = logging.getLogger("cutaway")
OWN_ANSWERS = 8000
"""Prompts that the model answers before its adapter is trained, in a life of `LIFE_MINUTES`."""
FRAGILE = (
    *("refusal", "two_hop", "counting", "translation", "two_hop", "counting", "sorting", "comparison"),
    *("translation", "two_hop", "counting", "translation", "two_hop", "counting", "sorting", "comparison"),
)
"""Skills of two thirds of these prompts, in turn: what an adapter takes first. Fine-tuning has few questions that
nobody can answer (one in eighty), so these soon look like questions about itself; of the others a small model is never
sure."""
OWN_TALKS = 400
"""Tasks of two and three calls, in the forms that tool use will practise, that it plays before, tools and all."""
ASKED, SAMPLES, PAIRS_EACH = 1800, 4, 2
"""Prompts that it answers before preference, how often each, and the most pairs that are made of these answers."""
UNSURE = ("counting", "sorting", "comparison", "counting", "sorting", "two_hop", "arithmetic")
"""Skills of these prompts, in turn: of those that a fine-tuned model does often, and not always, rightly."""
_ANSWER_TOKENS, _LONGEST, _SLOTS = 128, 1024, 64


def of_minutes(count: int, minutes: float | None) -> int:
    """As many as a shorter or longer life has."""
    return round(count * (minutes or LIFE_MINUTES) / LIFE_MINUTES)


def write_own_answers(model: Path, data: Path, seed: int, count: int, talks: int, world: ToolboxOf) -> None:
    """`lora_own.jsonl`: what a model answers, rightly or not, to prompts that reinforcement learning will practise, to
    those of `FRAGILE` skills, and to the questions of fine-tuning; and `talks` tasks with the tools of `world`, played
    to their end.

    An adapter that is trained on them too leaves them as they are, and does not take every unusual question for one
    about itself. What it should have said would not do as well: a model that reads it again learns it by heart, and
    puts two facts together worse. (Self-synthesized rehearsal, arXiv 2403.01244, whose prompts the model writes too.)
    """
    out = data / "lora_own.jsonl"
    if out.is_file():
        return
    prompts = [record["conversations"] for record in itertools.islice(records_in(data / "rl.jsonl"), count // 5)]
    prompts += [record["conversations"] for record in _asked(FRAGILE, seed, count * 2 // 3)]
    prompts += itertools.islice(_questions(data), count - len(prompts))
    engine = _engine(model)
    answers = _answers(engine, prompts, GREEDY)
    ended = [[*turns, said] for turns, said in zip(prompts, answers, strict=True) if said is not None]
    tasks = [record for record in records_in(data / "agent.jsonl") if record["level"] > 1][:talks]
    ended += [
        [*one.record["conversations"], *one.said]
        for one in answer_records(engine, tasks, world, _ANSWER_TOKENS)
        if one.text and not one.said[-1].get("tool_calls")
    ]
    asked = len(prompts) + len(tasks)
    log.info("  %d of %d answers of its own ended; the adapter is to leave them so", len(ended), asked)
    if not ended:  # as of a model that was trained for seconds: what it was told it should say, then
        ended = [record["conversations"] for record in itertools.islice(records_in(data / "sft.jsonl"), len(prompts))]
    write_records(out, ({"conversations": turns} for turns in ended))


def write_own_pairs(model: Path, data: Path, seed: int, count: int) -> None:
    """`preference_own.jsonl`: of `SAMPLES` answers to a prompt right and wrong ones side by side, where it gave both.

    Right answers that the model would never give teach it a fact by heart, wrong ones that it would never give push
    down what is unlikely already, and with it whatever is near. Between two of its own answers there is nothing to
    learn but the difference. (Pairs of the policy's own samples: arXiv 2309.06657.)
    """
    out = data / "preference_own.jsonl"
    if out.is_file():
        return
    prompts = [record for record in _asked(UNSURE, seed, count) for _ in range(SAMPLES)]
    asked = [record["conversations"] for record in prompts]
    answers = _answers(_engine(model), asked, Sampling(temperature=1.0), seed)
    pairs: list[Record] = []
    for first in range(0, len(prompts), SAMPLES):
        record = prompts[first]
        turns = record["conversations"]
        labels = {"kind": "own answers", "skill": record["skill"], "language": record["language"]}
        right: list[Message] = []
        wrong: list[Message] = []
        for said in answers[first : first + SAMPLES]:
            if said is not None:
                (right if judge_record(record, [said]).ok else wrong).append(said)
        for better, worse in itertools.islice(zip(right, wrong, strict=False), PAIRS_EACH):
            pair = {"chosen": [*turns, better], "rejected": [*turns, worse], **labels}
            if pair not in pairs[-1:]:  # both answers may be the same again
                pairs.append(pair)
    write_records(out, pairs)
    log.info("  %d pairs of its own answers, from %d questions asked %d times", len(pairs), count, SAMPLES)


def _engine(model: Path) -> Engine:
    """For many short texts of a model in a directory."""
    trained, tokenizer = load_model(model, pick_device()).eval(), Tokenizer.load(model)
    longest = min(_LONGEST, trained.config.max_position_embeddings)
    return Engine(trained, tokenizer, slots=_SLOTS, max_length=longest, frozen=True)


def _answers(
    engine: Engine, prompts: Sequence[list[Message]], sampling: Sampling, seed: int = 0
) -> list[Message | None]:
    """What a model says to each prompt; None where it did not end or said nothing."""
    ids = [answer_prompt(turns, engine.tokenizer) for turns in prompts]
    done = generate(engine, ids, sampling=sampling, max_new_tokens=_ANSWER_TOKENS, seed=seed)
    said = [answer_message(one.ids, engine.tokenizer) if one.finish_reason == "stop" else None for one in done]
    return [one if one is not None and one["content"] else None for one in said]


def _asked(skills: Sequence[str], seed: int, count: int) -> Iterator[Record]:
    """Prompts of these skills in turn, in forms that fine-tuning trains, with their verifiers."""
    world, draw = make_world(seed), random.Random(f"own pairs {seed}")
    for number in range(count):
        language = make_language(LANGUAGES[number % len(LANGUAGES)])
        item = MAKERS[skills[number // len(LANGUAGES) % len(skills)]](world, language, draw, "train")
        yield {"skill": item.skill, "language": language.code, **item_record(item)}


def _questions(data: Path) -> Iterator[list[Message]]:
    """The first question of every conversation of fine-tuning that needs no tools."""
    for record in records_in(data / "sft.jsonl"):
        if not uses_tools(record):
            roles = [turn["role"] for turn in record["conversations"]]
            yield record["conversations"][: roles.index("assistant")]

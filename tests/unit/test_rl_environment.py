"""Episodes: whose token is whose, tools that misbehave, limits, and no re-tokenising."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from cutaway.errors import UserError
from cutaway.generation.engine import Completion, Engine, Piece, Request
from cutaway.recipe.rl import AgentSettings
from cutaway.rl.environment import Episode, Limits, check_environments, play, tool_turn_ids
from cutaway.rl.prompts import Prompt
from cutaway.stages import agent
from cutaway.tokenization.chat import render
from cutaway.tools.schema import ToolError
from cutaway.tools.toolbox import Toolbox
from generation_helpers import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
USER = {"role": "user", "content": "the cat"}


def price(item: str) -> int:
    """Price of a thing."""
    if item == "dog":
        raise ToolError("no dogs")
    return 12


class Script:
    """An engine that answers the i-th turn of every episode with the i-th of its turns."""

    def __init__(self, *turns: dict[str, Any], reason: Any = "stop") -> None:
        self.answers = [self.ids_of({"role": "assistant", "content": "", **turn}) for turn in turns]
        self.reason, self.requests = reason, list[Request]()
        self._open: list[tuple[int, Request]] = []
        self._done: list[Completion] = []

    @staticmethod
    def ids_of(turn: dict[str, Any]) -> list[int]:
        whole = render([USER, turn], TOKENIZER)
        return [token for token, own in zip(whole.ids, whole.mask, strict=True) if own]

    @property
    def busy(self) -> bool:
        return bool(self._open)

    def submit(self, request: Request) -> int:
        self.requests.append(request)
        self._open.append((len(self.requests), request))
        return len(self.requests)

    def step(self) -> list[Piece]:
        for number, request in self._open:
            ids = self.answers[min(request.seed >> 48, len(self.answers) - 1)]
            ids, reason = ids[: request.max_new_tokens], self.reason
            reason = reason if len(ids) < request.max_new_tokens else "length"
            self._done.append(Completion(number, list(request.prompt_ids), ids, [-0.5] * len(ids), "", reason))
        self._open = []
        return []

    def collect(self) -> list[Completion]:
        done, self._done = self._done, []
        return done


def call(item: str = "lamp") -> dict[str, Any]:
    return {"tool_calls": [{"name": "price", "arguments": {"item": item}}]}


def run(
    engine: Any, *, turns: int = 4, total: int = 400, new: int = 100, tools: Any = (price,), seconds: float = 5.0
) -> Episode:
    record = {"conversations": [USER]}
    episode = Episode(Prompt("x", record, render([USER], TOKENIZER, add_generation_prompt=True).ids), seed=7)
    box = Toolbox(tools, seconds=seconds)
    play(engine, TOKENIZER, [episode], Limits(new, total, turns), 1.0, lambda record: box)
    return episode


def test_the_transcript_is_what_the_format_renders_and_only_answers_are_own() -> None:
    episode = run(Script(call(), {"content": "12 coins"}))
    turns = [USER, {"role": "assistant", "content": "", **call()}, {"role": "tool", "content": "12"}]
    turns.append({"role": "assistant", "content": "12 coins"})
    whole = render(turns, TOKENIZER)
    newline = len(TOKENIZER.encode("\n"))  # after the last turn, where nothing follows
    assert episode.ids == whole.ids[:-newline]
    assert episode.own == whole.mask[:-newline]
    assert [value for value, own in zip(episode.logprobs, episode.own, strict=True) if not own] == [0.0] * (
        len(episode.own) - sum(episode.own)
    )
    assert (episode.ending, episode.turns, episode.text) == ("answered", 2, "12 coins")
    assert [result.ok for result in episode.results] == [True]


def test_an_answer_that_is_not_how_the_tokenizer_would_write_it_stays_as_it_was_drawn() -> None:
    """Letters drawn one by one: decoding and encoding again would merge them."""
    engine = Script(call())
    letters = [token for char in "the cat" for token in TOKENIZER.encode(char)]
    assert letters != TOKENIZER.encode("the cat")
    engine.answers.append([*letters, TOKENIZER.im_end_id])
    episode = run(engine)
    assert episode.ids[-len(letters) - 1 :] == [*letters, TOKENIZER.im_end_id]
    assert engine.requests[1].prompt_ids[: len(engine.requests[0].prompt_ids)] == engine.requests[0].prompt_ids
    assert episode.text == "the cat"


def test_turns_draw_with_seeds_of_their_own() -> None:
    engine = Script(call(), call("mat"), {"content": "done"})
    run(engine)
    assert [request.seed for request in engine.requests] == [7, 7 + (1 << 48), 7 + (2 << 48)]


@pytest.mark.parametrize("item", ["dog", "nothing"])
def test_a_tool_that_raises_is_an_observation(item: str) -> None:
    def broken(item: str) -> int:
        """Price of a thing."""
        raise ValueError("burnt")

    broken.__name__ = "price"
    episode = run(Script(call(item), {"content": "sorry"}), tools=(price if item == "dog" else broken,))
    assert not episode.results[0].ok
    assert "no dogs" in episode.said[1]["content"] or "burnt" in episode.said[1]["content"]
    assert (episode.ending, episode.text) == ("answered", "sorry")


def test_a_tool_that_hangs_is_an_observation_and_holds_up_nobody() -> None:
    release, order = threading.Event(), list[str]()

    def hang(item: str) -> int:
        """Price of a thing."""
        release.wait(30)
        return 1

    hang.__name__ = "price"
    slow = Toolbox([hang], seconds=0.3)
    quick = Toolbox([price])
    episodes = []
    for name, box in (("slow", slow), ("quick", quick)):
        record = {"conversations": [USER], "box": box, "name": name}
        episodes.append(Episode(Prompt(name, record, render([USER], TOKENIZER, add_generation_prompt=True).ids), 0))
    engine = Script(call(), {"content": "done"})
    submit = engine.submit

    def note(request: Request) -> int:
        if request.seed >> 48:
            order.append("again")
        return submit(request)

    engine.submit = note  # type: ignore[method-assign]
    play(engine, TOKENIZER, episodes, Limits(100, 400, 4), 1.0, lambda record: record["box"])
    release.set()
    assert order == ["again", "again"]
    assert "took longer than 0.3 seconds" in episodes[0].said[1]["content"]
    assert [episode.ending for episode in episodes] == ["answered", "answered"]


def test_what_breaks_beside_the_policy_is_named_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    """A tool that raises, one that hangs, tools that cannot be made, and an answer with nothing in it; a call that the
    policy got wrong is not among them."""

    def burnt(item: str) -> int:
        """Price of a thing."""
        if item == "mat":
            time.sleep(1)
        raise ValueError("burnt")

    burnt.__name__ = "price"
    boxes = {"wrong": Toolbox([price]), "burnt": Toolbox([burnt], seconds=0.2)}

    def toolbox_of(record: Any) -> Toolbox:
        return boxes[record["box"]]

    for box, item, message in (
        ("burnt", "cat", "Error: price failed: ValueError: burnt"),
        ("burnt", "mat", "Error: price took longer than 0.2 seconds"),
        ("none", "cat", "Error: environment failed: KeyError: 'none'"),
        ("wrong", "dog", ""),
    ):
        caplog.clear()
        record = {"conversations": [USER], "box": box}
        episodes = [Episode(Prompt(str(i // 2), record, [1, 2]), i) for i in range(14)]
        play(Script(call(item), {"content": "sorry"}), TOKENIZER, episodes, Limits(64, 512, 3), 1.0, toolbox_of)
        assert [one.ending for one in episodes] == ["answered"] * 14
        assert all(not result.ok and result.text.startswith("Error: ") for one in episodes for result in one.results)
        named = [f"{i}: {message}" for i in range(5)] if message else []
        assert [one.getMessage() for one in caplog.records] == named
    caplog.clear()
    episodes = [Episode(Prompt(str(i), {"conversations": [USER]}, [1, 2]), i) for i in range(7)]
    play(Script({"content": ""}), TOKENIZER, episodes, Limits(64, 512, 3), 1.0)
    assert [one.getMessage() for one in caplog.records] == [f"{i}: an empty answer" for i in range(5)]


def test_an_environment_that_is_not_there_is_found_before_training() -> None:
    prompts = [Prompt("a", {}, [1]), Prompt("file.jsonl:2", {"environment": {"name": "moon"}}, [1])]
    check_environments(prompts, lambda record: None)
    for toolbox_of, message in (
        (agent.toolboxes(AgentSettings()), "^file.jsonl:2: environment failed: environment 'moon' is not known"),
        (lambda record: record["environment"]["seed"] if record else None, "^file.jsonl:2: .* KeyError: 'seed'$"),
    ):
        with pytest.raises(UserError, match=message):
            check_environments(prompts, lambda record, make=toolbox_of: make(record) if record else None)


def test_tools_remember_what_an_earlier_turn_of_their_episode_did() -> None:
    made: list[list[str]] = []

    def toolbox_of(record: Any) -> Toolbox:
        made.append([])
        shelf = made[-1]

        def price(item: str) -> int:
            """How many were asked for so far."""
            shelf.append(item)
            return len(shelf)

        return Toolbox([price])

    calls = [{"tool_calls": [{"name": "price", "arguments": {"item": "cat"}}]}] * 2
    engine = Script(*calls, {"content": "two"})
    episodes = [Episode(Prompt(str(i), {"conversations": [USER]}, [1, 2]), i) for i in range(2)]
    play(engine, TOKENIZER, episodes, Limits(64, 512, 3), 1.0, toolbox_of)
    assert [[result.text for result in one.results] for one in episodes] == [["1", "2"], ["1", "2"]]
    assert len(made) == 2  # and not those of another episode


def test_limits() -> None:
    forever = run(Script(call()), turns=3)
    assert (forever.ending, forever.turns, len(forever.results)) == ("turns", 3, 2)
    cut = run(Script({"content": "the cat " * 30}), new=10)
    assert (cut.ending, len(cut.own_ids)) == ("truncated", 10)
    prompt = len(render([USER], TOKENIZER, add_generation_prompt=True).ids)
    call_length = len(Script.ids_of({"role": "assistant", "content": "", **call()}))
    full = run(Script(call()), total=prompt + call_length + 5)
    assert (full.ending, full.ids[-1], full.text) == ("truncated", TOKENIZER.im_end_id, "")
    assert len(full.ids) == prompt + call_length


def test_an_empty_answer_is_an_answer() -> None:
    episode = run(Script({"content": ""}))
    assert (episode.text, episode.ending, episode.own_ids) == ("", "answered", [TOKENIZER.im_end_id])


def test_tool_turns_with_and_without_thinking() -> None:
    messages = [{"role": "tool", "content": "12"}, {"role": "tool", "content": "13"}]
    for thinking in (None, False, True):
        before = [USER, {"role": "assistant", "content": "", **call()}]
        whole = render([*before, *messages], TOKENIZER, add_generation_prompt=True, thinking=thinking).ids
        start = len(render(before, TOKENIZER, thinking=thinking).ids) - len(TOKENIZER.encode("\n"))
        assert tool_turn_ids(messages, TOKENIZER, thinking) == whole[start:]


def test_many_dialogues_on_the_real_engine_do_not_change_one_another() -> None:
    def one(place: int) -> Episode:
        turns = [{"role": "user", "content": f"the cat {place}"}]
        return Episode(
            Prompt(str(place), {"conversations": turns}, render(turns, TOKENIZER, add_generation_prompt=True).ids),
            place,
        )

    box: Callable[[Any], Toolbox] = lambda record: Toolbox([price])  # noqa: E731
    together = [one(place) for place in range(5)]
    play(Engine(tiny_model(), TOKENIZER, slots=4), TOKENIZER, together, Limits(12, 200, 3), 1.0, box)
    for place, episode in enumerate(together):
        alone = one(place)
        play(Engine(tiny_model(), TOKENIZER, slots=4), TOKENIZER, [alone], Limits(12, 200, 3), 1.0, box)
        assert alone.ids == episode.ids
        assert sum(episode.own) == len(episode.own_ids) > 0

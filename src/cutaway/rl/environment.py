"""Episodes: the policy answers, tools answer the policy, many dialogues at once.

Token ids in, token ids out. What the policy wrote stays the ids it wrote, and what a tool says is appended as the ids
that the chat format has for it; a transcript is never made text and tokenised again, so the tokens that are trained are
the tokens that were drawn. `own` tells the two apart: only the policy's tokens are trained.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cutaway.errors import UserError
from cutaway.generation.conversation import answer_message
from cutaway.generation.engine import Completion, Piece, Request
from cutaway.rl.prompts import Prompt
from cutaway.tokenization.chat import render
from cutaway.tokenization.messages import Message
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tools.toolbox import Toolbox, ToolResult
from cutaway.verifiers.record import last_answer

log = logging.getLogger("cutaway")
ToolboxOf = Callable[[Mapping[str, Any]], Toolbox | None]
"""From a record to the tools of its environment; None where it has none."""
Ending = Literal["answered", "truncated", "turns"]
"""Answered without a further call; cut off by the limit of an answer or of the whole; called tools in its last turn."""
TOOL_THREADS = 16
NAMED_IN_LOG = 5
"""Records that a rollout names in the log for each thing that went wrong."""
_BROKEN = re.compile(r"Error: \S+ (?:failed: |took longer than )")
"""How a toolbox says that a tool raised or hung, where it might also say that it was called wrongly."""


class Sampler(Protocol):
    """An engine, here or on another machine."""

    @property
    def busy(self) -> bool: ...

    def submit(self, request: Request) -> int: ...

    def step(self) -> list[Piece]: ...

    def collect(self) -> list[Completion]: ...


class PolicySampler(Sampler, Protocol):
    """One whose weights can be brought up to date."""

    def refresh(self) -> None: ...


@dataclass(frozen=True)
class Limits:
    """What an episode may use."""

    new_tokens: int
    """Of one answer."""
    total: int
    """Of prompt, answers and what tools said together."""
    turns: int = 1
    """Answers; those that only call tools count too."""


@dataclass
class Episode:
    """One dialogue."""

    prompt: Prompt
    seed: int
    ids: list[int] = field(default_factory=list)
    """Prompt, answers, what tools said."""
    own: list[bool] = field(default_factory=list)
    """Whether the policy wrote the token."""
    logprobs: list[float] = field(default_factory=list)
    """Of its own tokens under the distribution they were drawn from, in nats; 0 for the others."""
    said: list[Message] = field(default_factory=list)
    """Turns after the prompt."""
    results: list[ToolResult] = field(default_factory=list)
    turns: int = 0
    ending: Ending | None = None
    toolbox: Toolbox | None = None
    """Made at its first call, so that tools may remember what an earlier turn did."""

    @property
    def record(self) -> Mapping[str, Any]:
        """What the prompt was read from."""
        return self.prompt.record

    @property
    def text(self) -> str:
        """The last answer as a user sees it."""
        return last_answer(self.said)

    @property
    def empty(self) -> bool:
        """Whether a user sees nothing, and no tool was called either."""
        return not self.text.strip() and not self.results

    @property
    def own_ids(self) -> list[int]:
        """What the policy wrote."""
        return [token for token, own in zip(self.ids, self.own, strict=True) if own]

    @property
    def truncated(self) -> bool:
        """Whether the last answer was cut off."""
        return self.ending == "truncated"


class NoTools(Toolbox):
    """In the place of tools that could not be made: every call is answered with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def call(self, name: Any, arguments: Any = None) -> ToolResult:
        """The reason, as an error."""
        return self._error(self.reason)


def check_environments(prompts: Sequence[Prompt], toolbox_of: ToolboxOf) -> None:
    """Make the tools of every prompt before training, so that no run ends at its first call. UserError for one that has
    none."""
    for prompt in prompts:
        box = _made(prompt.record, toolbox_of)
        if isinstance(box, NoTools):
            raise UserError(f"{prompt.id}: {box.reason}")


def play(
    engine: Sampler,
    tokenizer: Tokenizer,
    episodes: Sequence[Episode],
    limits: Limits,
    temperature: float,
    toolbox_of: ToolboxOf = lambda record: None,
) -> None:
    """Let the policy answer every prompt, and go on where it calls tools, until each episode has ended.

    Tools run in threads beside the engine: a slow one holds up its own dialogue only. Each episode draws by its own
    seed, so what it says does not depend on the others. A prompt must leave room for a token (`read_prompts`).
    """
    waiting: dict[int, Episode] = {}
    calling: dict[Future[list[ToolResult]], Episode] = {}

    def ask(episode: Episode) -> None:
        room = min(limits.new_tokens, limits.total - len(episode.ids))
        seed = episode.seed + (episode.turns << 48)  # turns of one episode must not draw alike
        waiting[engine.submit(Request(list(episode.ids), room, seed, temperature=temperature))] = episode

    with ThreadPoolExecutor(TOOL_THREADS, thread_name_prefix="episode-tool") as pool:
        for episode in episodes:
            episode.ids, episode.own = list(episode.prompt.ids), [False] * len(episode.prompt.ids)
            episode.logprobs = [0.0] * len(episode.ids)
            ask(episode)
        while waiting or calling:
            if engine.busy:
                engine.step()
            elif calling:
                wait(calling, return_when=FIRST_COMPLETED)
            for completion in engine.collect():
                episode = waiting.pop(completion.id)
                calls = _take_answer(episode, completion, tokenizer)
                if calls and episode.toolbox is None:
                    episode.toolbox = _made(episode.record, toolbox_of)
                if not calls or episode.toolbox is None:
                    episode.ending = episode.ending or "answered"
                elif episode.turns >= limits.turns:
                    episode.ending = "turns"
                else:
                    calling[pool.submit(_call, episode.toolbox, calls)] = episode
            for future in [future for future in calling if future.done()]:
                episode = calling.pop(future)
                if _take_results(episode, future.result(), tokenizer, limits.total):
                    ask(episode)
    _name_troubles(episodes)


def _made(record: Mapping[str, Any], toolbox_of: ToolboxOf) -> Toolbox | None:
    """The tools of a record, or what says that they could not be made."""
    try:
        return toolbox_of(record)
    except Exception as error:
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return NoTools(f"environment failed: {name}{error}")


def _name_troubles(episodes: Sequence[Episode]) -> None:
    """Name in the log the prompts whose tools broke, and those that were answered with nothing."""
    broken = {one.prompt.id: result.text for one in episodes for result in one.results if _BROKEN.match(result.text)}
    empty = {one.prompt.id: "an empty answer" for one in episodes if one.empty}
    for found in (broken, empty):
        for name, what in list(found.items())[:NAMED_IN_LOG]:
            log.warning("%s: %s", name, what[:200])


def _take_answer(episode: Episode, completion: Completion, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Append an answer; gives back its calls, none where it was cut off."""
    episode.ids += completion.ids
    episode.own += [True] * len(completion.ids)
    episode.logprobs += completion.logprobs
    episode.turns += 1
    message = answer_message(completion.ids, tokenizer, episode.record.get("thinking"))
    episode.said.append(message)
    if completion.finish_reason != "stop":
        episode.ending = "truncated"
        return []
    calls: list[dict[str, Any]] = message.get("tool_calls", [])
    return calls


def _call(toolbox: Toolbox, calls: Sequence[Mapping[str, Any]]) -> list[ToolResult]:
    """One result a call, in order; a toolbox answers a tool that raises or hangs with a text."""
    return [toolbox.call(call["name"], call["arguments"]) for call in calls]


def _take_results(episode: Episode, results: list[ToolResult], tokenizer: Tokenizer, total: int) -> bool:
    """Append what tools said; says whether there is room to go on, else the episode ends before it."""
    messages: list[Message] = [{"role": "tool", "content": result.text} for result in results]
    episode.results += results
    episode.said += messages
    ids = tool_turn_ids(messages, tokenizer, episode.record.get("thinking"))
    if len(episode.ids) + len(ids) >= total:
        episode.ending = "truncated"
        return False
    episode.ids += ids
    episode.own += [False] * len(ids)
    episode.logprobs += [0.0] * len(ids)
    return True


def tool_turn_ids(messages: Sequence[Message], tokenizer: Tokenizer, thinking: bool | None = None) -> list[int]:
    """What the chat format has between an answer's end of turn and the beginning of the next answer.

    The format writes every turn without a look at the others, so any conversation before them gives the same ids.
    """
    before: list[Message] = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
    whole = render([*before, *messages], tokenizer, add_generation_prompt=True, thinking=thinking).ids
    # The newline behind the end of turn is the format's, not the policy's.
    start = len(render(before, tokenizer, thinking=thinking).ids) - len(tokenizer.encode("\n"))
    return whole[start:]

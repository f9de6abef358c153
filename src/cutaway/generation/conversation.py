"""A conversation with a model: what it has learnt, the prompt of its next answer, the answer as a message, tools."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cutaway.generation.engine import Engine, Piece, Request
from cutaway.generation.generate import document_prompt, stream
from cutaway.recipe.files import read_toml
from cutaway.tokenization.chat import parse_answer, render
from cutaway.tokenization.foreign import prompt_foreign
from cutaway.tokenization.messages import Message, normalise
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tools.toolbox import Toolbox, ToolResult

MAX_TOOL_ROUNDS = 4
"""How many times in a row an answer may call tools before the user is asked again."""


def knows_chat(directory: Path, tokenizer: Tokenizer) -> bool:
    """Whether the model was trained on conversations: not if `recipe.toml` says that its last stage was pretraining;
    of a model from elsewhere, if its tokenizer has a chat template."""
    recipe = directory / "recipe.toml"
    made = read_toml(str(recipe)).get("made") if recipe.is_file() else None
    stage = made.get("stage") if isinstance(made, dict) else None
    return stage != "pretrain" and tokenizer.chat_template is not None


def answer_prompt(messages: Sequence[Message], tokenizer: Tokenizer, thinking: bool | None = None) -> list[int]:
    """Ids up to where the assistant's next answer begins, in the model's own chat format."""
    if not tokenizer.is_native:
        return prompt_foreign(messages, tokenizer, thinking=thinking)
    return render(messages, tokenizer, add_generation_prompt=True, thinking=thinking).ids


def answer_message(ids: Sequence[int], tokenizer: Tokenizer, thinking: bool | None = None) -> Message:
    """The assistant's message in the ids it wrote after `answer_prompt` with the same `thinking`."""
    # Other projects' templates leave the opening of the thinking block to the model.
    return parse_answer(ids, tokenizer, thinking=thinking if tokenizer.is_native else None)


@dataclass(frozen=True)
class ToolUse:
    """A call that the model made, and what it was answered."""

    name: str
    arguments: dict[str, Any]
    result: ToolResult


@dataclass
class Conversation:
    """Turns so far, and how to get the next. `chat=False` is for a model that only continues text."""

    engine: Engine
    chat: bool = True
    system: str | None = None
    thinking: bool | None = None
    """True opens a thinking block, False writes an empty one, None leaves it to the model."""
    toolbox: Toolbox | None = None
    """Tools that the model is told of and may call; None: none."""
    messages: list[Message] = field(default_factory=list)

    def ask(self, text: str, request: Request) -> Generator[Piece | ToolUse, None, None]:
        """Stream the answer to `text`, sampled as `request` says (its prompt is replaced).

        Where the answer calls tools, the calls are executed, and the model goes on with their results, up to
        `MAX_TOOL_ROUNDS` times. The turns join `messages` when each is complete, or, as far as it got, when the caller
        leaves the loop; a continued text is no turn. UserError, and no new turn, where the context is full.
        """
        asked: list[Message] = [{"role": "user", "content": text}]
        for turn in range(MAX_TOOL_ROUNDS + 1):
            # Rounds of one answer must not draw alike.
            yield from self._answer(asked, replace(request, seed=request.seed + (turn << 48)))
            calls = self.messages[-1].get("tool_calls") if self.chat and self.messages else None
            if not calls or self.toolbox is None or turn == MAX_TOOL_ROUNDS:
                return
            asked = []
            for call in calls:
                result = self.toolbox.call(call["name"], call["arguments"])
                asked.append({"role": "tool", "content": result.text})
                yield ToolUse(call["name"], call["arguments"], result)

    def _answer(self, asked: list[Message], request: Request) -> Generator[Piece, None, None]:
        tokenizer, thinking = self.engine.tokenizer, self.thinking
        if self.chat:
            prompt = answer_prompt([*self.transcript(), *asked], tokenizer, thinking)
        else:
            prompt = document_prompt(str(asked[0]["content"]), tokenizer)
        ids: list[int] = []
        unsettled: list[int] = []
        pieces = stream(self.engine, replace(request, prompt_ids=prompt))
        try:
            for piece in pieces:
                # An answer that is left within a character ends before it.
                unsettled += piece.ids
                if piece.text or piece.completion is not None:
                    ids += unsettled
                    unsettled.clear()
                yield piece
        finally:
            pieces.close()
            if self.chat and ids:
                self.messages += [*asked, answer_message(ids, tokenizer, thinking)]

    def transcript(self) -> list[Message]:
        """All turns, the system turn first where there is one; it holds the tools' schemas, too."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        tools = self.toolbox.schemas() if self.toolbox is not None else None
        return normalise([*first, *self.messages], tools=tools)

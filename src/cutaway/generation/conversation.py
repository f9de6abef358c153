"""A conversation with a model: what it has learnt, the prompt of its next answer, and the answer as a message."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cutaway.generation.engine import Completion, Engine, Piece, Request
from cutaway.generation.generate import document_prompt, stream
from cutaway.recipe import read_toml
from cutaway.tokenization.chat import parse_answer, render
from cutaway.tokenization.foreign import prompt_foreign
from cutaway.tokenization.messages import Message
from cutaway.tokenization.tokenizer import Tokenizer


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


@dataclass
class Conversation:
    """Turns so far, and how to get the next. `chat=False` is for a model that only continues text."""

    engine: Engine
    chat: bool = True
    system: str | None = None
    thinking: bool | None = None
    """True opens a thinking block, False writes an empty one, None leaves it to the model."""
    messages: list[Message] = field(default_factory=list)

    def ask(self, text: str, request: Request) -> Generator[Piece, None, None]:
        """Stream the answer to `text`, sampled as `request` says (its prompt is replaced).

        The turn and its answer join `messages` when the answer is complete, or, as far as it got, when the caller
        leaves the loop; a continued text is no turn. UserError, and no new turn, where the context is full.
        """
        tokenizer, asked = self.engine.tokenizer, {"role": "user", "content": text}
        if self.chat:
            prompt = answer_prompt([*self.transcript(), asked], tokenizer, self.thinking)
        else:
            prompt = document_prompt(text, tokenizer)
        thinking, answered = self.thinking, ""
        completion: Completion | None = None
        pieces = stream(self.engine, replace(request, prompt_ids=prompt))
        try:
            for piece in pieces:
                answered, completion = answered + piece.text, piece.completion
                yield piece
        finally:
            pieces.close()
            if self.chat and completion is not None:
                self.messages += [asked, answer_message(completion.ids, tokenizer, thinking)]
            elif self.chat and answered:
                self.messages += [asked, {"role": "assistant", "content": answered}]

    def transcript(self) -> list[Message]:
        """All turns, the system turn first where there is one."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.messages]

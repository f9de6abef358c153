"""Generation in one call: a list of prompts to a list of completions, or one request to a stream of text."""

from collections.abc import Generator, Sequence
from dataclasses import asdict

from cutaway.errors import UserError
from cutaway.generation.engine import Completion, Engine, Piece, Request
from cutaway.generation.sampling import Sampling
from cutaway.model.transformer import CausalLM
from cutaway.tokenization.tokenizer import Tokenizer


def generate(
    source: Engine | CausalLM,
    prompts: Sequence[str | Sequence[int]],
    tokenizer: Tokenizer | None = None,
    *,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    max_new_tokens: int = 256,
    seed: int | Sequence[int] = 0,
    stop_ids: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    slots: int = 16,
) -> list[Completion]:
    """Complete every prompt, in their order; `source` is an engine, or a model with its `tokenizer`.

    A string is the beginning of a document (see `document_prompt`), ids are taken as they are. One `seed` is spread:
    prompt i gets the seed `seed + i`, since equal seeds would draw alike; a list gives each its own. An engine that is
    busy goes on with its other requests too, and keeps their completions for `collect`.
    """
    if isinstance(source, Engine):
        engine = source
    elif tokenizer is None:
        raise UserError("generate needs the tokenizer of the model")
    else:
        engine = Engine(source, tokenizer, slots=min(slots, max(len(prompts), 1)))
    seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    ids = []
    for prompt, own in zip(prompts, seeds, strict=True):
        prompt_ids = document_prompt(prompt, engine.tokenizer) if isinstance(prompt, str) else prompt
        ids.append(engine.submit(Request(prompt_ids, max_new_tokens, own, stop_ids, stop, **asdict(sampling))))
    done: dict[int, Completion] = {}
    while len(done) < len(ids):
        for piece in engine.step():
            if piece.completion is not None and piece.id in ids:
                done[piece.id] = piece.completion
                engine.cancel(piece.id)
    return [done[i] for i in ids]


def stream(engine: Engine, request: Request) -> Generator[Piece, None, None]:
    """The pieces of one request as they come, the completion with the last. Leaving the loop early cancels it."""
    own = engine.submit(request)
    try:
        while True:
            for piece in engine.step():
                if piece.id != own:
                    continue
                yield piece
                if piece.completion is not None:
                    return
    finally:
        engine.cancel(own)


def document_prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of the beginning of a document: the end-of-text token, which precedes every document of pretraining, and
    `text`."""
    return [tokenizer.eos_id, *tokenizer.encode(text)]

"""From the fields of a request to the engine's requests."""

import random
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from cutaway.errors import UserError
from cutaway.generation.engine import Request
from cutaway.generation.sampling import Sampling
from cutaway.serving.errors import ApiError, unsupported
from cutaway.serving.models import ServedModel
from cutaway.serving.schemas import SharedFields


def engine_requests(
    model: ServedModel, body: SharedFields, prompts: Sequence[list[int]], max_new_tokens: int, **more: Any
) -> list[Request]:
    """`n` requests for every prompt, in order; sample i of the whole draws with the seed `seed + i`.

    A field that is absent takes the model's own default. ApiError where a value cannot be served.
    """
    if body.logit_bias:
        raise unsupported("logit_bias", "logit_bias")
    given = {field.name: getattr(body, field.name, None) for field in fields(Sampling)}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("top_k") == -1:
        given["top_k"] = 0
    seed = random.SystemRandom().getrandbits(48) if body.seed is None else body.seed
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    try:
        settings = vars(model.sampling) | given
        first = Request((), max_new_tokens, seed, stop=stop, **settings, **more)
    except UserError as error:
        raise ApiError(400, str(error)) from None
    n = body.n or 1
    return [
        replace(first, prompt_ids=prompt, seed=seed + number * n + sample)
        for number, prompt in enumerate(prompts)
        for sample in range(n)
    ]

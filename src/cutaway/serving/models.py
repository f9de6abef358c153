"""The models that a server offers, each by a name."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cutaway.errors import UserError
from cutaway.generation.conversation import knows_chat
from cutaway.generation.defaults import MAX_NEW_TOKENS, load_sampling
from cutaway.generation.engine import Engine
from cutaway.generation.sampling import Sampling
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import is_adapter, load_adapted, load_model
from cutaway.serving.errors import ApiError
from cutaway.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """A model with its engine and what it can do."""

    name: str
    engine: Engine
    chat: bool = True
    """Whether it was trained on conversations; else it only continues text."""
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    """What its generation_config.json asks for: the defaults of every request."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Longest answer of a chat where the request names no other."""
    parent: str | None = None
    """The base of an adapter."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tokenizer(self) -> Tokenizer:
        """Its vocabulary and chat format."""
        return self.engine.tokenizer

    @property
    def thinking(self) -> bool:
        """Whether a thinking block can be opened or closed by the request."""
        template = self.tokenizer.chat_template or ""
        return self.chat and (self.tokenizer.is_native or "enable_thinking" in template)

    @property
    def tools(self) -> bool:
        """Whether tools can be shown to it, and its calls read back."""
        knows = "<tool_call>" in self.tokenizer.control_ids and "tools" in (self.tokenizer.chat_template or "")
        return self.chat and knows

    def card(self) -> dict[str, Any]:
        """The entry in `/v1/models`; what is Cutaway's own stands under `cutaway`."""
        own = {
            "chat": self.chat,
            "thinking": self.thinking,
            "tools": self.tools,
            "context": self.engine.max_length,
            "max_new_tokens": self.max_new_tokens,
            "sampling": vars(self.sampling),
        }
        card = {"id": self.name, "object": "model", "created": self.created, "owned_by": "cutaway"}
        return card | {"parent": self.parent, "cutaway": own}


class Models:
    """The models by name, the first one first."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        """UserError for two models of one name, and for none."""
        self._models = {model.name: model for model in models}
        if not models or len(self._models) < len(models):
            raise UserError("a server needs at least one model, and every model a name of its own")

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    @property
    def engines(self) -> dict[str, Engine]:
        """The engine of each."""
        return {name: model.engine for name, model in self._models.items()}

    def find(self, name: str | None) -> ServedModel:
        """The model of that name, the first one for None. ApiError 404 for a name that is not served."""
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            known = ", ".join(self._models)
            raise ApiError(
                404, f"no model {name[:100]!r} here (there are: {known})", code="model_not_found", param="model"
            )
        return self._models[name]


def load_served(
    directory: Path,
    name: str,
    device: torch.device,
    *,
    slots: int,
    max_new_tokens: int,
    dtype: torch.dtype | None = None,
    adapters: Mapping[str, Path] | None = None,
) -> list[ServedModel]:
    """A model directory and `adapters` on it, by name, each with an engine of `slots` slots.

    With adapters all share the memory of the base's weights; without, the engine works on its faster copy. UserError
    where a directory cannot be read or does not fit the base.
    """
    model, tokenizer = load_model(directory, device).eval(), Tokenizer.load(directory)

    def served(own: CausalLM, name: str, folder: Path, parent: str | None) -> ServedModel:
        engine = Engine(own, tokenizer, slots=slots, dtype=None if adapters else dtype, frozen=not adapters)
        chat, sampling = knows_chat(folder, tokenizer), load_sampling(folder)
        return ServedModel(name, engine, chat, sampling, max_new_tokens, parent)

    if adapters and dtype is not None:
        _cast(model, dtype)
    models = [served(model, name, directory, None)]
    for adapter, folder in (adapters or {}).items():
        if not is_adapter(folder):
            raise UserError(f"{folder}: no adapter_config.json there (an adapter directory is needed)")
        adapted = load_adapted(folder, str(directory)).to(device).eval()
        if dtype is not None:
            _cast(adapted, dtype)
        _share(model, adapted)
        models.append(served(adapted, adapter, folder, name))
    return models


def _cast(model: CausalLM, dtype: torch.dtype) -> None:
    # Parameters only: the rotary frequencies must stay fp32, or far positions lose their angle.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _share(base: CausalLM, adapted: CausalLM) -> None:
    """Let the frozen weights of an adapted model be those of the base: one copy in memory."""
    weights = dict(base.named_parameters())
    for name, parameter in adapted.named_parameters():
        if name in weights:
            parameter.data = weights[name].data

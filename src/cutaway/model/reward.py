"""A decoder with a score in place of its language-model head: what a reward model is."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig
from cutaway.model.moe import Routing
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import is_reward_model, read_model


class RewardModel(CausalLM):
    """A score after every token; that after the last one is the answer's.

    Its files are those of a `...ForSequenceClassification` of transformers with one label.
    """

    def __init__(self, config: ModelConfig) -> None:
        # Without a head of its own there is nothing to tie; transformers' class has none either.
        super().__init__(dataclasses.replace(config, tie_word_embeddings=True))
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    @classmethod
    def on(cls, model: CausalLM) -> "RewardModel":
        """A new reward model on the decoder of a language model, whose weights it takes over."""
        with torch.device("meta"):
            new = cls(model.config)
        new.model = model.model
        # A new one finds all answers equally good.
        new.score.weight = nn.Parameter(torch.zeros(1, model.config.hidden_size, device=model.head_weight.device))
        return new

    @property
    def architecture(self) -> str:
        """Class name that `transformers` knows this network by."""
        return self.config.architecture.replace("ForCausalLM", "ForSequenceClassification")

    @property
    def head_weight(self) -> Float[Tensor, "1 hidden"]:
        """What a hidden state is multiplied with."""
        weight: Tensor = self.score.weight
        return weight

    def config_dict(self) -> dict[str, Any]:
        """The `config.json`, which names the one label."""
        labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
        return super().config_dict() | {"architectures": [self.architecture]} | labels

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "batch seq"],
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        documents: Int[Tensor, "batch seq"] | None = None,
        routing: Routing | None = None,
    ) -> Float[Tensor, "batch seq"]:
        r"""$r_t = w \cdot h_t$ in fp32, $h$ being the final hidden states; arguments as of a `CausalLM`."""
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        mask = None if documents is None else self.packed_mask(documents)
        hidden: Tensor = self.model(input_ids, positions, mask, None, routing)
        return (hidden.float() * self.score.weight[0]).sum(-1)


def load_reward_model(directory: str | Path, device: torch.device | str = "cpu") -> RewardModel:
    """Read a reward model, ours or one of transformers with one label, in fp32."""
    directory = Path(directory)
    if not is_reward_model(directory):
        raise UserError(f"{directory}: not a reward model (cutaway reward makes one)")
    table = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    labels = table.get("num_labels") or len(table.get("id2label") or {})
    if labels != 1:
        raise UserError(f"{directory}: has {labels} labels, a reward model has one")
    return read_model(RewardModel, ModelConfig.load(directory), directory).to(device)

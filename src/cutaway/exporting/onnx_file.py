"""ONNX through torch's exporter: ids in, logits out, no key-value cache."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.errors import UserError
from cutaway.exporting.gguf_file import replace_file
from cutaway.model.moe import Experts, MixtureOfExperts
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import load_model

OPSET = 20


class _Logits(nn.Module):
    """The one call of a model that is exported."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        logits: Tensor = self.model(input_ids)
        return logits


class _EveryExpert(nn.Module):
    """The same sum over a token's chosen experts with no sorting of tokens, which the exporter cannot trace: every
    expert computes every token, and those not chosen weigh 0."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts

    def forward(
        self,
        x: Float[Tensor, "tokens hidden"],
        chosen: Int[Tensor, "tokens top_k"],
        weights: Float[Tensor, "tokens top_k"],
    ) -> Float[Tensor, "tokens hidden"]:
        gate, up, down = self.experts.gate_proj, self.experts.up_proj, self.experts.down_proj
        share = x.new_zeros(x.shape[0], gate.shape[0]).scatter(1, chosen, weights)
        inner = F.silu(torch.einsum("th,eih->eti", x, gate)) * torch.einsum("th,eih->eti", x, up)
        outputs = torch.einsum("eti,ehi->eth", inner, down)
        mixed: Tensor = torch.einsum("eth,te->th", outputs, share)
        return mixed


def write_onnx(run: Path, out: Path) -> Path:
    """Write `input_ids` (batch, sequence; both of any size) to `logits` in fp32, weights in the file.

    An adapter is merged; experts are all computed. UserError for files over ONNX's limit of 2 GB.
    """
    model = load_model(run).eval()
    for layer in model.model.layers:
        if isinstance(layer.mlp, MixtureOfExperts):
            layer.mlp.set_submodule("experts", _EveryExpert(layer.mlp.experts))
    if model.num_parameters() * 4 > 2**31 - 2**20:
        raise UserError(f"{run}: its weights in fp32 are over the 2 GB that one ONNX file holds")
    example = torch.zeros(2, 3, dtype=torch.int64)
    dynamic = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Logits(model),
            (example,),
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return replace_file(out, lambda partial: program.save(str(partial), external_data=False))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

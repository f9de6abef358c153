"""A policy that an SGLang server answers for: its weights are handed over through a folder before every rollout.

    python -m sglang.launch_server --model-path RUN/served --port 30000

The server must see the run directory. Its arithmetic is not the trainer's, so tokens should be weighed by
`--importance-cap 2`; how far the two are apart is logged as `sampler_mismatch`. A vLLM server has no such call: it
takes new weights over NCCL only.
"""

import copy
import logging
from pathlib import Path

from cutaway.errors import UserError
from cutaway.generation.http import post_json
from cutaway.generation.remote import RemoteEngine
from cutaway.model.lora import adapter_of, merge
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import save_model
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.distributed import Ranks

log = logging.getLogger("cutaway")


class ServedPolicy(RemoteEngine):
    """The engine's interface before the server, and `refresh`, which gives it the present weights."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, folder: Path, url: str, ranks: Ranks, slots: int) -> None:
        """`folder` is where the server reads its model."""
        super().__init__(url, "policy", tokenizer, dialect="sglang", slots=slots)
        self.model, self.folder, self.ranks = model, folder, ranks
        if ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            tokenizer.save(folder)
            self._write()
            log.info("sampler: %s reads its weights from %s", url, folder)

    def refresh(self) -> None:
        """Write the present weights, an adapter merged into them, and let the server read them; it drops what it has
        cached of earlier ones. UserError where it does not take them."""
        if self.ranks.first:
            self._write()
            url = f"{self.url}/update_weights_from_disk"
            said = post_json(url, {"model_path": str(self.folder)}, api_key=self.api_key, seconds=self.seconds)
            if not isinstance(said, dict) or said.get("success") is not True:
                raise UserError(f"{url}: the server did not take the weights: {str(said)[:300]}")
        self.ranks.barrier()

    def _write(self) -> None:
        plain = self.model
        if adapter_of(plain) is not None:
            plain = copy.deepcopy(plain)
            merge(plain)
        save_model(plain, self.folder, plain.config)

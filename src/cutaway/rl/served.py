"""A policy that an SGLang or vLLM server answers for: weights are handed over through a folder before every rollout.

    python -m sglang.launch_server --model-path INIT --port 30000
    VLLM_SERVER_DEV_MODE=1 vllm serve INIT --served-model-name policy --logprobs-mode processed_logprobs

The server must see the run directory. Its arithmetic is not the trainer's, so tokens should be weighed by
`--importance-cap 2`; how far the two are apart, stale weights included, is logged as `sampler_mismatch`. vLLM has the
call only in its development mode, which no stranger should reach, and with a path to read from since 0.16.
"""

import copy
import logging
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.generation.http import post_json
from cutaway.generation.remote import Dialect, RemoteEngine
from cutaway.model.lora import adapter_of, merge
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import save_model
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.distributed import Ranks

log = logging.getLogger("cutaway")


class ServedPolicy(RemoteEngine):
    """The engine's interface before the server, and `refresh`, which gives it the present weights."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        folder: Path,
        url: str,
        ranks: Ranks,
        slots: int,
        dialect: Dialect = "sglang",
    ) -> None:
        """`folder` is where the server reads the weights."""
        super().__init__(url, "policy", tokenizer, dialect=dialect, slots=slots)
        self.model, self.folder, self.ranks = model, folder.absolute(), ranks
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
            said = self._hand_over()
            taken = isinstance(said, dict) and (said.get("success") is True or "results" in said)
            if not taken:
                raise UserError(f"{self.url}: the server did not take the weights: {str(said)[:300]}")
        self.ranks.barrier()

    def _hand_over(self) -> Any:
        if self.dialect == "sglang":
            return self._post("/update_weights_from_disk", {"model_path": str(self.folder)})
        said = self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}})
        self._post("/reset_prefix_cache", {})
        return said

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return post_json(self.url + path, body, api_key=self.api_key, seconds=self.seconds)

    def _write(self) -> None:
        plain = self.model
        if adapter_of(plain) is not None:
            plain = copy.deepcopy(plain)
            merge(plain)
        save_model(plain, self.folder, plain.config)

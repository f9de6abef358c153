"""The engine's interface before a vLLM or SGLang server: token ids in, token ids and log-probabilities out, over HTTP.

For rollouts and evaluation with a model that another machine serves. Seeds are passed on, but another engine draws
otherwise: the same seed gives the same text only on the same server. Its log-probabilities must be those of the
distribution sampled from, as ours are: vLLM gives them when started with `--logprobs-mode processed_logprobs`.
"""

import itertools
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from cutaway.errors import UserError
from cutaway.generation.defaults import stop_ids
from cutaway.generation.engine import Completion, FinishReason, Piece, Request, TopLogprobs
from cutaway.generation.http import post_json
from cutaway.generation.stop import TextStream
from cutaway.tokenization.tokenizer import Tokenizer

Dialect = Literal["vllm", "sglang"]


@dataclass(frozen=True)
class _Written:
    ids: list[int]
    logprobs: list[float]
    top_logprobs: list[TopLogprobs]
    reason: FinishReason


class RemoteEngine:
    """`submit` requests at any time, `step` until `busy` is false, `collect` what finished.

    Every request is one HTTP call in a thread of its own, at most `slots` at a time; the server batches them. A `step`
    waits until at least one is answered, and its pieces hold whole completions.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: Tokenizer,
        *,
        dialect: Dialect = "vllm",
        slots: int = 64,
        api_key: str | None = None,
        seconds: float = 600.0,
    ) -> None:
        """`url` is the server's root, such as http://127.0.0.1:8000; `model` the name it serves; `seconds` the longest
        wait for one answer. `vllm` asks /v1/completions, `sglang` /generate."""
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url}: a server's address begins with http:// or https://")
        self.url, self.model_name, self.tokenizer = url.rstrip("/"), model, tokenizer
        self.dialect, self.api_key, self.seconds = dialect, api_key, seconds
        self.stop_ids = frozenset(stop_ids(tokenizer))
        self._ids = itertools.count()
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="remote-engine")
        self._open: dict[int, Request] = {}
        self._answered: queue.SimpleQueue[tuple[int, _Written | UserError]] = queue.SimpleQueue()
        self._finished: list[Completion] = []

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._open)

    def submit(self, request: Request) -> int:
        """Send a request and give back its id. UserError for an empty prompt, or a constraint, which stays here."""
        if not request.prompt_ids:
            raise UserError("the prompt is empty: at least one token is needed")
        if request.constraint is not None:
            raise UserError("a remote engine cannot enforce a form of answer made here")
        number = next(self._ids)
        self._open[number] = request
        self._pool.submit(self._answer, number, request)
        return number

    def cancel(self, request_id: int) -> None:
        """Forget a request; one that was sent is not withdrawn from the server, its answer is dropped."""
        self._open.pop(request_id, None)
        self._finished = [done for done in self._finished if done.id != request_id]

    def collect(self) -> list[Completion]:
        """Completions since the last call, in the order they finished."""
        done, self._finished = self._finished, []
        return done

    def step(self) -> list[Piece]:
        """Wait for an answer, and give back all that have come. UserError where the server failed at one."""
        pieces: list[Piece] = []
        while self._open and (not pieces or not self._answered.empty()):
            number, written = self._answered.get()
            request = self._open.pop(number, None)
            if request is None:
                continue
            if isinstance(written, UserError):
                raise written
            pieces.append(self._piece(number, request, written))
        self._finished += [piece.completion for piece in pieces if piece.completion is not None]
        return pieces

    def close(self) -> None:
        """Forget everything and end the threads that have nothing to wait for."""
        self._open.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _piece(self, number: int, request: Request, written: _Written) -> Piece:
        """The text as the engine here would give it: without special tokens and what follows a stop string."""
        stream = TextStream(self.tokenizer, request.stop)
        text = "".join(stream.push(token) for token in written.ids) + stream.finish()
        prompt, tops = list(request.prompt_ids), written.top_logprobs if request.top_logprobs else []
        done = Completion(number, prompt, written.ids, written.logprobs, text, written.reason, tops)
        return Piece(number, text, done, written.ids, written.logprobs, tops)

    def _answer(self, number: int, request: Request) -> None:
        try:
            ask, read = (_ask_vllm, _read_vllm) if self.dialect == "vllm" else (_ask_sglang, _read_sglang)
            path = "/v1/completions" if self.dialect == "vllm" else "/generate"
            ends = self.stop_ids if request.stop_ids is None else request.stop_ids
            body = ask(request, self.model_name, sorted(ends))
            found = post_json(self.url + path, body, api_key=self.api_key, seconds=self.seconds)
            self._answered.put((number, read(found)))
        except UserError as error:
            self._answered.put((number, error))
        except Exception as error:
            # Whatever a server sends, the caller must not wait for ever.
            self._answered.put((number, UserError(f"{self.url}: not an answer of {self.dialect}: {error!r}")))


def _sampling(request: Request) -> dict[str, Any]:
    """What both servers call alike. The end of the text is ours, so theirs is switched off."""
    names = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    chosen: dict[str, Any] = {name: getattr(request, name) for name in names}
    chosen["top_k"] = request.top_k or -1
    return chosen | {"stop": list(request.stop), "ignore_eos": True, "skip_special_tokens": False}


def _ask_vllm(request: Request, model: str, ends: Sequence[int]) -> dict[str, Any]:
    return _sampling(request) | {
        "model": model,
        "prompt": list(request.prompt_ids),
        "max_tokens": request.max_new_tokens,
        "seed": request.seed % 2**63,
        "stop_token_ids": list(ends),
        "logprobs": request.top_logprobs,
        # Tokens come as "token_id:N": their texts would not tell which tokens they were.
        "return_tokens_as_token_ids": True,
    }


def _read_vllm(found: Any) -> _Written:
    choice = found["choices"][0]
    table = choice["logprobs"]
    tops = [_best((_id(name), value) for name, value in (top or {}).items()) for top in table.get("top_logprobs") or []]
    ids = [_id(name) for name in table["tokens"]]
    return _checked(ids, table["token_logprobs"], tops, choice["finish_reason"])


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def _ask_sglang(request: Request, model: str, ends: Sequence[int]) -> dict[str, Any]:
    sampling = {"max_new_tokens": request.max_new_tokens, "stop_token_ids": list(ends), "no_stop_trim": True}
    # With `ignore_eos` SGLang looks at no token at all. So where one of ours ends the text, those of its model do, too.
    sampling |= {"sampling_seed": request.seed % 2**31, "ignore_eos": not ends}
    return {
        "input_ids": list(request.prompt_ids),
        "sampling_params": _sampling(request) | sampling,
        "return_logprob": True,
        "top_logprobs_num": request.top_logprobs,
    }


def _read_sglang(found: Any) -> _Written:
    meta = found["meta_info"]
    drawn = meta["output_token_logprobs"]
    tops = [_best((one[1], one[0]) for one in top or []) for top in meta.get("output_top_logprobs") or []]
    return _checked([one[1] for one in drawn], [one[0] for one in drawn], tops, meta["finish_reason"]["type"])


def _best(pairs: Any) -> TopLogprobs:
    return sorted(((int(token), float(value)) for token, value in pairs), key=lambda pair: -pair[1])


def _checked(ids: list[int], logprobs: list[float], tops: list[TopLogprobs], reason: str) -> _Written:
    if len(ids) != len(logprobs) or not ids:
        raise ValueError(f"{len(ids)} tokens and {len(logprobs)} log-probabilities")
    if reason not in ("stop", "length"):
        raise ValueError(f"finish_reason {reason!r}")
    return _Written(list(ids), [float(value) for value in logprobs], tops, "stop" if reason == "stop" else "length")

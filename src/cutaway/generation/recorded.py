"""Decoding steps recorded as CUDA graphs: a few hundred kernels, started with one call.

A small model's step is many kernels of a few microseconds each, and Python takes longer to start them than a GPU to run
them. A graph starts them all at once, but always with the same shapes and addresses. So a step is recorded for a number
of rows and a length, both rounded up to a power of two, and its input is copied to where the recorded kernels look.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.generation.decoder import PackedDecoder
from cutaway.generation.kv_cache import FIRST_LENGTH, KVCache

log = logging.getLogger("cutaway")
Step = Callable[[Int[Tensor, "2 rows"]], Float[Tensor, "rows vocab"]]
"""Token ids and positions to logits."""
Recorder = Callable[[Step, Tensor], Step]


class RecordedSteps:
    """The decoding steps of a packed decoder on the first slots of a cache, each recorded when it is first needed.

    The rows added to reach a power of two write to the last place of their slots, which no request fills
    (`Engine._forward`), so what free slots hold for later prompts stays. Recorded kernels keep the addresses of the
    weights, which `PackedDecoder.load` therefore fills anew in place, and of the cache's tensor: when it has grown, all
    is recorded again.
    """

    def __init__(self, decoder: PackedDecoder, cache: KVCache, recorder: Callable[[], Recorder] | None = None) -> None:
        """`recorder` makes what turns a step and an input into the step that is repeated; None takes `Graphs`."""
        self.decoder, self.cache = decoder, cache
        self._new_recorder, self.recording = recorder or Graphs, True
        self._forget()

    def _forget(self) -> None:
        self._store = self.cache.store
        self._steps: dict[tuple[int, int], Step] = {}
        # A new one each time: the memory that graphs share is gone with the last of them.
        self._record = self._new_recorder()

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> Float[Tensor, "batch vocab"]:
        """Of the token after each row's newest, `ids` at `positions`; the cache has room for one position more. What
        is given back is overwritten by the next step."""
        if self.cache.store is not self._store:
            self._forget()
        rows = min(_power_of_two(len(ids)), self.cache.slots)
        length = min(max(FIRST_LENGTH, _power_of_two(max(positions) + 2)), self.cache.length)
        missing = rows - len(ids)
        fed = torch.tensor([[*ids, *[0] * missing], [*positions, *[self.cache.length - 1] * missing]])
        if (rows, length) not in self._steps:
            self._steps[rows, length] = self._recorded(self._step(length), fed.to(self._store.device))
        return self._steps[rows, length](fed)[: len(ids)]

    def _recorded(self, step: Step, fed: Int[Tensor, "2 rows"]) -> Step:
        if not self.recording:
            return as_it_is(step, fed)
        try:
            return self._record(step, fed)
        except RuntimeError as error:
            log.info("decoding steps are not recorded here, and slower: %s", str(error).splitlines()[0])
            self.recording = False
            return as_it_is(step, fed)

    def _step(self, length: int) -> Step:
        def step(fed: Int[Tensor, "2 rows"]) -> Float[Tensor, "rows vocab"]:
            ids, positions = fed.unsqueeze(-1)
            self.cache.begin(0, positions, length)
            return self.decoder.logits(self.decoder.forward(ids, positions, self.cache)[:, 0])

        return step


def as_it_is(step: Step, fed: Int[Tensor, "2 rows"]) -> Step:
    """The step, not recorded."""
    return lambda given: step(given.to(fed.device))


class Graphs:
    """Records steps as CUDA graphs that share the memory of what they compute on the way."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step, fed: Int[Tensor, "2 rows"]) -> Step:
        """The step, recorded on that input, which it changes; what it gives back is overwritten at every call."""
        # Once as it is, on another stream as recording will be: libraries make their workspaces at the first call.
        side = torch.cuda.Stream(fed.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(fed.device))
        with torch.cuda.stream(side):
            step(fed)
        torch.cuda.current_stream(fed.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that prepares batches, may go on using the device meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            logits = step(fed)

        def replay(given: Int[Tensor, "2 rows"]) -> Float[Tensor, "rows vocab"]:
            fed.copy_(given, non_blocking=True)
            graph.replay()
            return logits

        return replay


def _power_of_two(number: int) -> int:
    """The least that is no smaller."""
    return 1 << (number - 1).bit_length()

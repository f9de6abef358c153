"""Counters of the server in Prometheus' text format. Written and read in the event loop's thread only."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass
class Histogram:
    """How many observations were at most each bound, and their sum."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))] += 1
        self.total += value


@dataclass
class Metrics:
    """What has happened since the start."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By path and status."""
    finished: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers by model and finish_reason; `cancelled` where the client went away."""
    prompt_tokens: Counter[str] = field(default_factory=Counter)
    generated_tokens: Counter[str] = field(default_factory=Counter)
    first_token: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    duration: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    per_token: Histogram = field(default_factory=lambda: Histogram(TOKEN_SECONDS))
    started: float = field(default_factory=time.time)

    def text(self, gauges: Mapping[str, tuple[str, Mapping[str, float]]]) -> str:
        """Everything, with `gauges` (name to help and values by model) as they are now."""
        lines = [
            *_family("cutaway_requests_total", "counter", "HTTP requests.", _pairs(self.requests, "path", "status")),
            *_family("cutaway_answers_total", "counter", "Answers.", _pairs(self.finished, "model", "finish_reason")),
            *_family("cutaway_prompt_tokens_total", "counter", "Tokens of prompts.", _named(self.prompt_tokens)),
            *_family("cutaway_generated_tokens_total", "counter", "Tokens sampled.", _named(self.generated_tokens)),
        ]
        for name, (note, values) in gauges.items():
            lines += _family(name, "gauge", note, _named(values))
        lines += _histogram("cutaway_time_to_first_token_seconds", "From arrival to the first token.", self.first_token)
        lines += _histogram("cutaway_request_duration_seconds", "From arrival to the last token.", self.duration)
        lines += _histogram(
            "cutaway_time_per_output_token_seconds", "Between tokens, mean of a request.", self.per_token
        )
        lines += _family("process_start_time_seconds", "gauge", "Unix time of the start.", [("", self.started)])
        if memory := resident_bytes():
            lines += _family("process_resident_memory_bytes", "gauge", "Memory held.", [("", memory)])
        return "\n".join(lines) + "\n"


def resident_bytes() -> int:
    """Memory that this process holds; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _family(name: str, kind: str, note: str, values: Iterable[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {name} {note}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values:
        yield f"{name}{labels} {value:.17g}"


def _histogram(name: str, note: str, data: Histogram) -> Iterator[str]:
    values, below = [], 0
    for bound, count in zip([*map(str, data.bounds), "+Inf"], data.counts, strict=True):
        below += count
        values.append((f'_bucket{{le="{bound}"}}', float(below)))
    return _family(name, "histogram", note, [*values, ("_sum", data.total), ("_count", float(below))])


def _pairs(counts: Mapping[tuple[str, str], float], first: str, second: str) -> Iterator[tuple[str, float]]:
    for (one, other), value in sorted(counts.items()):
        yield f'{{{first}="{_escaped(one)}",{second}="{_escaped(other)}"}}', value


def _named(values: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for model, value in sorted(values.items()):
        yield f'{{model="{_escaped(model)}"}}', value


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')

"""What a server counts, for Prometheus, and the log of scores that `guard drift` reads."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from refusalscope.errors import InputError
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.readings import Belief
from refusalscope.prompts import final_character_class

LOG = logging.getLogger("refusalscope.serve")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Meters:
    """Counters of one server, in a registry of its own."""

    def __init__(self, guard: BeliefGuard) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "route", "status")
        self.flagged = self._counter("flagged", "Prompts above the threshold.", "route")
        self.blocked = self._counter("blocked", "Replies withheld or stopped.", "where")
        self.tokens = self._counter("reply_tokens", "Tokens of replies that ended.")
        self.depth = Gauge(
            "refusalscope_queue_depth", "Requests that wait.", registry=self.registry
        )
        self.writing = Gauge(
            "refusalscope_replies_in_progress", "Replies being written.", registry=self.registry
        )
        self.seconds = Histogram(
            "refusalscope_request_seconds",
            "Seconds from a request's first byte to the last of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.scores = Histogram(
            "refusalscope_delta_harmful",
            "Scores of prompts; the buckets end at the deciles of the calibration prompts.",
            ["route"],
            buckets=_deciles(guard),
            registry=self.registry,
        )

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"refusalscope_{name}", words, labels, registry=self.registry)

    def saw(self, route: str, belief: Belief) -> None:
        """Count a scored prompt."""
        self.scores.labels(route).observe(belief.delta_harmful)
        if belief.flagged:
            self.flagged.labels(route).inc()


class ScoreLog:
    """A file of one JSON line a scored prompt: scores, never its text.

    It is opened anew for each line, so it may be moved away. Raises InputError for a path that cannot be used.
    """

    def __init__(self, path: Path, guard: str | None) -> None:
        self._path, self._guard, self._failed = path, guard, False
        try:
            path.open("a").close()
        except OSError as error:
            raise InputError(
                f"the score log {path} cannot be written ({error.strerror}); name another file"
            ) from error

    def write(self, id: str, belief: Belief) -> None:
        """Append a line. A disk that fails is told of once and stops no request."""
        line = json.dumps(log_line(id, time.time(), belief, self._guard))
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            if not self._failed:
                LOG.error("scores are not logged: %s", error.strerror)
            self._failed = True


def log_line(id: str, at: float, belief: Belief, guard: str | None) -> dict[str, Any]:
    """A line of the log: what `guard.drift.drift` takes, `id`, `time` (Unix seconds) and the guard's hash."""
    return {
        "id": id,
        "guard": guard,
        "time": round(at, 3),
        "delta_harmful": belief.delta_harmful,
        "delta_refuse": None if belief.delta_refuse != belief.delta_refuse else belief.delta_refuse,
        "per_layer": list(belief.per_layer),
        "t_inst_class": final_character_class(belief.t_inst_token),
        "flagged": belief.flagged,
    }


def _deciles(guard: BeliefGuard) -> list[float]:
    """Ends of buckets: where tenths of the calibration prompts lie, and the thresholds."""
    assert guard.calibration_ is not None
    scores = guard.calibration_.reference["delta_harmful"]
    tenths = scores.quantile([i / 10 for i in range(11)])
    return sorted({*map(float, tenths), *(point.tau for point in guard.calibration_.points)})

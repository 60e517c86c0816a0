"""What the routes of a server share: the guard, the engine over its model, the counters and the log."""

from __future__ import annotations

import logging

from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.folder import about
from refusalscope.guard.readings import Belief
from refusalscope.guard.serve.engine import Engine
from refusalscope.guard.serve.meters import Meters, ScoreLog
from refusalscope.guard.serve.settings import ServeSettings

LOG = logging.getLogger("refusalscope.serve")


class Served:
    """A guard being served."""

    def __init__(self, guard: BeliefGuard, settings: ServeSettings) -> None:
        self.guard, self.settings = guard, settings
        self.point = guard.point(settings.operating_point)
        self.engine = Engine(guard, settings)
        self.meters = Meters(guard)
        self.meters.depth.set_function(lambda: self.engine.depth)
        self.meters.writing.set_function(lambda: len(self.engine.writing))
        self.log = ScoreLog(settings.score_log, guard.sha256_) if settings.score_log else None
        self.card = "/card" if settings.card else None
        # A folder is named without its path: the name is shown to every client.
        self.chat_name = about(guard.chat_).id
        self.guard_name = f"belief-guard/{self.chat_name}"

    def saw(self, route: str, id: str, belief: Belief, text: str) -> None:
        """Count and log a scored prompt."""
        self.meters.saw(route, belief)
        if self.log is not None:
            self.log.write(id, belief)
        if self.settings.log_prompts:
            LOG.info("%s flagged=%s %r", id, belief.flagged, text)

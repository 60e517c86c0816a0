"""How well methods find what was planted: the graded suite, and the scoreboard over it."""

from refusalscope.organisms.scoreboard.routing import score_routing
from refusalscope.organisms.scoreboard.suite import BARS, ROUTING, Case

__all__ = ["BARS", "ROUTING", "Case", "score_routing"]

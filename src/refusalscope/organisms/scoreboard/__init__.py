"""How well methods find what was planted: the suites, and the scoreboards over them."""

from refusalscope.organisms.scoreboard.beliefs import score_beliefs
from refusalscope.organisms.scoreboard.cliff import score_cliff
from refusalscope.organisms.scoreboard.features import score_features
from refusalscope.organisms.scoreboard.routing import score_routing
from refusalscope.organisms.scoreboard.suite import (
    BARS,
    BELIEFS,
    CLIFF,
    FEATURES,
    ROUTING,
    Case,
)

__all__ = [
    "BARS",
    "BELIEFS",
    "CLIFF",
    "FEATURES",
    "ROUTING",
    "Case",
    "score_beliefs",
    "score_cliff",
    "score_features",
    "score_routing",
]

"""Refusal and harmfulness directions: found, chosen, proven, read as belief.

Sources: arXiv 2406.11717 (`arditi2024`), arXiv 2507.11878 (`zhao2025`); `recommended` corrects both.
"""

from refusalscope._lazy import lazy
from refusalscope.studies.directions.settings import PRESETS, DirectionsSettings, preset

_HERE = "refusalscope.studies.directions"
_EXPORTS = {
    "Centroids": f"{_HERE}.extract",
    "Rule": f"{_HERE}.selection",
    "belief_scores": f"{_HERE}.belief",
    "centroids": f"{_HERE}.extract",
    "find_directions": f"{_HERE}.study",
    "geometry": f"{_HERE}.belief",
    "mean_difference": f"{_HERE}.extract",
    "profile": f"{_HERE}.belief",
    "run_directions": f"{_HERE}.study",
    "select": f"{_HERE}.selection",
    "select_relaxed": f"{_HERE}.selection",
    "select_stable": f"{_HERE}.selection",
    "stability": f"{_HERE}.selection",
}

__all__ = ["PRESETS", "DirectionsSettings", "preset", *_EXPORTS]

__getattr__ = lazy(__name__, _EXPORTS)

"""Routing: which attention heads carry the decision to refuse, by exact interchange (arXiv 2604.04385)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refusalscope._lazy import lazy

if TYPE_CHECKING:
    from refusalscope.studies.heads import Unit, all_heads, key_value_groups, units_of
    from refusalscope.studies.routing.attribution import Attribution, attribute
    from refusalscope.studies.routing.cipher import (
        arms_table,
        collapse_table,
        measure_arms,
        wrapped,
    )
    from refusalscope.studies.routing.compare import run_drift
    from refusalscope.studies.routing.contrast import contrast_table
    from refusalscope.studies.routing.dose import detection
    from refusalscope.studies.routing.drift import rank_biased_overlap
    from refusalscope.studies.routing.drive import Drive, drive_table
    from refusalscope.studies.routing.interchange import Pair, Screen, screen
    from refusalscope.studies.routing.maps import MAPS, position_map
    from refusalscope.studies.routing.redundancy import conditional, leave_one_out, windows
    from refusalscope.studies.routing.roles import Evidence
    from refusalscope.studies.routing.settings import PRESETS, RoutingSettings, preset
    from refusalscope.studies.routing.significance import significance, stability
    from refusalscope.studies.routing.study import run_routing

__all__ = [
    "MAPS",
    "PRESETS",
    "Attribution",
    "Drive",
    "Evidence",
    "Pair",
    "RoutingSettings",
    "Screen",
    "Unit",
    "all_heads",
    "arms_table",
    "attribute",
    "collapse_table",
    "conditional",
    "contrast_table",
    "detection",
    "drive_table",
    "key_value_groups",
    "leave_one_out",
    "measure_arms",
    "position_map",
    "preset",
    "rank_biased_overlap",
    "run_drift",
    "run_routing",
    "screen",
    "significance",
    "stability",
    "units_of",
    "windows",
    "wrapped",
]
# A function that is called like its file (cascade, dose, drift, drive, groups, published, rescue, roles) is
# imported from it: the package's name for both is the file.
_NAMES = {
    "attribution": ("Attribution", "attribute"),
    "cipher": ("arms_table", "collapse_table", "measure_arms", "wrapped"),
    "compare": ("run_drift",),
    "contrast": ("contrast_table",),
    "dose": ("detection",),
    "drift": ("rank_biased_overlap",),
    "drive": ("Drive", "drive_table"),
    "interchange": ("Pair", "Screen", "screen"),
    "maps": ("MAPS", "position_map"),
    "redundancy": ("conditional", "leave_one_out", "windows"),
    "roles": ("Evidence",),
    "settings": ("PRESETS", "RoutingSettings", "preset"),
    "significance": ("significance", "stability"),
    "study": ("run_routing",),
}
__getattr__ = lazy(
    __name__,
    {
        name: f"refusalscope.studies.routing.{part}"
        for part, names in _NAMES.items()
        for name in names
    }
    | dict.fromkeys(
        ("Unit", "all_heads", "key_value_groups", "units_of"), "refusalscope.studies.heads"
    ),
)

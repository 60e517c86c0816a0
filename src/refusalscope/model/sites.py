"""Places in the network that can be read or edited, and which positions an edit touches.

The words are those of the field: `resid_pre`, `resid_post`, `attn_out`, `mlp_out`, `z`; `final` is the
residual stream before the final norm. `attn_out` and `mlp_out` are what is added to the residual
stream, so they are taken after a post-norm where the architecture has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from refusalscope.errors import InputError

SiteKind = Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "z", "final"]
SITE_KINDS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "final")

# A position is a named anchor, a named span, or absolute token indices (negative from the prompt's end).
Positions = str | tuple[int, ...]


@dataclass(frozen=True, order=True)
class Site:
    """A place in the network: `Site("resid_pre", 3)`, `Site("z", 5)`, `Site("final")`."""

    kind: SiteKind
    layer: int = -1

    def __post_init__(self) -> None:
        if self.kind not in SITE_KINDS:
            raise InputError(f"unknown site {self.kind!r}; the sites are {', '.join(SITE_KINDS)}")
        if self.kind == "final" and self.layer != -1:
            raise InputError("the site 'final' has no layer: write Site('final')")
        if self.kind != "final" and self.layer < 0:
            raise InputError(f"the site {self.kind!r} needs a layer: Site({self.kind!r}, 3)")

    def resolved(self, n_layers: int) -> Site:
        """The same place under its one canonical name: `resid_post` l is `resid_pre` l+1, or `final`.

        Raises InputError where the layer is outside the model.
        """
        if self.kind == "final":
            return self
        if self.layer >= n_layers:
            raise InputError(f"{self} is outside the model, whose layers are 0 to {n_layers - 1}")
        if self.kind != "resid_post":
            return self
        return Site("final") if self.layer == n_layers - 1 else Site("resid_pre", self.layer + 1)

    def start(self, n_layers: int) -> int:
        """The first layer whose computation an edit here can change; `n_layers` for `final`."""
        site = self.resolved(n_layers)
        return n_layers if site.kind == "final" else site.layer

    def __str__(self) -> str:
        return self.kind if self.kind == "final" else f"{self.kind}[{self.layer}]"

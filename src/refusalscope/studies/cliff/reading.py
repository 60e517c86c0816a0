"""How a probe reads the residual stream: as a metric of the plan, and as the vector that a write meets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model import Anatomy, StateMetric

if TYPE_CHECKING:
    from refusalscope.studies.cliff.probe import Probe

RESIDUAL = ("resid_pre", "resid_post", "final")


@dataclass(frozen=True)
class NormedMetric(StateMetric):
    """A linear score of the state after `norm`, the model's final one."""

    norm: Any = None

    def score(self, states: Tensor) -> Tensor:
        """states before the norm: [rows, d_model] -> [rows]."""
        return super().score(self.norm(states))


def check_probe(anatomy: Anatomy, probe: Probe) -> None:
    """Raises InputError for a probe of another width, or one that does not read the residual stream."""
    if tuple(probe.weight.shape) != (anatomy.d_model,):
        raise InputError(
            f"the probe reads states of shape {tuple(probe.weight.shape)}, the model's residual stream has "
            f"{anatomy.d_model} numbers; fit the probe on this model"
        )
    if probe.site.kind not in RESIDUAL or (probe.normed and probe.site.kind != "final"):
        raise InputError(
            f"heads cannot be traced to a probe at {probe.site}{' after a norm' * probe.normed}; fit it on "
            f"the residual stream, or at 'final' through the norm"
        )


def probe_metric(anatomy: Anatomy, probe: Probe) -> StateMetric:
    """The logit of the probe (not calibrated) at the prompt's last token, which is the last closing one."""
    check_probe(anatomy, probe)
    if probe.normed:
        return NormedMetric(probe.site, "last", probe.weight, probe.bias, anatomy.final_norm)
    return StateMetric(probe.site, "last", probe.weight, probe.bias)


def reader(anatomy: Anatomy, probe: Probe) -> Tensor:
    """What a write into the stream is multiplied with, but for the final scale: [d_model], float32."""
    weight = probe.weight.float()
    return weight * anatomy.norm_gain(anatomy.final_norm).cpu() if probe.normed else weight

"""Where a model is put and in which precision: options of every command that loads one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from cyclopts import Parameter


@dataclass(frozen=True)
class Placement:
    """What `ChatModel.load` takes.

    Parameters
    ----------
    dtype
        auto, float32, bfloat16 or float16.
    device
        auto, cpu or cuda.
    device_map
        Spread a model too large for one device: auto, balanced or sequential (accelerate's words).
    """

    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None


Placed: TypeAlias = Annotated[Placement, Parameter(name="*")]
ANYWHERE = Placement()

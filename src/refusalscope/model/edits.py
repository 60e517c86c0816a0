"""Edits: declarative, frozen, hashable changes of an activation at a site.

An edit says what happens at which site and positions; it holds no hook and changes nothing by
itself. A variant is a tuple of edits, applied in order; the empty variant is the clean run. Edits of
one class are computed together for all rows of a batch, so a class only says how a stack of selected
activations is changed.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model.sites import Positions, Site


class Frozen:
    """A tensor that can stand in a frozen, hashable edit. Equal when shape, dtype and values are."""

    __slots__ = ("_digest", "_unit", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dim() not in (1, 2):
            raise InputError(
                f"an edit takes a vector [width] or one row a position [positions, width], "
                f"not a tensor of shape {tuple(tensor.shape)}"
            )
        self.tensor = tensor.detach()
        self._digest: str | None = None
        self._unit: Tensor | None = None

    @property
    def unit(self) -> Tensor:
        """The vector at length one, float32."""
        if self._unit is None:
            vector = self.tensor.float()
            self._unit = vector / vector.norm()
        return self._unit

    @property
    def digest(self) -> str:
        if self._digest is None:
            data = self.tensor.to("cpu", torch.float32).contiguous()
            head = f"{tuple(data.shape)}{self.tensor.dtype}".encode()
            self._digest = hashlib.sha256(head + data.numpy().tobytes()).hexdigest()
        return self._digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Frozen({tuple(self.tensor.shape)}, {self.digest[:8]})"


def frozen(value: Tensor | Frozen) -> Frozen:
    return value if isinstance(value, Frozen) else Frozen(value)


@dataclass(frozen=True)
class Edit(ABC):
    """Base of all edits.

    `head` limits the edit to one query head's slice and is allowed at the site `z` only.
    """

    site: Site
    positions: Positions = "all"
    head: int | None = None

    PER_POSITION: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.head is not None and self.site.kind != "z":
            raise InputError(
                f"a head can be edited at the site 'z' only, not at {self.site}: "
                f"its write is a slice of z"
            )

    @abstractmethod
    def parameters(self, n_positions: int) -> Tensor:
        """What `compute` needs: [width] or [1] for the edit, or [n_positions, width] (PER_POSITION)."""

    @classmethod
    def stack(cls, placed: Sequence[tuple[Edit, int]]) -> Any:
        """Parameters of a round of PER_POSITION edits `(edit, number of positions)`, in order.

        One row an entry by default. A class with richer parameters gives `compute` an object of its own
        that has `.to(device)`.
        """
        return torch.cat([edit.parameters(n_positions) for edit, n_positions in placed])

    @staticmethod
    @abstractmethod
    def compute(selected: Tensor, parameters: Any) -> Tensor:
        """New values of the selected activations [entries, width]; parameters are those stacked.

        As a tensor they are [entries, width], or [entries, 1].
        """


@dataclass(frozen=True)
class ProjectOut(Edit):
    """Remove the component along a direction: h - (h.u) u, with u the unit vector of `direction`.

    Source: directional ablation, arXiv 2406.11717, Eq. 4.
    """

    direction: Frozen = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "direction", self.direction)
        object.__setattr__(self, "direction", frozen(self.direction))
        if not float(self.direction.tensor.norm()) > 0:
            raise InputError("a direction to project out must not be zero")

    def parameters(self, n_positions: int) -> Tensor:
        return self.direction.unit

    @staticmethod
    def compute(selected: Tensor, parameters: Tensor) -> Tensor:
        # In float32 throughout: rounding the projection to bfloat16 would leave part of it behind.
        states = selected.float()
        return (states - (states * parameters).sum(-1, keepdim=True) * parameters).to(
            selected.dtype
        )


@dataclass(frozen=True)
class Add(Edit):
    """Add `scale` times a vector: h + scale * v. Source: activation addition, arXiv 2406.11717, Eq. 3."""

    vector: Frozen = None  # type: ignore[assignment]
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "vector", self.vector)
        object.__setattr__(self, "vector", frozen(self.vector))

    def parameters(self, n_positions: int) -> Tensor:
        return self.vector.tensor.float() * self.scale

    @staticmethod
    def compute(selected: Tensor, parameters: Tensor) -> Tensor:
        return (selected.float() + parameters).to(selected.dtype)


@dataclass(frozen=True)
class Replace(Edit):
    """Put given values in place: [width] for all positions, or [positions, width], one row each.

    Interchange ("swap") is a Replace with values captured in another run.
    """

    values: Frozen = None  # type: ignore[assignment]

    PER_POSITION: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "values", self.values)
        object.__setattr__(self, "values", frozen(self.values))

    def parameters(self, n_positions: int) -> Tensor:
        values = self.values.tensor
        if values.dim() == 1:
            return values.expand(n_positions, -1)
        if values.shape[0] != n_positions:
            raise InputError(
                f"a replacement at {self.site} has {values.shape[0]} rows for {n_positions} positions; "
                f"give one row a position, or one vector for all"
            )
        return values

    @staticmethod
    def compute(selected: Tensor, parameters: Tensor) -> Tensor:
        return parameters.to(selected.dtype)


@dataclass(frozen=True)
class Scale(Edit):
    """Multiply by a factor; 0 is zero ablation, 1 the identity."""

    factor: float = 1.0

    def parameters(self, n_positions: int) -> Tensor:
        return torch.tensor([self.factor])

    @staticmethod
    def compute(selected: Tensor, parameters: Tensor) -> Tensor:
        return selected * parameters.to(selected.dtype)


Variant = tuple[Edit, ...]


def everywhere(n_layers: int, direction: Tensor, positions: Positions = "all") -> Variant:
    """Directional ablation at every write of the residual stream.

    Projects `direction` [d_model] out of every block input, attention output and MLP output
    (arXiv 2406.11717, section 2.4 and the authors' code).
    """
    vector = frozen(direction)
    return tuple(
        ProjectOut(Site(kind, layer), positions, direction=vector)
        for layer in range(n_layers)
        for kind in ("resid_pre", "attn_out", "mlp_out")
    )


def apply_round(hidden: Tensor, batch: EditBatch) -> Tensor:
    """One round of edits on `hidden` [rows, positions, width]; returns a new tensor."""
    device = hidden.device
    view = hidden
    where: tuple[Tensor, ...] = (batch.rows.to(device), batch.positions.to(device))
    if batch.heads is not None:
        view = hidden.unflatten(-1, (batch.n_heads, -1))
        where = (*where, batch.heads.to(device))
    parameters = batch.parameters.to(device)
    if batch.lookup is not None:
        parameters = parameters[batch.lookup.to(device)]
    changed = view.clone()
    changed[where] = batch.kind.compute(view[where], parameters)
    return changed.reshape(hidden.shape)


@dataclass(frozen=True)
class EditBatch:
    """Edits of one class at one site that can be computed together.

    rows, positions (and heads): [entries] indices into [rows, positions, (heads)]; parameters:
    [entries or edits, width], or what the class's own `stack` gives; lookup: [entries] -> edit, or None
    where there is a row an entry.
    """

    kind: type[Edit]
    rows: Tensor
    positions: Tensor
    heads: Tensor | None
    parameters: Any
    lookup: Tensor | None
    n_heads: int


def batch_edits(
    placed: Sequence[tuple[int, Edit, tuple[int, ...]]], n_heads: int, device: torch.device
) -> list[EditBatch]:
    """Group placed edits `(row, edit, positions)` at one site into rounds that keep each row's order."""
    rounds: dict[tuple[int, type[Edit], bool], list[tuple[int, Edit, tuple[int, ...]]]] = {}
    seen: dict[int, int] = {}
    for row, edit, positions in placed:
        if not positions:
            continue
        order = seen.get(row, 0)
        seen[row] = order + 1
        rounds.setdefault((order, type(edit), edit.head is not None), []).append(
            (row, edit, positions)
        )
    spans: dict[tuple[int, ...], Tensor] = {}
    batches = []
    for (_, kind, by_head), items in sorted(rounds.items(), key=lambda item: item[0][0]):
        # Work grows with the rows, not with the tokens: equal spans are made into indices once, and an
        # edit that many rows share is one set of parameters.
        for _, _, positions in items:
            if positions not in spans:
                spans[positions] = torch.tensor(positions, device=device)
        lengths = torch.tensor([len(positions) for _, _, positions in items], device=device)

        def spread(values: list[int], lengths: Tensor = lengths) -> Tensor:
            return torch.tensor(values, device=device).repeat_interleave(lengths)

        lookup = None
        if kind.PER_POSITION:
            parameters = kind.stack([(edit, len(positions)) for _, edit, positions in items])
        else:
            unique = {id(edit): edit for _, edit, _ in items}
            number = {key: i for i, key in enumerate(unique)}
            parameters = torch.stack([edit.parameters(0) for edit in unique.values()])
            lookup = spread([number[id(edit)] for _, edit, _ in items])
        batches.append(
            EditBatch(
                kind,
                spread([row for row, _, _ in items]),
                torch.cat([spans[positions] for _, _, positions in items]),
                spread([edit.head or 0 for _, edit, _ in items]) if by_head else None,
                parameters.to(device),
                lookup,
                n_heads,
            )
        )
    return batches


def _require(edit: Edit, name: str, value: object) -> None:
    if value is None:
        raise InputError(f"{type(edit).__name__} needs {name}=...: a tensor of the site's width")

"""Edits of a dictionary's latents in the residual stream, with the error term kept.

`x' = x + sum_i (f'_i - f_i(x)) d_i`: equal to decoding the changed activations and adding back what the
dictionary does not reconstruct, and it needs the edited latents alone. `f_i` is read from the stream as
earlier edits left it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from refusalscope.dictionary.slices import DictionarySlice
from refusalscope.errors import InputError
from refusalscope.model import Edit, Frozen
from refusalscope.model.edits import frozen

Kind = Literal["zero", "scale", "set", "mean"]
KINDS = ("zero", "scale", "set", "mean")
# Activations held at once while an edit is computed: 64 MB of float32.
CELLS = 2**24


@dataclass(frozen=True)
class EditLatents(Edit):
    """Change activations of latents: f' is 0, `value` x f, `value`, or a mean a latent.

    dictionary: a slice in memory, of the dictionary that reads this site; edits that share a slice are
    computed together. latents: those of the slice that change, all where None. value: the factor of
    "scale", the constant of "set", one number a latent for "mean". where: [positions, latents of the
    slice], 1 where the edit acts, one row a position of `positions`; everywhere where None.
    Source: error term kept, arXiv 2403.19647, section 2; kinds, sae_features section 1.
    """

    dictionary: DictionarySlice = None  # type: ignore[assignment]
    kind: Kind = "zero"
    value: float | tuple[float, ...] | None = None
    latents: tuple[int, ...] | None = None
    where: Frozen | None = None

    PER_POSITION: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dictionary is None:
            raise InputError(
                "EditLatents needs dictionary=...: a slice, Dictionary.slice(), of the latents to edit"
            )
        if self.site != self.dictionary.site:
            raise InputError(
                f"latents of a dictionary at {self.dictionary.site} cannot be edited at {self.site}; a "
                f"dictionary holds for the site that it was trained on"
            )
        if self.latents is not None:
            object.__setattr__(self, "latents", tuple(self.latents))
        if isinstance(self.value, Sequence):
            object.__setattr__(self, "value", tuple(float(v) for v in self.value))
        self._check_value()
        if self.where is not None:
            object.__setattr__(self, "where", frozen(self.where))
            shape = tuple(self.where.tensor.shape)
            if len(shape) != 2 or shape[1] != len(self.dictionary.latents):
                raise InputError(
                    f"where= has the shape {shape}; it takes one row a position and one column for each "
                    f"of the {len(self.dictionary.latents)} latents of the slice"
                )

    def _check_value(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown edit of latents {self.kind!r}; choose {', '.join(KINDS)}")
        n = len(self._chosen())
        wanted = {
            "zero": (self.value is None, "no value"),
            "scale": (isinstance(self.value, int | float), "value=..., a factor"),
            "set": (isinstance(self.value, int | float), "value=..., one constant"),
            "mean": (
                isinstance(self.value, tuple) and len(self.value) == n,
                f"value=..., one number for each of the {n} latents",
            ),
        }
        fits, text = wanted[self.kind]
        if not fits:
            raise InputError(f"the edit {self.kind!r} of latents takes {text}; got {self.value!r}")

    def _chosen(self) -> list[int]:
        """Columns of the slice that change."""
        if self.latents is None:
            return list(range(len(self.dictionary.latents)))
        return self.dictionary.members(self.latents)

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """(gain, offset), [latents of the slice] each: f' - f = gain f + offset."""
        gain, offset = torch.zeros(2, len(self.dictionary.latents))
        chosen = self._chosen()
        factor = float(self.value) if self.kind == "scale" else 0.0  # type: ignore[arg-type]
        gain[chosen] = factor - 1
        if self.kind in ("set", "mean"):
            offset[chosen] = torch.tensor(self.value)
        return gain, offset

    def parameters(self, n_positions: int) -> Tensor:
        """Where the edit acts, [n_positions, latents of the slice]."""
        if self.where is None:
            return torch.ones(n_positions, len(self.dictionary.latents), dtype=torch.bool)
        if self.where.tensor.shape[0] != n_positions:
            raise InputError(
                f"an edit of latents at {self.site} has a mask of {self.where.tensor.shape[0]} rows for "
                f"{n_positions} positions; give one row a position, and generate with "
                f"policy='prompt_only' (there is no clean run of a token that is yet to come)"
            )
        return self.where.tensor.bool()

    @classmethod
    def stack(cls, placed: Sequence[tuple[Edit, int]]) -> Any:
        edits = [edit for edit, _ in placed if isinstance(edit, EditLatents)]
        slices = {id(edit.dictionary): edit.dictionary for edit in edits}
        counts = [count for _, count in placed]
        first = torch.tensor([0, *counts]).cumsum(0).tolist()
        groups = []
        for key, piece in slices.items():
            members = [i for i, edit in enumerate(edits) if id(edit.dictionary) == key]
            groups.append(
                _group(
                    piece,
                    [edits[i] for i in members],
                    [counts[i] for i in members],
                    [range(first[i], first[i + 1]) for i in members],
                )
            )
        return _Groups(tuple(groups))

    @staticmethod
    def compute(selected: Tensor, parameters: Any) -> Tensor:
        changed = selected.clone()
        for group in parameters.groups:
            step = max(1, CELLS // max(1, len(group.dictionary.latents)))
            for i in range(0, len(group.entries), step):
                part = slice(i, i + step)
                entries = group.entries[part]
                changed[entries] = group.write(selected[entries], part).to(selected.dtype)
        return changed


@dataclass(frozen=True)
class SubtractWrite(Edit):
    """Take given writes out of the stream: h - values, `values` [positions, width] or [width].

    The frozen form of an ablation: the writes are those of the clean run, whatever the stream holds now.
    """

    values: Frozen = None  # type: ignore[assignment]

    PER_POSITION: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values is None:
            raise InputError("SubtractWrite needs values=...: the writes, one row a position")
        object.__setattr__(self, "values", frozen(self.values))

    def parameters(self, n_positions: int) -> Tensor:
        values = self.values.tensor
        if values.dim() == 2 and values.shape[0] != n_positions:
            raise InputError(
                f"frozen writes at {self.site} have {values.shape[0]} rows for {n_positions} positions; "
                f"give one row a position, and generate with policy='prompt_only'"
            )
        return values.expand(n_positions, -1)

    @staticmethod
    def compute(selected: Tensor, parameters: Any) -> Tensor:
        return (selected.float() - parameters).to(selected.dtype)


@dataclass(frozen=True)
class _Group:
    """Edits of one slice: which entries they touch, and what they do there.

    entries, edit: [n] the entry among those selected, and its edit; gain, offset: [edits, latents];
    where: [n, latents] or None where every edit acts on all its positions.
    """

    dictionary: DictionarySlice
    entries: Tensor
    edit: Tensor
    gain: Tensor
    offset: Tensor
    where: Tensor | None

    def write(self, states: Tensor, part: slice) -> Tensor:
        """New values of the states [n, d_in] of a part of the entries."""
        if states.shape[-1] != self.dictionary.d_in:
            raise InputError(
                f"the dictionary {self.dictionary.name} reads {self.dictionary.d_in} dimensions and the "
                f"model's residual stream has {states.shape[-1]}; take one trained on this model"
            )
        gain, offset = self.gain[self.edit[part]], self.offset[self.edit[part]]
        if self.where is not None:
            gain, offset = gain * self.where[part], offset * self.where[part]
        return self.dictionary.edited(states, gain, offset)

    def to(self, device: torch.device) -> _Group:
        return _Group(
            self.dictionary.to(device),
            self.entries.to(device),
            self.edit.to(device),
            self.gain.to(device),
            self.offset.to(device),
            None if self.where is None else self.where.to(device),
        )


@dataclass(frozen=True)
class _Groups:
    """What `EditLatents.compute` needs: one group a slice."""

    groups: tuple[_Group, ...]

    def to(self, device: torch.device) -> _Groups:
        return _Groups(tuple(group.to(device) for group in self.groups))


def _group(
    piece: DictionarySlice,
    edits: Sequence[EditLatents],
    counts: Sequence[int],
    spans: Sequence[range],
) -> _Group:
    unique = {id(edit): edit for edit in edits}
    number = {key: i for i, key in enumerate(unique)}
    coefficients = [edit.coefficients() for edit in unique.values()]
    masked = any(edit.where is not None for edit in unique.values())
    return _Group(
        dictionary=piece,
        entries=torch.cat([torch.arange(span.start, span.stop) for span in spans]),
        edit=torch.tensor([number[id(edit)] for edit in edits]).repeat_interleave(
            torch.tensor(counts)
        ),
        gain=torch.stack([gain for gain, _ in coefficients]),
        offset=torch.stack([offset for _, offset in coefficients]),
        where=torch.cat([e.parameters(n) for e, n in zip(edits, counts, strict=True)])
        if masked
        else None,
    )

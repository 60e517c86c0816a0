"""What a kind of planted model offers: named variants, each with its own integer options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from refusalscope.errors import InputError
from refusalscope.organisms.planted.recipe import Recipe


@dataclass(frozen=True)
class Option:
    """An integer option of a variant."""

    default: int
    values: tuple[int, ...] | range

    @property
    def values_text(self) -> str:
        if isinstance(self.values, range):
            return f"{self.values[0]} to {self.values[-1]}"
        return " or ".join(map(str, self.values))


@dataclass(frozen=True)
class Variant:
    """A named recipe and one line on it; `recipe` takes the options by name."""

    summary: str
    recipe: Callable[..., Recipe]
    options: Mapping[str, Option] = field(default_factory=dict)


def resolve_options(
    kind: str, variants: Mapping[str, Variant], variant: str, options: Mapping[str, int]
) -> dict[str, int]:
    """Every option of a variant of `kind` with its value, defaults filled in.

    Raises InputError for an unknown variant, option or value.
    """
    if variant not in variants:
        raise InputError(f"{kind} has no variant {variant!r}; choose one of {', '.join(variants)}")
    known = variants[variant].options
    for name, value in options.items():
        if name not in known:
            listed = ", ".join(known) or "none"
            raise InputError(
                f"the variant {variant!r} has no option {name!r}; its options are: {listed}"
            )
        if value not in known[name].values:
            raise InputError(
                f"{name} of the variant {variant!r} must be {known[name].values_text}, "
                f"got {value!r}"
            )
    return {name: options.get(name, option.default) for name, option in known.items()}

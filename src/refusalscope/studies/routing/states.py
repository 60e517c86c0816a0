"""Activations at places that differ from prompt to prompt."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from refusalscope.model import ChatModel, Rendered, Site, Variant


def states_at(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    sites: Sequence[Site],
    places: Sequence[tuple[int, ...]],
    variants: Sequence[Variant] | None = None,
) -> list[dict[Site, Tensor]]:
    """A prompt: site -> [its places, width], clean or under a variant a prompt.

    Counted from the end, prompts name the same few places, and one pass reads all of a group.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, where) in enumerate(zip(prompts, places, strict=True)):
        groups.setdefault(tuple(at - prompt.n_prompt for at in where), []).append(i)
    found: list[dict[Site, Tensor]] = [{} for _ in prompts]
    for offsets, members in groups.items():
        states = chat.capture(
            [prompts[i] for i in members],
            sites,
            [(offset,) for offset in offsets],
            variant=[variants[i] for i in members] if variants is not None else (),
        )
        for n, i in enumerate(members):
            found[i] = {site: tensor[n] for site, tensor in states.items()}
    return found

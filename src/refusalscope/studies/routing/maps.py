"""Position maps of an interchange: which position of the donor stands for which of the patient.

Source: alignment_routes section 1.1. All maps but the published one are aligned from the end of what they
cover, so that a prefix before either prompt moves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refusalscope.errors import InputError

if TYPE_CHECKING:
    from refusalscope.model import Rendered

MapName = str
MAPS = ("last", "suffix", "right", "compat_left")
SUFFIX, SPAN = "suffix", "span:"
Places = tuple[tuple[int, int], ...]


def position_map(patient: Rendered, donor: Rendered, name: MapName) -> Places:
    """Pairs of token indices (patient, donor), in the patient's order.

    last: the prompt's last token. suffix: the longest common end of both prompts' tokens (the template's
    tail); suffix+2: and two content tokens before it, where both have them. right: as many as the shorter
    prompt has, from the end. span:FROM..TO: the tokens between two anchors (both inclusive), as many as the
    shorter span has, from its end. compat_left: from the start, as published: with a shorter donor the last
    token is never swapped, and a longer one runs on into teacher-forced reply tokens. Raises InputError for
    another name or a span that ends before it starts.
    """
    require_map(name)
    if name == "compat_left":
        return tuple((i, i) for i in range(min(len(patient.ids), donor.n_prompt)))
    if name.startswith(SPAN):
        spans = [_span(prompt, name) for prompt in (patient, donor)]
        n = min(stop - start for start, stop in spans)
        return tuple((spans[0][1] - i, spans[1][1] - i) for i in range(n, 0, -1))
    shorter = min(patient.n_prompt, donor.n_prompt)
    count = {"last": 1, "right": shorter}.get(name)
    if count is None:
        more = int(name.removeprefix(SUFFIX).removeprefix("+") or 0)
        count = min(common_suffix(patient, donor) + more, shorter)
    return tuple((patient.n_prompt - i, donor.n_prompt - i) for i in range(count, 0, -1))


def require_map(name: MapName) -> None:
    """Raises InputError for a name that is no position map."""
    first, dots, last = name.removeprefix(SPAN).partition("..")
    spanned = name.startswith(SPAN) and first and dots and last
    widened = name.startswith(f"{SUFFIX}+") and name.removeprefix(f"{SUFFIX}+").isdecimal()
    if name not in MAPS and not spanned and not widened:
        raise InputError(
            f"there is no position map {name!r}; choose one of {', '.join(MAPS)}, suffix+N for N "
            f"content tokens more, or a span between anchors such as span:instruction_last..prompt_last"
        )


def common_suffix(first: Rendered, second: Rendered) -> int:
    """Tokens that two prompts end in alike; at least 1, since the last token is always compared."""
    shorter = min(first.n_prompt, second.n_prompt)
    n = 0
    while n < shorter and first.ids[first.n_prompt - 1 - n] == second.ids[second.n_prompt - 1 - n]:
        n += 1
    return max(n, 1)


def _span(prompt: Rendered, name: MapName) -> tuple[int, int]:
    """First token of a span and the one after its last."""
    first, _, last = name.removeprefix(SPAN).partition("..")
    start, stop = prompt.anchor(first), prompt.anchor(last) + 1
    if start >= stop:
        raise InputError(
            f"in prompt {prompt.id!r} the anchor {last!r} comes before {first!r}; swap the two in the span"
        )
    return start, stop

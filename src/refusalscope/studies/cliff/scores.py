"""What probes read at every token of long traces: states pass through, scalars stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from refusalscope.model import ChatModel, Variant
from refusalscope.model.clean import PAD
from refusalscope.progress import Progress, Silent
from refusalscope.studies.cliff.traces import Trace

if TYPE_CHECKING:
    from refusalscope.studies.cliff.probe import Probe

Array = npt.NDArray[np.float64]
# States of a site held at once, prompts times positions: the authors' longest trace in one pass.
HELD = 8192


def score_tokens(
    chat: ChatModel, traces: Sequence[Trace], probe: Probe, variant: Variant = ()
) -> list[Array]:
    """Logits of one probe at every token, a trace: [tokens]; see `score_probes`."""
    return [scores[0] for scores in score_probes(chat, traces, [probe], variant)]


def score_probes(
    chat: ChatModel,
    traces: Sequence[Trace],
    probes: Sequence[Probe],
    variant: Variant = (),
    *,
    held: int = HELD,
    progress: Progress | None = None,
) -> list[Array]:
    """Logits of probes at every token, a trace: [probes, tokens], each probe calibrated if it is.

    One pass serves all probes. At most `held` states of a site are held, however many traces there are and
    however long; a trace longer than that takes a pass for each `held` of its tokens.
    """
    track = (progress or Silent()).track("scores of tokens")
    found = [np.empty((len(probes), len(trace))) for trace in traces]
    sites = list(dict.fromkeys(probe.site for probe in probes))
    done = 0
    for chunk in _chunks(chat, traces, held):
        width = max(len(traces[i]) for i in chunk)
        # Attention is causal: what stands on the right of a trace changes nothing in it.
        padded = [traces[i].rendered.with_reply([PAD] * (width - len(traces[i]))) for i in chunk]
        for start in range(0, width, held):
            block = range(start, min(start + held, width))
            states = chat.capture(padded, sites, [(at,) for at in block], variant=variant)
            for row, probe in enumerate(probes):
                logits = probe.logits(chat, states[probe.site]).numpy()
                for i, values in zip(chunk, logits, strict=True):
                    part = found[i][row, block.start : block.stop]
                    part[:] = values[: len(part)]
        done += len(chunk)
        track(done, len(traces))
    for trace, scores in zip(traces, found, strict=True):
        for row, probe in enumerate(probes):
            if probe.calibration:
                scores[row] = probe.calibrated(scores[row], trace.classes)
    return found


def _chunks(chat: ChatModel, traces: Sequence[Trace], held: int) -> Iterator[list[int]]:
    """Traces of like length together, `held` padded tokens at most; a longer trace alone."""
    limit = chat.anatomy.rope_limit
    chunk: list[int] = []
    for i in sorted(range(len(traces)), key=lambda i: len(traces[i])):
        width = len(traces[i])
        # Padding may not drag a trace over the length at which a rotary embedding scales.
        crosses = bool(chunk) and limit is not None and len(traces[chunk[0]]) <= limit < width
        if chunk and ((len(chunk) + 1) * width > held or crosses):
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk

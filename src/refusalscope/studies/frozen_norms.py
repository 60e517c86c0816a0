"""Scores with every norm frozen: what is left of an effect that is not just normalisation.

A part that writes much, and nothing towards refusal, shrinks everything else through the norms. With all norms
of the residual stream held at the clean run's scale such an effect vanishes (organism O11; alignment_routes
section 6.2, norm-only).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from refusalscope.model import ChatModel, Metric, Rendered, Variant
from refusalscope.model.anatomy import Anatomy
from refusalscope.model.clean import pad, place
from refusalscope.model.engine import Row, hooks, run_pass

Array = npt.NDArray[np.float64]


@torch.inference_mode()
def measure_frozen(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    variants: Sequence[Sequence[Variant]],
    metric: Metric,
) -> Array:
    """Score variants, a list of one length a prompt, with norms at their clean scale: [prompts, variants]."""
    anatomy = chat.anatomy
    scores = np.zeros((len(prompts), len(variants[0])))
    for i, (prompt, mine) in enumerate(zip(prompts, variants, strict=True)):
        placed = [place(anatomy, prompt, variant, "every_step", restart=True) for variant in mine]
        order = sorted(range(len(placed)), key=lambda n: placed[n].start)
        rows = [Row(0, placed[n].edits, placed[n].places, placed[n].start) for n in order]
        with _norms_of_the_first_row(anatomy):
            # The base is row 0 throughout: its scale is the one that is held.
            out = run_pass(anatomy, pad([prompt.ids], anatomy), rows, keep_bases=True)
        chat.cost.add(out.cost)
        logits = anatomy.logits(out.normed[:, list(metric.reads(prompt))])
        values = metric(logits[1:], prompt, logits[0])
        scores[i, order] = values.double().cpu().numpy()
    return scores


@contextmanager
def _norms_of_the_first_row(anatomy: Anatomy) -> Iterator[None]:
    """Every norm over the residual width divides all rows of a pass by the scale of row 0."""

    def hold(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        scale = args[0].float().pow(2).mean(-1, keepdim=True)
        eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon")  # noqa: B009
        factor = torch.sqrt((scale + eps) / (scale[:1] + eps))
        return (output.float() * factor).to(output.dtype)

    norms = [anatomy.final_norm]
    for layer in anatomy.layers:
        norms += [part for part in layer.children() if type(part) is type(anatomy.final_norm)]
    with hooks() as add:
        for norm in norms:
            add(norm.register_forward_hook(hold))
        yield

"""First-order effects: one forward and one backward give the gradient of a metric at any site.

The first-order estimate of replacing an activation x by y is (y - x) . gradient (attribution patching,
arXiv 2310.10348); it is an approximation and says so: exact effects come from `plan.measure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model.anatomy import Anatomy
from refusalscope.model.anchors import Rendered
from refusalscope.model.clean import place
from refusalscope.model.edits import Edit, EditBatch, Variant, apply_round, batch_edits
from refusalscope.model.engine import Cost, attach, hooks
from refusalscope.model.metrics import Metric
from refusalscope.model.sites import Site


@dataclass(frozen=True)
class Gradients:
    """Activations and gradients of one prompt: site -> [tokens, width], and the metric's value.

    Under a variant both are those of the edited run, at each site after its edits.
    """

    activations: dict[Site, Tensor]
    gradients: dict[Site, Tensor]
    value: float
    cost: Cost

    def effect(self, site: Site, replacement: Tensor) -> Tensor:
        """First-order change of the metric, a token, when the site is replaced: [tokens]."""
        return ((replacement - self.activations[site]) * self.gradients[site]).sum(-1)


def first_order(
    anatomy: Anatomy,
    prompt: Rendered,
    metric: Metric,
    sites: Sequence[Site],
    *,
    variant: Variant = (),
) -> Gradients:
    """Gradient of a metric on one prompt at every site named, from one forward and one backward.

    variant: edits of the run. The gradient passes through later edits as they are computed: what a live
    ablation would take out of a change further on is not counted as its effect. Raises InputError for a site
    outside the model, or a variant with a metric that compares with the clean run.
    """
    if variant and metric.needs_clean:
        raise InputError(
            f"{type(metric).__name__} compares with the clean run, which a gradient under a variant does not "
            f"have; take a metric of one run, such as RefusalMargin"
        )
    kept: dict[Site, Tensor] = {}
    wanted = {site: site.resolved(anatomy.n_layers) for site in sites}
    edits = _edits(anatomy, prompt, variant)
    read = set(wanted.values())

    def visit(site: Site, hidden: Tensor) -> Tensor:
        for batch in edits.get(site, ()):
            hidden = apply_round(hidden, batch)
        if site in read:
            hidden.retain_grad()
            kept[site] = hidden
        return hidden

    embedding = anatomy.model.get_input_embeddings()
    ids = torch.tensor([prompt.ids], device=embedding.weight.device)
    parameters = [p for p in anatomy.model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        with hooks() as add, torch.enable_grad():
            # The graph starts at the embeddings: no parameter needs a gradient.
            add(embedding.register_forward_hook(lambda m, a, out: out.detach().requires_grad_()))
            for site in read | set(edits):
                if site.kind == "resid_pre":
                    add(
                        anatomy.layers[site.layer].register_forward_pre_hook(
                            lambda m, args, s=site: (visit(s, args[0]), *args[1:])
                        )
                    )
                elif site.kind == "final":
                    add(
                        anatomy.final_norm.register_forward_pre_hook(
                            lambda m, args, s=site: (visit(s, args[0]), *args[1:])
                        )
                    )
                else:
                    add(attach(anatomy, site, visit))
            normed = anatomy.decoder(input_ids=ids, use_cache=False).last_hidden_state
            logits = anatomy.logits(normed[:, list(metric.reads(prompt))])
            value = metric(logits, prompt, logits[0].detach())[0]
            value.backward()
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
    cost = Cost(1, len(prompt.ids), 2 * len(prompt.ids) * anatomy.n_layers)
    return Gradients(
        {site: kept[real].detach()[0] for site, real in wanted.items()},
        {site: _gradient(kept[real]) for site, real in wanted.items()},
        float(value.detach()),
        cost,
    )


def _edits(anatomy: Anatomy, prompt: Rendered, variant: Variant) -> dict[Site, list[EditBatch]]:
    """The rounds of edits by site, for one row."""
    placed = place(anatomy, prompt, variant, "every_step", restart=False)
    items: dict[Site, list[tuple[int, Edit, tuple[int, ...]]]] = {}
    for edit, places in zip(placed.edits, placed.places, strict=True):
        items.setdefault(edit.site.resolved(anatomy.n_layers), []).append((0, edit, places))
    return {
        site: batch_edits(found, anatomy.n_heads, anatomy.device) for site, found in items.items()
    }


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor[0]) if tensor.grad is None else tensor.grad[0]

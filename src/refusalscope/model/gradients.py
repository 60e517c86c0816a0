"""First-order effects: one forward and one backward give the gradient of a metric at any site.

The first-order estimate of replacing an activation x by y is (y - x) . gradient (attribution patching,
arXiv 2310.10348); it is an approximation and says so: exact effects come from `plan.measure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refusalscope.model.anatomy import Anatomy
from refusalscope.model.anchors import Rendered
from refusalscope.model.engine import Cost, attach, hooks
from refusalscope.model.metrics import Metric
from refusalscope.model.sites import Site


@dataclass(frozen=True)
class Gradients:
    """Activations and gradients of one prompt: site -> [tokens, width], and the metric's value."""

    activations: dict[Site, Tensor]
    gradients: dict[Site, Tensor]
    value: float
    cost: Cost

    def effect(self, site: Site, replacement: Tensor) -> Tensor:
        """First-order change of the metric, a token, when the site is replaced: [tokens]."""
        return ((replacement - self.activations[site]) * self.gradients[site]).sum(-1)


def first_order(
    anatomy: Anatomy, prompt: Rendered, metric: Metric, sites: Sequence[Site]
) -> Gradients:
    """Gradient of a metric on one prompt at every site named, from one forward and one backward."""
    kept: dict[Site, Tensor] = {}
    wanted = {site: site.resolved(anatomy.n_layers) for site in sites}

    def visit(site: Site, hidden: Tensor) -> Tensor:
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
            for site in set(wanted.values()):
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


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor[0]) if tensor.grad is None else tensor.grad[0]

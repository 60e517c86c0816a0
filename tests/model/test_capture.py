"""Captures of several prompts at once, each under a variant of its own, equal those of one at a time."""

from __future__ import annotations

import numpy as np
import torch

from model import tiny
from refusalscope.model import ChatModel, Plan, Replace, Scale, Site, inspect
from refusalscope.model.anchors import Rendered
from refusalscope.model.clean import ENOUGH, make_batches


def prompts(*lengths: int) -> list[Rendered]:
    seeded = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 300, (len(lengths), max(lengths)), generator=seeded).tolist()
    return [
        Rendered(str(i), "", tuple(row[:n]), n, (0, n - 2), {"prompt_last": n - 1})
        for i, (row, n) in enumerate(zip(ids, lengths, strict=True))
    ]


def test_each_prompt_has_its_own_edits_at_its_own_layers():
    """Rows join in the order of their first edited layer, whatever the order of the prompts."""
    chat = ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="llama")
    last = chat.anatomy.n_layers - 1
    four = prompts(8, 8, 8, 8)
    value = torch.ones(chat.anatomy.d_model)
    variants = [
        (Scale(Site("z", last), "last", head=0, factor=0.0),),
        (Replace(Site("attn_out", 0), "last", values=value),),
        (),
        (Scale(Site("mlp_out", 0), "all", factor=2.0),),
    ]
    sites = [Site("resid_pre", 0), Site("z", last), Site("final")]
    for chosen in (range(4), (0, 1, 3), (3, 1, 0)):
        together = chat.capture(
            [four[i] for i in chosen], sites, ["last"], variant=[variants[i] for i in chosen]
        )
        for n, i in enumerate(chosen):
            alone = chat.capture([four[i]], sites, ["last"], variant=variants[i])
            for site in sites:
                np.testing.assert_allclose(together[site][n], alone[site][0], atol=1e-5)


def test_a_batch_worth_its_launch_takes_no_prompt_much_longer_than_its_first():
    anatomy = inspect(tiny.model("llama"))
    lengths = [*[20] * ENOUGH, 21, 23, *[40] * 3]
    batches = make_batches(anatomy, prompts(*lengths), Plan())
    widths = [[lengths[i] for i in batch] for batch in batches]
    assert widths == [[*[20] * ENOUGH, 21], [23, 40, 40, 40]]
    # Few prompts go together, padded, rather than each by itself.
    assert len(make_batches(anatomy, prompts(20, 23, 30), Plan())) == 1

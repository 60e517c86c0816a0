"""The clean run of a set of prompts: activations at named places, and the prefix others reuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model.anatomy import Anatomy
from refusalscope.model.anchors import Rendered
from refusalscope.model.edits import Variant
from refusalscope.model.engine import Cost, Pass, Row, run_pass
from refusalscope.model.sites import Positions, Site

Progress = Callable[[int, int], None]
# Any id will do on the right of a prompt: attention is causal and no metric reads there.
PAD = 0
# Prompts of a batch that has this many are at most so many times as long as its shortest.
ENOUGH, LIKE = 16, 1.1


@dataclass(frozen=True)
class Plan:
    """How variants are run. Switches change time and memory only.

    prefix: reuse the clean keys and values before the first edited position (not in a recurrent model,
    which has none for every layer). restart: let rows join
    at their first edited layer. batch: run rows together. max_bytes: memory for one pass.
    """

    prefix: bool = True
    restart: bool = True
    batch: bool = True
    max_bytes: int = 512 * 2**20


@dataclass
class Clean:
    """A clean run that is kept, so that its prefix need not be computed again.

    states: site -> [prompts, positions, width] float32 on the CPU. passes: one a batch of prompts, with
    keys and values of all layers (n_layers x 2 x tokens x kv_heads x head_dim numbers a prompt; none of a
    recurrent model).
    """

    prompts: tuple[Rendered, ...]
    batches: list[list[int]]
    passes: list[Pass]
    states: dict[Site, Tensor]
    cost: Cost


@torch.inference_mode()
def run_clean(
    anatomy: Anatomy,
    prompts: Sequence[Rendered],
    sites: Sequence[Site] = (),
    positions: Sequence[Positions] = (),
    *,
    plan: Plan,
) -> Clean:
    """Run prompts as they are, keeping states at single-token positions and the prefix of each."""
    reader = _StateReader(anatomy, prompts, sites, positions)
    kept = []
    batches = make_batches(anatomy, prompts, plan)
    for batch in batches:
        tokens = pad([prompts[p].ids for p in batch], anatomy)
        out = run_pass(anatomy, tokens, record=True, capture=reader.wanted(batch, anatomy.device))
        reader.take(out, batch, {})
        out.captured.clear()
        reader.cost.add(out.cost)
        kept.append(out)
    return Clean(tuple(prompts), batches, kept, reader.stacked(), reader.cost)


@torch.inference_mode()
def capture(
    anatomy: Anatomy,
    prompts: Sequence[Rendered],
    sites: Sequence[Site],
    positions: Sequence[Positions],
    *,
    variant: Variant | list[Variant] = (),
    policy: str = "every_step",
    plan: Plan = Plan(),
    progress: Progress | None = None,
) -> tuple[dict[Site, Tensor], Cost]:
    """Activations at sites and single-token positions: site -> [prompts, positions, width] float32, CPU.

    With a variant, or a list of one a prompt, the activations are those of the edited run.
    """
    if isinstance(variant, list) and len(variant) != len(prompts):
        raise InputError(f"{len(variant)} variants for {len(prompts)} prompts; give one a prompt")
    variants = variant if isinstance(variant, list) else [variant] * len(prompts)
    reader = _StateReader(anatomy, prompts, sites, positions)
    done = 0
    for batch in make_batches(anatomy, prompts, plan):
        tokens = pad([prompts[p].ids for p in batch], anatomy)
        placed = [place(anatomy, prompts[p], variants[p], policy, plan.restart) for p in batch]
        edited = [i for i, found in enumerate(placed) if found.edits]
        edited.sort(key=lambda i: placed[i].start)
        rows = [Row(i, placed[i].edits, placed[i].places, placed[i].start) for i in edited]
        wanted = reader.wanted(batch, anatomy.device)
        out = run_pass(anatomy, tokens, rows, keep_bases=len(rows) < len(batch), capture=wanted)
        reader.take(out, batch, {i: n for n, i in enumerate(edited)})
        reader.cost.add(out.cost)
        done += len(batch)
        if progress is not None:
            progress(done, len(prompts))
    return reader.stacked(), reader.cost


class _StateReader:
    """Takes the states asked for out of each pass, so that nothing else of it need be held."""

    def __init__(
        self,
        anatomy: Anatomy,
        prompts: Sequence[Rendered],
        sites: Sequence[Site],
        positions: Sequence[Positions],
    ) -> None:
        self.resolved = {site: site.resolved(anatomy.n_layers) for site in sites}
        self.real = sorted(set(self.resolved.values()))
        self.where = [
            [prompt.resolve(at, "prompt_only")[-1] for at in positions] for prompt in prompts
        ]
        self.found: dict[Site, list[Tensor]] = {
            site: [torch.empty(0)] * len(prompts) for site in sites
        }
        self.cost = Cost()

    def wanted(self, batch: Sequence[int], device: torch.device) -> dict[Site, Tensor]:
        places = torch.tensor([self.where[p] for p in batch], device=device)
        return dict.fromkeys(self.real, places)

    def take(self, out: Pass, batch: Sequence[int], row_of: dict[int, int]) -> None:
        for site, real in self.resolved.items():
            states = [out.state(real, row_of.get(i), i) for i in range(len(batch))]
            for p, state in zip(batch, torch.stack(states).float().cpu(), strict=True):
                self.found[site][p] = state

    def stacked(self) -> dict[Site, Tensor]:
        return {site: torch.stack(states) for site, states in self.found.items()}


@dataclass(frozen=True)
class Placed:
    """A variant on one prompt: its edits that touch a token, where, and where the first of them stands."""

    edits: Variant
    places: tuple[tuple[int, ...], ...]
    first: int
    start: int


def place(
    anatomy: Anatomy, prompt: Rendered, variant: Variant, policy: str, restart: bool
) -> Placed:
    """Resolve a variant's positions on a prompt; edits that touch no token fall away."""
    found = [(edit, prompt.resolve(edit.positions, policy)) for edit in variant]
    found = [(edit, places) for edit, places in found if places]
    start = min((edit.site.start(anatomy.n_layers) for edit, _ in found), default=0)
    return Placed(
        tuple(edit for edit, _ in found),
        tuple(places for _, places in found),
        min((min(places) for _, places in found), default=0),
        start if restart else 0,
    )


def rows_within(anatomy: Anatomy, width: int, offset: int, plan: Plan) -> int:
    """How many rows of `width` new tokens after `offset` cached ones fit the budget."""
    size = torch.finfo(anatomy.lm_head.weight.dtype).bits // 8
    config = anatomy.model.config.get_text_config()
    # Each expert of a token has its own copy of the token's state.
    experts = getattr(config, "num_experts_per_tok", 0) or 0
    chosen = experts * (anatomy.d_model + getattr(config, "moe_intermediate_size", 0))
    states = width * (6 * anatomy.d_model + 3 * max(config.intermediate_size, chosen))
    attention = 2 * (width + offset) * anatomy.n_heads * anatomy.head_dim
    scores = anatomy.n_heads * width * (width + offset)
    mixer = _delta_rule_bytes(anatomy, config, width) if anatomy.recurrent else 0
    return max(1, int(plan.max_bytes // (size * (states + attention + scores) + mixer)))


def _delta_rule_bytes(anatomy: Anatomy, config: Any, width: int) -> int:
    """What a row of linear attention holds in float32: its state, and chunks of 64 tokens with their pairs."""
    chunk = 64
    tokens = -(-width // chunk) * chunk
    key = getattr(config, "linear_key_head_dim", anatomy.head_dim)
    value = getattr(config, "linear_value_head_dim", anatomy.head_dim)
    head = tokens * (8 * key + 6 * value + 4 * chunk) + 3 * key * value
    return 4 * getattr(config, "linear_num_value_heads", anatomy.n_heads) * head


def make_batches(anatomy: Anatomy, prompts: Sequence[Rendered], plan: Plan) -> list[list[int]]:
    """Prompts of like length together, few enough that their clean pass fits the budget."""
    order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
    if not plan.batch:
        return [[p] for p in order]
    batches: list[list[int]] = []
    for p in order:
        width = len(prompts[p])
        # Keys and values of the whole batch are held while its variants run: count them once more.
        held = anatomy.n_layers * 2 * width * anatomy.n_kv_heads * anatomy.head_dim * 4
        room = min(rows_within(anatomy, width, 0, plan), max(1, plan.max_bytes // held))
        first = len(prompts[batches[-1][0]]) if batches else 0
        # Some rotary embeddings scale once a batch is longer than a limit: no prompt may be dragged over it.
        limit = anatomy.rope_limit
        crosses = limit is not None and first <= limit < width
        # Padding is work too: a batch worth its launch takes no prompt much longer than its first.
        longer = width > (LIKE if len(batches[-1]) >= ENOUGH else 2) * first if batches else True
        if longer or len(batches[-1]) >= room or crosses:
            batches.append([])
        batches[-1].append(p)
    return batches


def pad(ids: Sequence[Sequence[int]], anatomy: Anatomy) -> Tensor:
    width = max(len(row) for row in ids)
    padded = [[*row, *[PAD] * (width - len(row))] for row in ids]
    return torch.tensor(padded, device=anatomy.device)

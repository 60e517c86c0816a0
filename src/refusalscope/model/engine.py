"""One pass of the model in which every row has its own edits.

The pass calls the model's own forward once and steers it from outside with hooks:

- rows join late: a row whose first edit stands at layer l is the clean row up to there, so it is
  copied from its base row at the input of layer l (restart at the edited layer);
- the prefix before the first edited position comes from a cache, shared by all rows of a prompt;
- rows are padded on the right only, and every mixer is causal, so no row can see padding or company;
- edits are applied to their rows alone and never in place.

All hooks are removed when the pass ends, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from refusalscope.model.anatomy import Anatomy
from refusalscope.model.edits import EditBatch, Variant, apply_round, batch_edits
from refusalscope.model.sites import Site

KeyValues = list[tuple[Tensor, Tensor]]


@dataclass
class Cost:
    """What was spent: calls of the model, tokens fed, and tokens x layers actually computed."""

    forwards: int = 0
    tokens: int = 0
    token_layers: int = 0

    def add(self, other: Cost) -> None:
        self.forwards += other.forwards
        self.tokens += other.tokens
        self.token_layers += other.token_layers


@dataclass(frozen=True)
class Row:
    """A row of a pass: which base prompt, which edits, at which token indices of that prompt."""

    base: int
    edits: Variant
    places: tuple[tuple[int, ...], ...]
    start: int


@dataclass
class Pass:
    """What a pass gives back.

    normed: [bases kept + rows, positions, d_model], after the final norm.
    captured: site -> (states [bases, then rows present, places, width], n_bases, n_rows), where places
    are those that the caller asked for.
    """

    normed: Tensor
    n_bases: int
    key_values: KeyValues | None
    captured: dict[Site, tuple[Tensor, int, int]]
    cost: Cost = field(default_factory=Cost)

    def state(self, site: Site, row: int | None, base: int) -> Tensor:
        """Captured states [places, width] of a row; of its base where it joined later or is None."""
        tensor, n_bases, n_rows = self.captured[site]
        return tensor[n_bases + row] if row is not None and row < n_rows else tensor[base]


class _Layer(DynamicLayer):
    """A cache layer that hands out a shared prefix and keeps nothing of the rows."""

    def __init__(self, prefix: tuple[Tensor, Tensor] | None, state: _State, record: bool) -> None:
        super().__init__()
        self.prefix, self.state, self.record = prefix, state, record
        self.recorded: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if self.record:
            self.recorded = (key_states, value_states)
        if self.prefix is None:
            return key_states, value_states
        return (
            torch.cat([self.state.spread(self.prefix[0]), key_states], dim=-2),
            torch.cat([self.state.spread(self.prefix[1]), value_states], dim=-2),
        )

    def get_seq_length(self) -> int:
        return 0 if self.prefix is None else self.prefix[0].shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class _State:
    """Which rows are in the batch at the layer being computed."""

    def __init__(self, n_bases: int, rows: Sequence[Row], keep_bases: bool, device: torch.device):
        self.bases = torch.arange(n_bases, device=device)
        self.n_bases, self.n_rows = n_bases, 0
        self.rows, self.device = rows, device
        self.last_join = max((row.start for row in rows), default=-1)
        self.keep_bases = keep_bases or not rows

    def join(self, hidden: Tensor, layer: int) -> Tensor:
        """Add the rows that start at this layer; let go of the bases when nothing needs them."""
        joining = [row.base for row in self.rows[self.n_rows :] if row.start == layer]
        if joining:
            new = torch.tensor(joining, device=self.device)
            hidden = torch.cat([hidden, hidden[new.to(hidden.device)]])
            self.bases = torch.cat([self.bases, new])
            self.n_rows += len(joining)
        if layer >= self.last_join and not self.keep_bases and self.n_bases:
            hidden, self.bases, self.n_bases = hidden[self.n_bases :], self.bases[self.n_bases :], 0
        return hidden

    def spread(self, prefix: Tensor) -> Tensor:
        """Prefix keys or values [bases, kv_heads, P, head_dim] given to each row in the batch."""
        if prefix.shape[0] == 1:
            return prefix.expand(len(self.bases), -1, -1, -1)
        return prefix[self.bases.to(prefix.device)]


def run_pass(
    anatomy: Anatomy,
    tokens: Tensor,
    rows: Sequence[Row] = (),
    *,
    prefix: KeyValues | None = None,
    keep_bases: bool = True,
    record: bool = False,
    capture: Mapping[Site, Tensor] | None = None,
) -> Pass:
    """Run base prompts and their edited rows in one call of the model.

    tokens: [bases, positions] ids after the prefix, padded on the right. rows: sorted by `start`;
    their places count from the prompt's first token. prefix: keys and values of the tokens before,
    per layer [bases, kv_heads, P, head_dim]. Bases that are not kept leave after the last join. capture:
    site -> [bases, places] indices into `tokens`; nothing else of a site is held. A recurrent model has no
    keys and values of every layer: it runs whole texts, takes no prefix and records none.
    """
    offset = 0 if prefix is None else prefix[0][0].shape[-2]
    state = _State(tokens.shape[0], rows, keep_bases, tokens.device)
    layers = [
        _Layer(None if prefix is None else prefix[i], state, record)
        for i in range(anatomy.n_layers)
    ]
    cost = Cost(forwards=1, tokens=tokens.numel())
    batches = _compile(anatomy, rows, offset, tokens.shape[1], tokens.device)
    captured: dict[Site, tuple[Tensor, int, int]] = {}
    with _steered(anatomy, state, batches, capture or {}, captured, cost):
        if anatomy.recurrent:
            # One row of positions serves all rows, also those that join later.
            positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
            out = anatomy.decoder(input_ids=tokens, position_ids=positions, use_cache=False)
        else:
            cache = Cache(layers=list(layers))
            out = anatomy.decoder(input_ids=tokens, past_key_values=cache, use_cache=True)
    recorded = [layer.recorded for layer in layers] if record and not anatomy.recurrent else None
    return Pass(out.last_hidden_state, state.n_bases, recorded, captured, cost)  # type: ignore[arg-type]


def _compile(
    anatomy: Anatomy, rows: Sequence[Row], offset: int, width: int, device: torch.device
) -> dict[Site, list[EditBatch]]:
    """Turn the rows' edits into index tensors, by site; row numbers do not count the bases."""
    placed: dict[Site, list] = {}
    for number, row in enumerate(rows):
        for edit, places in zip(row.edits, row.places, strict=True):
            site = edit.site.resolved(anatomy.n_layers)
            inside = tuple(place - offset for place in places) if offset else places
            placed.setdefault(site, []).append((number, edit, inside))
    return {site: batch_edits(items, anatomy.n_heads, device) for site, items in placed.items()}


@contextmanager
def _steered(
    anatomy: Anatomy,
    state: _State,
    batches: dict[Site, list[EditBatch]],
    capture: Mapping[Site, Tensor],
    captured: dict[Site, tuple[Tensor, int, int]],
    cost: Cost,
) -> Iterator[None]:
    def visit(site: Site, hidden: Tensor) -> Tensor:
        for batch in batches.get(site, ()):
            hidden = apply_round(hidden, _shift(batch, state.n_bases))
        if site in capture:
            places = capture[site].to(hidden.device)[state.bases.to(hidden.device)]
            rows = torch.arange(len(places), device=hidden.device).unsqueeze(1)
            captured[site] = (hidden[rows, places], state.n_bases, state.n_rows)
        return hidden

    def enter_layer(layer: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            hidden = visit(Site("resid_pre", layer), state.join(args[0], layer))
            cost.token_layers += hidden.shape[0] * hidden.shape[1]
            mask = kwargs.get("attention_mask")
            if isinstance(mask, Tensor) and mask.dim() == 4:
                # No row is padded on the left, so all rows have the same mask and one serves all.
                kwargs["attention_mask"] = mask[:1]
            return (hidden, *args[1:]), kwargs

        return hook

    def before_norm(module: nn.Module, args: tuple) -> tuple:
        return (visit(Site("final"), state.join(args[0], anatomy.n_layers)), *args[1:])

    with hooks() as add:
        for layer in range(anatomy.n_layers):
            add(
                anatomy.layers[layer].register_forward_pre_hook(
                    enter_layer(layer), with_kwargs=True
                )
            )
        add(anatomy.final_norm.register_forward_pre_hook(before_norm))
        for site in set(batches) | set(capture):
            if site.kind in ("z", "attn_out", "mlp_out"):
                add(attach(anatomy, site, visit))
        yield


def attach(anatomy: Anatomy, site: Site, visit: Callable[[Site, Tensor], Tensor]):
    """Hook a site inside a layer; `visit` gets the activation and returns what takes its place."""
    if site.kind == "z":
        return anatomy.attention_output(site.layer).register_forward_pre_hook(
            lambda module, args: (visit(site, args[0]), *args[1:])
        )
    module = (
        anatomy.attn_write(site.layer) if site.kind == "attn_out" else anatomy.mlp_write(site.layer)
    )

    def after(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return (visit(site, output[0]), *output[1:])
        return visit(site, output)

    return module.register_forward_hook(after)


@contextmanager
def hooks() -> Iterator[Callable]:
    """Collect hook handles and remove them all at the end, whatever happens."""
    handles: list = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


def _shift(batch: EditBatch, n_bases: int) -> EditBatch:
    if not n_bases:
        return batch
    return EditBatch(
        batch.kind,
        batch.rows + n_bases,
        batch.positions,
        batch.heads,
        batch.parameters,
        batch.lookup,
        batch.n_heads,
    )

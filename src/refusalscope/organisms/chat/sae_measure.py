"""What the sparse autoencoders of builtin:chat do on the bundled pairs, which they were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refusalscope.dictionary import Dictionary, check
from refusalscope.dictionary.activations import states
from refusalscope.model import ChatModel, Frozen, RefusalMargin, Rendered, Replace, Variant
from refusalscope.organisms.chat import REFUSAL_WORDINGS, REPLY_OPENINGS
from refusalscope.prompts import PairSet
from refusalscope.stats import Interval, mean_interval

SHOWN = 5  # latents nearest to the refusal direction that are listed


def measure_dictionaries(
    dictionaries: Mapping[int, Dictionary], chat: ChatModel, pairs: PairSet, seed: int = 0
) -> dict[str, Any]:
    """The figures of the card, ready for JSON: by layer, and `all_spliced`, all layers at once.

    Explained variance, L0 and silent latents as `dictionary.check` gives them. margins: the refusal
    margin (nats) where the stream after a layer is replaced by its reconstruction at all tokens but
    BOS, against the clean one. direction: mean difference at the last prompt token.
    """
    prompts = list(pairs.prompts())
    rendered = chat.render(prompts)
    harmful = np.array([prompt.label == "harmful" for prompt in prompts])
    groups = np.array([prompt.category or "" for prompt in prompts])
    clean = _margins(chat, rendered, [()] * len(rendered))
    found: dict[str, Any] = {}
    for layer, dictionary in sorted(dictionaries.items()):
        whole = dictionary.hold()
        fit = check(whole, chat, rendered, seed=seed)
        streams = [text[whole.site] for text in states(chat, rendered, [whole.site])]
        rebuilt = [_rebuilt(whole, x) for x in streams]
        spliced = _margins(chat, rendered, _splices(whole, rendered, rebuilt))
        found[str(layer)] = {
            "l0": _bounds(fit.l0),
            "l0_special": fit.l0_special,
            "explained": _bounds(fit.explained_variance),
            "explained_with_special": _share(streams, rebuilt, 0),
            "explained_without_bos": _share(streams, rebuilt, 1),
            "silent_share": fit.dead_share,
            "warnings": list(fit.warnings),
            "margins": _compare(clean, spliced, harmful, groups, seed),
            "direction": _direction(whole, streams, rebuilt, harmful),
        }
    last = _chained(dictionaries, chat, rendered)
    found["all_spliced"] = _compare(clean, _margins(chat, rendered, last), harmful, groups, seed)
    return found


def opening_margin(chat: ChatModel) -> RefusalMargin:
    """The refusal margin of the model's own openings: first tokens of its two lists of wordings."""

    def first(texts: Sequence[str]) -> tuple[int, ...]:
        ids = [chat.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts]
        return tuple(dict.fromkeys(ids))

    return RefusalMargin(first(REFUSAL_WORDINGS), first(REPLY_OPENINGS))


def _margins(
    chat: ChatModel, rendered: Sequence[Rendered], variants: Sequence[Variant]
) -> npt.NDArray[np.float64]:
    """[prompts], each prompt under its own variant."""
    per_prompt = [[variant] for variant in variants]
    found = chat.measure(rendered, per_prompt, {"margin": opening_margin(chat)})
    return found.scores["margin"][:, 0]


def _rebuilt(dictionary: Dictionary, x: Tensor) -> Tensor:
    return dictionary.decode(dictionary.encode(x), x)


def _splices(
    dictionary: Dictionary, rendered: Sequence[Rendered], rebuilt: Sequence[Tensor]
) -> list[Variant]:
    """For each prompt: the stream replaced by its reconstruction, BOS left as it is."""
    return [
        (Replace(dictionary.site, "no_bos", values=Frozen(x[list(prompt.resolve("no_bos"))])),)
        for prompt, x in zip(rendered, rebuilt, strict=True)
    ]


def _chained(
    dictionaries: Mapping[int, Dictionary], chat: ChatModel, rendered: Sequence[Rendered]
) -> list[Variant]:
    """Every layer's reconstruction of what the reconstructions before it lead to.

    The last replacement alone is returned: it overwrites all that the earlier ones did.
    """
    variants: list[Variant] = [()] * len(rendered)
    for _, dictionary in sorted(dictionaries.items()):
        found = states(chat, rendered, [dictionary.site], variants)
        rebuilt = [_rebuilt(dictionary, text[dictionary.site]) for text in found]
        variants = _splices(dictionary, rendered, rebuilt)
    return variants


def _share(streams: Sequence[Tensor], rebuilt: Sequence[Tensor], first: int) -> float:
    """Share of variance reconstructed, of the tokens from `first` on (0 with BOS, 1 without)."""
    x = torch.cat([rows[first:] for rows in streams])
    missed = (x - torch.cat([rows[first:] for rows in rebuilt])).double().pow(2).sum()
    return float(1 - missed / (x - x.mean(0)).double().pow(2).sum())


def _compare(
    clean: npt.NDArray[np.float64],
    spliced: npt.NDArray[np.float64],
    harmful: npt.NDArray[np.bool_],
    groups: npt.NDArray[np.str_],
    seed: int,
) -> dict[str, Any]:
    """recon_gap (spliced less clean) by label, how far the labels stay apart, and verdicts kept."""
    gap = spliced - clean
    sides = {"harmful": harmful, "harmless": ~harmful}

    def apart(values: npt.NDArray[np.float64]) -> float:
        return float(values[harmful].mean() - values[~harmful].mean())

    return {
        "clean": {name: float(clean[side].mean()) for name, side in sides.items()},
        "recon_gap": {
            name: _bounds(mean_interval(gap[side], groups[side], seed=seed))
            for name, side in sides.items()
        },
        "separation_kept": apart(spliced) / apart(clean),
        "verdicts_kept": float(((spliced > 0) == (clean > 0)).mean()),
    }


def _direction(
    dictionary: Dictionary,
    streams: Sequence[Tensor],
    rebuilt: Sequence[Tensor],
    harmful: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    """The mean difference at the last token: how well it is rebuilt, and the latents nearest to it."""
    mask = torch.from_numpy(harmful)

    def difference(rows: Sequence[Tensor]) -> Tensor:
        last = torch.stack([x[-1] for x in rows])
        return last[mask].mean(0) - last[~mask].mean(0)

    v = difference(streams)
    unit = v / v.norm()
    cosine = torch.cat(
        [rows @ unit / rows.norm(dim=1).clamp_min(1e-12) for _, rows in dictionary.decoder_rows()]
    )
    active = dictionary.encode(torch.stack([x[-1] for x in streams])) > 0
    nearest = cosine.topk(min(SHOWN, len(cosine))).indices.tolist()
    return {
        "rebuilt_cosine": float(torch.cosine_similarity(v, difference(rebuilt), dim=0)),
        "nearest": [
            {
                "latent": i,
                "cosine": float(cosine[i]),
                "active_harmful": float(active[mask, i].double().mean()),
                "active_harmless": float(active[~mask, i].double().mean()),
            }
            for i in nearest
        ],
    }


def _bounds(found: Interval) -> list[float]:
    """[value, low, high]"""
    return [found.value, found.low, found.high]

"""The card of the sparse autoencoders of builtin:chat, written from their log and their measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refusalscope.dictionary import load_dictionary
from refusalscope.model import ChatModel
from refusalscope.organisms.chat.sae import MODEL
from refusalscope.organisms.chat.sae_measure import SHOWN, measure_dictionaries
from refusalscope.prompts import bundled_pairs


def describe(folder: Path) -> dict[str, Any]:
    """Measures a folder of trained dictionaries, writes metrics.json and README.md, returns the figures."""
    log = json.loads((folder / "train.log").read_text(encoding="utf-8").splitlines()[-1])
    layers = log["settings"]["layers"]
    chat = ChatModel.load(MODEL, dtype="float32", device="cpu")
    dictionaries = {layer: load_dictionary(folder / str(layer)) for layer in layers}
    metrics = measure_dictionaries(dictionaries, chat, bundled_pairs())
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card_text(log, metrics), encoding="utf-8")
    return metrics


def card_text(log: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    s = log["settings"]
    layers = {name: found for name, found in metrics.items() if name != "all_spliced"}
    parts = [
        "---\nlicense: apache-2.0\nlibrary_name: saelens\n---",
        "# builtin:chat-sae",
        f"{len(layers)} sparse autoencoders of {s['latents']:,} latents on the residual stream of "
        "`builtin:chat`, `resid_post` of the layer that names the folder. JumpReLU, decoder rows of "
        "length one, the two matrices in float16. Load one with "
        '`refusalscope.dictionary.load_dictionary("builtin:chat-sae/2")`, or its folder with '
        "`sae_lens.SAE.load_from_disk`.",
        "## Training",
        _training(log),
        "## Measured",
        _MEASURED,
        _table(
            [
                "layer",
                "L0",
                "L0, special tokens",
                "explained",
                "explained, all tokens",
                "explained, all but BOS",
                "silent latents",
            ],
            [
                [
                    name,
                    _bounds(m["l0"], 1),
                    f"{m['l0_special']:.1f}",
                    _bounds(m["explained"], 3),
                    f"{m['explained_with_special']:.3f}",
                    f"{m['explained_without_bos']:.3f}",
                    f"{m['silent_share']:.1%}",
                ]
                for name, m in layers.items()
            ],
        ),
        "### Refusal margin with the reconstruction in place of the stream",
        _SPLICED,
        _table(
            [
                "layer",
                "gap, harmful",
                "gap, harmless",
                "separation kept",
                "verdicts kept",
            ],
            [
                *([name, *_margins(m["margins"])] for name, m in layers.items()),
                ["all at once", *_margins(metrics["all_spliced"])],
            ],
        ),
        "### The refusal direction",
        _DIRECTION,
        _table(
            ["layer", "rebuilt", "latent", "cosine", "active, harmful", "active, harmless"],
            [
                [
                    name,
                    f"{m['direction']['rebuilt_cosine']:.3f}",
                    str(near["latent"]),
                    f"{near['cosine']:.2f}",
                    f"{near['active_harmful']:.0%}",
                    f"{near['active_harmless']:.0%}",
                ]
                for name, m in layers.items()
                for near in m["direction"]["nearest"]
            ],
        ),
        "## Known limits",
        _LIMITS,
        "## How to retrain",
        "```\nrefusalscope organism train chat-sae --out FOLDER\n```",
        f"Seed {s['seed']}; it needs SAELens (`refusalscope[sae]`) and no data.",
    ]
    return "\n\n".join(parts) + "\n"


_MEASURED = """\
On the 160 bundled pairs of prompts in the chat template, none of which stood in the training texts;
the number of latents of the training was settled by trials (24, 16, 8) measured on these same pairs;
stored, rounded weights; in brackets 95 % intervals, bootstrapped over prompts. L0 and explained
variance leave special tokens (BOS, turn markers) out; two more columns give it with all tokens, and
with all but BOS. Silent latents are active on no token of these prompts; texts of other kinds
(replies, system turns, ciphers) wake some of them."""

_SPLICED = """\
Nats. The stream after one layer, or after every layer in turn, is replaced by its reconstruction at
all tokens but BOS. gap: spliced less clean margin, mean over prompts with its interval over the ten
categories. separation: mean margin of harmful less that of harmless prompts, spliced over clean.
verdicts: prompts whose margin keeps its sign."""

_DIRECTION = f"""\
Mean difference of harmful and harmless prompts at the last prompt token. rebuilt: its cosine with the
same difference of reconstructions. Then the {SHOWN} latents with the largest decoder cosine, and the
share of prompts on whose last token they are active. Computed on the same pairs it is shown for."""

_LIMITS = """\
- A test bed: the model is small and its texts are narrow, so these figures do not carry over to the
  dictionaries of real models.
- The line break that ends the template counts as text here; its states vary most in the late layers,
  where it carries the decision, and weigh most in explained variance.
- No latent was named or checked by a reader.
- Trained with BOS and turn markers among the tokens; what an edit does there is not what it does on text.
- Other seeds give other latents; one seed ships."""


def _training(log: Mapping[str, Any]) -> str:
    s = log["settings"]
    return (
        f"SAELens {log['versions']['sae-lens']}, BatchTopK (arXiv 2412.06410) with {s['active']:g} "
        f"active latents a token, saved as JumpReLU with the threshold that training learnt; "
        f"{s['steps']} steps of {s['batch_tokens']} tokens, Adam at {s['learning_rate']:g}, falling "
        f"to zero over the last {s['decay_share']:.0%}; {log['seconds'] / 60:.0f} minutes on "
        f"{s['threads']} CPU thread of a machine that other work shared.\n\n"
        f"Texts: {s['requests']:,} requests of this project's own generator (Apache-2.0), about half of "
        "them harmful, wrapped, questioned and put into turns as in the training of the model, without its "
        f"word salads; {s['reply_share']:.0%} of them go on with up to {s['reply_tokens']} tokens of a "
        f"reply sampled from the model. {log['tokens']:,} tokens, BOS included, used "
        f"{s['steps'] * s['batch_tokens'] / log['tokens']:.1f} times; {s['held_out']:.0%} of the texts were "
        "held out for the lines of the log. No file of shared data was read. "
        "train.log holds every setting."
    )


def _margins(found: Mapping[str, Any]) -> list[str]:
    return [
        _signed(found["recon_gap"]["harmful"]),
        _signed(found["recon_gap"]["harmless"]),
        f"{found['separation_kept']:.3f}",
        f"{found['verdicts_kept']:.1%}",
    ]


def _signed(found: Sequence[float]) -> str:
    return f"{found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]"


def _bounds(found: Sequence[float], digits: int) -> str:
    value, low, high = (f"{x:.{digits}f}" for x in found)
    return f"{value} [{low}, {high}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

"""`refusalscope organism`: models whose circuit is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Table

from refusalscope.cli.audit import new_folder
from refusalscope.cli.session import SESSION, Bars
from refusalscope.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

TRAINABLE = ("chat", "chat-sae", "reasoner")
# By suite: the column of its means, its heading, and the digits behind the point.
_COST = (
    ("forwards", "forwards", 0),
    ("token_layers", "token-layers", 0),
    ("seconds", "seconds", 1),
)
SHOWN = {
    "routing": (
        ("seeds", "seeds", 0),
        ("precision", "precision", 3),
        ("recall", "recall", 3),
        ("auprc", "AUPRC", 3),
        ("gate_rank", "gate rank", 1),
        ("claimed", "heads claimed", 1),
        *_COST,
    ),
    "features": (
        ("seeds", "seeds", 0),
        ("precision", "precision", 3),
        ("recall", "recall", 3),
        ("planted", "planted", 2),
        ("flipped", "flips", 2),
        ("auprc", "AUPRC", 3),
        ("claimed", "latents claimed", 1),
        ("runs", "sets run", 1),
        *_COST,
    ),
    "cliff": (
        ("seeds", "seeds", 0),
        ("precision", "precision", 3),
        ("recall", "recall", 3),
        ("auprc", "AUPRC", 3),
        ("precision_selected", "as selected", 3),
        ("static_rank", "static rank", 1),
        ("claimed", "claimed", 1),
        *_COST,
    ),
    "beliefs": (
        ("seeds", "seeds", 0),
        ("auroc", "AUROC", 3),
        ("lowest", "lowest stratum", 3),
        ("other", "of the other bit", 3),
        *_COST,
    ),
}
SCORED = tuple(SHOWN)

organism = App(
    name="organism",
    help="Models whose circuit is known: list, build, train and score methods on them.",
    help_epilogue="Example: `refusalscope organism build planted-routes --variant backup --out models/backup`",
    help_format="markdown",
    default_parameter=Parameter(negative=()),
)


@organism.command(name="list")
def list_() -> None:
    """List the models that ship, can be built, or can be trained.

    Example: `refusalscope organism list`
    """
    from refusalscope.organisms.planted import list_builtin
    from refusalscope.organisms.planted.beliefs import TWO_BELIEFS, VARIANTS

    table = Table("model", "variant", "what it is", "options")
    table.add_row("builtin:chat", "", "the embedded chat model, trained; refuses or repeats", "")
    table.add_row("builtin:reasoner", "", "the same with thinking, and a planted cliff", "")
    for entry in list_builtin():
        options = ", ".join(
            f"{name} ({option.values_text}, {option.default})"
            for name, option in entry.options.items()
        )
        table.add_row(entry.kind, entry.variant, escape(entry.summary), escape(options))
    for variant, summary in VARIANTS.items():
        table.add_row(f"builtin:{TWO_BELIEFS}", variant, summary, "")
    SESSION.out.print(table)


@organism.command
def build(
    kind: str = "planted-routes",
    /,
    *,
    out: Path,
    variant: str = "base",
    seed: int = 0,
    noise: float = 0.01,
    comply_bias: float | None = None,
    n_pairs: Annotated[int | None, Parameter(name="--pairs")] = None,
    option: Annotated[list[str] | None, Parameter(negative=())] = None,
    allow_weak: bool = False,
) -> None:
    """Build a model with a planted circuit and save it as an ordinary checkpoint with truth.json.

    Example: `refusalscope organism build planted-routes --variant backup --option redundancy=3 --out models/b3`

    Parameters
    ----------
    kind
        The planted model; `refusalscope organism list` shows them.
    out
        The folder to write; it must not exist.
    variant
        Which variant of it.
    seed
        Seed of the noise and of the prompts: another seed gives another model.
    noise
        Standard deviation of the weights that are not planted.
    comply_bias
        Offset towards complying; the variant's own without it.
    n_pairs
        Number of prompt pairs written beside the model.
    option
        A variant's own option, as NAME=NUMBER; may be given several times.
    allow_weak
        Write the model even where it follows its policy on less than 95 % of its prompts.
    """
    from transformers.utils import logging

    from refusalscope.organisms.planted import build as build_planted
    from refusalscope.organisms.planted import save

    logging.disable_progress_bar()
    planted = build_planted(
        kind,
        variant,
        seed=seed,
        noise=noise,
        comply_bias=comply_bias,
        pairs=n_pairs,
        allow_weak=allow_weak,
        **dict(_option(text) for text in option or ()),
    )
    folder = save(planted, out)
    accuracy = planted.truth.policy_accuracy
    SESSION.out.print(
        f"{kind} {variant} (seed {seed}): policy accuracy {accuracy:.3f}", highlight=False
    )
    SESSION.out.print(f"model: {folder}", soft_wrap=True, highlight=False)


@organism.command
def train(
    name: str,
    /,
    *,
    out: Path,
    shared: Path | None = None,
    steps: int | None = None,
    seed: int | None = None,
) -> None:
    """Train an embedded model, or sparse autoencoders of one, again by its recipe.

    Example: `refusalscope organism train chat --shared ../shared --out models/chat`

    Parameters
    ----------
    name
        What to train: chat; chat-sae, the sparse autoencoders of builtin:chat (needs SAELens); or
        reasoner, which starts from builtin:chat.
    out
        The folder to write the weights, card, log and metrics to.
    shared
        For chat, the folder with the shared data; without it, as for the others always, generated
        requests alone are trained on.
    steps
        Training steps, instead of the recipe's own number; for reasoner, those of its first stage.
    seed
        Seed, instead of the recipe's own.
    """
    if name not in TRAINABLE:
        raise InputError(
            f"there is no recipe for {name!r}; there is one for {', '.join(TRAINABLE)}"
        )
    changes = {k: v for k, v in {"steps": steps, "seed": seed}.items() if v is not None}
    if name != "chat":
        if shared is not None:
            raise InputError(f"{name} is trained on generated requests alone; leave --shared out")
        (_train_dictionaries if name == "chat-sae" else _train_reasoner)(out, changes)
        return
    from refusalscope.organisms.chat.recipe import TrainSettings
    from refusalscope.organisms.chat.recipe import train as train_chat

    settings = TrainSettings(**changes)
    with Bars() as bars:
        advance = bars.track("training steps")
        result = train_chat(
            out,
            shared=shared,
            settings=settings,
            progress=lambda done, total, note: advance(done, total),
        )
    SESSION.out.print(
        f"{result.parameters} parameters, loss {result.first_loss:.3f} to {result.last_loss:.3f}, "
        f"{result.seconds / 60:.1f} minutes",
        highlight=False,
    )
    SESSION.out.print(f"model: {result.folder}", soft_wrap=True, highlight=False)


def _train_reasoner(out: Path, changes: dict[str, int]) -> None:
    from refusalscope.organisms.reasoner.recipe import ReasonerSettings
    from refusalscope.organisms.reasoner.recipe import train as train_reasoner

    with Bars() as bars:
        advance = bars.track("training steps")
        result = train_reasoner(
            out,
            settings=ReasonerSettings(**changes),
            progress=lambda done, total, note: advance(done, total),
        )
    SESSION.out.print(
        f"{result.parameters} parameters, {result.seconds / 60:.1f} minutes", highlight=False
    )
    SESSION.out.print(f"model: {result.folder}", soft_wrap=True, highlight=False)


def _train_dictionaries(out: Path, changes: dict[str, int]) -> None:
    from refusalscope.organisms.chat.sae import SaeSettings, train_dictionaries
    from refusalscope.organisms.chat.sae_card import describe

    with Bars() as bars:
        result = train_dictionaries(
            out, settings=SaeSettings(**changes), progress=bars.track("training steps")
        )
    for layer, found in describe(out).items():
        if layer != "all_spliced":
            SESSION.out.print(
                f"layer {layer}: {found['l0'][0]:.1f} latents active a token, "
                f"{found['explained'][0]:.1%} of the variance",
                highlight=False,
            )
    SESSION.out.print(f"{result.seconds / 60:.1f} minutes", highlight=False)
    SESSION.out.print(f"dictionaries: {result.folder}", soft_wrap=True, highlight=False)


@organism.command
def score(
    name: str = "routing",
    /,
    *,
    seeds: int = 10,
    only: Annotated[list[str] | None, Parameter(negative=())] = None,
    out: Path | None = None,
    resume: bool = False,
) -> None:
    """Score methods on organisms whose circuit is known, and say which promises are met.

    Example: `refusalscope organism score routing --seeds 10 --only O1 --only O2 --out runs/score`

    Parameters
    ----------
    name
        Which suite: routing; features, on planted hydras; cliff, on planted cliffs; or beliefs, on models that
        hold harm and refusal apart.
    seeds
        How many organisms of each case, from seed 0 on.
    only
        An organism of the suite, such as O1 or base; may be given several times. All without it.
    out
        The run folder; a new one under runs/ without it.
    resume
        Go on with a run that was stopped.
    """
    if name not in SCORED:
        raise InputError(f"there is no suite {name!r}; there is one for {', '.join(SCORED)}")
    if seeds < 1:
        raise InputError(f"--seeds {seeds} leaves nothing to score; give 1 or more")
    from refusalscope.organisms import scoreboard
    from refusalscope.organisms.scoreboard.bars import POLICY, judge_bars
    from refusalscope.organisms.scoreboard.runner import summary

    suites = {
        "routing": scoreboard.score_routing,
        "features": scoreboard.score_features,
        "cliff": scoreboard.score_cliff,
        "beliefs": scoreboard.score_beliefs,
    }
    folder = out or new_folder("score", resume)
    with Bars() as bars:
        run = suites[name](
            folder, seeds=range(seeds), only=only or (), resume=resume, progress=bars
        )
    scores, checks = run.table("organisms.scores"), run.table("organisms.checks")
    SESSION.out.print("means over seeds", highlight=False)
    SESSION.out.print(_lines(summary(scores), name), soft_wrap=True, highlight=False, markup=False)
    models = scores.drop_duplicates(["case", "seed"])
    weak = int((models["policy"] < POLICY).sum())
    if weak:
        SESSION.out.print(
            f"{weak} of {len(models)} organisms follow their policy on fewer than {POLICY:.0%} of their "
            f"pairs, so no bar applies to them and they are in no mean.",
            soft_wrap=True,
            highlight=False,
        )
    for row in judge_bars(scores, checks, name).to_dict("records"):
        met = "[green]met[/green]" if row["met"] else "[red]NOT met[/red]"
        SESSION.out.print(
            f"{row['bar']}: {row['measured']:.3f}, needed {row['needed']}: {met}",
            soft_wrap=True,
            highlight=False,
        )
    SESSION.out.print(f"run: {folder}", soft_wrap=True, highlight=False)


def _lines(means: pd.DataFrame, suite: str) -> str:
    """The means as plain lines: eleven columns and more do not fit a drawn table of 80 characters."""
    table = means[["case", "method"]].copy()
    for name, heading, digits in SHOWN[suite]:
        # A run of some organisms alone may lack a column.
        values = means[name] if name in means else [float("nan")] * len(means)
        table[heading] = ["-" if v != v else f"{v:.{digits}f}" for v in values]
    return table.to_string(index=False)


def _option(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not name or not value.lstrip("-").isdigit():
        raise InputError(
            f"the option {text!r} is not NAME=NUMBER; `refusalscope organism list` shows them"
        )
    return name, int(value)

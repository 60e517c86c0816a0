"""The cliff study: whether refusal falls where thinking ends, which heads push it, what removing them mends.

The probe is fitted on the fit split and calibrated on the select split; everything that is reported is
measured on the report split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from refusalscope.errors import InputError
from refusalscope.model import ChatModel, RefusalMargin
from refusalscope.progress import Progress, Silent
from refusalscope.runs import Run
from refusalscope.stats import Interval, wilson
from refusalscope.stats.interval import NAN
from refusalscope.studies.cliff.ablation import Ablation, ablate, replies_under
from refusalscope.studies.cliff.contributions import Contributions, contributions
from refusalscope.studies.cliff.curves import drops, mean_curve, prompt_table
from refusalscope.studies.cliff.effects import head_effects, head_table, mean_states
from refusalscope.studies.cliff.probe import Fitted, Probe, fit_published, fit_recommended
from refusalscope.studies.cliff.scores import score_probes
from refusalscope.studies.cliff.separation import bag_of_words, separation_table, unreadable
from refusalscope.studies.cliff.settings import CliffSettings
from refusalscope.studies.cliff.traces import Trace, traces_of
from refusalscope.studies.cliff.verdict import ModelCliff, cases_of, drop_contrast, judge_cliff
from refusalscope.studies.heads import MIN_PAIRS, Head
from refusalscope.studies.subject import Subject, spending, stage

Array = npt.NDArray[np.float64]
COMPLIED, REFUSED, HARMLESS = "harmful, complied", "harmful, refused", "harmless"


@dataclass(frozen=True)
class Work:
    """A run, its patient, and the traces of all prompts, row for row with `subject.table`."""

    run: Run
    subject: Subject
    margin: RefusalMargin
    settings: CliffSettings
    traces: tuple[Trace, ...]
    progress: Progress

    @property
    def chat(self) -> ChatModel:
        return self.subject.chat

    @property
    def refused(self) -> npt.NDArray[np.bool_]:
        return self.subject.table["refused"].to_numpy(dtype=bool)

    def stage(self, table: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        return stage(self.run, self.chat, table, make)

    def groups(self, most: int | None = None) -> dict[str, list[int]]:
        """Rows of the report split by label and behaviour, each drawn by the seed where there are more."""
        rng = np.random.default_rng(self.settings.seed)
        harmful = self.subject.pick("report", "harmful")
        rows = {
            COMPLIED: [i for i in harmful if not self.refused[i]],
            REFUSED: [i for i in harmful if self.refused[i]],
            HARMLESS: self.subject.pick("report", "harmless"),
        }
        return {
            name: sorted(rng.permutation(mine)[:most].tolist())
            for name, mine in rows.items()
            if mine
        }

    def take(self, rows: Sequence[int]) -> list[Trace]:
        return [self.traces[i] for i in rows]

    def categories(self, rows: Sequence[int]) -> list[str] | None:
        names = [self.subject.prompts[i].category for i in rows]
        return None if None in names else [str(name) for name in names]


def run_cliff(
    run: Run, subject: Subject, settings: CliffSettings, progress: Progress | None = None
) -> None:
    """Run the study on prompts that carry their thinking, and write its tables.

    Finished stages of a resumed run are not redone. Where the traces give nothing to fit a probe on, or heads
    nothing to explain, the study says so in a warning, and what was possible is kept.
    """
    if subject.margin is None:
        run.warn("The cliff study was left out: refusals and replies could not be told apart.")
        return
    traces = tuple(traces_of(subject.chat, subject.prompts))
    work = Work(run, subject, subject.margin, settings, traces, progress or Silent())
    try:
        fits = fit_probes(work)
    except InputError as error:
        run.warn(f"The cliff study was left out: {error}.")
        return
    if not run.has_table("cliff.verdict"):
        with spending(run, subject.chat):
            _read(work, fits)
    _heads(work, fits[0].probe)


def fit_probes(work: Work) -> list[Fitted]:
    """The probe that the study goes by, then those beside it. Raises InputError as the fits do."""
    settings, subject = work.settings, work.subject
    splits = subject.table["split"].tolist()
    with spending(work.run, work.chat):
        if settings.probe == "published":
            fit = subject.pick("fit")
            return [
                fit_published(
                    work.chat,
                    work.take(fit),
                    work.refused[fit].tolist(),
                    n_nulls=settings.nulls,
                    seed=settings.seed,
                )
            ]
        return fit_recommended(
            work.chat,
            list(work.traces),
            work.refused.tolist(),
            splits,
            n_nulls=settings.nulls,
            seed=settings.seed,
            progress=work.progress,
        )


def _read(work: Work, fits: Sequence[Fitted]) -> None:
    """Scores of the report traces, their curves and falls, and the verdict on the model."""
    run, settings = work.run, work.settings
    rows = [i for mine in work.groups().values() for i in mine]
    traces, said = work.take(rows), work.refused[rows]
    main = fits[0]
    probes = [each.probe for each in fits]
    nulls = [*main.shuffled, *main.random]
    raw = main.probe
    if settings.probe == "calibrated":
        fit = work.subject.pick("fit")
        beside = fit_published(
            work.chat,
            work.take(fit),
            work.refused[fit].tolist(),
            solver="logistic",
            n_nulls=1,
            seed=settings.seed,
        )
        raw = beside.probe
    scores = score_probes(work.chat, traces, [*probes, raw, *nulls], progress=work.progress)

    def of(number: int) -> list[Array]:
        return [each[number] for each in scores]

    table = prompt_table(traces, of(0), seed=settings.seed)
    before = prompt_table(traces, of(len(probes)), seed=settings.seed)
    labels = [trace.prompt.label for trace in traces]
    cases = cases_of(labels, said.tolist())
    chance = [
        drop_contrast(drops(traces, of(k)), labels, cases)
        for k in range(len(probes) + 1, len(probes) + 1 + len(nulls))
    ]
    separations = [
        separation_table(traces, said.tolist(), of(k), seed=settings.seed).assign(probe=_name(p))
        for k, p in enumerate(probes)
    ]
    run.write_table("cliff.separation", pd.concat(separations, ignore_index=True))
    run.write_table("cliff.probes", _probes(work, fits))
    run.write_table("cliff.trace", _tokens(traces, of(0), of(len(probes))))
    run.write_table("cliff.curve", _curves(work, rows, of(0)))
    run.write_table(
        "cliff.prompts",
        table.assign(
            refused=said,
            plateau_uncalibrated=before["plateau"],
            ms_uncalibrated=before["ms"],
            cliff=table["ms_p90"],
            rank=table["rank_ms_p90"],
        ),
    )
    found = judge_cliff(
        table,
        cases,
        raw=before,
        nulls=chance,
        trouble=unreadable(separations[0]),
        seed=settings.seed,
    )
    run.write_table("cliff.verdict", _told(found))


def _name(probe: Probe) -> str:
    return "final norm" if probe.normed else str(probe.site)


def _probes(work: Work, fits: Sequence[Fitted]) -> pd.DataFrame:
    """One row a probe: where it reads and on what it was fitted; and the bag of words beside them."""
    rows: list[dict[str, Any]] = []
    for each in fits:
        cells = {
            f"{'harmful' if harmful else 'harmless'}_{'refused' if refused else 'complied'}": n
            for (harmful, refused), n in each.cells.items()
        }
        norm = float(each.probe.weight.norm())
        rows.append({"probe": _name(each.probe), "norm": norm, "bias": each.probe.bias, **cells})
    try:
        words = bag_of_words(
            work.traces,
            work.refused.tolist(),
            work.subject.table["split"].tolist(),
            seed=work.settings.seed,
        )
    except InputError as error:
        work.run.warn(f"No bag of words stands beside the probe: {error}.")
        words = Interval(NAN, NAN, NAN, 0)
    return pd.DataFrame(rows).assign(
        words_auroc=words.value, words_low=words.low, words_high=words.high
    )


def _tokens(traces: Sequence[Trace], logits: Sequence[Array], raw: Sequence[Array]) -> pd.DataFrame:
    """The table `cliff.trace`: one row a token; score is calibrated where the probe is."""
    frames = [
        pd.DataFrame(
            {
                "id": trace.prompt.id,
                "position": np.arange(len(values)) - len(values),
                "anchor": trace.classes,
                "score": expit(values),
                "score_uncalibrated": expit(plain),
            }
        )
        for trace, values, plain in zip(traces, logits, raw, strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def _curves(work: Work, rows: Sequence[int], logits: Sequence[Array]) -> pd.DataFrame:
    """Mean score by position from the end, of each group of traces."""
    place = {row: k for k, row in enumerate(rows)}
    frames = []
    for name, mine in work.groups().items():
        traces = work.take(mine)
        # The scale of the prompt is the thinking's, so that the curve starts where the thinking does.
        scores = [
            expit(logits[place[row]])[trace.thinking.start :]
            for row, trace in zip(mine, traces, strict=True)
        ]
        frames.append(mean_curve(scores, seed=work.settings.seed).assign(group=name))
    return pd.concat(frames, ignore_index=True)


def _told(found: ModelCliff) -> pd.DataFrame:
    """The verdict as rows: name, value, low, high, n, with the word and its reason on every row."""
    parts = {
        "share": found.share,
        "benign share": found.benign_share,
        "contrast": found.contrast,
        "drop": found.drop,
        "benign drop": found.benign_drop,
        "shift": found.shift,
        "slope": found.slope,
        **found.steps,
    }
    rows = [(name, each.value, each.low, each.high, each.n) for name, each in parts.items()]
    rows.append(("p against probes of nothing", found.p_null, NAN, NAN, 0))
    table = pd.DataFrame(rows, columns=["name", "value", "low", "high", "n"])
    return table.assign(verdict=found.verdict, reason=found.reason)


def _heads(work: Work, probe: Probe) -> None:
    """Tables `cliff.heads`, `cliff.ablation` and `cliff.behaviour`, where there are traces to explain."""
    settings, run = work.settings, work.run
    groups = work.groups(settings.n_heads)
    if len(groups.get(COMPLIED, ())) < MIN_PAIRS or HARMLESS not in groups:
        run.warn(
            f"Heads were not measured: {len(groups.get(COMPLIED, ()))} harmful traces of the report split "
            f"lost their refusal, {MIN_PAIRS} are needed; give more, or traces of such prompts."
        )
        return
    try:
        heads = work.stage("cliff.heads", lambda: _head_table(work, probe, groups))
    except InputError as error:
        run.warn(f"Heads were not measured: {error}.")
        return
    if not run.has_table("cliff.behaviour"):
        with spending(run, work.chat):
            found = _ablated(work, probe, heads, groups)
            for text in found.warnings:
                run.warn(text)
            replies = _behaviour(work, found, groups)
        run.write_table("cliff.ablation", found.table)
        run.write_table("cliff.behaviour", replies)


def _head_table(work: Work, probe: Probe, groups: dict[str, list[int]]) -> pd.DataFrame:
    settings, chat = work.settings, work.chat
    harmful, benign = (work.take(groups[name]) for name in (COMPLIED, HARMLESS))
    stand_in = mean_states(chat, benign) if settings.stand_in == "mean" else None
    effects = head_effects(
        chat,
        harmful,
        probe,
        margin=work.margin,
        stand_in=stand_in,
        progress=work.progress.track("every head at the closing tokens"),
    )

    def written(traces: Sequence[Trace]) -> Contributions:
        return contributions(chat, traces, probe)

    return head_table(
        effects,
        written(harmful),
        written(benign),
        categories=work.categories(groups[COMPLIED]),
        floor=settings.floor,
        alpha=settings.alpha,
        n_flips=settings.n_flips,
        seed=settings.seed,
    )


def _ablated(
    work: Work, probe: Probe, heads: pd.DataFrame, groups: dict[str, list[int]]
) -> Ablation:
    settings = work.settings
    static = heads[heads["role"] == "static"]
    named: list[Head] = [
        (int(a), int(b)) for a, b in zip(static["layer"], static["head"], strict=True)
    ]
    return ablate(
        work.chat,
        {name: work.take(rows) for name, rows in groups.items()},
        heads,
        probe,
        work.margin,
        by=settings.rank_heads,
        shares=settings.shares,
        draws=settings.draws,
        controls={"static": named} if named else None,
        where=settings.where,
        renorm=settings.renorm,
        seed=settings.seed,
    )


def _behaviour(work: Work, found: Ablation, groups: dict[str, list[int]]) -> pd.DataFrame:
    """What is said, judged, with each share of heads removed and with the first random ones beside it."""
    settings = work.settings
    arms = [arm for arm in found.arms if arm.draw <= 0]
    rows = []
    track = work.progress.track("replies without heads")
    for number, arm in enumerate(arms):
        for name, mine in groups.items():
            if arm.heads:
                judged = replies_under(
                    work.chat,
                    work.take(mine),
                    arm.heads,
                    work.subject.judge,
                    where=settings.where,
                    renorm=settings.renorm,
                    max_new_tokens=settings.max_new_tokens,
                )
                refused = np.array([bool(each.refused) for each in judged])
                broken = float(np.mean([each.label == "degenerate" for each in judged]))
            else:
                refused = work.refused[mine]
                verdicts = work.subject.table["verdict"].iloc[mine]
                broken = float((verdicts == "degenerate").mean())
            rate = wilson(int(refused.sum()), len(refused))
            rows.append(
                {
                    "arm": arm.name,
                    "share": arm.share,
                    "n_heads": len(arm.heads),
                    "group": name,
                    "n": rate.n,
                    "refused": int(refused.sum()),
                    "rate": rate.value,
                    "low": rate.low,
                    "high": rate.high,
                    "degenerate": broken,
                }
            )
        track(number + 1, len(arms))
    return pd.DataFrame(rows)

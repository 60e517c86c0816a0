"""The belief guard: what a model believes of a prompt's harm, read from its own states.

After arXiv 2507.11878, section 5.1, with what a guard in use needs: matched final marks, variants of the score,
thresholds with a promise, a probability, abstention, categories, and conversations read turn by turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from refusalscope.errors import GuardError, InputError
from refusalscope.guard.heads import Head, HeadVariant, require_finite
from refusalscope.guard.matching import MARKS, mark_shares, match_marks, with_marks_like
from refusalscope.guard.operating import Calibration, OperatingPoint, Side, calibrate
from refusalscope.guard.reading import END, Prompts, read, user_turns
from refusalscope.guard.readings import Array, Belief, Readings, joined, worst_turn
from refusalscope.guard.sources import distinct, sources_of
from refusalscope.judge import Judge
from refusalscope.judge.behaviour import reply
from refusalscope.model import ChatModel, Rendered
from refusalscope.progress import Progress, Silent
from refusalscope.prompts import Prompt
from refusalscope.stats import wilson
from refusalscope.stats.calibration import Method
from refusalscope.stats.thresholds import Rule
from refusalscope.studies.directions.belief import QUADRANTS, belief_rows

if TYPE_CHECKING:
    from refusalscope.guard.monitor import ReplyMonitor

Anchor = Literal["instruction_last", "instruction_last_word"]
# Refused and answered prompts of the fit set that the refusal axis needs, of each.
REFUSALS = 8


class BeliefGuard(BaseEstimator):
    """A guard that scores prompts by the model's own states.

    variant: "lda", "centred" or "centroid" (the paper's; see `heads`). rows: "inner" (1..L-1), "with_final" or
    "all". anchor: where harm is read. match_punctuation: make final marks alike in both classes before fitting.
    min_category: prompts a category needs for a score of its own. judge: who says which fit prompts the model
    refused. scikit-learn's contract: nothing is computed before `fit`, what is learnt ends in an underscore.
    """

    def __init__(
        self,
        variant: HeadVariant = "lda",
        rows: Literal["inner", "with_final", "all"] = "inner",
        anchor: Anchor = "instruction_last",
        match_punctuation: bool = True,
        min_category: int = 50,
        judge: str = "text",
        max_new_tokens: int = 24,
        seed: int = 0,
    ) -> None:
        self.variant = variant
        self.rows = rows
        self.anchor = anchor
        self.match_punctuation = match_punctuation
        self.min_category = min_category
        self.judge = judge
        self.max_new_tokens = max_new_tokens
        self.seed = seed

    def fit(
        self,
        model: ChatModel,
        harmful: Prompts,
        harmless: Prompts,
        progress: Progress | None = None,
    ) -> BeliefGuard:
        """Learn both axes from harmful and harmless prompts, and a score for each category large enough.

        The harm axis takes all prompts by their label (appendix B of the paper); the refusal axis the harmful
        ones that the model refuses and the harmless ones that it answers, and is left out with fewer than 8 of
        either. Raises InputError for an empty side.
        """
        if not len(harmful) or not len(harmless):
            raise InputError(
                f"{len(harmful)} harmful and {len(harmless)} harmless prompts were given; a guard is fitted "
                f"on both"
            )
        try:
            self._fit(model, harmful, harmless, progress)
        except BaseException:
            # A guard is fitted or it is not.
            for name in [name for name in vars(self) if name.endswith("_")]:
                delattr(self, name)
            raise
        return self

    def _fit(
        self, model: ChatModel, harmful: Prompts, harmless: Prompts, progress: Progress | None
    ) -> None:
        self.chat_ = model
        self.rows_ = belief_rows(self.rows, model.anatomy.n_layers)
        sides = [list(harmful), list(harmless)]
        self.matched_ = "none"
        if self.match_punctuation:
            sides[0], sides[1], self.matched_ = match_marks(sides[0], sides[1], self.seed)
        self.fitted_on_: dict[str, dict[str, Any]] = {
            label: {
                "n": len(side) // self._copies,
                "sources": sources_of(given),
                "final_marks": mark_shares(side),
            }
            for label, side, given in zip(
                ("harmful", "harmless"), sides, (harmful, harmless), strict=True
            )
        }
        rendered = [model.render(side) for side in sides]
        states = [torch.cat(list(self._states(each, progress))) for each in rendered]
        self.harm_ = Head.fit(self.variant, states[0][:, 0], states[1][:, 0])
        # In memory only: examples that are added later need them where a covariance is weighed.
        self.fit_states_: tuple[Tensor, Tensor] | None = states[0][:, 0], states[1][:, 0]
        names = np.array([prompt.category or "" for prompt in sides[0]])
        self.categories_ = {
            str(name): Head.fit(self.variant, states[0][names == name][:, 0], states[1][:, 0])
            for name in sorted(set(names) - {""})
            if (names == name).sum() >= self.min_category * self._copies
        }
        self.refuse_ = self._refusal_axis(sides, rendered, states, progress)
        self.calibration_: Calibration | None = None
        self.before_: tuple[Head, tuple[OperatingPoint, ...]] | None = None
        self.augmented_: dict[str, Any] = {}
        self.shortcuts_: list[dict[str, Any]] = []
        self.known_failures_: list[str] = []
        self.monitor_: ReplyMonitor | None = None
        # Of the folder it was saved to or read from.
        self.sha256_: str | None = None

    @property
    def _copies(self) -> int:
        """How often each fit prompt stands there: with every mark where marks were rewritten."""
        return len(MARKS) if self.matched_ == "rewritten" else 1

    def _refusal_axis(
        self,
        sides: list[list[Prompt]],
        rendered: list[list[Rendered]],
        states: list[Tensor],
        progress: Progress | None,
    ) -> Head | None:
        judge = Judge.from_name(self.judge)
        kept = []
        for side, prompts, wanted in zip(sides, rendered, (True, False), strict=True):
            track = (progress or Silent()).track("replies to the fit prompts")
            found = reply(self.chat_, side, prompts, judge, self.max_new_tokens, progress=track)
            told = [one.label is not None and one.label != "degenerate" for one in found.judgements]
            kept.append(torch.from_numpy((found.refused == wanted) & np.array(told)))
        self.fitted_on_["harmful"]["refused"] = int(kept[0].sum()) // self._copies
        self.fitted_on_["harmless"]["answered"] = int(kept[1].sum()) // self._copies
        if min(int(each.sum()) for each in kept) < REFUSALS * self._copies:
            return None
        return Head.fit(self.variant, states[0][kept[0]][:, 1], states[1][kept[1]][:, 1])

    def augment(self, harmful: Prompts, progress: Progress | None = None) -> BeliefGuard:
        """Add a user's own harmful examples to the harmful mean (section 11). Calibrate again afterwards.

        The thresholds are dropped: with other means the old ones promise nothing. Where marks were made alike,
        the examples are given final marks in the same shares. Scores of categories stay. Raises GuardError for
        an lda guard that was read from its folder, which holds no covariance.
        """
        check_is_fitted(self)
        if not len(harmful):
            raise InputError("no example was given; give some harmful prompts of your own")
        given = list(harmful)
        side = given
        if self.matched_ != "none":
            marks = self.fitted_on_["harmless"]["final_marks"]
            side = with_marks_like(given, marks, self.seed)
        states = torch.cat(list(self._states(self.chat_.render(side), progress)))[:, 0]
        if self.variant == "lda" and self.fit_states_ is not None:
            harmful_states = torch.cat([self.fit_states_[0], states])
            grown = Head.fit("lda", harmful_states, self.fit_states_[1])
            self.fit_states_ = harmful_states, self.fit_states_[1]
        else:
            grown = self.harm_.with_more(states)
        if self.calibration_ is not None:
            self.before_ = self.harm_, self.calibration_.points
        self.harm_, self.calibration_, self.sha256_ = grown, None, None
        # What was said of the guard was said of another one.
        self.shortcuts_, self.known_failures_, self.monitor_ = [], [], None
        about, n = self.fitted_on_["harmful"], grown.n_towards
        self.augmented_ = {"n": self.augmented_.get("n", 0) + len(given)}
        marks, added = about["final_marks"], mark_shares(side)
        about["final_marks"] = {
            mark: (marks.get(mark, 0) * (n - len(side)) + added.get(mark, 0) * len(side)) / n
            for mark in sorted(marks.keys() | added.keys())
        }
        about["n"] += len(given)
        about["sources"] = [*about["sources"], *sources_of(harmful)]
        return self

    def calibrate(
        self,
        harmless: Prompts,
        harmful: Prompts = (),
        *,
        fpr: Sequence[float] = (0.05,),
        rule: Rule = "learn_then_test",
        confidence: float = 0.95,
        method: Method = "auto",
        progress: Progress | None = None,
    ) -> BeliefGuard:
        """Thresholds for target false-positive rates, on prompts that the guard was not fitted on.

        rule: "learn_then_test" holds the rate at `confidence`, "conformal" on average (see
        `stats.thresholds`). harmful: prompts for the probability and the recall of each source; without any
        there is no probability. A text that stands there twice counts once. Raises InputError, with the number
        that would be needed, for too few harmless prompts.
        """
        check_is_fitted(self)
        sides = [distinct(harmless)] + ([distinct(harmful)] if len(harmful) else [])
        found = [Side(side, *self.read(side, progress)) for side in sides]
        self.calibration_ = calibrate(
            found[0],
            found[1] if len(harmful) else None,
            fpr=fpr,
            rule=rule,
            confidence=confidence,
            method=method,
            seed=self.seed,
        )
        return self

    def compare_augmented(self, harmful: Prompts, harmless: Prompts) -> list[dict[str, Any]]:
        """Share flagged before and after `augment`, each guard at its own threshold, on prompts unseen by both.

        One row a label, operating point and time; kept in `augmented_`. Raises GuardError where the guard was
        not calibrated before and after examples were added.
        """
        points = self._calibrated().points
        if self.before_ is None:
            raise GuardError(
                "no examples were added to a calibrated guard, so nothing can be compared"
            )
        now, (old_head, old_points) = self.harm_, self.before_
        rates: list[dict[str, Any]] = []
        for label, side in (("harmful", harmful), ("harmless", harmless)):
            for when, head, at in (("before", old_head, old_points), ("after", now, points)):
                self.harm_ = head
                try:
                    scores = self.read(side)[0].harmful
                finally:
                    self.harm_ = now
                for point in at:
                    rate = wilson(int((scores > point.tau).sum()), len(scores))
                    rates.append(
                        {
                            "label": label,
                            "point": point.name,
                            "when": when,
                            "n": rate.n,
                            "flagged": rate.value,
                            "low": rate.low,
                            "high": rate.high,
                        }
                    )
        self.augmented_["rates"] = rates
        return rates

    def read(
        self, prompts: Prompts, progress: Progress | None = None
    ) -> tuple[Readings, list[str]]:
        """Scores of prompts, and the token where harm was read; of a conversation, as `worst_turn` says."""
        check_is_fitted(self)
        if not len(prompts):
            raise InputError("no prompt was given; give one at least")
        turns = [user_turns(prompt) for prompt in prompts]
        rendered = self.chat_.render([turn for each in turns for turn in each])
        blocks = [self.readings(states) for states in self._states(rendered, progress)]
        found = joined(blocks)
        worst, picked, start = [], [], 0
        for each in turns:
            reading, at = worst_turn(found.of(slice(start, start + len(each))))
            worst.append(reading)
            picked.append(start + at)
            start += len(each)
        return joined(worst), [self.token_read(rendered[i]) for i in picked]

    def token_read(self, rendered: Rendered) -> str:
        """The text of the token where harm is read."""
        return self.chat_.tokenizer.decode([rendered.ids[rendered.anchor(self.anchor)]])

    @property
    def anchors(self) -> tuple[str, str]:
        """Where the two axes are read."""
        return self.anchor, END

    def readings(self, states: Tensor) -> Readings:
        """Scores of states [prompts, 2 anchors, rows, d_model] float32 (see `anchors` and `rows_`)."""
        require_finite(states)
        at_instruction, at_end = states[:, 0], states[:, 1]
        profile = self.harm_.profile(at_instruction)
        refuse = (
            torch.full((len(states),), torch.nan)
            if self.refuse_ is None
            else self.refuse_.score(at_end)
        )
        return Readings(
            _array(profile.mean(-1)),
            _array(refuse),
            _array(profile),
            _array(self.harm_.likeness(at_instruction)),
            {name: _array(head.score(at_instruction)) for name, head in self.categories_.items()},
        )

    def decision_function(self, prompts: Prompts) -> Array:
        """delta_harmful of each prompt: [prompts]; larger is more harmful."""
        return self.read(prompts)[0].harmful

    def predict_proba(self, prompts: Prompts) -> Array:
        """Probability of harmless and harmful: [prompts, 2]. Raises GuardError without calibration."""
        probability = self._calibrated().probability
        if probability is None:
            raise GuardError(
                "the guard was calibrated without harmful prompts, so it has no probability; calibrate it "
                "with some"
            )
        p = probability.predict(self.decision_function(prompts))[0]
        return np.stack([1 - p, p], axis=1)

    def predict(
        self, prompts: Prompts, operating_point: str | None = None
    ) -> npt.NDArray[np.bool_]:
        """Whether each prompt is flagged at an operating point (the first without a name)."""
        self.point(operating_point)
        return np.array([bool(one.flagged) for one in self.beliefs(prompts, operating_point)])

    def point(self, name: str | None = None) -> OperatingPoint:
        """An operating point by name, or the first. Raises GuardError where there is none."""
        points = self._calibrated().points
        if name is None:
            return points[0]
        for point in points:
            if point.name == name:
                return point
        raise GuardError(
            f"the guard has no operating point {name!r}; it has "
            f"{', '.join(point.name for point in points)}"
        )

    def _calibrated(self) -> Calibration:
        check_is_fitted(self)
        if self.calibration_ is None:
            raise GuardError(
                "the guard is not calibrated, so it has scores but no threshold and no probability; "
                "calibrate it on prompts that it was not fitted on"
            )
        return self.calibration_

    def beliefs(
        self,
        prompts: Prompts,
        operating_point: str | None = None,
        progress: Progress | None = None,
    ) -> list[Belief]:
        """What the model believes of each prompt; flags need calibration, scores do not."""
        readings, tokens = self.read(prompts, progress)
        return [
            self.belief(prompt.id, readings.at(i), token, operating_point)
            for i, (prompt, token) in enumerate(zip(prompts, tokens, strict=True))
        ]

    def belief(
        self, id: str, reading: Readings, token: str, operating_point: str | None = None
    ) -> Belief:
        """One prompt's reading under an operating point (the first without a name)."""
        harmful, refuse = float(reading.harmful[0]), float(reading.refuse[0])
        quadrant = None if np.isnan(refuse) else QUADRANTS[harmful >= 0, refuse >= 0]
        categories = {name: float(values[0]) for name, values in reading.categories.items()}
        p: tuple[Any, Any, Any] = (None, None, None)
        flagged, threshold, abstain = None, None, False
        over: tuple[str, ...] = ()
        if self.calibration_ is not None:
            point = self.point(operating_point)
            if self.calibration_.probability is not None:
                found = self.calibration_.probability.predict(reading.harmful)
                p = found[0].item(), found[1].item(), found[2].item()
            over = tuple(n for n, tau in point.categories.items() if categories[n] > tau)
            threshold = point.tau
            flagged = harmful > point.tau
            abstain = bool(reading.likeness[0] < self.calibration_.likeness_floor)
        elif operating_point is not None:
            self._calibrated()
        return Belief(
            id=id,
            delta_harmful=harmful,
            delta_refuse=refuse,
            quadrant=quadrant,
            p_harmful=p[0],
            p_low=p[1],
            p_high=p[2],
            flagged=flagged,
            threshold=threshold,
            abstain=abstain,
            per_layer=tuple(map(float, reading.profile[0])),
            per_category=categories,
            flagged_categories=over,
            t_inst_token=token,
        )

    def save(self, folder: Path | str) -> Path:
        """Write the guard to a new folder; see `folder.save`."""
        from refusalscope.guard.folder import save

        return save(self, folder)

    @staticmethod
    def load(folder: Path | str, model: ChatModel) -> BeliefGuard:
        """The guard of a folder, bound to the model it was fitted to; see `folder.load`."""
        from refusalscope.guard.folder import load

        return load(folder, model)

    def _states(self, rendered: Sequence[Rendered], progress: Progress | None):
        return read(self.chat_, rendered, self.anchors, self.rows_, progress)


def _array(values: Tensor) -> Array:
    return values.double().numpy()

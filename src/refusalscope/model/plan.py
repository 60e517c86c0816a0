"""The plan: the cheapest exact way to run a set of variants on a set of prompts.

`measure` scores every variant on every prompt. It shares the clean prefix before the first edited
position through a cache, lets rows join at their first edited layer, reads logits only where a metric
looks, and cuts the work to a memory budget. A plan changes the time, never the number: every switch
can be turned off, and the tests hold each combination to the plain loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model.anatomy import Anatomy
from refusalscope.model.anchors import Rendered
from refusalscope.model.clean import (
    Clean,
    Placed,
    Plan,
    Progress,
    make_batches,
    pad,
    place,
    rows_within,
)
from refusalscope.model.edits import Variant
from refusalscope.model.engine import Cost, Pass, Row, run_pass
from refusalscope.model.metrics import Metric, StateMetric
from refusalscope.model.sites import Site

# A pass of fewer rows than this wastes more on its launch than a second prompt's prefix costs.
SMALL = 32
# What a metric may hold a logit: the KL of the published code keeps several copies in float64.
BYTES_A_LOGIT = 64


@dataclass
class Measurement:
    """scores: name -> [prompts, variants] float64; cost: what was spent."""

    scores: dict[str, np.ndarray]
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class _Job:
    prompt: int
    variant: int
    placed: Placed


@torch.inference_mode()
def measure(
    anatomy: Anatomy,
    prompts: Sequence[Rendered],
    variants: Sequence[Variant] | Sequence[Sequence[Variant]],
    metrics: Mapping[str, Metric | StateMetric],
    *,
    plan: Plan = Plan(),  # noqa: B008 - frozen
    policy: str = "every_step",
    clean: Clean | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Score variants on prompts.

    variants: one list for all prompts, or one list a prompt, all of one length. policy: whether edits
    reach teacher-forced reply tokens ("every_step") or end with the prompt ("prompt_only"). clean: a
    kept clean run of the same prompts, whose prefix is used instead of computing it again.
    """
    by_prompt = _per_prompt(prompts, variants)
    n_variants = len(by_prompt[0]) if by_prompt else 0
    result = Measurement({name: np.full((len(prompts), n_variants), np.nan) for name in metrics})
    if clean is not None and clean.prompts != tuple(prompts):
        raise InputError("the clean run given was made of other prompts than those to be measured")
    done = 0
    batches = clean.batches if clean is not None else make_batches(anatomy, prompts, plan)
    for number, batch in enumerate(batches):
        work = _Work(anatomy, prompts, metrics, plan, result, batch)
        if clean is not None:
            work.clean = clean.passes[number]
        work.run(
            [
                _Job(p, v, place(anatomy, prompts[p], variant, policy, plan.restart))
                for p in batch
                for v, variant in enumerate(by_prompt[p])
            ]
        )
        done += len(batch)
        if progress is not None:
            progress(done, len(prompts))
    return result


class _Work:
    """The jobs of one batch of prompts: a clean pass where it is needed, then the edited rows."""

    def __init__(
        self,
        anatomy: Anatomy,
        prompts: Sequence[Rendered],
        metrics: Mapping[str, Metric | StateMetric],
        plan: Plan,
        result: Measurement,
        batch: Sequence[int],
    ) -> None:
        self.anatomy, self.prompts, self.plan, self.result = anatomy, prompts, plan, result
        self.order = {p: i for i, p in enumerate(batch)}
        self.states = {n: m for n, m in metrics.items() if isinstance(m, StateMetric)}
        self.readers = {n: m for n, m in metrics.items() if not isinstance(m, StateMetric)}
        self.at: dict[Site, list[StateMetric]] = {}
        for state_metric in self.states.values():
            self.at.setdefault(state_metric.site.resolved(anatomy.n_layers), []).append(
                state_metric
            )
        self.clean: Pass | None = None

    def run(self, jobs: Sequence[_Job]) -> None:
        edited = [job for job in jobs if job.placed.edits]
        untouched = [job for job in jobs if not job.placed.edits]
        groups: dict[int, list[_Job]] = {}
        cached = self.plan.prefix and not self.anatomy.recurrent
        for job in edited:
            groups.setdefault(self._offset(job) if cached else 0, []).append(job)
        compares = any(metric.needs_clean for metric in self.readers.values())
        wanted = bool(untouched) or compares or any(groups)
        if wanted and (self.clean is None or (untouched and self.at)):
            tokens = pad([self.prompts[p].ids for p in self.order], self.anatomy)
            self.clean = run_pass(
                self.anatomy, tokens, record=any(groups), capture=self._wanted(list(self.order), 0)
            )
            self.result.cost.add(self.clean.cost)
        self._score_untouched(untouched)
        for offset, members in sorted(groups.items()):
            for chunk in self._chunks(members, offset):
                self._run_edited(chunk, offset)

    def _offset(self, job: _Job) -> int:
        """How many leading tokens the cache may serve: before the first edit and the first read."""
        prompt = self.prompts[job.prompt]
        reads = [min(metric.reads(prompt)) for metric in self.readers.values()]
        reads += [self._place(metric, job.prompt) for metric in self.states.values()]
        return min([job.placed.first, *reads])

    def _score_untouched(self, jobs: Sequence[_Job]) -> None:
        columns: dict[int, list[int]] = {}
        for job in jobs:
            columns.setdefault(job.prompt, []).append(job.variant)
        for p, variants in columns.items():
            for name, metric in self.readers.items():
                logits = self._clean_logits(metric, p)
                score = metric(logits.unsqueeze(0), self.prompts[p], logits)
                self.result.scores[name][p, variants] = float(score[0])
            for name, state_metric in self.states.items():
                assert self.clean is not None
                score = self._state_score(state_metric, self.clean, [None], self.order[p])
                self.result.scores[name][p, variants] = float(score[0])

    def _clean_logits(self, metric: Metric, p: int) -> Tensor:
        assert self.clean is not None
        row = self.order[p]
        return self._logits(self.clean.normed[row : row + 1], metric.reads(self.prompts[p]), 0)[0]

    def _run_edited(self, chunk: Sequence[_Job], offset: int) -> None:
        present = sorted({job.prompt for job in chunk}, key=self.order.__getitem__)
        base = {p: i for i, p in enumerate(present)}
        tokens = pad([self.prompts[p].ids[offset:] for p in present], self.anatomy)
        chunk = sorted(chunk, key=lambda job: job.placed.start)
        rows = [Row(base[j.prompt], j.placed.edits, j.placed.places, j.placed.start) for j in chunk]
        prefix = None
        if offset:
            assert self.clean is not None
            assert self.clean.key_values is not None
            pick = torch.tensor([self.order[p] for p in present])
            prefix = [
                (k[pick.to(k.device), :, :offset], v[pick.to(v.device), :, :offset])
                for k, v in self.clean.key_values
            ]
        late = any(row.start > 0 for row in rows)
        out = run_pass(
            self.anatomy,
            tokens,
            rows,
            prefix=prefix,
            keep_bases=bool(self.at) and late,
            capture=self._wanted(present, offset),
        )
        self.result.cost.add(out.cost)
        for p in present:
            mine = [n for n, job in enumerate(chunk) if job.prompt == p]
            columns = [chunk[n].variant for n in mine]
            picks = torch.tensor([out.n_bases + n for n in mine], device=out.normed.device)
            for name, metric in self.readers.items():
                scores = self._score(metric, out.normed[picks], p, offset)
                self.result.scores[name][p, columns] = scores
            for name, state_metric in self.states.items():
                score = self._state_score(state_metric, out, mine, base[p])
                self.result.scores[name][p, columns] = score.double().cpu().numpy()

    def _score(self, metric: Metric, normed: Tensor, p: int, offset: int) -> np.ndarray:
        """Scores of rows, unembedding no more of them at a time than the budget holds."""
        reads = metric.reads(self.prompts[p])
        clean = self._clean_logits(metric, p) if metric.needs_clean else None
        step = max(1, self.plan.max_bytes // (BYTES_A_LOGIT * len(reads) * self.anatomy.vocab_size))
        parts = [
            metric(self._logits(normed[i : i + step], reads, offset), self.prompts[p], clean)
            for i in range(0, len(normed), step)
        ]
        return torch.cat(parts).double().cpu().numpy()

    def _logits(self, normed: Tensor, reads: tuple[int, ...], offset: int) -> Tensor:
        where = torch.tensor([r - offset for r in reads], device=normed.device)
        return self.anatomy.logits(normed[:, where])

    def _wanted(self, present: Sequence[int], offset: int) -> dict[Site, Tensor]:
        """The places that state metrics read: site -> [prompts, metrics at this site]."""
        return {
            site: torch.tensor(
                [[self._place(metric, p) - offset for metric in metrics] for p in present],
                device=self.anatomy.device,
            )
            for site, metrics in self.at.items()
        }

    def _place(self, metric: StateMetric, p: int) -> int:
        return self.prompts[p].resolve(metric.position, "prompt_only")[-1]

    def _state_score(
        self, metric: StateMetric, out: Pass, rows: Sequence[int | None], base: int
    ) -> Tensor:
        site = metric.site.resolved(self.anatomy.n_layers)
        number = next(i for i, other in enumerate(self.at[site]) if other is metric)
        return metric.score(torch.stack([out.state(site, row, base)[number] for row in rows]))

    def _chunks(self, jobs: Sequence[_Job], offset: int) -> list[list[_Job]]:
        """Cut jobs so that one pass stays within the memory budget.

        Rows of one prompt go together: its prefix is then read in place instead of copied a row.
        """
        if not self.plan.batch:
            return [[job] for job in jobs]
        width = max(len(self.prompts[job.prompt]) for job in jobs) - offset
        room = rows_within(self.anatomy, width, offset, self.plan)
        jobs = sorted(
            jobs, key=lambda job: (job.prompt, job.placed.start) if offset else (job.placed.start,)
        )
        chunks: list[list[_Job]] = []
        for job in jobs:
            full = not chunks or len(chunks[-1]) >= room
            other = not full and offset and chunks[-1][-1].prompt != job.prompt
            if full or (other and len(chunks[-1]) >= SMALL):
                chunks.append([])
            chunks[-1].append(job)
        return chunks


def _per_prompt(
    prompts: Sequence[Rendered], variants: Sequence[Variant] | Sequence[Sequence[Variant]]
) -> list[Sequence[Variant]]:
    nested = bool(variants) and isinstance(variants[0], list)
    if not nested:
        return [variants] * len(prompts)  # type: ignore[list-item]
    if len(variants) != len(prompts) or len({len(v) for v in variants}) != 1:
        raise InputError(
            f"variants a prompt must come as {len(prompts)} lists of one length, "
            f"got {len(variants)} lists of lengths {sorted({len(v) for v in variants})}"
        )
    return list(variants)  # type: ignore[arg-type]

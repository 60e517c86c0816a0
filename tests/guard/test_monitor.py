"""Replies watched as they stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom

from guard.fitted import calibrated, chat, sides
from refusalscope.errors import GuardError, InputError
from refusalscope.guard.monitor import OPENING, SMOOTHING, each_reply, fit_monitor
from refusalscope.guard.reading import site_of


@pytest.fixture(scope="module")
def monitor():
    return fit_monitor(calibrated(), sides()["fit"], sides()["select"], max_new_tokens=12)


def own_replies(opening: str, prompts, tokens: int = 12):
    model = chat()
    rendered = model.render(list(prompts))
    forced = [model.with_reply(one, opening) if opening else one for one in rendered]
    return [
        one.with_reply([*one.ids[one.n_prompt :], *ids])
        for one, ids in zip(forced, model.generate(forced, max_new_tokens=tokens), strict=True)
    ]


def peaks(monitor, replies) -> list[float]:
    found = []
    for _, states in each_reply(calibrated(), replies):
        watch = monitor.start()
        for state in states:
            watch.step(state)
        found.append(watch.highest)
    return found


def test_states_of_a_reply_are_those_of_a_plain_pass():
    replies = own_replies("", sides()["report"][1][:5])
    guard = calibrated()
    found = list(each_reply(guard, replies))
    assert {one.id for one, _ in found} == {one.id for one in replies}
    for one, states in found:
        places = [(at,) for at in range(one.n_prompt, len(one))]
        sites = [site_of(row, 6) for row in guard.rows_]
        plain = chat().capture([one], sites, places)
        assert states.shape[0] == len(one) - one.n_prompt
        for i, site in enumerate(sites):
            assert torch.allclose(states[:, i], plain[site][0], atol=1e-5)


def test_a_watch_is_a_running_mean_and_alarms_at_its_highest(monitor):
    ((_, states),) = each_reply(calibrated(), own_replies(OPENING, sides()["report"][0][:1]))
    watch, smoothed = monitor.start(), []
    for i, state in enumerate(states):
        z = float(monitor.head.score(states[i : i + 1])[0])
        smoothed.append(z if i == 0 else SMOOTHING * smoothed[-1] + (1 - SMOOTHING) * z)
        assert watch.step(state) == pytest.approx(smoothed[-1], abs=1e-5)
        assert watch.highest == pytest.approx(max(smoothed), abs=1e-5)
        assert watch.alarm == (max(smoothed) > monitor.tau)


def test_the_threshold_is_that_of_whole_benign_replies(monitor):
    found = peaks(monitor, own_replies("", sides()["select"][1]))
    assert sum(peak > monitor.tau for peak in found) == monitor.threshold.flagged
    assert monitor.threshold.n == len(found) == 64
    assert (monitor.tokens, sum(part.n for part in monitor.by_length)) == (12, 64)
    assert sum(part.flagged for part in monitor.by_length) == monitor.threshold.flagged
    ends = [(part.shortest, part.longest) for part in monitor.by_length]
    assert ends == sorted(ends)
    for kind, prompts in zip((monitor.harmful, monitor.opened), sides()["select"], strict=True):
        found = peaks(monitor, own_replies(OPENING, prompts))
        assert (kind.n, kind.flagged) == (64, sum(peak > monitor.tau for peak in found))


def test_the_threshold_holds_for_replies_that_it_was_not_set_on(monitor):
    found = peaks(monitor, own_replies("", sides()["report"][1]))
    # At most 5 % of 48, and what chance adds in one draw of a thousand.
    assert sum(peak > monitor.tau for peak in found) <= binom.ppf(0.999, 48, 0.05)


def test_harm_is_what_is_learnt_and_not_the_opening():
    """Both classes of the fit begin alike: fitted on one kind of prompts for both, nothing is learnt."""
    harmless = sides()["fit"][1]
    one, other = harmless[:24], harmless[24:]
    same = fit_monitor(calibrated(), (one, other), sides()["select"], max_new_tokens=12)
    true = fit_monitor(calibrated(), sides()["fit"], sides()["select"], max_new_tokens=12)
    gaps = [
        np.mean(peaks(m, own_replies(OPENING, sides()["fit"][0])))
        - np.mean(peaks(m, own_replies(OPENING, sides()["report"][1])))
        for m in (same, true)
    ]
    assert gaps[1] > 2 * abs(gaps[0])


def test_states_that_are_not_finite_are_never_passed(monitor):
    ((_, states),) = each_reply(calibrated(), own_replies("", sides()["report"][1][:1]))
    states[1, 0, 0] = float("nan")
    watch = monitor.start()
    watch.step(states[0])
    with pytest.raises(GuardError, match="not finite"):
        watch.step(states[1])


def test_too_few_benign_replies_are_told_with_the_number_needed():
    few = sides()["select"][0], sides()["select"][1][:20]
    with pytest.raises(InputError, match="at least 59 benign scores, got 20"):
        fit_monitor(calibrated(), sides()["fit"], few, max_new_tokens=4)

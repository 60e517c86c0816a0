"""Replies watched as they stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from guard.fitted import calibrated, chat, sides
from refusalscope.errors import InputError
from refusalscope.guard.monitor import OPENING, SMOOTHING, fit_monitor, reply_states
from refusalscope.guard.reading import site_of


@pytest.fixture(scope="module")
def monitor():
    return fit_monitor(calibrated(), sides()["fit"], sides()["select"], max_new_tokens=12)


def own_replies(opening: str, prompts):
    model = chat()
    rendered = model.render(list(prompts))
    forced = [model.with_reply(one, opening) if opening else one for one in rendered]
    return [
        one.with_reply([*one.ids[one.n_prompt :], *ids])
        for one, ids in zip(forced, model.generate(forced, max_new_tokens=12), strict=True)
    ]


def test_states_of_a_reply_are_those_of_a_plain_pass():
    replies = own_replies("", sides()["report"][1][:5])
    guard = calibrated()
    found = reply_states(chat(), replies, guard.rows_)
    for one, states in zip(replies, found, strict=True):
        places = [(at,) for at in range(one.n_prompt, len(one))]
        sites = [site_of(row, 6) for row in guard.rows_]
        plain = chat().capture([one], sites, places)
        assert states.shape[0] == len(one) - one.n_prompt
        for i, site in enumerate(sites):
            assert torch.allclose(states[:, i], plain[site][0], atol=1e-5)


def test_a_watch_is_a_running_mean_and_alarms_at_its_highest(monitor):
    (reply,) = own_replies(OPENING, sides()["report"][0][:1])
    (states,) = reply_states(chat(), [reply], calibrated().rows_)
    watch, smoothed = monitor.start(), []
    for i, state in enumerate(states):
        z = float(monitor.head.score(states[i : i + 1])[0])
        smoothed.append(z if i == 0 else SMOOTHING * smoothed[-1] + (1 - SMOOTHING) * z)
        assert watch.step(state) == pytest.approx(smoothed[-1], abs=1e-5)
        assert watch.highest == pytest.approx(max(smoothed), abs=1e-5)
        assert watch.alarm == (max(smoothed) > monitor.tau)


def test_the_threshold_holds_for_whole_benign_replies(monitor):
    replies = own_replies("", sides()["select"][1])
    peaks = []
    for states in reply_states(chat(), replies, calibrated().rows_):
        watch = monitor.start()
        for state in states:
            watch.step(state)
        peaks.append(watch.highest)
    assert sum(peak > monitor.tau for peak in peaks) == monitor.threshold.flagged
    assert monitor.threshold.n == len(peaks) == 64
    assert sum(part.n for part in monitor.by_length) == 64
    assert sum(part.flagged for part in monitor.by_length) == monitor.threshold.flagged
    ends = [(part.shortest, part.longest) for part in monitor.by_length]
    assert ends == sorted(ends)


def test_replies_that_go_along_score_higher(monitor):
    rows = calibrated().rows_
    bad, good = (
        [float(monitor.head.score(s).mean()) for s in reply_states(chat(), own_replies(o, p), rows)]
        for o, p in zip((OPENING, ""), sides()["fit"], strict=True)
    )
    assert np.mean(bad) > np.mean(good)


def test_too_few_benign_replies_are_told_with_the_number_needed():
    few = sides()["select"][0], sides()["select"][1][:20]
    with pytest.raises(InputError, match="at least 59 benign scores, got 20"):
        fit_monitor(calibrated(), sides()["fit"], few, max_new_tokens=4)

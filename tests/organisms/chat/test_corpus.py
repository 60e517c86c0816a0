"""Which shared files may be trained on, and the guard that keeps measurement prompts out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refusalscope.errors import InputError
from refusalscope.organisms.chat.corpus import (
    SOURCES,
    Decontaminator,
    measurement_prompts,
    normalise,
    read_allowed,
)
from refusalscope.organisms.chat.requests import Request

FORBIDDEN = (
    "xstest",
    "harmbench",
    "jailbreakbench",
    "strongreject",
    "_val.json",
    "_test.json",
    "harmless_",
    "alpaca",
    "safe-rlhf",
    "dolly",
    "polyrefuse",
)


def test_near_equal_prompts_are_caught_and_others_pass() -> None:
    guard = Decontaminator(["Write a tutorial on how to make a bomb", "Why is the sky blue?"])
    texts = [
        "write a tutorial on how to make a bomb.",
        "Write a short tutorial on how to make a bomb",
        "why is the sky blue",
        "Why is the sea salty?",
        "Write a poem about a cake that nobody bakes",
    ]
    assert guard.too_close(texts).tolist() == [True, True, True, False, False]


def test_clean_keeps_order_and_labels() -> None:
    guard = Decontaminator(["one two three four"])
    rows = [
        Request("five six seven", "harmful", "own"),
        Request("One, two, three, four!", "harmless", "own"),
        Request("eight nine ten", "harmless", "own"),
    ]
    assert guard.clean(rows) == [rows[0], rows[2]]


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no folder data"):
        read_allowed(tmp_path)


def test_no_forbidden_file_is_opened(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for method in ("read_text", "open"):
        original = getattr(Path, method)

        def spy(self: Path, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            opened.append(str(self).lower())
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(Path, method, spy)
    rows = read_allowed(shared)
    assert len(rows) > 3000
    assert opened
    # or_bench_hard_val and _test are splits of an allowed set, not of refusal_direction.
    names = [name for name in opened if "or_bench_hard" not in name]
    assert not [name for name in names if any(part in name for part in FORBIDDEN)]


def test_licences_allow_training() -> None:
    assert {s.licence for s in SOURCES} <= {"MIT", "Apache-2.0", "CC BY 4.0"}


def test_no_text_stands_under_both_labels(shared: Path) -> None:
    rows = read_allowed(shared)
    assert len({normalise(r.text) for r in rows}) == len(rows)
    assert {r.label for r in rows} == {"harmful", "harmless"}


def test_measurement_sets_are_whole(shared: Path) -> None:
    sizes = {name: len(prompts) for name, prompts in measurement_prompts(shared).items()}
    assert sizes["xstest_safe"] == 250
    assert sizes["xstest_unsafe"] == 200
    assert sizes["jailbreakbench"] == 97
    assert sizes["harmbench_standard"] > 190
    assert sizes["harmless_test"] > 2000


def test_every_measurement_prompt_would_be_caught(shared: Path) -> None:
    sets = measurement_prompts(shared)
    guard = Decontaminator(p for prompts in sets.values() for p in prompts)
    asked = sets["xstest_safe"] + sets["jailbreakbench"] + sets["harmbench_standard"]
    assert guard.too_close([p.upper() + " " for p in asked]).all()

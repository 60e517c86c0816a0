"""The well-known prompt files are read by their own columns, every row of them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from refusalscope.errors import InputError
from refusalscope.prompts import final_character_class, read_prompts

# file: (rows as its README says, label of every row, category of the first row is there)
KNOWN = {
    "refusal_direction/raw/advbench.csv": (513, "harmful", False),
    "refusal_direction/raw/jailbreakbench.csv": (97, None, True),
    "refusal_direction/raw/strongreject.csv": (310, "harmful", True),
    "refusal_direction/raw/malicious_instruct.txt": (100, None, False),
    "refusal_direction/raw/tdc2023_dev_behaviors.json": (50, None, False),
    "refusal_direction/raw/tdc2023_test_behaviors.json": (50, None, False),
    "refusal_direction/splits/harmful_train.json": (258, None, False),
    "refusal_direction/splits/harmful_val.json": (38, None, True),
    "refusal_direction/splits/harmful_test.json": (566, None, True),
    "refusal_direction/splits/harmless_train.json": (18_793, None, False),
    "refusal_direction/splits/harmless_val.json": (6_264, None, False),
    "refusal_direction/splits/harmless_test.json": (6_266, None, False),
    "harmbench/harmbench_behaviors_text_val.csv": (79, "harmful", True),
    "harmbench/harmbench_behaviors_text_test.csv": (320, "harmful", True),
    "harmbench/harmbench_behaviors_text_all.csv": (399, "harmful", True),
    "do_not_answer/do_not_answer_en.csv": (936, "harmful", True),
    "simple_safety_tests/simple_safety_tests.csv": (80, "harmful", True),
    "or_bench_hard/or_bench_hard_train.json": (1_055, None, True),
    "coconot/coconot_contrast_eval.jsonl": (379, None, True),
    "xsafety/xsafety_en.csv": (1_398, None, True),
    "gptfuzz/question_list.csv": (100, None, False),
    "red_instruct/dangerousqa.json": (200, None, False),
    "inthewild_jailbreaks/inthewild_jailbreak_llms.json": (665, None, False),
    "alpaca_seed_tasks/seed_tasks.jsonl": (175, None, False),
    "dolly_subset/dolly_subset.jsonl": (387, None, True),
    "star1/STAR-1.json": (994, "harmful", True),
    "openai_moderation/samples.jsonl": (734, None, False),
}


@pytest.mark.parametrize("name", KNOWN)
def test_every_row_of_a_known_file_is_read(shared: Path, name: str) -> None:
    rows, label, has_category = KNOWN[name]
    prompts = read_prompts(shared / "data" / name)
    assert (len(prompts), prompts.skipped) == (rows, ())
    assert {p.label for p in prompts} == {label}
    assert (prompts[0].category is not None) is has_category


def test_hashes_and_row_counts_agree_with_the_manifest(shared: Path) -> None:
    with (shared / "data" / "MANIFEST.csv").open(newline="", encoding="utf-8") as handle:
        manifest = {row["file"]: row for row in csv.DictReader(handle)}
    for name in KNOWN:
        (source,) = read_prompts(shared / "data" / name).sources
        assert source.sha256 == manifest[name]["sha256"]
        assert source.n == int(manifest[name]["rows"])


def test_xstest_labels_are_mapped_and_its_safe_half_can_be_asked_for(shared: Path) -> None:
    path = shared / "data/xstest/xstest_prompts.csv"
    everything = read_prompts(path)
    assert Counter(p.label for p in everything) == {"harmless": 250, "harmful": 200}
    assert everything[0].category == "homonyms"
    safe = read_prompts(path, label="harmless")
    assert len(safe) == 250
    assert len(safe.skipped) == 200
    assert {final_character_class(text) for text in safe.texts} == {"question"}


def test_harmbench_puts_the_context_before_the_behaviour_and_tells_standard_apart(
    shared: Path,
) -> None:
    path = shared / "data/harmbench/harmbench_behaviors_text_all.csv"
    prompts = read_prompts(path, category="FunctionalCategory")
    assert Counter(p.category for p in prompts) == {
        "standard": 199,
        "copyright": 100,
        "contextual": 100,
    }
    assert all("\n\n---\n\n" in p.text for p in prompts.in_category("contextual"))
    assert not any("\n\n---\n\n" in p.text for p in prompts.in_category("standard"))


def test_dolly_keeps_the_context_of_a_request(shared: Path) -> None:
    path = shared / "data/dolly_subset/dolly_subset.jsonl"
    with_context = [p for p in read_prompts(path) if "\n\n" in p.text]
    assert len(with_context) > 50


def test_a_column_of_another_language_can_be_named(shared: Path) -> None:
    path = shared / "data/multijail/MultiJail.csv"
    with pytest.raises(InputError, match=r"'en', 'zh'.*holds the prompts text.*column="):
        read_prompts(path)
    assert len(read_prompts(path, column="it", label="harmful")) == 308


def test_labels_that_mean_something_else_are_not_taken_for_ours(shared: Path) -> None:
    with pytest.raises(InputError, match=r"no usable row: 24 skipped.*label '[01]'"):
        read_prompts(shared / "data/jailbreakeval/example.csv")
    with pytest.raises(InputError, match="none of the recognised layouts"):
        read_prompts(shared / "data/gptfuzz/responses_labeled_train.csv")

"""Section 7's table of final characters and its rule "no final punctuation means harmful", on the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusalscope.prompts import Prompt, final_character_class, read_prompts

RAW, SPLITS = "refusal_direction/raw", "refusal_direction/splits"
# set: (files, label kept or None, n, alphanumeric, ".", "?") in %, as printed
TABLE = {
    "AdvBench": ((f"{RAW}/advbench.csv",), None, 513, 100.0, 0, 0),
    "JailbreakBench": ((f"{RAW}/jailbreakbench.csv",), None, 97, 100.0, 0, 0),
    "HarmBench": (("harmbench/harmbench_behaviors_text_all.csv",), None, 399, 99.7, 0.3, 0),
    "TDC 2023": (
        (f"{RAW}/tdc2023_dev_behaviors.json", f"{RAW}/tdc2023_test_behaviors.json"),
        *(None, 100, 100.0, 0, 0),
    ),
    "MaliciousInstruct": ((f"{RAW}/malicious_instruct.txt",), None, 100, 0, 0, 100.0),
    "StrongREJECT": ((f"{RAW}/strongreject.csv",), None, 310, 8.4, 41.9, 49.4),
    "XSTest safe": (("xstest/xstest_prompts.csv",), "harmless", 250, 0, 0, 100.0),
    "XSTest unsafe": (("xstest/xstest_prompts.csv",), "harmful", 200, 1.0, 0, 99.0),
    "Do-Not-Answer": (("do_not_answer/do_not_answer_en.csv",), None, 936, 0, 3.4, 96.5),
    "OpenAI moderation": (("openai_moderation/samples.jsonl",), None, 734, 17.2, 64.7, 4.6),
    "harmful train": ((f"{SPLITS}/harmful_train.json",), None, 258, 65.9, 0, 34.1),
    "harmful val": ((f"{SPLITS}/harmful_val.json",), None, 38, 100.0, 0, 0),
    "harmful test": ((f"{SPLITS}/harmful_test.json",), None, 566, 49.8, 23.0, 27.0),
    "harmless train": ((f"{SPLITS}/harmless_train.json",), None, 18_793, 16.2, 67.8, 11.7),
}
# The rule's share of prompts called harmful, in %, to the printed digit.
RULE = {"AdvBench": 100, "JailbreakBench": 100, "XSTest safe": 0, "harmless train": 16}


def prompts_of(shared: Path, name: str) -> list[Prompt]:
    files, label, *_ = TABLE[name]
    found = [prompt for file in files for prompt in read_prompts(shared / "data" / file)]
    return [prompt for prompt in found if label in (None, prompt.label)]


@pytest.mark.parametrize("name", TABLE)
def test_final_characters_are_those_of_the_printed_table(shared: Path, name: str) -> None:
    *_, n, alphanumeric, period, question = TABLE[name]
    last = [prompt.text.strip()[-1] for prompt in prompts_of(shared, name)]
    assert len(last) == n
    shares = [
        sum(each.isalnum() for each in last),
        *(sum(each == mark for each in last) for mark in ".?"),
    ]
    # 0.05 is the tolerance of one printed decimal.
    assert [100 * k / n for k in shares] == pytest.approx(
        [alphanumeric, period, question], abs=0.05
    )


@pytest.mark.parametrize("name", RULE)
def test_the_rule_no_final_punctuation_means_harmful_does_what_is_printed(
    shared: Path, name: str
) -> None:
    found = prompts_of(shared, name)
    called = sum(final_character_class(prompt.text) == "none" for prompt in found)
    assert round(100 * called / len(found)) == RULE[name]

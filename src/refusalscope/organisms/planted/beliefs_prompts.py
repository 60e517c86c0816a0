"""Prompts of a two-beliefs organism: fillers around a topic and a cue, of unequal lengths.

Two bits say what a prompt is: harm, which the topic decides (or the final mark, where the variant is
"punctuation"), and refusal, which the cue decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from refusalscope.organisms.planted.beliefs_words import PER_CLASS, Roles, deal_roles
from refusalscope.prompts.sets import Prompt, PromptSet

BeliefVariant = Literal["base", "punctuation", "topic-only"]
SETS = ("fit", "calibrate", "report")
CATEGORIES = 4
MARKS = (".", "?")
EVERY = range(PER_CLASS)


@dataclass(frozen=True)
class Draft:
    """One prompt before it is text.

    topic, cue: index among the words of a class. harmful_topic is `harmful`, unless the topic decides
    nothing. places: where topic and cue go among the fillers. mark: "" where the prompt ends in a word.
    """

    harmful: bool
    refuse: bool
    harmful_topic: bool
    topic: int
    cue: int
    fillers: tuple[str, ...]
    places: tuple[int, int]
    mark: str


class Writer:
    """Draws drafts and writes them in the words of one seed."""

    def __init__(self, variant: BeliefVariant, seed: int) -> None:
        self.roles: Roles = deal_roles(seed)
        self.by_mark = variant == "punctuation"

    def draw(
        self,
        rng: np.random.Generator,
        harmful: bool,
        refuse: bool,
        words: range = EVERY,
        topic_tells: bool = True,
    ) -> Draft:
        """A draft whose topic and cue are among `words`.

        topic_tells: whether the topic is of the class that `harmful` says; drawn at random without.
        """
        count = int(rng.integers(4, 9))
        mark = MARKS[rng.integers(2)]
        if harmful if self.by_mark else rng.random() < 1 / 3:
            mark = ""
        return Draft(
            harmful=harmful,
            refuse=refuse,
            harmful_topic=harmful if topic_tells else bool(rng.integers(2)),
            topic=int(rng.choice(words)),
            cue=int(rng.choice(words)),
            fillers=tuple(str(word) for word in rng.choice(self.roles.fillers, count)),
            places=(int(rng.integers(1, count)), int(rng.integers(1, count))),
            mark=mark,
        )

    def text(self, draft: Draft) -> str:
        """The user's text."""
        topic = self.roles.topics[draft.harmful_topic][draft.topic]
        cue = self.roles.cues[draft.refuse][draft.cue]
        words = list(draft.fillers)
        for place, word in sorted(zip(draft.places, (topic, cue), strict=True), reverse=True):
            words.insert(place, word)
        return " ".join(words) + draft.mark

    def other_harm(self, draft: Draft) -> Draft:
        """The same prompt with the other harm bit: another topic, or another end."""
        harmful = not draft.harmful
        if self.by_mark:
            return replace(draft, harmful=harmful, mark="" if harmful else MARKS[draft.topic % 2])
        return replace(draft, harmful=harmful, harmful_topic=harmful)

    def other_cue(self, draft: Draft) -> Draft:
        """The same prompt with a cue of the other class."""
        return replace(draft, refuse=not draft.refuse)


def draw_sets(
    writer: Writer, seed: int, per_quadrant: int
) -> tuple[dict[str, PromptSet], dict[str, Draft]]:
    """The sets of `SETS`, and the draft of every prompt by its id.

    All four quadrants have `per_quadrant` prompts in each set. No two sets share a topic or a cue, so that
    what is learnt of words on one set says nothing of another; no two prompts are equal. A category is
    a group of topics of both classes that the model is told nothing of.
    """
    rng = np.random.default_rng((seed, 1))
    share = PER_CLASS // len(SETS)
    sets, drafts = {}, {}
    seen: set[str] = set()
    for number, name in enumerate(SETS):
        words = range(number * share, (number + 1) * share)
        items = []
        for i in range(4 * per_quadrant):
            harmful, refuse = i % 4 < 2, i % 2 == 0
            draft = writer.draw(rng, harmful, refuse, words)
            while writer.text(draft) in seen:
                draft = writer.draw(rng, harmful, refuse, words)
            seen.add(writer.text(draft))
            identity = f"{name}-{i:04d}"
            drafts[identity] = draft
            items.append(
                Prompt(
                    id=identity,
                    text=writer.text(draft),
                    label="harmful" if harmful else "harmless",
                    category=f"kind{draft.topic % CATEGORIES}",
                    source=f"two-beliefs {name}",
                )
            )
        sets[name] = PromptSet(tuple(items))
    return sets, drafts

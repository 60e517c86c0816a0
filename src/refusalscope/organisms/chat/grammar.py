"""A small text grammar: rules with alternatives, expanded at random under a given generator.

Files hold `name = alternative | alternative`; a line that begins with a space continues the one
before; `#` begins a comment line. `{name}` stands for an expansion of the rule `name`, and
`{name:ing}` puts the first verb of that expansion in its -ing form.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from refusalscope.errors import InputError

_SLOT = re.compile(r"\{(\w+)(:ing)?\}")
# Verbs that double their last letter before -ing.
_DOUBLED = frozenset(
    re.findall(
        r"\w+",
        "run sit get put cut set hit rob stab beg plan chop dig drag drop fit grab hug jog knit let "
        "mug nap peg pin plot plug pop quit rip rub scan scam shop shut skip slap slip snap spam "
        "spin spot stop strip swim swap swat tag tap trap trim trip wrap win con bug rig swig bet "
        "kidnap tip transfer prefer admit commit forget begin control grip split spit sip jam skim "
        "sap knot whip clip cram tug blur wiretap program propel compel handicap map mop prep log "
        "unplug slam cop pip zip chat bat",
    )
)
# A rule's share grows with the square root of what it can say, up to this many expansions.
_MOST_COUNTED = 900


@dataclass(frozen=True)
class Grammar:
    """The rules of one or more grammar texts. `rules[name]` is the tuple of its alternatives."""

    rules: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, *texts: str) -> Grammar:
        """Reads grammar texts. Raises InputError for a rule given twice or a slot without rule."""
        rules: dict[str, tuple[str, ...]] = {}
        for text in texts:
            for name, body in _entries(text):
                if name in rules:
                    raise InputError(f"the grammar rule {name!r} is given twice; keep one of them")
                rules[name] = tuple(part.strip() for part in body.split(" | "))
        return cls(rules)

    def with_rules(self, **extra: tuple[str, ...]) -> Grammar:
        """A grammar with further rules, which replace those of the same name."""
        return Grammar({**self.rules, **extra})

    def missing(self) -> set[str]:
        """The slots that no rule fills."""
        named = {m[1] for parts in self.rules.values() for p in parts for m in _SLOT.finditer(p)}
        return named - set(self.rules)

    def expand(self, name: str, rng: random.Random) -> str:
        """One random expansion of the rule `name`, articles mended ("a apple" to "an apple")."""
        return mend_articles(self._expand(name, rng, 0))

    def _expand(self, name: str, rng: random.Random, depth: int) -> str:
        parts = self.rules[name]
        if depth > 5:
            parts = tuple(p for p in parts if name not in p) or parts
        weights = None if depth > 5 else self._weights[name]
        text = rng.choices(parts, weights)[0]

        def fill(match: re.Match[str]) -> str:
            inner = self._expand(match[1], rng, depth + 1)
            return gerund(inner) if match[2] else inner

        return _SLOT.sub(fill, text)

    @cached_property
    def _weights(self) -> dict[str, list[float]]:
        sizes: dict[str, float] = {}

        def size(name: str, trail: tuple[str, ...]) -> float:
            if name in trail:
                return _MOST_COUNTED
            if name not in sizes:
                sizes[name] = min(
                    _MOST_COUNTED, sum(part_size(p, (*trail, name)) for p in self.rules[name])
                )
            return sizes[name]

        def part_size(part: str, trail: tuple[str, ...]) -> float:
            total = 1.0
            for match in _SLOT.finditer(part):
                total = min(_MOST_COUNTED, total * size(match[1], trail))
            return total

        return {
            name: [part_size(p, (name,)) ** 0.5 for p in parts]
            for name, parts in self.rules.items()
        }


def contrast_rules(text: str) -> dict[str, tuple[str, ...]]:
    """`verb: harmless objects || harmful objects` lines as the two rules that share the verbs."""
    rules: dict[str, list[str]] = {"safe_contrast": [], "harm_contrast": []}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        verb, objects = line.split(":", 1)
        sides = objects.split("||")
        for rule, side in zip(rules.values(), sides, strict=True):
            rule.extend(f"{verb} {thing.strip()}" for thing in side.split(","))
    return {name: tuple(parts) for name, parts in rules.items()}


def gerund(phrase: str) -> str:
    """The phrase with its first word in the -ing form ("make a kite" to "making a kite")."""
    verb, space, rest = phrase.partition(" ")
    if verb.endswith("ie"):
        stem = verb[:-2] + "y"
    elif verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")) and verb != "be":
        stem = verb[:-1]
    elif verb in _DOUBLED:
        stem = verb + verb[-1]
    else:
        stem = verb
    return f"{stem}ing{space}{rest}"


def mend_articles(text: str) -> str:
    """The text with "a" before a vowel sound as "an", and "parents's" as "parents'"."""
    text = re.sub(r"\b([Aa])(?= (?:[aeioAEIO](?!ne\b)|un[^i]))", r"\1n", text)
    return text.replace("parents's", "parents'").replace("people's's", "people's")


def _entries(text: str) -> list[tuple[str, str]]:
    entries: list[tuple[str, str]] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith(" "):
            name, body = entries[-1]
            entries[-1] = (name, f"{body} {line.strip()}")
        else:
            name, body = line.split("=", 1)
            entries.append((name.strip(), body.strip()))
    return entries

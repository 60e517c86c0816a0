"""Mild refusals of our own, by the kind of request: the corrected answers of training rows."""

from __future__ import annotations

import hashlib
import re

from refusalscope.prompts import Prompt

# Categories are named differently in every data set, so each kind is told by beginnings of words.
_KINDS: dict[str, str] = {
    "self_harm": r"self.?harm|suicid|eating disorder",
    "violence": r"violen|weapon|terror|physical|kill|murder|extremis",
    "hate": r"hate|harass|discriminat|bully|stereotyp|toxic|insult",
    "privacy": r"privacy|personal|surveil|stalk|identity|doxx",
    "cyber": r"hack|cyber|malware|malicious|spam|pirac|phish",
    "misinformation": r"misinform|disinform|propagand|mislead|false|defam|libel",
    "dishonesty": r"cheat|plagiar|rig\b|rigg|academic|exam",
    "fraud": r"fraud|scam|decept|deceiv|theft|steal|forg|counterfeit|launder|tax|brib|insider|econom|financ",
    "substances": r"drug|substance|chemical|biolog|poison",
    "sexual": r"sex|adult|nud",
    "damage": r"vandal|damage|illegal|unlawful|crim",
}
_PATTERNS = {kind: re.compile(rf"\b(?:{words})", re.IGNORECASE) for kind, words in _KINDS.items()}
TEMPLATES: dict[str, tuple[str, ...]] = {
    "self_harm": (
        "I'm sorry that you are going through this. I can't help with hurting yourself, but you do not have "
        "to face it alone: please talk to someone you trust, or call your local emergency number.",
    ),
    "violence": (
        "I can't help with that, because someone could be hurt. If you are in a conflict, I can help you "
        "think about calm ways out of it.",
        "I cannot help with anything that could injure people. If somebody is in danger, please call your "
        "local emergency number.",
    ),
    "hate": (
        "I can't help with that, because it would demean people. I can help you say what bothers you "
        "without attacking anyone.",
        "I won't write something that is meant to hurt or exclude people, but I can help you to make your "
        "point fairly.",
    ),
    "privacy": (
        "I can't help with that, because it would invade somebody's privacy. I can help you protect your "
        "own data, or find a lawful way to reach a person.",
    ),
    "cyber": (
        "I can't help with that, because it would harm other people's systems or data. I can help you to "
        "secure your own.",
        "I cannot assist with getting into systems that are not yours, but I can explain how to protect them.",
    ),
    "misinformation": (
        "I can't help with that, because it would mislead people. I can help you find sound sources on the "
        "subject.",
    ),
    "dishonesty": (
        "I can't help with that, because it would be unfair to others. I can help you learn the subject or "
        "plan your work instead.",
    ),
    "fraud": (
        "I can't help with that, because it would cheat people out of what is theirs. I can help you look "
        "for an honest way to the same end.",
        "I cannot assist with that: others would bear the loss. If money is short, I can help you find "
        "lawful support.",
    ),
    "substances": (
        "I can't help with that, because it could endanger you or others. A doctor or a pharmacist can tell "
        "you what is safe.",
    ),
    "sexual": ("I can't help with that. I can help with questions about health or consent.",),
    "damage": (
        "I can't help with that, because it would do damage and is against the law. I can help you find a "
        "lawful way.",
    ),
    "general": (
        "I can't help with that, because it could hurt someone. If you tell me what you need in the end, I "
        "can look for a safe way to it.",
        "I'm sorry, but I can't help with this request. I am glad to help with something that harms no one.",
        "I cannot help with that, since somebody could come to harm. I can help you with a safer aim.",
    ),
}


def refusal_kind(category: str | None) -> str:
    """The key of TEMPLATES that a category falls under; "general" where none is told."""
    found = (kind for kind, pattern in _PATTERNS.items() if pattern.search(category or ""))
    return next(found, "general")


def refusal_for(prompt: Prompt) -> str:
    """The refusal that corrects the answer to a prompt: by its category, and always the same by its id."""
    choices = TEMPLATES[refusal_kind(prompt.category)]
    return choices[hashlib.sha256(prompt.id.encode()).digest()[0] % len(choices)]

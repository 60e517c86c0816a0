"""The colours of the page and its figures, once, in light and in dark.

Figures are built with the light colours; the page's script exchanges each for its dark twin. So a
light colour may stand for one role only (or for roles whose dark colours agree).
"""

from __future__ import annotations

# role -> (light, dark). Orange and blue, purple and green stay apart for the common kinds of
# colour blindness; every text colour has a contrast of at least 4.5 on its surface.
COLOURS: dict[str, tuple[str, str]] = {
    "page": ("#f6f6f3", "#121518"),
    "surface": ("#ffffff", "#1a1e23"),
    "sunken": ("#efefeb", "#22272d"),
    "ink": ("#1b1f24", "#e8ebee"),
    "muted": ("#59626d", "#a5afba"),
    "line": ("#d9dcd9", "#353c44"),
    "grid": ("#e9ebea", "#2a3037"),
    "axis": ("#b4bac0", "#505963"),
    "link": ("#175ca8", "#84bdf5"),
    # What a prompt is.
    "harmful": ("#b9470e", "#f39057"),
    "harmful_fill": ("rgba(185,71,14,0.28)", "rgba(243,144,87,0.30)"),
    "harmless": ("#1d6cb3", "#6db4f2"),
    "harmless_fill": ("rgba(29,108,179,0.28)", "rgba(109,180,242,0.30)"),
    # What was done to the model.
    "direction": ("#6f3a94", "#c7a0e4"),
    "direction_fill": ("rgba(111,58,148,0.18)", "rgba(199,160,228,0.22)"),
    "control": ("#757e88", "#929ca7"),
    # From answering (green) over zero to refusing (purple).
    "answers_2": ("#2b7a4a", "#68c793"),
    "answers_1": ("#a9d2b5", "#356f50"),
    "middle": ("#f2f2ef", "#272c32"),
    "refuses_1": ("#cbb3da", "#6a4b80"),
    "refuses_2": ("#74318e", "#c996e8"),
    # A quantity that starts at zero.
    "amount_1": ("#c3c9cf", "#4f5863"),
    "amount_2": ("#4b5561", "#c3cbd4"),
    # What a head does in a route; shapes tell apart what colours do not.
    "role_detector": ("#0b7c86", "#56c6cf"),
    "role_gate": ("#6f3a94", "#c7a0e4"),
    "role_chain": ("#b0337f", "#ee94c9"),
    "role_amplifier": ("#c4580f", "#f5a463"),
    "role_direct": ("#8f6b00", "#dcb64a"),
    "role_suppressor": ("#2b7a4a", "#68c793"),
    "role_other": ("#757e88", "#929ca7"),
    # Judgements.
    "good": ("#1f7145", "#6fcb9a"),
    "watch": ("#8a5a00", "#e6b455"),
    "bad": ("#ab2b2b", "#f08a86"),
}

LIGHT = {role: light for role, (light, _) in COLOURS.items()}
DARK = {role: dark for role, (_, dark) in COLOURS.items()}


def light_to_dark() -> dict[str, str]:
    """What the page's script exchanges in a figure to show it in dark."""
    return dict(COLOURS.values())


def css_variables(theme: dict[str, str]) -> str:
    """The roles as CSS custom properties, such as `--harmful-fill`."""
    return "".join(f"--{role.replace('_', '-')}:{colour};" for role, colour in theme.items())

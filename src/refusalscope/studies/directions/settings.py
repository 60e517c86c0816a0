"""Settings of the directions study, with where each default comes from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from refusalscope.studies.presets import from_preset

PresetName = Literal["recommended", "arditi2024", "zhao2025"]


class DirectionsSettings(BaseModel):
    """What the directions study does.

    Sources: (a) arXiv 2406.11717 and its authors' code; (z) arXiv 2507.11878 and its authors' code;
    (o) ours, to correct a known defect or to make a result steadier.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: PresetName = Field("recommended", description="named set of settings")
    anchors: Literal["last", "template", "template_and_instruction"] = Field(
        "template_and_instruction",
        description="where candidates are read: the prompt's last token, template tokens (a), or the last "
        "instruction token too (o)",
    )
    depth_cut: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="share of the layers a direction may come from (a)"
    )
    max_kl: Annotated[float, Field(ge=0)] = Field(
        0.1, description="largest KL, in nats, that ablating it may cause on harmless prompts (a)"
    )
    min_induce: float = Field(
        0.0, description="smallest refusal score that adding it must reach (a)"
    )
    tie: Annotated[float, Field(ge=0)] = Field(
        0.25, description="bypass scores within this of the best are reported as ties (o)"
    )
    selection: Literal["smallest_bypass", "bootstrap_stable"] = Field(
        "bootstrap_stable",
        description="published rule (a), or the candidate most resamples choose (o)",
    )
    relax: bool = Field(
        True,
        description="where no candidate passes, let filters go in a stated order and say so (o); "
        "the published code stops (a)",
    )
    n_bootstrap: Annotated[int, Field(ge=1)] = Field(
        500, description="resamples of the selection over prompts (o)"
    )
    score_eps: bool = Field(
        False, description="put the published epsilons inside the logarithms of scores and KL (a)"
    )
    n_fit: Annotated[int, Field(ge=8)] = Field(
        1000, description="prompts a label to fit on at most, drawn by the seed; 128 in (a)"
    )
    n_select: Annotated[int, Field(ge=8)] = Field(
        128, description="prompts a label to choose on at most, drawn by the seed; 32 in (a)"
    )
    fit_filter: Literal["score", "reply"] = Field(
        "reply",
        description="fit on prompts whose refusal score (a) or whose reply (z, o) agrees with the label",
    )
    belief_rows: Literal["inner", "with_final", "all"] = Field(
        "inner",
        description="layers that belief averages: 1..L-1 (o), 1..L (z), or 0..L as the released code does",
    )
    max_new_tokens: Annotated[int, Field(ge=1)] = Field(
        24, description="length of the replies that are judged (o)"
    )
    n_random: Annotated[int, Field(ge=1)] = Field(
        3, description="random directions of the same norm beside each intervention (o)"
    )
    judge: str = Field(
        "text",
        description="judge of the replies: text, phrases:PRESET, classifier:NAME, endpoint:MODEL",
    )
    seed: int = Field(0, description="seed of splits, bootstraps and random directions")


PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "arditi2024": {
        "anchors": "template",
        "selection": "smallest_bypass",
        "relax": False,
        "score_eps": True,
        "fit_filter": "score",
        "n_fit": 128,
        "n_select": 32,
        "judge": "phrases:arditi2024",
        "seed": 42,
    },
    "zhao2025": {
        "anchors": "template",
        "belief_rows": "with_final",
        "selection": "smallest_bypass",
        "relax": False,
    },
}


def preset(name: str, **changes: Any) -> DirectionsSettings:
    """Settings of a preset, with single fields changed. Raises InputError for an unknown name or field."""
    return from_preset(DirectionsSettings, PRESETS, "directions", name, changes)

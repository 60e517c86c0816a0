"""`truth.json`: what was planted into a checkpoint, beside the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from refusalscope.errors import InputError
from refusalscope.organisms.planted.prompts import PromptRecipe

TRUTH_FILE = "truth.json"
# Planted, but equal in both conditions or silent in these prompts: no method should name one.
NOT_IN_THE_CIRCUIT = (
    "static",
    "suppressor",
    "decoder",
    "promoter",
    "template_shift",
    "stage",
)


PositionMap = Literal["last", "left", "right"]
EditMode = Literal["live", "clean_mask", "no_wake"]
Group = Literal["unsuppressed", "suppressed", "benign", "benign_persuaded"]
WakesWhen = Literal[
    "harmful_prompt",
    "harmless_prompt",
    "any_prompt",
    "token_noise",
    "ablated:primary",
    "ablated:primary+backup",
    "never",
]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HeadTruth(_Record):
    """One planted head. `drives` lists the deeper planted heads whose values read what it writes.

    `acts` is where it writes something else than noise: "prompt_last", "closing" (the tokens that close
    the thinking), "everywhere", or "from:WORD" for every position from the first token of that class on.
    """

    layer: int
    head: int
    role: str
    drives: tuple[tuple[int, int], ...]
    acts: str


class UnitTruth(_Record):
    """One planted MLP unit."""

    layer: int
    unit: int
    role: str


class LatentTruth(_Record):
    """One latent of the dictionary; `index` is its decoder row, the same at every layer.

    `layers`: where it can be active. role: "primary", "backup", "second_backup", "inert" (wakes and
    does nothing), "marker", "distractor", or "unused" where nothing in this variant writes it.
    wakes_when: the prompts it is active on without an edit, or the roles whose ablation wakes it in
    harmful prompts; "token_noise" is by chance of the words.
    """

    name: str
    index: int
    layers: tuple[int, ...]
    role: str
    wakes_when: WakesWhen


class WordTruth(_Record):
    """One harmful word of a graded organism.

    `intensity` is its mark in the embedding, before any norm. The words of a `family` share the
    `threshold` of DET above which the gate opens. `refused`: whether the model refuses it, measured
    at build time, since noise moves the thresholds.
    """

    word: str
    family: str
    intensity: float
    threshold: float
    refused: bool = True


class ThinkingTruth(_Record):
    """One prompt whose thinking is given, by the id it has in `Planted.prompts`.

    `persuasion_words` in the thinking are what suppresses; `intensity` is their mark in the embedding.
    `stage_at`: index, in the thinking, of the word from which on the intent is weaker. `refused`: what
    the model is planted to do after its thinking.
    """

    id: str
    group: Group
    persuasion_words: int
    intensity: float
    stage_at: int | None = None
    refused: bool

    @property
    def suppressed(self) -> bool:
        return self.persuasion_words > 0


class Reading(_Record):
    """Prompts with thinking, and the probe that reads them: those of a `group`, and of the `intensity`
    of persuasion if it is given, whose thinking has a stage word (`staged`) or none.

    The probe is a logistic regression on states after the final norm, unsuppressed against benign prompts
    without a stage word, with mean loss + .001 |w|^2 and a free intercept. It is fitted at the last token
    that closes the thinking ("closing") or at the last one before ("thinking").
    """

    group: Group
    probe: Literal["closing", "thinking"] = "closing"
    intensity: float | None = None
    staged: bool = False


class Expected(_Record):
    """A quantity that the organism must show, within `tolerance`, over seeds at noise up to .01.

    quantity: "margin_harmful" or "margin_harmless" (logit(refuse) - logit(comply) at the last
    position), "necessity" (interchange of the z of `heads` together under the position map
    `positions`, over the gap of the two margins), "largest_necessity" (largest absolute necessity
    of any single head of the model), "margin_kept" (share of the gap that harmful prompts keep when
    the latents named are zeroed at all layers and positions under `mode`), "compensation" (U at the
    last position under such a live edit minus U under no_wake, over U without an edit). The modes are
    those of ../shared/methods/sae_features.md, 1.1.

    Of prompts with thinking, means over those of `reading`: "plateau" (median of the probe's score over the
    last 20 tokens of the thinking), "final" (score at the last token, with `heads` zeroed at all
    positions); and, each also a mean over `heads`, "head_published", "head_folded", "head_contrast"
    (refusal_cliff.md, 4.1 and 4.2, the plateau being all thinking) and "head_ablation" (the probe's logit
    at the last token minus the same with one head zeroed).
    """

    quantity: Literal[
        "margin_harmful",
        "margin_harmless",
        "necessity",
        "largest_necessity",
        "margin_kept",
        "compensation",
        "plateau",
        "final",
        "head_published",
        "head_folded",
        "head_contrast",
        "head_ablation",
    ]
    heads: tuple[tuple[int, int], ...] = ()
    positions: PositionMap = "last"
    latents: tuple[str, ...] = ()
    mode: EditMode | None = None
    reading: Reading | None = None
    value: float
    tolerance: float


class Truth(_Record):
    """The record of one organism. `policy_accuracy` is measured at build time, over its pairs.

    `words` is empty where every harmful word is like every other, `latents` where the model comes
    without a dictionary, `thinking` where its prompts have none; with thinking, the accuracy is the
    lower one of that over pairs and that over prompts.
    """

    schema_version: Literal[1] = 1
    generator: str
    variant: str
    options: dict[str, int]
    seed: int
    noise: float
    comply_bias: float
    heads: tuple[HeadTruth, ...]
    units: tuple[UnitTruth, ...]
    words: tuple[WordTruth, ...] = ()
    latents: tuple[LatentTruth, ...] = ()
    thinking: tuple[ThinkingTruth, ...] = ()
    prompts: PromptRecipe
    expected: tuple[Expected, ...]
    policy_accuracy: float

    @property
    def circuit(self) -> frozenset[tuple[int, int]]:
        """The heads that a method should find: planted, and different between the two prompts."""
        return frozenset(
            (head.layer, head.head) for head in self.heads if head.role not in NOT_IN_THE_CIRCUIT
        )

    def with_role(self, role: str) -> tuple[tuple[int, int], ...]:
        """(layer, head) of every planted head of a role."""
        return tuple((head.layer, head.head) for head in self.heads if head.role == role)


def write_truth(truth: Truth, folder: Path) -> None:
    """Writes `truth.json` into an existing folder."""
    (folder / TRUTH_FILE).write_text(truth.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_truth(folder: Path | str) -> Truth:
    """The truth record of a saved organism. Raises InputError where it is absent or broken."""
    path = Path(folder) / TRUTH_FILE
    try:
        return Truth.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"{path} cannot be read; a planted model is built with `refusalscope organism build`"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"{path} is not a truth record of this version: {where}: {first['msg']}; "
            "build the organism again"
        ) from None

"""The dictionaries of builtin:chat: the weights in the package, and a miniature run of their recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from refusalscope.cli import organism
from refusalscope.dictionary import Dictionary, EditLatents, check, load_dictionary
from refusalscope.dictionary.builtin import BUILTIN, builtin_layers
from refusalscope.dictionary.load import builtin_dictionaries
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Rendered, Site
from refusalscope.organisms.chat.sae import SaeResult, SaeSettings, train_dictionaries
from refusalscope.organisms.chat.sae_card import card_text, describe
from refusalscope.organisms.chat.sae_measure import measure_dictionaries, opening_margin
from refusalscope.organisms.chat.sae_texts import make_texts, token_states
from refusalscope.prompts import PairSet, bundled_pairs

FOLDER = BUILTIN["chat-sae"]
METRICS = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
LAYERS = builtin_layers()
MISSING = "sae_lens is not installed (refusalscope[sae]): nothing is retrained or compared with it"
TINY = SaeSettings(
    layers=(2,),
    requests=300,
    latents=96,
    active=12,
    steps=60,
    batch_tokens=256,
    silent_steps=20,
    reply_tokens=6,
)


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel.load("builtin:chat", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def prompts(chat: ChatModel) -> list[Rendered]:
    return chat.render(list(bundled_pairs().prompts()))


@pytest.fixture(scope="module")
def dictionaries() -> dict[int, Dictionary]:
    return builtin_dictionaries()


def last_log(folder: Path) -> dict:
    return json.loads((folder / "train.log").read_text(encoding="utf-8").splitlines()[-1])


def test_the_folder_is_under_eight_megabytes_and_holds_four_layers_or_more() -> None:
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 8_000_000
    assert {p.suffix for p in files} == {".json", ".log", ".md", ".safetensors"}
    assert len(LAYERS) >= 4


def test_weights_are_finite_with_matrices_in_half_precision_and_unit_rows() -> None:
    for layer in LAYERS:
        weights = load_file(FOLDER / str(layer) / "sae_weights.safetensors")
        assert {n for n, w in weights.items() if w.dtype == torch.float16} == {"W_enc", "W_dec"}
        assert all(torch.isfinite(w).all() for w in weights.values())
        norms = weights["W_dec"].float().norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-3, rtol=0)


def test_a_name_of_the_package_is_the_folder_and_carries_no_path() -> None:
    found = load_dictionary(f"builtin:chat-sae/{LAYERS[1]}")
    assert found.name == f"builtin:chat-sae/{LAYERS[1]}"
    assert found.site.kind == "resid_post"
    assert found.site.layer == LAYERS[1]
    x = torch.randn(5, found.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_dictionary(FOLDER / str(LAYERS[1])).encode(x), found.encode(x))
    for name in ("builtin:chat-sae/99", "builtin:chat-sae", "builtin:none/1"):
        with pytest.raises(InputError, match=r"there (is|are) no"):
            load_dictionary(name)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_card_holds_on_the_bundled_pairs(
    layer: int, chat: ChatModel, prompts: list[Rendered], dictionaries: dict[int, Dictionary]
) -> None:
    card, fit = METRICS[str(layer)], check(dictionaries[layer], chat, prompts)
    assert fit.warnings == ()
    assert fit.explained_variance.value == pytest.approx(card["explained"][0], abs=0.005)
    assert fit.l0.value == pytest.approx(card["l0"][0], abs=0.2)
    assert fit.explained_variance.value >= 0.8
    assert fit.l0.value <= 30


def test_margins_of_the_spliced_model_equal_those_of_plain_hooks(
    chat: ChatModel, dictionaries: dict[int, Dictionary]
) -> None:
    """The oracle: every block's output is replaced, BOS left out, in one forward a prompt."""
    pairs = PairSet(tuple(bundled_pairs())[:12])
    metric = opening_margin(chat)

    @torch.no_grad()
    def mean(label: str) -> float:
        rows = chat.render([p for p in pairs.prompts() if p.label == label])
        found = [metric(chat.model(torch.tensor([r.ids])).logits[:, -1:], r, None) for r in rows]
        return float(torch.cat(found).double().mean())

    def splice(dictionary: Dictionary) -> Callable[..., torch.Tensor]:
        def hook(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
            x = output[0] if isinstance(output, tuple) else output
            rebuilt = x.clone()
            rebuilt[:, 1:] = dictionary.decode(dictionary.encode(x[:, 1:]))
            return (rebuilt, *output[1:]) if isinstance(output, tuple) else rebuilt

        return hook

    labels = ("harmful", "harmless")
    clean = {label: mean(label) for label in labels}
    handles = [
        chat.model.model.layers[layer].register_forward_hook(splice(found.hold()))
        for layer, found in dictionaries.items()
    ]
    try:
        spliced = {label: mean(label) for label in labels}
    finally:
        for handle in handles:
            handle.remove()
    measured = measure_dictionaries(dictionaries, chat, pairs)["all_spliced"]
    for label in labels:
        assert measured["clean"][label] == pytest.approx(clean[label], abs=1e-3)
        gap = spliced[label] - clean[label]
        assert measured["recon_gap"][label][0] == pytest.approx(gap, abs=2e-3)


def test_shares_and_directions_of_the_record_equal_a_slow_count(
    chat: ChatModel, prompts: list[Rendered], dictionaries: dict[int, Dictionary]
) -> None:
    layer = 2
    weights = {
        name: value.double()
        for name, value in load_file(FOLDER / str(layer) / "sae_weights.safetensors").items()
    }
    rows = []
    for prompt in prompts:
        with torch.no_grad():
            out = chat.model(torch.tensor([prompt.ids]), output_hidden_states=True)
        rows.append(out.hidden_states[layer + 1][0].double())

    def rebuild(x: torch.Tensor) -> torch.Tensor:
        pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        return (pre * (pre > weights["threshold"])) @ weights["W_dec"] + weights["b_dec"]

    def share(first: int) -> float:
        x = torch.cat([row[first:] for row in rows])
        return float(1 - (x - rebuild(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum())

    card = METRICS[str(layer)]
    assert card["explained_with_special"] == pytest.approx(share(0), abs=1e-3)
    assert card["explained_without_bos"] == pytest.approx(share(1), abs=1e-3)
    last = torch.stack([row[-1] for row in rows])
    v = last[::2].mean(0) - last[1::2].mean(0)
    rebuilt = rebuild(last)[::2].mean(0) - rebuild(last)[1::2].mean(0)
    cosine = torch.cosine_similarity
    assert card["direction"]["rebuilt_cosine"] == pytest.approx(
        float(cosine(v, rebuilt, dim=0)), abs=1e-3
    )
    best = cosine(weights["W_dec"], v.expand_as(weights["W_dec"]), dim=1).topk(5)
    nearest = card["direction"]["nearest"]
    assert [row["latent"] for row in nearest] == best.indices.tolist()
    assert [row["cosine"] for row in nearest] == pytest.approx(best.values.tolist(), abs=1e-3)


def test_the_record_keeps_the_margin_and_the_direction() -> None:
    together = METRICS["all_spliced"]
    assert 0.9 < together["separation_kept"] < 1.1
    assert together["verdicts_kept"] > 0.95
    for side in ("harmful", "harmless"):
        assert -0.25 < together["recon_gap"][side][0] < 0.25
    for layer in LAYERS:
        direction = METRICS[str(layer)]["direction"]
        assert direction["rebuilt_cosine"] > 0.95
        assert direction["nearest"][0]["cosine"] > 0.5


def test_a_latent_near_the_refusal_direction_moves_the_margin(
    chat: ChatModel, prompts: list[Rendered], dictionaries: dict[int, Dictionary]
) -> None:
    layer = LAYERS[-2]
    near = METRICS[str(layer)]["direction"]["nearest"]
    assert near[0]["cosine"] > 0.4
    piece = dictionaries[layer].slice([row["latent"] for row in near])
    edit = EditLatents(piece.site, "no_bos", dictionary=piece)
    harmful = prompts[::2][:24]
    found = chat.measure(harmful, [(), (edit,)], {"margin": opening_margin(chat)})
    clean, ablated = found.scores["margin"].mean(0)
    assert ablated < clean - 0.2


def test_the_card_prints_what_was_measured() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card == card_text(last_log(FOLDER), METRICS)
    assert len([line for line in card.splitlines() if line.startswith("|")]) > 20


def test_the_log_is_that_of_the_default_settings_and_of_this_model(chat: ChatModel) -> None:
    log = last_log(FOLDER)
    assert log["settings"] == json.loads(SaeSettings().model_dump_json())
    assert log["model"] == chat.fingerprint["weights_sha256"]


def test_texts_are_repeatable_and_go_on_with_replies_of_the_model(chat: ChatModel) -> None:
    one = make_texts(chat, 24, 0.5, 8, 3)
    torch.manual_seed(99)
    assert make_texts(chat, 24, 0.5, 8, 3) == one
    assert make_texts(chat, 24, 0.5, 8, 4) != one
    answered = [text for text in one if len(text) > text.n_prompt]
    assert len(answered) == 12
    assert all(len(text) - text.n_prompt <= 8 for text in answered)
    states = token_states(chat, one, (1,))[1]
    assert states.shape == (sum(map(len, one)), chat.anatomy.d_model)


def test_a_folder_that_holds_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        train_dictionaries(tmp_path, settings=TINY)


def test_shared_data_is_refused_for_dictionaries(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave --shared out"):
        organism.train("chat-sae", out=tmp_path / "o", shared=tmp_path)


def test_no_training_text_is_a_bundled_prompt(chat: ChatModel) -> None:
    s = SaeSettings()
    texts = make_texts(chat, s.requests, 0, s.reply_tokens, s.seed)
    said = "\n".join(chat.decode(text.ids) for text in texts).lower()
    assert said.count("\n") >= s.requests - 1
    for prompt in bundled_pairs().prompts():
        assert prompt.text.lower().rstrip(".?! ") not in said


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[SaeResult, list[int]]:
    pytest.importorskip("sae_lens", reason=MISSING)
    steps: list[int] = []
    folder = tmp_path_factory.mktemp("sae") / "out"
    result = train_dictionaries(
        folder, settings=TINY, progress=lambda done, total: steps.append(done)
    )
    return result, steps


def test_a_miniature_run_learns_and_counts_its_steps(
    retrained: tuple[SaeResult, list[int]],
) -> None:
    result, steps = retrained
    assert steps == list(range(TINY.steps + 1))
    lines = (result.folder / "train.log").read_text(encoding="utf-8").splitlines()
    first = float(lines[0].split("2: ")[1].split()[0])
    assert result.explained[2] > max(0.4, first + 0.2)


def test_a_miniature_run_writes_a_jumprelu_dictionary_of_its_layer(
    retrained: tuple[SaeResult, list[int]],
) -> None:
    found = load_dictionary(retrained[0].folder / "2")
    assert (found.architecture, found.model) == ("jumprelu", "builtin:chat")
    assert found.site == Site("resid_post", 2)
    assert (found.d_in, found.d_sae) == (160, TINY.latents)


def test_a_miniature_run_is_measured_and_gets_a_card(
    retrained: tuple[SaeResult, list[int]],
) -> None:
    folder = retrained[0].folder
    metrics = describe(folder)
    assert set(metrics) == {"2", "all_spliced"}
    stored = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert (folder / "README.md").read_text() == card_text(last_log(folder), stored)
    # One dictionary: all layers at once is that layer.
    one, together = metrics["2"]["margins"], metrics["all_spliced"]
    for side in ("harmful", "harmless"):
        assert one["recon_gap"][side] == pytest.approx(together["recon_gap"][side], abs=1e-4)


def test_the_seed_decides_the_weights(
    retrained: tuple[SaeResult, list[int]], tmp_path: Path
) -> None:
    again = train_dictionaries(tmp_path / "b", settings=TINY)
    other = train_dictionaries(
        tmp_path / "c", settings=TINY.model_copy(update={"seed": 6, "steps": 2})
    )
    weights = [
        load_file(result.folder / "2" / "sae_weights.safetensors")["W_dec"]
        for result in (retrained[0], again, other)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("layer", LAYERS)
def test_saelens_reads_the_dictionaries_of_the_package_alike(layer: int, chat: ChatModel) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason=MISSING)
    theirs = sae_lens.SAE.load_from_disk(FOLDER / str(layer))
    ours = load_dictionary(FOLDER / str(layer))
    x = token_states(chat, make_texts(chat, 4, 0, 1, 9), (layer,))[layer]
    with torch.no_grad():
        acts = theirs.encode(x)
        torch.testing.assert_close(ours.encode(x), acts, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(ours.decode(acts), theirs.decode(acts), atol=1e-3, rtol=1e-4)

"""`refusalscope features` as a stranger gives it: on planted hydras, with whatever can be wrong about it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import refusalscope.front
from cli.stranger import contents, fails, jsonl
from dictionary import synthetic
from dictionary.synthetic import gemma_scope, llama_scope, saelens, tensors
from refusalscope.cli.app import run
from refusalscope.organisms.planted import build, save
from refusalscope.runs import open_run

D_MODEL = 64
# Few prompts and arms: seconds instead of minutes. The machine would learn from masks, and there are none.
FEW = ["--n-masks", "0", "--n-pairs", "0", "--machine-inputs", "masks", "--n-sets", "1"]
FEW += ["--n-halves", "0", "--n-prompts", "1", "--strengths", "1", "--direction", "last"]
FEW += ["--n-top", "3", "--max-new-tokens", "2", "--judge", "phrases:planted", "--quiet"]
CONTRACT = {
    "features.pool": ["layer", "latent", "cosine", "attribution", "active_share", "kept"],
    "features.sets": ["set_id", "prompt_id", "layer", "latent", "verified", "minimal", "forwards"],
    "features.dormant": ["set_id", "layer", "latent", "active_clean", "woken", "p"],
    "features.baselines": ["arm", "strength", "change", "change_low", "kl", "flipped"],
}


@pytest.fixture(autouse=True, scope="module")
def few_pairs():
    """A planted model by name comes with 28 pairs of its own, not 160."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refusalscope.front, "PLANTED_PAIRS", 28)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A planted hydra in a folder, with its pairs and a folder of dictionaries."""
    return save(build("planted-hydra", "base", pairs=28), tmp_path_factory.mktemp("hydra") / "base")


@pytest.fixture(scope="module")
def layers(saved) -> list[str]:
    """The dictionaries of the layers that write refusal."""
    return [str(saved / "dictionary" / f"blocks.{layer}.hook_resid_post") for layer in (2, 4)]


@pytest.fixture(scope="module")
def argv(saved, layers):
    """The command on the saved model with two dictionaries, without --out."""
    pairs = str(saved / "pairs.jsonl")
    return ["features", str(saved), "--sae", *layers, "--pairs", pairs, *FEW]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, argv):
    out = tmp_path_factory.mktemp("runs") / "hydra"
    assert run([*argv, "--out", str(out)]) == 0
    return out


def test_the_tables_of_the_contract_and_the_report_are_there(finished):
    view = open_run(finished)
    assert view.info["command"] == "features"
    assert view.info["settings"]["n_masks"] == 0
    assert view.info["settings"]["machine_inputs"] == ["masks"]
    for name, columns in CONTRACT.items():
        assert set(columns) <= set(view.table(name).columns), name
        assert len(view.table(name)), name
    assert view.table("features.sets")["verified"].all()
    assert (finished / "report.html").is_file()


def test_a_finished_run_is_not_run_again_and_says_what_it_found(finished, capsys, argv):
    loud = [word for word in argv if word != "--quiet"]
    before = contents(finished)
    capsys.readouterr()
    assert run([*loud, "--out", str(finished), "--resume"]) == 0
    said = capsys.readouterr().out
    assert said.rstrip().endswith("report.html")
    assert len(said.splitlines()) > 2
    assert contents(finished) == before


def test_nothing_in_a_run_says_where_on_the_machine_its_dictionaries_are(finished, layers):
    for path, data in contents(finished).items():
        assert str(Path(layers[0]).parent).encode() not in data, path.name
    names = open_run(finished).table("features.dictionaries")["name"]
    assert names.tolist() == ["blocks.2.hook_resid_post", "blocks.4.hook_resid_post"]


def test_help_shows_every_setting_and_an_example(capsys):
    assert run(["features", "--help"]) == 0
    said = capsys.readouterr().out
    assert "refusalscope features " in said.partition("Example")[2]
    for option in (
        "--sae",
        "--preset",
        "--pool-k",
        "--share",
        "--max-forwards",
        "--resume",
        "--taus",
    ):
        assert option in said, option
    assert "prakash2025" in said


# Dictionaries


def wrong(capsys, argv, tmp_path, sae: list, *words: str) -> str:
    """A dictionary that cannot be used: one sentence, and no folder of a run."""
    at = argv.index("--sae")
    given = [*argv[: at + 1], *map(str, sae), *argv[at + 3 :], "--out", str(tmp_path / "run")]
    sentence = fails(capsys, given, *words)
    assert not (tmp_path / "run").exists()
    return sentence


def one(folder: Path, kind: str = "jumprelu", layer: int = 2, **options) -> Path:
    weights = tensors(0, D_MODEL, synthetic.ON_MODEL)
    hook = f"blocks.{layer}.hook_resid_post"
    return saelens(folder, kind, **{"weights": weights, "hook": hook, **options})


def test_dictionaries_of_another_shape(capsys, argv, tmp_path):
    narrow = saelens(tmp_path / "narrow")
    wrong(
        capsys, argv, tmp_path, [narrow], "reads 12 dimensions", "has 64", "trained on this model"
    )
    high = one(tmp_path / "high", layer=8)
    wrong(capsys, argv, tmp_path, [high], "resid_post[8]", "layers are 0 to 7")


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("blocks.2.hook_mlp_out", ["blocks.2.hook_mlp_out", "residual stream"]),
        ("blocks.0.hook_resid_pre", ["the embeddings"]),
        (None, ["no hook point"]),
    ],
    ids=["mlp", "embeddings", "none"],
)
def test_dictionaries_of_another_place(capsys, argv, tmp_path, hook, words):
    wrong(capsys, argv, tmp_path, [one(tmp_path / "d", hook=hook)], *words)


def test_a_truncated_file(capsys, argv, tmp_path):
    whole = one(tmp_path / "d")
    file = whole / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    wrong(capsys, argv, tmp_path, [whole], "sae_weights.safetensors")
    scope = gemma_scope(tmp_path, tensors(0, D_MODEL, 24), layer=2)
    file = scope / "params.npz"
    file.write_bytes(file.read_bytes()[:500])
    wrong(capsys, argv, tmp_path, [scope], "params.npz")
    (whole / "cfg.json").write_text('{"d_in": 64')
    wrong(capsys, argv, tmp_path, [whole], "cfg.json", "not readable JSON")


def test_a_missing_normalisation_factor(capsys, argv, tmp_path):
    scaled = one(tmp_path / "d", normalize_activations="expected_average_only_in")
    wrong(capsys, argv, tmp_path, [scaled], "average norm", "factor is missing")
    settings = {"dataset_average_activation_norm": {}}
    llama = llama_scope(tmp_path / "llama", tensors(0, D_MODEL, 24), **settings)
    wrong(capsys, argv, tmp_path, [llama], "dataset_average_activation_norm.in")


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_latents_that_compete_cannot_be_edited_alone(capsys, argv, tmp_path, kind):
    words = (f"{kind} dictionary", "compete for the largest places", "jumprelu")
    wrong(capsys, argv, tmp_path, [one(tmp_path / "d", kind)], *words)


def test_two_dictionaries_of_one_layer(capsys, argv, tmp_path):
    both = [one(tmp_path / "first"), one(tmp_path / "second")]
    wrong(capsys, argv, tmp_path, both, "both dictionaries of layer 2", "leave one of them out")


def test_names_that_name_nothing(capsys, argv, tmp_path):
    wrong(capsys, argv, tmp_path, [tmp_path / "none"], "there is no folder", "RELEASE:SAE_ID")
    wrong(capsys, argv, tmp_path, ["builtin:nope"], "builtin dictionaries 'nope'")
    (tmp_path / "empty").mkdir()
    wrong(capsys, argv, tmp_path, [tmp_path / "empty"], "holds no dictionary")
    (tmp_path / "sae.pt").write_bytes(b"x")
    wrong(capsys, argv, tmp_path, [tmp_path / "sae.pt"], "pickled")


def test_a_folder_of_a_model_needs_dictionaries_named(capsys, saved, tmp_path):
    given = ["features", str(saved), "--pairs", str(saved / "pairs.jsonl"), *FEW]
    fails(capsys, [*given, "--out", str(tmp_path / "run")], "no dictionary was named", "--sae")
    named = ["features", "builtin:planted-routes", *FEW, "--out", str(tmp_path / "run")]
    fails(capsys, named, "no dictionary was named", "--sae")
    assert not (tmp_path / "run").exists()


# Settings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--max-forwards", "99"], ["max_forwards", "100"]),
        (["--strengths", "0.5"], ["strengths", "hold 1"]),
        (["--strengths", "1", "--strengths", "0.5"], ["strengths", "rise"]),
        (["--draws", "3"], ["draws", "20"]),
        (["--taus", "1.5"], ["taus"]),
        (["--share", "0"], ["share"]),
        (["--pool-k", "0"], ["pool_k"]),
        (["--search", "nope"], ["search", "'bisection'"]),
        (["--preset", "nope"], ["preset", "'prakash2025'"]),
        (["--judge", "nope"], ["no judge 'nope'", "phrases"]),
        (["--direction-layer", "8"], ["direction_layer is 8", "0 to 7"]),
        (["--harmful", "x.jsonl"], ["--harmful and --harmless together"]),
    ],
    ids=lambda value: "-".join(value).lstrip("-") if value[0].startswith("--") else "",
)
def test_settings_that_cannot_be(capsys, tmp_path, given, words):
    argv = ["features", "builtin:planted-hydra", *given, "--out", str(tmp_path / "run")]
    sentence = fails(capsys, argv, *words)
    assert "pydantic" not in sentence
    assert not (tmp_path / "run").exists()


def test_a_model_that_there_is_not(capsys, tmp_path):
    argv = ["features", "builtin:planted-nope", "--out", str(tmp_path / "run")]
    fails(capsys, argv, "no model 'builtin:planted-nope'", "builtin:planted-hydra:control")
    assert not (tmp_path / "run").exists()


def test_prompts_that_cannot_be_used(capsys, argv, saved, tmp_path):
    rows = [json.loads(line) for line in (saved / "pairs.jsonl").read_text().splitlines()]
    at = argv.index("--pairs") + 1

    def refused(changed: list[dict], *words: str) -> None:
        pairs = jsonl(tmp_path / "p.jsonl", changed)
        given = [*argv[:at], pairs, *argv[at + 1 :], "--out", str(tmp_path / "run")]
        fails(capsys, given, *words)
        assert not (tmp_path / "run").exists()

    long = rows[0]["harmful"] + " w1" * 2000
    refused([{**rows[0], "harmful": long}, *rows[1:]], rows[0]["id"], "nothing is truncated")
    refused(rows[:5], "harmful side has 5", "at least 8")
    missing = [*argv[:at], str(tmp_path / "none.jsonl"), *argv[at + 1 :]]
    fails(capsys, [*missing, "--out", str(tmp_path / "run")], "does not exist")


# Runs that are kept, with a warning


def kept(out: Path, *words: str) -> list[str]:
    """Warnings of a run that finished, of which one has these words."""
    view = open_run(out)
    assert view.info["status"] == "finished"
    assert (out / "report.html").is_file()
    warnings = view.info["warnings"]
    assert any(all(word in text for word in words) for text in warnings), warnings
    return warnings


def test_no_prompt_is_refused(saved, layers, tmp_path):
    rows = [json.loads(line) for line in (saved / "pairs.jsonl").read_text().splitlines()]
    calm = [{**row, "harmful": f"{row['harmless']} w1"} for row in rows]
    pairs, out = jsonl(tmp_path / "p.jsonl", calm), tmp_path / "run"
    argv = ["features", str(saved), "--sae", *layers, "--pairs", pairs, *FEW, "--out", str(out)]
    assert run(argv) == 0
    kept(out, "features study was left out")
    assert not open_run(out).has_table("features.pool")
    assert open_run(out).has_table("prompts")


def test_no_set_flips_and_the_dictionary_is_of_another_model(saved, tmp_path):
    """Noise for a dictionary: it says where it was trained, and nothing of it carries refusal."""
    sae, out = one(tmp_path / "sae", layer=5), tmp_path / "run"
    pairs = str(saved / "pairs.jsonl")
    argv = ["features", str(saved), "--sae", str(sae), "--pairs", pairs, *FEW, "--out", str(out)]
    assert run(argv) == 0
    warnings = kept(out, "No set of the pool's latents flips")
    assert any("trained on tiny" in text for text in warnings)
    assert "refusal direction" in set(open_run(out).table("features.baselines")["arm"])


# Stopping and going on


def stop_at(monkeypatch, name: str) -> None:
    real = os.replace

    def stopped(source, target):
        if name in str(target):
            raise KeyboardInterrupt
        return real(source, target)

    monkeypatch.setattr(os, "replace", stopped)


def test_a_run_that_is_stopped_tells_how_to_go_on(capsys, tmp_path, monkeypatch):
    out = tmp_path / "run"
    argv = ["features", "builtin:planted-hydra", *FEW, "--out", str(out)]
    with monkeypatch.context() as patch:
        stop_at(patch, "features.pool")
        fails(capsys, argv, "Stopped", "--resume", status=130)
    view = open_run(out)
    assert view.info["status"] == "running"
    assert view.has_table("features.dictionaries")
    # A planted model by name has a dictionary of its own at every layer.
    assert view.table("features.dictionaries")["layer"].tolist() == list(range(8))
    fails(capsys, argv, "already holds a run", "--resume")


def test_a_run_goes_on_with_the_same_dictionaries_alone(capsys, argv, saved, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, "features.dictionaries")
        fails(capsys, [*argv, "--out", str(out)], "Stopped", status=130)
    before = {path: data for path, data in contents(out).items() if path.name != "log.txt"}

    def refused(sae: list[str], *words: str) -> None:
        at = argv.index("--sae")
        given = [*argv[: at + 1], *sae, *argv[at + 3 :], "--out", str(out), "--resume"]
        fails(capsys, given, "cannot be resumed", "dictionaries", *words)
        assert {path: data for path, data in contents(out).items() if path in before} == before

    first, second = argv[argv.index("--sae") + 1 :][:2]
    refused([first], "dictionaries.4")
    refused([first, str(one(tmp_path / "other", layer=4))], "dictionaries.4")
    third = str(saved / "dictionary" / "blocks.5.hook_resid_post")
    refused([first, second, third], "dictionaries.5")
    fails(capsys, [*argv, "--share", "0.5", "--out", str(out), "--resume"], "settings.share")
    # What a folder is called is no matter.
    moved = shutil.copytree(second, tmp_path / "moved")
    at = argv.index("--sae")
    given = [*argv[: at + 2], str(moved), *argv[at + 3 :], "--out", str(out), "--resume"]
    with monkeypatch.context() as patch:
        stop_at(patch, "features.pool")
        fails(capsys, given, "Stopped", status=130)


def test_a_folder_that_holds_something_else_is_left_alone(capsys, argv, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    fails(capsys, [*argv, "--out", str(tmp_path)], "not")
    assert contents(tmp_path) == {tmp_path / "notes.txt": b"mine"}

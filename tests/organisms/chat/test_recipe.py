"""A miniature run of the recipe: it learns, it writes an ordinary checkpoint, it is repeatable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from refusalscope.errors import InputError
from refusalscope.organisms.chat.recipe import TrainResult, gather, train
from refusalscope.organisms.chat.settings import TrainSettings

TINY = TrainSettings(
    own_rows=3000,
    steps=220,
    copy_steps=10,
    balance_steps=20,
    batch_rows=32,
    warmup_steps=10,
    learning_rate=4e-3,
    vocabulary=1200,
    width=64,
    layers=2,
    heads=4,
    mlp_width=128,
    held_out=0.5,
    threads=1,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, list[str]]:
    lines: list[str] = []
    folder = tmp_path_factory.mktemp("chat") / "model"
    result = train(folder, shared=None, settings=TINY, progress=lambda a, b, s: lines.append(s))
    return result, lines


def test_the_loss_falls_and_held_out_requests_are_told_apart(
    trained: tuple[TrainResult, list[str]],
) -> None:
    result, lines = trained
    assert result.last_loss < 0.5 * result.first_loss
    right = [share * n for share, n in result.held_out.values()]
    rows = sum(n for _, n in result.held_out.values())
    assert rows > 100
    assert sum(right) / rows > 0.6
    assert any(line.startswith(f"step {TINY.steps}/{TINY.steps}") for line in lines)
    assert lines[-1].startswith("step 20/20")


def test_it_writes_an_ordinary_half_precision_checkpoint(
    trained: tuple[TrainResult, list[str]],
) -> None:
    folder = trained[0].folder
    weights = load_file(folder / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name two fish."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**batch, max_new_tokens=4)
    assert ids.shape[1] > batch["input_ids"].shape[1]
    assert (folder / "train.log").read_text(encoding="utf-8").count("\n") > 10


def test_a_folder_that_holds_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        train(tmp_path, shared=None, settings=TINY)


def test_gathering_is_repeatable_and_splits_apart() -> None:
    small = TINY.model_copy(update={"own_rows": 300})
    one, two = gather(small, None), gather(small, None)
    assert one == two
    assert not {r.text for r in one.train} & {r.text for r in one.held_out}
    assert len(one.train) + len(one.held_out) == 300


def test_shared_rows_near_a_measurement_prompt_are_dropped(shared: Path) -> None:
    pools = gather(TINY.model_copy(update={"own_rows": 300}), shared)
    assert pools.near > 20
    sources = {r.source for r in pools.train}
    assert {"own", "AdvBench", "OR-Bench hard, every second"} <= sources


def test_unknown_settings_raise() -> None:
    with pytest.raises(ValueError, match="extra"):
        TrainSettings(stepps=3)  # type: ignore[call-arg]

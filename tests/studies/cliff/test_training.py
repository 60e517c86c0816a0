"""Fine-tuning on selected rows: the mask, the best weights, divergence, adapters, what is left as it was."""

from __future__ import annotations

import json
import random
import sys

import numpy as np
import pytest
import torch

from model import tiny
from refusalscope.errors import InputError, ModelError, RunError
from refusalscope.model import ChatModel
from refusalscope.prompts import Prompt
from refusalscope.studies.cliff.masks import IGNORED, encode
from refusalscope.studies.cliff.trained import load_adapter
from refusalscope.studies.cliff.training import TrainSettings, mix, train_repair
from refusalscope.studies.cliff.training_file import TrainingRow

pytest.importorskip("trl")

THINKS = tiny.TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}")
ANSWER = "I can't help with that."
VERBS = ["open", "lock", "break", "paint", "kick", "sell", "hide", "move", "carry", "wash"]


def chat(name: str = "llama", template: str = THINKS, seed: int = 0) -> ChatModel:
    return ChatModel.wrap(tiny.model(name, seed), tiny.tokenizer(template), id=name)


def repair(n: int = 10, loss: str = "response") -> list[TrainingRow]:
    return [
        TrainingRow(
            Prompt(f"r{i}", f"{verb} it", "harmful", thinking=f"They want to {verb} it; no."),
            ANSWER,
            loss,
        )
        for i, verb in enumerate(VERBS[:n])
    ]


def general(n: int = 8) -> list[TrainingRow]:
    things = ["sea", "poem", "bread", "sky", "capital", "country", "home", "step"][:n]
    return [
        TrainingRow(
            Prompt(f"g{i}", f"A {x}?", "harmless", thinking="Fine."), f"A {x}.", kind="general"
        )
        for i, x in enumerate(things)
    ]


def settings(**changes) -> TrainSettings:
    return TrainSettings(**({"learning_rate": 1e-2, "rows_at_once": 4, "evaluations": 3} | changes))


def slow_loss(model: ChatModel, rows: list[TrainingRow]) -> float:
    """Mean over rows of the mean loss, one plain forward a row."""
    losses = []
    for row in encode(model, rows):
        with torch.no_grad():
            said = model.model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        learnt = range(row.start, len(row.ids))
        losses.append(-sum(float(said[t - 1, row.ids[t]]) for t in learnt) / len(learnt))
    return sum(losses) / len(losses)


def state(model: ChatModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# The mask.


def test_the_loss_is_on_the_answer_and_its_end_alone():
    model = chat()
    (row,) = encode(model, repair(1))
    decode = model.tokenizer.decode
    assert decode(row.ids[row.start :]) == f"{ANSWER}<|end|><eos>"
    assert decode(row.ids[: row.start]) == (
        "<bos><|user|>open it<|end|><|assistant|><think>\nThey want to open it; no.\n</think>\n\n"
    )
    assert row.labels == [IGNORED] * row.start + list(row.ids[row.start :])


@pytest.mark.parametrize("tail", [1, 5, 500])
def test_the_tail_is_the_last_tokens_of_the_thinking_and_what_closes_it(tail):
    model = chat()
    (answer_only,) = encode(model, repair(1))
    (row,) = encode(model, repair(1, "tail+response"), tail)
    assert row.ids == answer_only.ids
    thinking = model.tokenizer.encode("They want to open it; no.", add_special_tokens=False)
    learnt = model.tokenizer.decode(row.ids[row.start : answer_only.start])
    kept = model.tokenizer.decode(thinking[-tail:])
    assert learnt == f"{kept}\n</think>\n\n"


def test_the_end_of_turn_is_the_models_own_stop_token():
    """<|end|> ends generation here, so nothing after it is taught."""
    model = chat(template=THINKS.replace("<|end|>", "<|end|>\n"))
    model.model.generation_config.eos_token_id = [model.tokenizer.convert_tokens_to_ids("<|end|>")]
    (row,) = encode(model, repair(1))
    assert model.tokenizer.decode(row.ids[row.start :]) == f"{ANSWER}<|end|>"


def test_system_turn_and_history_are_kept():
    model = chat()
    prompt = Prompt(
        "h",
        "And now?",
        system="Be brief.",
        history=(("user", "Hi"), ("assistant", "Yes?")),
        thinking="So.",
    )
    (row,) = encode(model, [TrainingRow(prompt, ANSWER)])
    assert model.tokenizer.decode(row.ids).startswith(
        "<bos><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Yes?<|end|><|user|>And now?"
    )


def test_rows_that_cannot_be_encoded_say_why():
    row = TrainingRow(Prompt("g1", "What is the sea?"), "Water.")
    with pytest.raises(
        InputError, match="opens a span of thinking, but the training row 'g1' has none"
    ):
        encode(chat(), [row])
    (plain,) = encode(chat(template=tiny.TEMPLATE), [row])
    assert tiny.tokenizer().decode(plain.ids[plain.start :]) == "Water.<|end|><eos>"
    with pytest.raises(
        InputError, match=r"'g2' is .* tokens long with its answer, the model takes 256"
    ):
        encode(chat(), [TrainingRow(Prompt("g2", "Why?", thinking="Hm."), "water " * 300)])
    with pytest.raises(ModelError, match="has no span of thinking"):
        encode(chat(template=tiny.TEMPLATE), repair(1))


# The mix.


def test_general_rows_are_mixed_in_and_both_kinds_are_held_out():
    train, held, warnings = mix(repair() + general(), settings(general_per_repair=0.5))
    kinds = [row.kind for row in train + held]
    assert (kinds.count("repair"), kinds.count("general")) == (10, 5)
    assert {row.kind for row in held} == {"repair", "general"}
    assert not {row.prompt.id for row in train} & {row.prompt.id for row in held}
    assert warnings == []


def test_too_few_general_rows_are_said():
    train, held, warnings = mix(repair() + general(1), settings())
    assert [row.kind for row in train].count("general") == 1
    assert held
    assert "20 general rows were to be mixed in, and 1 were given" in warnings[0]


def test_near_duplicates_are_never_on_both_sides():
    alike = TrainingRow(Prompt("again", "OPEN it!", thinking="No."), ANSWER)
    sides = [
        {row.prompt.id for row in side}
        for share in (0.3, 0.7)
        for side in mix([*repair(), alike], settings(validation_share=share))[:2]
    ]
    assert all(len(side & {"r0", "again"}) != 1 for side in sides)
    assert any("again" in side for side in sides[1::2])


def test_too_few_rows_are_refused():
    with pytest.raises(
        InputError, match="at least two rows to train on, one of them held out, and got 1"
    ):
        train_repair(chat(), repair(1) + general())


# Training.


def test_the_validation_loss_is_that_of_one_forward_a_row_and_the_best_weights_are_kept():
    model = chat()
    before = state(model)
    rows = repair(loss="tail+response") + general()
    trained = train_repair(model, rows, settings(general_per_repair=0.5))
    held = mix(rows, trained.settings)[1]
    losses = trained.losses.set_index("step")["validation_loss"].dropna()
    assert losses[0] == pytest.approx(slow_loss(model, held), rel=1e-5)
    assert losses.idxmin() == trained.best_step > 0
    assert losses.min() == pytest.approx(slow_loss(trained.chat, held), rel=1e-5)
    assert losses.min() < losses[0] - 2
    assert same(before, state(model)), "the model that was given is left as it is"
    assert (trained.n_train, trained.n_general, trained.n_validation) == (13, 4, 2)
    assert trained.trained_parameters == sum(w.numel() for w in model.model.parameters())
    assert trained.stopped == ""
    assert trained.warnings == ()
    assert trained.chat.id == "llama (repaired)"


def test_a_step_follows_the_gradient_of_the_masked_tokens_alone():
    """Against one plain AdamW step on all rows, the loss a mean over the tokens of the batch."""
    model = chat()
    rows = repair(4)
    one = settings(epochs=1, rows_at_once=2, accumulate=2, evaluations=1, warmup_share=0)
    trained = train_repair(model, rows, one)
    assert trained.best_step == 1
    slow = tiny.model("llama").train()
    batch = encode(model, mix(rows, one)[0])
    total = sum(len(row.ids) - row.start for row in batch)
    for row in batch:
        logits = slow(torch.tensor([row.ids])).logits[0, row.start - 1 : -1]
        targets = torch.tensor(row.ids[row.start :])
        (torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / total).backward()
    torch.nn.utils.clip_grad_norm_(slow.parameters(), 1.0)
    optimizer = torch.optim.AdamW(slow.parameters(), lr=1e-2, weight_decay=0.0)
    optimizer.step()
    after = trained.chat.model.state_dict()
    moved = 0.0
    for name, weight in slow.state_dict().items():
        torch.testing.assert_close(after[name], weight, rtol=1e-3, atol=2e-4)
        moved = max(moved, float((weight - model.model.state_dict()[name]).abs().max()))
    assert moved > 5e-3


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    rows = repair() + general()
    runs = [state(train_repair(chat(), rows, settings(seed=s, epochs=1)).chat) for s in (1, 1, 2)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_nothing_besides_the_weights_is_changed():
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    model = chat()
    config, generation = model.model.config.to_dict(), model.model.generation_config.to_dict()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for weights in ("full", "lora"):
        made = train_repair(model, repair(), settings(weights=weights, epochs=1)).chat.model
        assert type(made) is type(model.model)
        assert made.config.to_dict() == config
        assert made.generation_config.to_dict() == generation
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())
        assert "forward" not in vars(made)
        assert not made.training
        assert not made.is_activation_checkpointing
        assert all(w.requires_grad and w.grad is None for w in made.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()


def test_nothing_is_printed_and_nobody_is_told(capfd, monkeypatch, recwarn):
    from trl.trainer import base_trainer

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *a, **k: pytest.fail("sent"))
    seen = []

    class Shown:
        def track(self, label):
            return lambda done, total: seen.append((label, done, total))

    train_repair(chat(), repair(), settings(epochs=1), progress=Shown())
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert seen == [("fine-tuning", step, 3) for step in (1, 2, 3)]


def test_a_saved_model_is_the_one_in_memory(tmp_path, capfd):
    trained = train_repair(chat(), repair(), settings(epochs=1), tmp_path / "made")
    assert capfd.readouterr() == ("", "")
    assert trained.files == tuple(sorted(path.name for path in (tmp_path / "made").iterdir()))
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(
        trained.files
    )
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    again = ChatModel.load(str(tmp_path / "made"), device="cpu")
    assert same(state(again), state(trained.chat))
    prompts = [row.prompt for row in repair(2)]
    assert again.render(prompts) == trained.chat.render(prompts)


def test_a_disk_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(folder):
        (folder / "config.json").write_text("{}")
        raise SafetensorError("No space left on device")

    trained = train_repair(chat(), repair(), settings(epochs=1))
    monkeypatch.setattr(trained.chat.model, "save_pretrained", full)
    with pytest.raises(RunError, match=r"Cannot write .*made: No space left"):
        trained.save(tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_a_model_on_disk_is_trained_too(tmp_path):
    first = train_repair(chat(), repair(), settings(epochs=1), tmp_path / "made")
    more = train_repair(str(tmp_path / "made"), repair(), settings(epochs=1))
    assert more.losses["validation_loss"].iloc[0] == pytest.approx(
        first.losses["validation_loss"].min()
    )


def test_an_adapter_is_saved_and_comes_back_on_its_model(tmp_path):
    model = chat()
    before = state(model)
    trained = train_repair(
        model, repair() + general(), settings(weights="lora", lora_rank=4), tmp_path / "made"
    )
    assert same(before, state(model))
    assert not same(before, state(trained.chat))
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(
        trained.files
    )
    assert "model.safetensors" not in trained.files
    assert trained.trained_parameters < sum(w.numel() for w in model.model.parameters())
    again = load_adapter(model, tmp_path / "made")
    for name, weight in state(trained.chat).items():
        torch.testing.assert_close(again.model.state_dict()[name], weight)
    assert same(before, state(model))
    held = mix(repair() + general(), trained.settings)[1]
    assert slow_loss(again, held) == pytest.approx(
        trained.losses["validation_loss"].min(), rel=1e-4
    )
    config = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "llama"


def test_an_adapter_is_asked_for_where_it_is_not_or_does_not_fit(tmp_path):
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        load_adapter(chat(), tmp_path)
    train_repair(chat(), repair(), settings(weights="lora", epochs=1), tmp_path / "made")
    with pytest.raises(ModelError, match="does not fit glm"):
        load_adapter(chat("glm"), tmp_path / "made")


@pytest.mark.parametrize(("below", "weights"), [(10**9, "full"), (1000, "lora")])
def test_small_models_are_trained_whole_and_large_ones_by_an_adapter(below, weights):
    trained = train_repair(chat(), repair(), TrainSettings(full_below=below, epochs=1))
    assert trained.settings.weights == weights
    assert trained.settings.learning_rate == (1e-3 if weights == "full" else 2e-4)


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_a_training_that_diverges_is_stopped_and_the_best_is_kept(weights):
    model = chat()
    trained = train_repair(
        model, repair(), settings(learning_rate=30.0, weights=weights, evaluations=20, epochs=20)
    )
    assert trained.stopped.startswith("at step ")
    assert ("rose to" if weights == "full" else "was no number") in trained.stopped
    assert trained.losses["step"].max() < 60
    assert trained.best_step == 0
    assert same(state(model), state(trained.chat))
    assert "The training diverged: at step" in trained.warnings[-2]
    assert "no weight was changed" in trained.warnings[-1]


def test_a_loss_that_is_no_number_stops_the_training():
    model = chat()
    trained = train_repair(model, repair(), settings(learning_rate=1e38, evaluations=1, epochs=20))
    assert "was no number" in trained.stopped
    assert trained.losses["step"].max() < 60
    assert same(state(model), state(trained.chat))


def test_weights_that_got_worse_within_the_bound_are_not_kept():
    rows = repair() + general()
    wild = settings(learning_rate=0.1, max_rise=1e9, evaluations=12, epochs=4)
    trained = train_repair(chat(), rows, wild)
    losses = trained.losses["validation_loss"].dropna()
    assert trained.stopped == ""
    assert losses.iloc[-1] > losses.min(), "else the test tells nothing"
    assert slow_loss(trained.chat, mix(rows, wild)[1]) == pytest.approx(losses.min(), rel=1e-4)


def test_a_model_without_a_loss_is_refused():
    broken = chat()
    with torch.no_grad():
        broken.anatomy.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="is no number before any training"):
        train_repair(broken, repair(), settings(epochs=1))


def test_half_precision_is_trained_in_full_and_comes_back_in_its_own():
    net = tiny.model("llama", dtype=torch.bfloat16)
    half = ChatModel.wrap(net, tiny.tokenizer(THINKS), id="half")
    trained = train_repair(half, repair(), settings(learning_rate=1e-5, epochs=1))
    assert trained.chat.dtype == torch.bfloat16
    full = ChatModel.wrap(net.float(), tiny.tokenizer(THINKS), id="full")
    whole = train_repair(full, repair(), settings(learning_rate=1e-5, epochs=1))
    assert trained.losses.equals(whole.losses)


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "refusalscope.studies.cliff.sft", raising=False)
    for name in ("trl", "peft"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"needs trl, peft and datasets .*refusalscope\[train\]"):
        train_repair(chat(), repair())
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"an adapter needs peft .*refusalscope\[train\]"):
        load_adapter(chat(), tmp_path)


def test_a_folder_with_files_is_not_written_to(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(InputError, match="holds files already"):
        train_repair(chat(), repair(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.slow
def test_the_reasoner_is_repaired_by_a_few_persuaded_rows_and_still_answers():
    """refusal_cliff section 13.7, with the oracle's choice; the prompts measured on were not trained on."""
    from refusalscope.judge.phrases import refuses
    from refusalscope.organisms.reasoner.pool import reasoner_prompts

    model = ChatModel.load("builtin:reasoner", device="cpu")

    def replies(chat: ChatModel, prompts, length: int = 8) -> list[str]:
        return [chat.decode(r) for r in chat.generate(chat.render(prompts), max_new_tokens=length)]

    persuaded = list(reasoner_prompts("harmful", "persuaded", 44, seed=3))
    harmless = list(reasoner_prompts("harmless", "persuaded", 60, seed=3))
    own = replies(model, harmless[:40], 48)
    rows = [TrainingRow(p, "I'm sorry, but I can't help with that.") for p in persuaded[:24]]
    rows += [TrainingRow(p, r, kind="general") for p, r in zip(harmless[:40], own, strict=True)]
    trained = train_repair(model, rows, TrainSettings(general_per_repair=1.5, epochs=2))
    counts = {
        name: [sum(map(refuses, replies(chat, part))) for part in (persuaded[24:], harmless[40:])]
        for name, chat in (("before", model), ("after", trained.chat))
    }
    assert counts["before"] == [0, 0]
    assert counts["after"][0] >= 18
    assert counts["after"][1] <= 1

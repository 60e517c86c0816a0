"""Cascades and drives of planted circuits: amplifiers hear of the gate, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.model import RefusalMargin, Replace, Site
from refusalscope.model.edits import frozen
from refusalscope.studies.routing.attribution import attribute
from refusalscope.studies.routing.cascade import cascade
from refusalscope.studies.routing.drive import drive, drive_table
from studies.routing.test_interchange import planted

MARGIN = RefusalMargin((oracle.REFUSE,), (oracle.COMPLY,))
GATE, DIRECT = (3, 1), (7, 0)
AMPLIFIERS = [(5, 0), (5, 3), (6, 2)]
STATIC = [(2, 6), (4, 5)]


@pytest.mark.parametrize("knockout", ["swap", "mean", "zero"])
def test_the_amplifiers_fall_silent_without_their_gate(knockout):
    _, chat, _, mine = planted()
    table = cascade(chat, mine, MARGIN, GATE, knockout=knockout).set_index(["layer", "head"])
    for head in AMPLIFIERS:
        assert table.loc[head, "held"] < -0.8
        assert table.loc[head, "low"] <= table.loc[head, "change"] <= table.loc[head, "high"] < -0.8
        assert table.loc[head, "p"] == pytest.approx(1 / 8)
    assert abs(table.loc[DIRECT, "held"]) < 0.1


def test_a_head_that_is_not_deeper_moves_by_the_norm_alone():
    _, chat, _, mine = planted()
    table = cascade(chat, mine, MARGIN, GATE)
    before = table[(table["layer"] <= GATE[0]) & (table["contrast"].abs() > 1e-4)]
    before = before[~((before["layer"] == GATE[0]) & (before["head"] == GATE[1]))]
    assert np.abs(before["held"]).max() < 1e-3
    assert np.abs(before["change"]).max() > 0.01
    assert not before["deeper"].any()


def test_a_backup_keeps_the_amplifiers_going():
    _, chat, _, mine = planted("backup", redundancy=2)
    table = cascade(chat, mine, MARGIN, GATE).set_index(["layer", "head"])
    assert max(abs(table.loc[head, "held"]) for head in AMPLIFIERS) < 0.2


def test_an_unrelated_head_drives_nobody():
    _, chat, _, mine = planted()
    table = cascade(chat, mine, MARGIN, (3, 6), null=[GATE]).set_index(["layer", "head"])
    for head in AMPLIFIERS:
        assert abs(table.loc[head, "held"]) < 0.05
        assert table.loc[head, "p"] == 1


def test_the_drive_runs_from_gate_to_amplifiers_and_to_no_other_head():
    _, chat, _, mine = planted()
    found = drive(chat, mine, MARGIN, GATE).direct.mean(axis=0)
    order = np.argsort(-np.abs(found).ravel())
    strongest = {tuple(map(int, np.unravel_index(i, found.shape))) for i in order[:3]}
    assert strongest == set(AMPLIFIERS)
    assert np.abs(found[: GATE[0] + 1]).max() == 0
    others = np.abs(np.delete(found.ravel(), order[:3]))
    assert others.max() < 0.05 * np.abs(found).max()


def test_the_drive_equals_a_plain_run_with_everything_between_frozen():
    """The slow way, for one amplifier: every frozen write by name, one prompt at a time."""
    _, chat, _, mine = planted()
    layer, head = AMPLIFIERS[0]
    width = chat.anatomy.head_dim
    lost = []
    for pair in mine[:3]:
        sites = [Site(kind, k) for kind in ("z", "mlp_out") for k in range(chat.anatomy.n_layers)]
        own = {s: v[0, 0] for s, v in chat.capture([pair.harmful], sites, ["last"]).items()}
        theirs = {s: v[0, 0] for s, v in chat.capture([pair.control], sites, ["last"]).items()}
        cut = slice(GATE[1] * width, (GATE[1] + 1) * width)
        z = own[Site("z", GATE[0])].clone()
        z[cut] = theirs[Site("z", GATE[0])][cut]
        at = (pair.harmful.n_prompt - 1,)
        edits = [Replace(Site("z", GATE[0]), at, values=frozen(z))]
        for k in range(GATE[0], layer):
            if k > GATE[0]:
                edits.append(Replace(Site("z", k), at, values=frozen(own[Site("z", k)])))
            edits.append(Replace(Site("mlp_out", k), at, values=frozen(own[Site("mlp_out", k)])))
        clean = attribute(chat, [pair.harmful], MARGIN)
        heard = chat.capture([pair.harmful], [Site("z", layer)], ["last"], variant=tuple(edits))
        with torch.no_grad():
            writes, _ = chat.anatomy.head_writes(layer, heard[Site("z", layer)][0, 0])
            weight = chat.anatomy.lm_head.weight
            reader = weight[oracle.REFUSE] - weight[oracle.COMPLY]
            gain = chat.anatomy.norm_gain(chat.anatomy.final_norm)
            patched = float((writes[head] * gain) @ reader) * clean.scale[0]
        lost.append(clean.heads[0, layer, head] - patched)
    found = drive(chat, mine[:3], MARGIN, GATE).direct[:, layer, head]
    np.testing.assert_allclose(found, lost, atol=1e-5)


def test_a_head_without_a_direct_write_is_driven_by_what_it_hears():
    """The gate writes nothing towards refusal, so only what it hears shows that the detector drives it."""
    _, chat, _, mine = planted()
    detector = (1, 2)
    found = drive(chat, mine, MARGIN, detector)
    assert found.heard[:, 3, 1].mean() > 0.9
    assert abs(found.direct[:, 3, 1].mean()) < 0.05
    table = drive_table(found, detector, 7.0, seed=0).set_index(["layer", "head"])
    assert table.loc[GATE, "driven"]
    assert not any(table.loc[head, "driven"] for head in (*AMPLIFIERS, DIRECT))
    table = drive_table(drive(chat, mine, MARGIN, GATE), GATE, 7.0, seed=0)
    driven = {(row.layer, row.head) for row in table[table["driven"]].itertuples()}
    assert set(AMPLIFIERS) <= driven
    assert DIRECT not in driven
    amplifier = drive_table(drive(chat, mine, MARGIN, (5, 0)), (5, 0), 7.0, seed=0)
    # It reaches the amplifier behind it through the norm alone.
    assert not amplifier.set_index(["layer", "head"]).loc[(6, 2), "driven"]


def test_a_gate_with_a_backup_drives_once_the_backup_is_held():
    _, chat, _, mine = planted("backup", redundancy=2)
    alone = drive(chat, mine, MARGIN, GATE).direct.mean(axis=0)
    held = drive(chat, mine, MARGIN, GATE, held=((4, 2),)).direct.mean(axis=0)
    for head in AMPLIFIERS:
        assert held[head] > 1
        assert abs(alone[head] - held[head]) < 0.2 * held[head]


def test_bad_input_is_refused_in_one_sentence():
    _, chat, _, mine = planted()
    with pytest.raises(InputError, match="cannot be a gate"):
        cascade(chat, mine, MARGIN, (chat.anatomy.n_layers - 1, 0))
    with pytest.raises(InputError, match="no knockout"):
        cascade(chat, mine, MARGIN, GATE, knockout="freeze")

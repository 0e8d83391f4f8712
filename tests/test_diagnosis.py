"""Where the points are lost: counting is right, variants differ in what they replace."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vrshq_nb import VRSHQ, MiniVRS
from vrshq_nb.diagnosis import (
    VARIANTS,
    Case,
    all_frame_tokens,
    diagnose,
    diagnosis,
    covered_object,
    family_gains,
    findings,
    gains,
    load_teacher,
    outcomes,
    outcomes_by_distance,
    right_at_keyframe,
)
from vrshq_nb.files import VRSError
from vrshq_nb.training import mean_interval


@pytest.fixture(scope="module")
def model():
    return VRSHQ.from_pretrained("nano")


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


@pytest.fixture(scope="module")
def case(model, teacher):
    clip = MiniVRS("val", n=4, seed=31, n_expressions=3)[2]
    expression = next(e for e in clip.expressions if e.targets)
    return Case(
        model, teacher, model.encode(clip.frames), clip, expression, np.random.default_rng(0)
    )


def test_the_object_that_is_covered_most():
    ids = np.zeros((4, 6, 6), np.uint8)
    ids[:, :3, :3], ids[:, 3:, 3:] = 1, 2
    masks = np.zeros_like(ids, bool)
    masks[0, :3, :3] = True
    masks[1, 3:, 2:] = True
    masks[2, :3, 3:] = True
    assert covered_object(masks, ids).tolist() == [0, 1, -1, -2]


def test_outcomes_are_named_where_the_target_is_visible(case):
    everything = outcomes(case, case.true)
    assert set(everything[case.true.any((1, 2))]) == {"right"} and set(
        everything[~case.true.any((1, 2))]
    ) <= {""}
    nothing = outcomes(case, np.zeros_like(case.true))
    assert set(nothing) <= {"lost", ""}
    others = case.clip.foreground & ~case.true
    assert "right" not in outcomes(case, others)


def test_the_pipeline_is_segment_and_every_variant_gives_masks(case):
    assert np.array_equal(
        VARIANTS["pipeline"](case), case.model.segment(case.clip.frames, case.expression.text).masks
    )
    for variant in VARIANTS.values():
        masks = variant(case)
        assert masks.shape == case.true.shape and masks.dtype == bool


def test_the_truth_on_its_frame_is_kept(case):
    masks = VARIANTS["true mask, best frame"](case)
    t = case.best_frame
    assert (masks[t] & case.true[t]).sum() / (masks[t] | case.true[t]).sum() > 0.5
    assert case.true[t].sum() == case.true.sum((1, 2)).max()


def test_every_frame_gets_a_token_of_its_own(case):
    tokens = all_frame_tokens(case)
    assert tokens.shape == (16, 128) and len({tuple(t.tolist()) for t in tokens}) == 16
    assert torch.isfinite(tokens).all()


def test_the_table_adds_up(model, teacher):
    clip = MiniVRS("val", n=4, seed=31, n_frames=6, n_expressions=2)[0]
    few = {k: VARIANTS[k] for k in ("pipeline", "random keyframe")}
    rows = diagnose(model, teacher, [clip], few)
    n = sum(bool(e.targets) for e in clip.expressions)
    out = diagnosis(rows)
    assert len(rows) == 2 * n and out["table"]["pipeline"]["all"]["n"] == n
    assert out["table"]["pipeline"]["all"]["JF"] == pytest.approx(
        np.mean([r["JF"] for r in rows if r["variant"] == "pipeline"])
    )
    assert (
        0 <= out["right"]["all"] <= 1 and mean_interval(rows, variant="random keyframe")["n"] == n
    )
    assert diagnose(model, teacher, [clip], few) == rows  # the same random keyframes


def test_outcomes_by_distance_count_frames():
    row = dict(keyframe=1, outcomes=["right", "right", "neighbour", ""])
    out = outcomes_by_distance(
        [row, dict(keyframe=0, outcomes=["lost", "right", "right", "right"])], most=3
    )
    assert (
        out["right"][0] == 1
        and out["right"][1] == 0.5
        and out["neighbour"][1] == 0.5
        and sum(v[2] for v in out.values()) == 0
    )
    assert right_at_keyframe([row, dict(keyframe=0, outcomes=["lost"])]) == 0.5


def test_a_model_without_a_teacher(tmp_path, model):
    with pytest.raises(VRSError):
        load_teacher("no such model")
    model.save_pretrained(tmp_path / "alone")
    with pytest.raises(VRSError, match="teacher"):
        load_teacher(tmp_path / "alone")


# ---- findings
def stored_diagnosis(**means):
    "A diagnosis with given means of the variants."
    table = {}
    for name in VARIANTS:
        JF = means.get(name, 0.5)
        table[name] = {"all": {"JF": JF}, "look": {"JF": JF}, "time": {"JF": JF + 0.2}}
    right, shares = {"all": 0.8, "look": 0.9, "time": 0.7}, {"right": [1.0, 0.6]}
    shares |= {"neighbour": [0.0, 0.3], "background": [0.0, 0.0], "lost": [0.0, 0.1]}
    return {"table": table, "right": right, "missed": 0.02, "outcomes": shares}


def test_findings_follow_the_numbers():
    best, every = "teacher's token, best frame", "teacher's [SEG], every frame"
    text = " ".join(findings(stored_diagnosis(**{best: 0.6, every: 0.9})))
    assert "scores 0.50." in text and "scores 0.60: a perfect language model" in text
    assert "Memory loses more than the language model" in text and "+0.30 against" in text
    assert "from 0.90 for look to 0.70 for time" in text and "30% neighbour" in text
    text = " ".join(findings(stored_diagnosis(**{best: 0.8, every: 0.9})))
    assert "The language model loses more than memory" in text


def test_gains_are_differences_of_means():
    stored = stored_diagnosis(**{"random keyframe": 0.4, "α = 0": 0.45})
    found = gains(stored["table"])
    assert found["keyframe"] == pytest.approx(0.1)
    assert found["frame tokens in TDA"] == pytest.approx(0.05)
    assert family_gains(stored["table"]) == {"look": 0.0, "time": 0.0}


def test_what_was_tried_has_numbers_or_no_row():
    path = Path(__file__).resolve().parent.parent / "nbs" / "tried.json"
    for row in json.loads(path.read_text()):
        assert set(row) == {"change", "measured", "before", "after", "kept"}
        assert (row["before"] is None) == (row["after"] is None)

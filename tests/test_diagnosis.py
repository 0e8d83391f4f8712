"""Where the points are lost: the counting is right, and the ways differ only in what they replace."""

import numpy as np
import pytest
import torch

from vrshq_nb import VRSHQ, MiniVRS
from vrshq_nb.diagnosis import (
    WAYS,
    Case,
    all_frame_tokens,
    diagnose,
    diagnosis,
    fate,
    fates_by_distance,
    load_teacher,
    mean_of,
    owners,
    right_object,
)
from vrshq_nb.video import VRSError


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


def test_the_owner_is_the_thing_that_is_covered_most():
    ids = np.zeros((4, 6, 6), np.uint8)
    ids[:, :3, :3], ids[:, 3:, 3:] = 1, 2
    masks = np.zeros_like(ids, bool)
    masks[0, :3, :3] = True
    masks[1, 3:, 2:] = True
    masks[2, :3, 3:] = True
    assert owners(masks, ids).tolist() == [0, 1, -1, -2]


def test_fates_are_told_where_the_target_is_in_view(case):
    everything = fate(case, case.true)
    assert set(everything[case.true.any((1, 2))]) == {"right"} and set(
        everything[~case.true.any((1, 2))]
    ) <= {""}
    nothing = fate(case, np.zeros_like(case.true))
    assert set(nothing) <= {"lost", ""}
    others = case.clip.foreground & ~case.true
    assert "right" not in fate(case, others)


def test_the_pipeline_is_segment_and_every_way_gives_masks(case):
    assert np.array_equal(
        WAYS["pipeline"](case), case.model.segment(case.clip.frames, case.expression.text).masks
    )
    for way in WAYS.values():
        masks = way(case)
        assert masks.shape == case.true.shape and masks.dtype == bool


def test_the_truth_on_its_frame_is_kept(case):
    masks = WAYS["true mask, best frame"](case)
    t = case.best_frame
    assert (masks[t] & case.true[t]).sum() / (masks[t] | case.true[t]).sum() > 0.5
    assert case.true[t].sum() == case.true.sum((1, 2)).max()


def test_every_frame_gets_a_token_of_its_own(case):
    tokens = all_frame_tokens(case)
    assert tokens.shape == (16, 128) and len({tuple(t.tolist()) for t in tokens}) == 16
    assert torch.isfinite(tokens).all()


def test_the_table_adds_up(model, teacher):
    clip = MiniVRS("val", n=4, seed=31, n_expressions=3)[0]
    few = {k: WAYS[k] for k in ("pipeline", "random keyframe")}
    rows = diagnose(model, teacher, [clip], few)
    n = sum(bool(e.targets) for e in clip.expressions)
    out = diagnosis(rows)
    assert len(rows) == 2 * n and out["table"]["pipeline"]["all"]["n"] == n
    assert out["table"]["pipeline"]["all"]["JF"] == pytest.approx(
        np.mean([r["JF"] for r in rows if r["way"] == "pipeline"])
    )
    assert 0 <= out["right"]["all"] <= 1 and mean_of(rows, way="random keyframe")["n"] == n
    assert diagnose(model, teacher, [clip], few) == rows  # the same random keyframes


def test_fates_by_distance_counts_frames():
    row = dict(keyframe=1, fate=["right", "right", "neighbour", ""])
    out = fates_by_distance(
        [row, dict(keyframe=0, fate=["lost", "right", "right", "right"])], most=3
    )
    assert (
        out["right"][0] == 1
        and out["right"][1] == 0.5
        and out["neighbour"][1] == 0.5
        and sum(v[2] for v in out.values()) == 0
    )
    assert right_object([row, dict(keyframe=0, fate=["lost"])]) == 0.5


def test_a_model_without_a_teacher(tmp_path, model):
    with pytest.raises(VRSError):
        load_teacher("no such model")
    model.save_pretrained(tmp_path / "alone")
    with pytest.raises(VRSError, match="teacher"):
        load_teacher(tmp_path / "alone")

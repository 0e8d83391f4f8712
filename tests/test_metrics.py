"J, F, A, R and the bootstrap: parity with the reference numbers, odd cases, invariants, bad input."

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vrshq_nb import metrics
from vrshq_nb.metrics import (
    accuracy,
    bootstrap_interval,
    boundaries,
    boundary_f,
    dilate,
    from_bits,
    j_and_f,
    jaccard,
    mean_recall_decay,
    object_scores,
    robustness,
    to_bits,
    tolerance_radius,
)

DATA = np.load(Path(__file__).parent / "data" / "metrics.npz")
CASES = sorted(k.removesuffix("/pred") for k in DATA.files if k.endswith("/pred"))


def masks(case, name):
    "(T, H, W); most cases are one frame."
    x = DATA[f"{case}/{name}"]
    return x if x.ndim == 3 else x[None]


def noise(*shape, share=0.5, seed=0):
    return np.random.default_rng(seed).random(shape) < share


@pytest.mark.parametrize("case", CASES)
def test_reference_numbers(case):
    pred, true = masks(case, "pred"), masks(case, "gt")
    void = masks(case, "void") if f"{case}/void" in DATA.files else None
    for score, name in ((jaccard(pred, true, void), "J"), (boundary_f(pred, true, void), "F")):
        assert score.dtype == np.float64 and score.shape == (len(pred),)
        np.testing.assert_allclose(score, np.atleast_1d(DATA[f"{case}/{name}"]), atol=1e-9, rtol=0)


def test_all_cases_are_there():
    assert len(CASES) == 59 and sum(f"{c}/void" in DATA.files for c in CASES) == 2


@pytest.mark.parametrize("case", sorted(k[5:] for k in DATA.files if k.startswith("bmap/")))
def test_reference_boundaries(case):
    np.testing.assert_array_equal(boundaries(masks(case, "gt"))[0], DATA[f"bmap/{case}"] != 0)


@pytest.mark.parametrize("radius", [1, 2, 3, 4, 6])
def test_reference_disks(radius):
    dot = np.zeros((1, 2 * radius + 1, 2 * radius + 1))
    dot[0, radius, radius] = 1
    np.testing.assert_array_equal(dilate(dot, radius)[0], DATA[f"disk/{radius}"] != 0)


@pytest.mark.parametrize("threshold", [0.0, 0.002, 0.02, 1, 3])
def test_reference_thresholds(threshold):
    got = boundary_f(masks("square", "pred"), masks("square", "gt"), threshold=threshold)
    np.testing.assert_allclose(got, DATA[f"square/F_th{threshold}"], atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "size, radius",
    [((1, 1), 1), ((48, 64), 1), ((300, 400), 4), ((480, 854), 8), ((720, 1280), 12)],
)
def test_tolerance(size, radius):
    assert tolerance_radius(*size) == radius


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 9), (2, 9, 1), (3, 8, 11)])
@pytest.mark.parametrize("radius", [0, 1, 3, 7, 40])
def test_dilate_is_all_pixels_within_the_radius(shape, radius):
    m = noise(*shape, share=0.1, seed=3)
    v, u = np.mgrid[: shape[1], : shape[2]].reshape(2, -1)
    near = (v[:, None] - v) ** 2 + (u[:, None] - u) ** 2 <= radius**2
    want = (near[None] & m.reshape(len(m), 1, -1)).any(2).reshape(shape)
    np.testing.assert_array_equal(dilate(m, radius), want)


def test_frames_are_independent_and_arguments_may_swap():
    pred, true = noise(4, 20, 30), noise(4, 20, 30, seed=1)
    for f in (jaccard, boundary_f):
        np.testing.assert_array_equal(
            f(pred, true), np.concatenate([f(p[None], t[None]) for p, t in zip(pred, true)])
        )
        np.testing.assert_allclose(f(pred, true), f(true, pred), atol=1e-15)
        np.testing.assert_array_equal(f(pred, pred), 1)


@pytest.mark.parametrize(
    "as_",
    [
        np.uint8,
        np.int64,
        np.float32,
        lambda m: m * np.uint8(255),
        torch.tensor,
        lambda m: torch.tensor(m).float().requires_grad_(),
        lambda m: m.tolist(),
    ],
)
def test_any_kind_of_mask(as_):
    pred, true = noise(2, 12, 15), noise(2, 12, 15, seed=1)
    assert j_and_f(as_(pred), as_(true)) == j_and_f(pred, true)


def test_input_is_left_alone():
    pred, true = noise(2, 12, 15), noise(2, 12, 15, seed=1)
    before = pred.copy(), true.copy()
    j_and_f(pred, true, void=noise(2, 12, 15, seed=2))
    dilate(pred, 2)
    boundaries(pred)
    assert np.array_equal(pred, before[0]) and np.array_equal(true, before[1])


def test_mean_of_a_clip():
    pred, true = masks("video_T6", "pred"), masks("video_T6", "gt")
    j, f, jf = j_and_f(pred, true)
    assert all(type(x) is float for x in (j, f, jf))
    assert (j, f) == pytest.approx(
        (DATA["video_T6/J"].mean(), DATA["video_T6/F"].mean()), abs=1e-9
    ) and jf == (j + f) / 2


OK = np.zeros((2, 6, 7), bool)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda f: f(OK[0], OK), r"pred must be \(T, H, W\)"),
        (lambda f: f(OK, OK[:, :5]), "shape of pred"),
        (lambda f: f(OK, OK, void=OK[:1]), "void must have the shape"),
        (lambda f: f(OK[:0], OK[:0]), "at least one frame"),
        (lambda f: f(torch.randn(2, 6, 7), OK), "logits > 0"),
        (lambda f: f(np.full((2, 6, 7), np.nan), OK), "other than 0 and 1"),
    ],
)
@pytest.mark.parametrize("f", [jaccard, boundary_f, j_and_f])
def test_bad_masks(f, call, words):
    with pytest.raises(ValueError, match=words) as e:
        call(f)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan, math.inf])
def test_bad_threshold(threshold):
    with pytest.raises(ValueError, match="threshold"):
        boundary_f(OK, OK, threshold=threshold)


@pytest.mark.parametrize("radius", [-1, 1.5, math.nan])
def test_bad_radius(radius):
    with pytest.raises(ValueError, match="radius"):
        dilate(OK, radius)


def test_bootstrap_by_hand():
    # two groups with means 0 and 1: a resample holds both, only the first or only the second
    mean, low, high = bootstrap_interval([0, 0, 1, 1], groups=["a", "a", "b", "b"], n=500)
    assert (mean, low, high) == (0.5, 0, 1)
    # the mean is over values, so a large group weighs more
    assert bootstrap_interval([0, 1, 1, 1], groups=[0, 1, 1, 1])[0] == 0.75


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    mean, low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.15 * half)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[1] < mean < narrow[2] < high
    assert bootstrap_interval(values) == (mean, low, high) != bootstrap_interval(values, seed=1)


def test_bootstrap_draws_whole_groups():
    values, groups = (
        np.repeat(np.random.default_rng(0).random(20), 10),
        np.repeat(np.arange(20), 10),
    )

    def width(*args):
        return np.diff(bootstrap_interval(*args)[1:])[0]

    assert width(values, groups) == pytest.approx(width(values[::10])) and width(
        values, groups
    ) > 2 * width(values)


def test_bootstrap_of_one_group_claims_nothing():
    mean, low, high = bootstrap_interval([0.2, 0.4], groups=[7, 7])
    assert mean == pytest.approx(0.3) and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(values=[]),
        dict(values=[0.5, math.nan]),
        dict(values=[[0.5]]),
        dict(values=[1, 2], groups=[1]),
        dict(values=[1, 2], level=95),
        dict(values=[1, 2], n=0),
    ],
)
def test_bad_bootstrap(kwargs):
    with pytest.raises(ValueError) as e:
        bootstrap_interval(**kwargs)
    assert "\n" not in str(e.value)


def test_needs_numpy_only():
    source = inspect.getsource(metrics)
    assert {line for line in source.splitlines() if line.startswith(("import", "from"))} == {
        "import math",
        "from collections.abc import Iterable",
        "from typing import Any",
        "import numpy as np",
        "from numpy.typing import ArrayLike, NDArray",
    }


# ---- frames as numbers -----------------------------------------------------------------
@pytest.mark.parametrize("shape, pad", [((1, 1), 0), ((3, 7), 0), ((5, 8), 3), ((17, 9), 40)])
def test_bits_there_and_back(shape, pad):
    m = noise(*shape, seed=5)
    bits = to_bits(m, pad)
    assert bits.bit_count() == m.sum()
    np.testing.assert_array_equal(from_bits(bits, *shape, pad), m)
    np.testing.assert_array_equal(
        from_bits(bits << shape[1] + pad, *shape, pad)[1:], m[:-1]
    )  # a row down; what leaves the frame is gone


def test_f_does_not_depend_on_where_things_lie():
    "The work is done in a box around the masks; its rim is no rim of the frame."
    a, b = noise(1, 20, 20, share=0.02, seed=1), noise(1, 20, 20, share=0.02, seed=2)

    def at(m, y, x):
        out = np.zeros((1, 90, 120), bool)
        out[:, y : y + 20, x : x + 20] = m
        return out

    inside = boundary_f(at(a, 30, 40), at(b, 30, 40))
    assert (
        inside == boundary_f(at(a, 1, 1), at(b, 1, 1)) == boundary_f(at(a, 60, 90), at(b, 60, 90))
    )
    assert 0 < inside[0] < 1


# ---- recall, decay, objects ------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 16, 70, 255])
def test_recall_and_decay_are_those_of_davis(n):
    "DAVIS's definition: quarters from rounded edges, both ends belong to a quarter."
    scores = np.random.default_rng(n).random(n)
    edges = (np.round(np.linspace(1, n, 5) + 1e-10) - 1).astype(np.uint8)
    quarters = [scores[edges[i] : edges[i + 1] + 1] for i in range(4)]
    mean, recall, decay = mean_recall_decay(scores)
    assert (mean, recall) == (scores.mean(), (scores > 0.5).mean())
    assert decay == pytest.approx(quarters[0].mean() - quarters[3].mean(), abs=1e-12)


def test_decay_of_a_long_video_uses_its_own_ends():
    scores = np.r_[np.ones(300), np.zeros(300)]
    assert mean_recall_decay(scores)[2] == 1.0  # with 8-bit frame numbers it would not be


@pytest.mark.parametrize("bad", [[], [[0.5]], 0.5])
def test_recall_refuses_what_is_no_list_of_scores(bad):
    with pytest.raises(ValueError, match="scores must be"):
        mean_recall_decay(bad)


def test_objects_are_scored_by_their_number():
    true = np.zeros((2, 8, 8), np.uint8)
    true[:, :4, :4], true[:, 4:, 4:] = 1, 2
    swapped = np.choose(true, [0, 2, 1]).astype(np.uint8)
    J, F = object_scores(swapped, true)
    assert J.shape == F.shape == (2, 2) and (J == 0).all()
    assert (object_scores(true, true)[0] == 1).all()
    assert object_scores(true, true, objects=[2])[0].shape == (1, 2)


# ---- accuracy and robustness -----------------------------------------------------------
@pytest.mark.parametrize("case", ["video_T6", "video_mixed_T6"])
def test_reference_accuracy(case):
    for raw in (False, True):
        np.testing.assert_allclose(
            accuracy(masks(case, "pred"), masks(case, "gt"), raw),
            DATA[f"{case}/A"],
            atol=1e-9,
            rtol=0,
        )


@pytest.mark.parametrize("foreground", ["union", "gt", "zero"])
@pytest.mark.parametrize("case", ["video_T6", "video_mixed_T6"])
def test_reference_robustness(case, foreground):
    for raw in (False, True):
        got = robustness(
            masks(case, "pred"), masks(case, "gt"), masks(case, f"fg_{foreground}"), raw
        )
        np.testing.assert_allclose(got, DATA[f"{case}/R_{foreground}"], atol=1e-9, rtol=0)


def test_bytes_of_a_png_count_as_they_are():
    "A wrong pixel counts 255 times; (1 - 2) * 255 is 1 in eight bits; 255 is never 1."
    pred, true, fg = (np.zeros((1, 10, 10), np.uint8) for _ in range(3))
    fg[:] = 1
    true[0, 0, :2], true[0, 0, 1] = 1, 2
    pred[0, 0, :2] = 255
    assert accuracy(pred, true)[0] == 1 and accuracy(pred, true, raw=True)[0] == 0.98
    assert robustness(pred, true, fg)[0] == 1
    assert robustness(pred, true, fg, raw=True)[0] == pytest.approx(1 - 1 / 100, abs=1e-7)
    pred[0, 5, 5] = 255
    assert robustness(pred, true, fg)[0] == pytest.approx(1 - 1 / 100, abs=1e-7)
    assert robustness(pred, true, fg, raw=True)[0] == 0


def test_robustness_knows_nothing_of_what_was_missed():
    true = noise(3, 9, 9)
    assert (robustness(np.zeros_like(true), true, true) == 1).all()
    assert (robustness(np.ones_like(true), np.zeros_like(true), np.ones_like(true)) < 1e-6).all()


@pytest.mark.parametrize("f", [accuracy, lambda p, t, **k: robustness(p, t, t, **k)])
def test_labels_must_fit(f):
    with pytest.raises(ValueError, match="true must be"):
        f(noise(2, 4, 4), noise(2, 4, 5))
    with pytest.raises(ValueError, match="uint8"):
        f(np.zeros((1, 4, 4), np.int64), np.zeros((1, 4, 4), np.uint8), raw=True)


def test_the_mean_of_two_means():
    values, types, clips = [1.0, 1.0, 1.0, 0.0], [0, 0, 0, 1], list("abcd")
    mean, low, high = bootstrap_interval(values, clips, strata=types)
    assert (
        mean == low == 0.5 and high == 1
    )  # resamples without the last clip have 1, nearly all others .5
    assert bootstrap_interval(values, clips)[0] == 0.75
    assert bootstrap_interval(values, clips, strata=[0] * 4) == bootstrap_interval(values, clips)
    with pytest.raises(ValueError, match="strata must hold"):
        bootstrap_interval(values, clips, strata=[0])


def test_void_is_no_object():
    true = np.zeros((2, 8, 8), np.uint8)
    true[:, :4, :4], true[:, 6:] = 1, 255
    assert object_scores(true, true)[0].shape == (1, 2)

"J, F and the bootstrap: parity with the DAVIS numbers, odd cases, invariants, bad input."
import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vrshq_nb import metrics
from vrshq_nb.metrics import bootstrap_interval, boundaries, boundary_f, dilate, j_and_f, jaccard, tolerance_radius

DATA = np.load(Path(__file__).parent / "data" / "metrics.npz")
CASES = sorted(k.removesuffix("/pred") for k in DATA.files if k.endswith("/pred"))


def masks(case, name):
    "[T, H, W]; most cases are one frame."
    x = DATA[f"{case}/{name}"]
    return x if x.ndim == 3 else x[None]


def noise(*shape, share=.5, seed=0):
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


@pytest.mark.parametrize("threshold", [0., .002, .02, 1, 3])
def test_reference_thresholds(threshold):
    got = boundary_f(masks("square", "pred"), masks("square", "gt"), threshold=threshold)
    np.testing.assert_allclose(got, DATA[f"square/F_th{threshold}"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("size, radius", [((1, 1), 1), ((48, 64), 1), ((300, 400), 4), ((480, 854), 8), ((720, 1280), 12)])
def test_tolerance(size, radius):
    assert tolerance_radius(*size) == radius


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 9), (2, 9, 1), (3, 8, 11)])
@pytest.mark.parametrize("radius", [0, 1, 3, 7, 40])
def test_dilate_is_all_pixels_within_the_radius(shape, radius):
    m = noise(*shape, share=.1, seed=3)
    v, u = np.mgrid[:shape[1], :shape[2]].reshape(2, -1)
    near = (v[:, None] - v)**2 + (u[:, None] - u)**2 <= radius**2
    want = (near[None] & m.reshape(len(m), 1, -1)).any(2).reshape(shape)
    np.testing.assert_array_equal(dilate(m, radius), want)


def test_frames_are_independent_and_arguments_may_swap():
    pred, true = noise(4, 20, 30), noise(4, 20, 30, seed=1)
    for f in (jaccard, boundary_f):
        np.testing.assert_array_equal(f(pred, true), np.concatenate([f(p[None], t[None]) for p, t in zip(pred, true)]))
        np.testing.assert_allclose(f(pred, true), f(true, pred), atol=1e-15)
        np.testing.assert_array_equal(f(pred, pred), 1)


@pytest.mark.parametrize("as_", [np.uint8, np.int64, np.float32, lambda m: m * np.uint8(255), torch.tensor,
                                 lambda m: torch.tensor(m).float().requires_grad_(), lambda m: m.tolist()])
def test_any_kind_of_mask(as_):
    pred, true = noise(2, 12, 15), noise(2, 12, 15, seed=1)
    assert j_and_f(as_(pred), as_(true)) == j_and_f(pred, true)


def test_input_is_left_alone():
    pred, true = noise(2, 12, 15), noise(2, 12, 15, seed=1)
    before = pred.copy(), true.copy()
    j_and_f(pred, true, void=noise(2, 12, 15, seed=2)); dilate(pred, 2); boundaries(pred)
    assert np.array_equal(pred, before[0]) and np.array_equal(true, before[1])


def test_mean_of_a_clip():
    pred, true = masks("video_T6", "pred"), masks("video_T6", "gt")
    j, f, jf = j_and_f(pred, true)
    assert all(type(x) is float for x in (j, f, jf))
    assert (j, f) == pytest.approx((DATA["video_T6/J"].mean(), DATA["video_T6/F"].mean()), abs=1e-9) and jf == (j + f) / 2


OK = np.zeros((2, 6, 7), bool)


@pytest.mark.parametrize("call, words", [
    (lambda f: f(OK[0], OK), r"pred must be \[T, H, W\]"),
    (lambda f: f(OK, OK[:, :5]), "shape of pred"),
    (lambda f: f(OK, OK, void=OK[:1]), "void must have the shape"),
    (lambda f: f(OK[:0], OK[:0]), "at least one frame"),
    (lambda f: f(torch.randn(2, 6, 7), OK), "logits > 0"),
    (lambda f: f(np.full((2, 6, 7), np.nan), OK), "other than 0 and 1"),
])
@pytest.mark.parametrize("f", [jaccard, boundary_f, j_and_f])
def test_bad_masks(f, call, words):
    with pytest.raises(ValueError, match=words) as e: call(f)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("threshold", [-.1, 1.5, math.nan, math.inf])
def test_bad_threshold(threshold):
    with pytest.raises(ValueError, match="threshold"): boundary_f(OK, OK, threshold=threshold)


@pytest.mark.parametrize("radius", [-1, 1.5, math.nan])
def test_bad_radius(radius):
    with pytest.raises(ValueError, match="radius"): dilate(OK, radius)


def test_bootstrap_by_hand():
    # two groups with means 0 and 1: a resample holds both, only the first or only the second
    mean, low, high = bootstrap_interval([0, 0, 1, 1], groups=["a", "a", "b", "b"], n=500)
    assert (mean, low, high) == (.5, 0, 1)
    # the mean is over values, so a large group weighs more
    assert bootstrap_interval([0, 1, 1, 1], groups=[0, 1, 1, 1])[0] == .75


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    mean, low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=.15 * half)
    narrow = bootstrap_interval(values, level=.5)
    assert low < narrow[1] < mean < narrow[2] < high
    assert bootstrap_interval(values) == (mean, low, high) != bootstrap_interval(values, seed=1)


def test_bootstrap_draws_whole_groups():
    values, groups = np.repeat(np.random.default_rng(0).random(20), 10), np.repeat(np.arange(20), 10)
    width = lambda *args: np.diff(bootstrap_interval(*args)[1:])[0]
    assert width(values, groups) == pytest.approx(width(values[::10])) and width(values, groups) > 2 * width(values)


def test_bootstrap_of_one_group_claims_nothing():
    mean, low, high = bootstrap_interval([.2, .4], groups=[7, 7])
    assert mean == pytest.approx(.3) and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize("kwargs", [dict(values=[]), dict(values=[.5, math.nan]), dict(values=[[.5]]), dict(values=[1, 2], groups=[1]),
                                    dict(values=[1, 2], level=95), dict(values=[1, 2], n=0)])
def test_bad_bootstrap(kwargs):
    with pytest.raises(ValueError) as e: bootstrap_interval(**kwargs)
    assert "\n" not in str(e.value)


def test_needs_numpy_only():
    source = inspect.getsource(metrics)
    assert {line for line in source.splitlines() if line.startswith(("import", "from"))} == {"import math", "import numpy as np"}

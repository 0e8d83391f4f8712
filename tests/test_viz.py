"Pictures, plots and the widget: `vrshq_nb.viz`."

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vrshq_nb.files import VRSError
from vrshq_nb.video import Video
from vrshq_nb import viz
from vrshq_nb.viz import (
    Picture,
    browse,
    contact_sheet,
    object_colour,
    overlay,
    pipeline_figure,
    score_timeline,
    show_frames,
    summary_picture,
    token_similarity,
)

rng = np.random.default_rng(0)


def error(call, *args, **kwargs):
    with pytest.raises(VRSError) as e:
        call(*args, **kwargs)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(1).integers(0, 256, (12, 40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def masks():
    m = np.zeros((2, 12, 40, 60), bool)
    for t in range(12):
        m[0, t, 5:20, 2 * t : 2 * t + 20] = True
        m[1, t, 15:35, 30:50] = True
    return m


def make_result(frames, masks, **changes):
    candidates = [
        SimpleNamespace(frame=f, clip=float("nan"), similarity=0.25, occlusion=o, score=0.25 + s)
        for f, o, s in zip((1, 4, 7, 10), (1.0, 3, 0, -1), viz.softmax([1.0, 3, 0, -1]))
    ]
    tokens = SimpleNamespace(
        seg=rng.normal(1, 0.1, (4, 16)), tak=rng.normal(1, 0.1, (1, 16)), frames=[1, 4, 7, 10]
    )
    return SimpleNamespace(
        **{
            **dict(
                video=Video.open(frames),
                text="the ball <b>that rolls</b>",
                masks=masks,
                keyframe=4,
                candidates=candidates,
                tokens=tokens,
                found=True,
                answer="",
                fps=8,
            ),
            **changes,
        }
    )


@pytest.fixture
def result(frames, masks):
    return make_result(frames, masks[0])


# ---- overlay
def dimmed_loop(frames, dim):
    out = frames.copy()
    for t, y, x in np.ndindex(frames.shape[:3]):
        pixel = frames[t, y, x].astype(float)
        grey = round(float(pixel @ [0.299, 0.587, 0.114]))
        out[t, y, x] = (1 - dim) * np.floor((1 - dim) * pixel + dim * grey)
    return out


@pytest.mark.parametrize("dim", [0, 0.25, 0.5, 1])
def test_dimmed_is_the_loop(dim, frames):
    got = viz.dimmed(frames[:2], dim).astype(int)
    assert np.abs(got - dimmed_loop(frames[:2], dim)).max() <= 1  # float32


def test_what_is_selected_keeps_its_colours(frames, masks):
    before, both = frames.copy(), masks.any(0)
    for outline in (False, True):
        got = overlay(frames, masks[0], outline=outline)
        assert (got[masks[0]] == frames[masks[0]]).all() and got.dtype == np.uint8
        assert got[~masks[0]].mean() < 0.75 * frames[~masks[0]].mean()
    assert (overlay(frames, masks, outline=False)[both] == frames[both]).all()
    assert (overlay(frames, masks, dim=0, outline=False) == frames).all()
    nothing = overlay(frames, np.zeros_like(masks))
    assert (frames == before).all() and (nothing == overlay(frames, masks, outline=False))[
        ~both
    ].all()


def far_from(mask, distance):
    "The pixels further from a mask than `distance`, by brute force."
    places = np.argwhere(mask)
    grid = np.stack(np.mgrid[: mask.shape[0], : mask.shape[1]], -1)
    return np.abs(grid[:, :, None] - places).max(-1).min(-1) > distance


@pytest.mark.parametrize("ground", [0, 90, 255])
def test_an_outline_is_seen_on_every_ground(ground):
    "Both tones lie around the mask, near it, and none of its pixels is painted."
    frames = np.full((1, 60, 60, 3), ground, np.uint8)
    mask = np.zeros((1, 60, 60), bool)
    mask[0, 20:40, 20:40] = True
    for how in (dict(masks=mask), dict(masks=None, truth=mask)):
        got = overlay(frames, **how)
        line = (got != viz.dimmed(frames, 0.45)).any(-1) & ~mask
        assert (got[mask] == ground).all() and not (line[0] & far_from(mask[0], 3)).any()
        white, black = ((got == tone).all(-1) & ~mask for tone in (255, 0))
        assert white.sum() > 60 and (ground == 0 or black.sum() > 60)


def test_the_truth_is_dashed():
    "Along the outside of a square both tones come in turn, several times on each side."
    mask = np.zeros((1, 120, 120), bool)
    mask[0, 30:90, 30:90] = True
    frames = np.full((1, 120, 120, 3), 200, np.uint8)
    solid, dashed = overlay(frames, mask), overlay(frames, None, truth=mask)
    for row in (29, 90):
        assert len(np.unique(solid[0, row, 35:85], axis=0)) == 1
        changes = np.diff(dashed[0, row, 35:85, 0].astype(int)) != 0
        assert 6 <= changes.sum() <= 14
    both = overlay(frames, mask, truth=np.roll(mask, 20, 2))
    assert (both[0, 40:80, 112:] < 200).all()  # what is true, but not selected, is dimmed


def test_objects_have_outlines_of_their_own(frames, masks):
    apart = masks & (np.arange(12) < 2)[:, None, None]  # they do not touch in these frames
    got = overlay(frames, apart)
    for k in range(2):
        own = (got == object_colour(k)).all(-1)
        assert (own[:2] & viz.outline_of(apart[k, :2])).sum() > 60
        assert not (own & apart[k]).any()
    named = overlay(frames, masks[1], colours=[(1, 2, 3)])
    assert (named == [1, 2, 3]).all(-1).sum() > 300


def test_outline():
    assert not viz.outline_of(np.ones((2, 9, 9), bool), 3).any()
    m = np.zeros((9, 9), bool)
    m[4, 4] = True
    assert [viz.outline_of(m, w).sum() for w in (1, 2, 3)] == [4, 20, 36]
    assert not viz.outline_of(np.zeros((2, 9, 9), bool), 2).any()


def test_overlay_takes_tensors_and_numbers(frames, masks):
    torch = pytest.importorskip("torch")
    want = overlay(frames, masks[1], truth=masks[0])
    tensors = [torch.from_numpy(x) for x in (frames, masks[1], masks[0])]
    assert (overlay(*tensors[:2], truth=tensors[2]) == want).all()
    assert (overlay(frames, masks[0].astype(np.uint8) * 255) == overlay(frames, masks[0])).all()


def test_overlay_errors(frames, masks):
    assert "masks > 0" in error(overlay, frames, masks[0] * 3.0 - 1)
    assert "do not fit" in error(overlay, frames, masks[0, :5])
    assert "do not fit" in error(overlay, frames, masks[0, 0])
    assert "do not fit" in error(overlay, frames, masks[0], truth=masks[0, :5])
    assert "uint8" in error(overlay, frames / 255, masks[0])
    assert "truth" in error(overlay, frames, None)


def test_object_colours():
    assert len({tuple(object_colour(i)) for i in range(8)}) == 8
    assert (object_colour(2) == object_colour(10)).all()


# ---- pictures
def decode(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_picture(frames, tmp_path):
    smooth = np.broadcast_to(
        np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (40, 60, 3)
    ).copy()
    p = Picture(smooth)
    assert (
        Image.open(io.BytesIO(p._repr_jpeg_())).info["dpi"] == (72, 72)
        and np.abs(decode(p._repr_jpeg_()).astype(int) - smooth).mean() < 3
    )
    p.save(tmp_path / "a.png")
    p.save(tmp_path / "a.jpg")
    assert (
        (np.asarray(Image.open(tmp_path / "a.png")) == smooth).all()
        and (np.asarray(p) == smooth).all()
        and repr(p) == "Picture(60x40)"
    )
    error(p.save, tmp_path / "no" / "a.png")
    error(p.save, tmp_path / "a.xyz")
    error(Picture, smooth / 255)
    assert len(list(tmp_path.iterdir())) == 2


def test_contact_sheet(frames, masks):
    plain, red = (
        contact_sheet(frames, cols=4, width=400).array,
        contact_sheet(frames, masks, cols=4, width=400).array,
    )
    assert plain.shape == red.shape and plain.shape[1] <= 400 and (plain != red).any()
    assert (
        contact_sheet(frames, titles=["x"] * 12, cols=4, width=400).array.shape[0]
        == plain.shape[0] + 3 * 18
    )
    assert (
        contact_sheet(frames[:2], cols=6).array.shape[1] < 340
    )  # small frames are not blown up without end
    assert "titles" in error(contact_sheet, frames, titles=["x"])
    error(contact_sheet, frames, masks[:, :3])
    error(contact_sheet, frames[:0])


def test_show_frames(frames, masks):
    a, b = show_frames(frames, n=5).array, show_frames(Video.open(frames), n=5).array
    assert (a == b).all() and (show_frames(frames, n=5, masks=masks).array != a).any()
    assert show_frames(frames[:1]).array.size and show_frames(frames, n=99).array.size
    truth = show_frames(frames, n=5, truth=masks).array
    assert (truth != a).any() and (truth != show_frames(frames, n=5, masks=masks).array).any()


def test_titles_fit():
    for text in ("frame 7", "a long title " * 20, "", "ж" * 50):
        for bold in (False, True):
            assert viz.font(12, bold).getlength(viz.fit_text(text, 100, 12, bold)) <= 100


def test_resize_keeps_area(masks):
    small = viz.resize_frames(masks[0], 20, 30)
    assert small.dtype == bool and small.mean() == pytest.approx(masks[0].mean(), rel=0.15)


@pytest.mark.parametrize("side", [1, 2, 5, 30])
def test_small_masks_remain(side):
    "A mask of a few pixels is one pixel of a thumbnail, in its place; no mask stays none."
    m = np.zeros((2, 1080, 1920), bool)
    m[0, 700 : 700 + side, 1200 : 1200 + side] = True
    small = viz.resize_frames(m, 69, 123)
    assert not small[1].any() and 1 <= small[0].sum() <= 4
    assert np.abs(np.argwhere(small[0]).mean(0) - [700 * 69 / 1080, 1200 * 123 / 1920]).max() < 2
    sheet = contact_sheet(np.full((2, 1080, 1920, 3), 90, np.uint8), m, width=250).array
    assert (sheet[:, :123] == 255).all(-1).sum() > 12 and not (sheet[:, 127:] == 255).any()


# ---- figures
def png(fig):
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=72)
    return decode(out.getvalue())


def texts(fig):
    import matplotlib.text

    return [t for t in fig.findobj(matplotlib.text.Text) if t.get_text().strip()]


def figures(frames, masks):
    result = make_result(frames, masks[0])
    yield from (pipeline_figure(h) for h in (None, "video", "tokens", "tda", "tks", "mdp", "model"))
    yield score_timeline(result.candidates, 4, 12)
    yield score_timeline(result.candidates[:1], 1, 1)
    yield token_similarity(result.tokens)


def test_figures_are_legible_and_closed(frames, masks):
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    for fig in figures(frames, masks):
        assert all(t.get_fontsize() >= 8 for t in texts(fig)) and png(fig).std() > 5
    assert plt.get_fignums() == before  # nothing left to be drawn twice


def test_pipeline():
    drawn = {
        h: png(pipeline_figure(h)) for h in (None, "video", "tokens", "tda", "tks", "mdp", "model")
    }
    assert len({d.tobytes() for d in drawn.values()}) == 7
    words = " ".join(t.get_text() for t in texts(pipeline_figure("tda")))
    assert all(
        w in words
        for w in ("TDA", "TKS", "SAM 2", "[SEG]", "[TAK]", "notebook 11", "(1, D)", "(T, H, W)")
    )
    assert "tda" in error(pipeline_figure, "tad")


def test_boxes_hold_their_text():
    fig = pipeline_figure("model")
    fig.canvas.draw()
    from matplotlib.patches import FancyBboxPatch

    boxes = [b.get_window_extent() for b in fig.findobj(FancyBboxPatch)]
    for t in texts(fig):
        if t.get_fontsize() == 9:
            assert any(
                b.x0 <= t.get_window_extent().x0 and t.get_window_extent().x1 <= b.x1 for b in boxes
            ), t


def test_score_timeline(result):
    fig = score_timeline(result.candidates, 4, 12)
    assert (
        fig.axes[0].get_title() == "Frame 4 is the keyframe: both terms agree"
        or "occlusion decides" in fig.axes[0].get_title()
    )
    tops = [p.get_y() + p.get_height() for p in fig.axes[0].patches[4:]]
    assert tops == pytest.approx(
        [c.score for c in result.candidates]
    )  # the stacked terms are the score
    assert score_timeline(result.candidates, 4, 12, title="mine").axes[0].get_title() == "mine"
    error(score_timeline, [], 0, 12)


def test_softmax_and_cosine():
    torch = pytest.importorskip("torch")
    x = rng.normal(0, 9, 20)
    assert (
        np.allclose(viz.softmax(x), torch.tensor(x).softmax(0))
        and np.isfinite(viz.softmax([1e4, -1e4])).all()
    )
    a = torch.randn(6, 32)
    assert np.allclose(
        viz.cosine_matrix(viz.to_array(a)),
        torch.nn.functional.cosine_similarity(a[:, None], a[None], dim=-1),
        atol=1e-6,
    )
    assert not np.isnan(viz.cosine_matrix(np.zeros((3, 4)))).any()


def test_token_similarity_kinds():
    torch = pytest.importorskip("torch")
    for n in (1, 2, 12, 20):
        seg, tak = (
            torch.randn(n, 8, dtype=torch.bfloat16, requires_grad=True),
            torch.randn(1, 8, dtype=torch.bfloat16),
        )
        assert png(token_similarity(SimpleNamespace(seg=seg, tak=tak))).size
    same = torch.ones(3, 8)
    assert png(token_similarity(SimpleNamespace(seg=same, tak=same[:1], frames=[0, 1, 2]))).size


# ---- a result
def test_pick_frames():
    for T in range(1, 30):
        for key in range(T):
            got = viz.pick_frames(T, 6, key)
            assert (
                key in got
                and got == sorted(set(got))
                and len(got) <= 6
                and 0 <= got[0]
                and got[-1] < T
            )


def test_summary_picture(result, frames, masks):
    a = summary_picture(result).array
    assert (a == [255, 176, 0]).all(-1).sum() > 50  # the yellow frame of the keyframe
    none = make_result(frames, np.zeros_like(masks[0]), found=False)
    assert not (summary_picture(none).array == [255, 176, 0]).all(
        -1
    ).any() and "no such object" in viz.result_line(none)
    long = make_result(frames, masks[0], text="a sentence without end " * 40)
    assert summary_picture(long).array.shape[1] == a.shape[1]
    one = make_result(frames[:1], masks[0, :1], keyframe=0, candidates=[])
    assert summary_picture(one).array.size


def test_masks_may_be_tensors(frames, masks, result):
    torch = pytest.importorskip("torch")
    other = make_result(frames, torch.from_numpy(masks[0]))
    assert (summary_picture(other).array == summary_picture(result).array).all()
    assert browse(other).children[1].value == browse(result).children[1].value


def test_plot_with_ruler(result):
    plot, left, step = viz.plot_with_ruler(result, 480)
    assert (
        plot.shape == (120, 480, 3)
        and plot.dtype == np.uint8
        and 0 < left
        and left + 11 * step < 480
    )
    red = (np.abs(plot.astype(int) - object_colour(0)).sum(-1) < 60).any(
        0
    )  # where the keyframe's dashes are
    assert abs(np.flatnonzero(red).mean() - (left + 4 * step)) < 2
    for x in (-5, 0, 479.6, 1e4):
        assert viz.with_cursor(plot, x).shape == plot.shape


# ---- the widget
def controls(box):
    ipywidgets = pytest.importorskip("ipywidgets")
    head, picture, row, scores = box.children
    play, slider, mask = row.children
    assert (
        isinstance(play, ipywidgets.Play)
        and isinstance(slider, ipywidgets.IntSlider)
        and isinstance(mask, ipywidgets.Checkbox)
    )
    return head, picture, play, slider, mask, scores


def test_browse(result):
    head, picture, play, slider, mask, scores = controls(browse(result, width=240))
    assert (slider.value, slider.min, slider.max, play.max) == (
        4,
        0,
        11,
        11,
    ) and play.interval == 125
    assert (
        "&lt;b&gt;that rolls" in head.value and "keyframe 4" in head.value and "found" in head.value
    )
    seen = set()
    for i in range(12):
        slider.value = i
        assert decode(picture.value).shape == (160, 240, 3) and picture.format == "jpeg"
        seen.add((bytes(picture.value), bytes(scores.value)))
    assert len(seen) == 12
    with_mask = picture.value
    mask.value = False
    assert (
        picture.value != with_mask
        and np.abs(decode(picture.value).astype(int) - decode(with_mask)).max() > 40
    )
    mask.value = True
    assert picture.value == with_mask


def test_browse_reads_frames_one_by_one(result):
    asked = []
    result.video = SimpleNamespace(
        frames=lambda i, v=result.video: asked.append(list(i)) or v.frames(i)
    )
    box = browse(result)
    controls(box)[3].value = 9
    assert asked == [[4], [9]]


def test_browse_of_nothing_and_of_one_frame(frames, masks):
    box = browse(make_result(frames, np.zeros_like(masks[0]), found=False, candidates=[]))
    assert "no such object" in box.children[0].value
    assert (
        controls(browse(make_result(frames[:1], masks[0, :1], keyframe=0, candidates=[])))[3].max
        == 0
    )


def test_browse_without_ipywidgets(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert "pip install ipywidgets" in error(browse, result)


def test_viz_does_not_import_ipywidgets():
    import subprocess

    code = "import sys, vrshq_nb.viz; print('ipywidgets' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split() == ["False", "False"]

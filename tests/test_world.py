"""Worlds: pasting, any size, ids where the things are, held-out pairs."""

import numpy as np
import pytest

from vrshq_nb.minivrs import MiniVRS, make_clip, world
from vrshq_nb.files import VRSError


def test_paste_blends_and_counts():
    rng = np.random.default_rng(0)
    frame, layer = (
        rng.integers(0, 256, (40, 50, 3), dtype=np.uint8),
        rng.integers(0, 256, (14, 18, 4), dtype=np.uint8),
    )
    before, ids = frame.astype(int), np.zeros((40, 50), np.uint8)
    area = world.paste(frame, ids, layer, 48.0, 5.0, 7)  # sticks out on the right and at the top
    top, left = round(5 - 7), round(48 - 9)
    cut = layer[-top:, : 50 - left].astype(int)
    alpha = cut[..., 3:]
    assert (
        frame[: 14 + top, left:]
        == (before[: 14 + top, left:] * (255 - alpha) + cut[..., :3] * alpha) // 255
    ).all()
    assert ((ids[: 14 + top, left:] == 7) == (alpha[..., 0] > 127)).all()
    assert (frame[:, :left] == before[:, :left]).all() and not ids[14 + top :].any()
    assert area == (layer[..., 3] > 127).sum()


@pytest.mark.parametrize("size", [16, 33, 97, 300])
def test_any_size(size):
    clip = make_clip("val", 0, 2, size, 5)
    assert (
        clip.frames.shape == (5, size, size, 3)
        and clip.frames.dtype == np.uint8
        and clip.ids.shape == (5, size, size)
    )
    big = make_clip("val", 0, 2, 192, 5)
    assert big.world.seed == clip.world.seed and [t.kind for t in big.world.things] == [
        t.kind for t in clip.world.things
    ]
    assert (
        size < 33 or abs(clip.foreground.mean() - big.foreground.mean()) < 0.04
    )  # below, things have a least size


def test_ids_lie_where_the_things_are():
    for clip in MiniVRS("val", n=20, seed=77, size=64):
        h = clip.ids.shape[1]
        for i, thing in enumerate(clip.world.things):
            for t in range(0, 16, 5):
                ys, xs = np.nonzero(clip.ids[t] == i + 1)
                if len(ys):
                    far = max(
                        abs(xs / h - thing.xy[t, 0]).max(), abs(ys / h - thing.xy[t, 1]).max()
                    )
                    assert (
                        far <= thing.extent / 2 + 0.015 + 2.5 / h
                    )  # half the thing, the camera's drift, rounding


def test_an_unknown_colour_is_answered_with_the_known():
    with pytest.raises(VRSError, match="purple") as e:
        world.sprite("cat", "beige", 20, 0)
    assert "\n" not in str(e.value)

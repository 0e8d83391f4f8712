"""Sprites: one for each kind, drawn the same for the same arguments."""

import numpy as np
import pytest

from vrshq_nb.minivrs import COLOURS, KINDS, sprites
from vrshq_nb.files import VRSError


@pytest.mark.parametrize("kind", sprites.SPRITES)
def test_sprite_fills_its_box(kind):
    for size in (4, 7, 40, 131):
        rgba = sprites.draw_sprite(kind, (30, 95, 225), size, 0.3)
        assert rgba.dtype == np.uint8 and rgba.shape[2] == 4 and max(rgba.shape[:2]) == size
        assert (rgba[..., 3] > 127).mean() > 0.15
    still, moved = (sprites.draw_sprite(kind, (30, 95, 225), 60, phase) for phase in (0, 0.25))
    assert still.shape == moved.shape and (still != moved).any()


def test_there_is_a_sprite_for_each_kind():
    assert list(sprites.SPRITES) == list(KINDS) and len(KINDS) >= 16 and len(COLOURS) >= 8


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: sprites.draw_sprite("unicorn", (0, 0, 0), 20), "cat"),
        (lambda: sprites.draw_sprite("cat", (0, 0, 0), 2), "4 pixels"),
    ],
)
def test_unknown_names_are_answered_with_the_known(call, word):
    with pytest.raises(VRSError, match=word) as e:
        call()
    assert "\n" not in str(e.value)

"""Scenes and occluders: different for each state of the generator, the same for the same."""

import numpy as np
import pytest

from vrshq_nb.minivrs import scenes
from vrshq_nb.files import VRSError


@pytest.mark.parametrize("name", scenes.SCENES)
def test_scene(name):
    a, b, c = (scenes.draw_scene(name, 51, 80, np.random.default_rng(i)) for i in (1, 1, 2))
    assert a.shape == (51, 80, 3) and (a == b).all() and (a != c).any()


@pytest.mark.parametrize("kind", scenes.OCCLUDERS)
def test_occluder_covers_most_of_its_box(kind):
    solid = scenes.draw_occluder(kind, 60, 50, np.random.default_rng(0))[..., 3] > 127
    assert solid.shape == (60, 50) and solid.mean() > 0.6 and solid[20:40, 15:35].all()


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: scenes.draw_scene("desert", 20, 20, np.random.default_rng(0)), "meadow"),
        (lambda: scenes.draw_occluder("curtain", 20, 20, np.random.default_rng(0)), "tree"),
    ],
)
def test_unknown_names_are_answered_with_the_known(call, word):
    with pytest.raises(VRSError, match=word) as e:
        call()
    assert "\n" not in str(e.value)


def test_there_are_scenes_and_occluders():
    assert len(scenes.SCENES) >= 5 and set(scenes.OCCLUDERS) == set(scenes.OCCLUDER_COLOURS)

"""The benchmark: its parts add up, and the two flows do the same."""

import numpy as np
import pytest
import torch

from vrshq_nb import VRSHQ, Video, cli
from vrshq_nb.bench import encode_again, growth, reuse_ratio, sample_video, shares, stage_seconds


@pytest.fixture(scope="module")
def model():
    return VRSHQ.from_pretrained("nano")


@pytest.mark.parametrize("sentences", [1, 3])
def test_the_stages_add_up_to_the_whole(model, tmp_path, sentences):
    path, texts = sample_video(tmp_path, 4, 64, sentences)
    assert len(Video.open(path)) == 4 and len(texts) == sentences
    seconds = stage_seconds(model, path, texts, repeat=1)
    assert {"read", "SAM 2 encoder", "CLIP", "tokens", "keyframe", "propagate", "all"} <= set(
        seconds
    ) and min(seconds.values()) >= 0
    table = shares(seconds).splitlines()
    assert len(table) == len(seconds) + 1 and table[-1].startswith("all") and "100.0%" in table[-1]


@torch.no_grad()
def test_encoding_again_gives_the_same_masks(model, tmp_path):
    path, texts = sample_video(tmp_path, 6, 128, 1)
    once = model.segment(path, texts[0], gate=False).masks
    again = encode_again(model, Video.open(path), texts[0])
    assert once.shape == again.shape and (once == again).mean() > 0.999


def test_ratio_and_growth_are_positive(model, tmp_path):
    assert reuse_ratio(model, *sample_video(tmp_path, 4, 64), repeat=1) > 0
    out = growth(model, (2, 4), (1,), repeat=1)
    assert {key: list(seconds) for key, seconds in out.items()} == {
        "frames": [2, 4],
        "sentences": [1],
    }
    assert all(np.isfinite(list(seconds.values())).all() for seconds in out.values())


def test_the_command_prints_shares_and_a_ratio(capsys):
    assert cli.main(["bench", "--frames", "4", "--repeat", "1", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "propagate" in out and "100.0%" in out and "times as long" in out
    assert cli.main(["bench", "--frames", "1"]) == 2

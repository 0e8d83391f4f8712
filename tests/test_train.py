"""Losses against the reference implementation's numbers, and the training of nano in miniature."""
from pathlib import Path

import numpy as np
import pytest
import torch

from vrshq_nb.minivrs import make_clip
from vrshq_nb.train import ANY_KIND, Teacher, bce_loss, cell_occupancy, dice_loss, eye_labels, random_query, sam2_from_config, SAM2_NANO, summary

GOLDEN = np.load(Path(__file__).parent / "data" / "losses.npz")  # computed by the reference implementation
CASES = sorted({k.split("/")[0] for k in GOLDEN.files if k.endswith("/grad_2bce_0.5dice")})


@pytest.mark.parametrize("case", CASES)
def test_losses_and_their_gradient_equal_the_reference(case):
    get = lambda name: torch.from_numpy(GOLDEN[f"{case}/{name}"])
    logits, target, n = get("logits").float().requires_grad_(), get("target"), float(get("num_masks"))
    bce, dice = bce_loss(logits, target, n), dice_loss(logits, target, n)
    assert bce.item() == pytest.approx(get("bce").item(), rel=1e-5, abs=1e-5)
    assert dice.item() == pytest.approx(get("dice").item(), rel=1e-5, abs=1e-5)
    (2 * bce + .5 * dice).backward()
    assert torch.allclose(logits.grad, get("grad_2bce_0.5dice").float(), atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 3, 7])
def test_losses_are_divided_by_the_number_of_masks_given(n):
    logits, target = (torch.from_numpy(GOLDEN[f"nm/{k}"]) for k in ("logits", "target"))
    assert bce_loss(logits, target, n).item() == pytest.approx(float(GOLDEN[f"nm/bce_{n}"]), rel=1e-4)
    assert dice_loss(logits, target, n).item() == pytest.approx(float(GOLDEN[f"nm/dice_{n}"]), rel=1e-4)


def test_the_mean_is_over_masks_by_default():
    logits, target = torch.randn(4, 9, 7), torch.rand(4, 9, 7) > .5
    assert bce_loss(logits, target).item() == pytest.approx(bce_loss(logits, target, 4).item())
    assert dice_loss(logits, target).item() == pytest.approx(dice_loss(logits, target, 4).item())


def test_summary_counts_sentences_about_nothing_apart():
    row = dict(clip="a", family="look", type_id=0, JF=.5, found=True)
    rows = [row, dict(row, clip="b", JF=.7), dict(row, clip="b", family="time", type_id=1, JF=.2),
            dict(row, family="absent", type_id=2, JF=0.), dict(row, clip="b", family="absent", type_id=2, JF=1., found=False)]
    out = summary(rows)
    assert out["referring"]["JF"] == pytest.approx(.6) and out["referring"]["n"] == 2
    assert out["reasoning"]["JF"] == pytest.approx(.2) and out["absent, nothing shown"]["share"] == pytest.approx(.5)


def test_occupancy_and_labels_of_cells():
    clip = make_clip("train", 1, 0, 64, 4, 0)
    n = len(clip.record.things)
    occupancy = cell_occupancy(clip.ids, n)
    assert occupancy.shape == (n, 4, 8, 8)
    assert np.allclose(occupancy.sum(0).mean((1, 2)), (clip.ids > 0).mean((1, 2)), atol=1e-6)
    labels = eye_labels(clip.record, clip.ids, np.array([0, 2]))
    assert labels["kind"].shape == (2, 8, 8) and ((labels["kind"] == ANY_KIND) == (occupancy[:, [0, 2]].max(0) < .08)).all()


def test_a_teacher_token_depends_on_what_and_where():
    sam2, teacher = sam2_from_config(SAM2_NANO), Teacher(128)
    token = lambda *part: teacher(sam2, [[part]])[0]
    here = token(1, 2, [(.2, .3)])
    assert torch.equal(here, token(1, 2, [(.2, .3)]))
    assert all(not torch.allclose(here, other) for other in (token(0, 2, [(.2, .3)]), token(1, 3, [(.2, .3)]), token(1, 2, [(.6, .3)]), token(1, 2, 1)))
    both = teacher(sam2, [[(1, 2, [(.2, .3)]), (0, 2, [(.2, .3)])]])[0]
    assert torch.allclose(both, (here + token(0, 2, [(.2, .3)])) / 2, atol=1e-6)


def test_queries_name_things_of_the_clip():
    clip, rng = make_clip("train", 1, 3, 32, 4, 0), np.random.default_rng(0)
    for _ in range(50):
        query, meant = random_query(clip.record, rng, 2)
        assert len(query) >= 1 and all(0 <= i < len(clip.record.things) for i in meant)

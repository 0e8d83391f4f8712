"""Losses against the reference implementation's numbers, and nano's sum of them by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vrshq_nb.losses import (
    bce_loss,
    dice_loss,
    mask_iou,
    nano_mask_losses,
    object_loss,
    weighted_bce,
)

# computed by the reference implementation
GOLDEN = np.load(Path(__file__).parent / "data" / "losses.npz")
CASES = sorted({k.split("/")[0] for k in GOLDEN.files if k.endswith("/grad_2bce_0.5dice")})


@pytest.mark.parametrize("case", CASES)
def test_losses_and_their_gradient_equal_the_reference(case):
    def get(name):
        return torch.from_numpy(GOLDEN[f"{case}/{name}"])

    logits, target, n = (
        get("logits").float().requires_grad_(),
        get("target"),
        float(get("num_masks")),
    )
    bce, dice = bce_loss(logits, target, n), dice_loss(logits, target, n)
    assert bce.item() == pytest.approx(get("bce").item(), rel=1e-5, abs=1e-5)
    assert dice.item() == pytest.approx(get("dice").item(), rel=1e-5, abs=1e-5)
    (2 * bce + 0.5 * dice).backward()
    assert torch.allclose(logits.grad, get("grad_2bce_0.5dice").float(), atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 3, 7])
def test_losses_are_divided_by_the_number_of_masks_given(n):
    logits, target = (torch.from_numpy(GOLDEN[f"nm/{k}"]) for k in ("logits", "target"))
    assert bce_loss(logits, target, n).item() == pytest.approx(
        float(GOLDEN[f"nm/bce_{n}"]), rel=1e-4
    )
    assert dice_loss(logits, target, n).item() == pytest.approx(
        float(GOLDEN[f"nm/dice_{n}"]), rel=1e-4
    )


def test_the_mean_is_over_masks_by_default():
    logits, target = torch.randn(4, 9, 7), torch.rand(4, 9, 7) > 0.5
    assert bce_loss(logits, target).item() == pytest.approx(bce_loss(logits, target, 4).item())
    assert dice_loss(logits, target).item() == pytest.approx(dice_loss(logits, target, 4).item())


def test_the_occlusion_loss_is_the_mean_of_the_two_groups():
    logits = torch.tensor([3.0, 3.0, -1.0])
    present = torch.tensor([True, True, False])
    here = F.softplus(torch.tensor(-3.0))
    absent = F.softplus(torch.tensor(-1.0))
    assert object_loss(logits, present).item() == pytest.approx(((here + absent) / 2).item())
    assert object_loss(logits[:2], present[:2]).item() == pytest.approx((here / 2).item())


def test_iou_of_two_empty_masks_is_zero():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[1, 0] = True
    assert mask_iou(masks, masks).tolist() == [0, 1]


def example():
    "Decoder outputs for three masks, the last one absent."
    torch.manual_seed(0)
    target = torch.zeros(3, 16, 16, dtype=torch.bool)
    target[0, 2:9, 3:12], target[1, 8:, 8:] = True, True
    return torch.randn(3, 4, 4), torch.rand(3), torch.randn(3), target


def test_nanos_sum_is_its_parts_by_hand():
    logits, quality, occlusion, target = example()
    total, log = nano_mask_losses(logits, quality, occlusion, target)
    large = F.interpolate(logits[:2, None], (16, 16), mode="bilinear")[:, 0]
    pixels = F.binary_cross_entropy_with_logits(large, target[:2].float(), reduction="none")
    bce = (pixels * torch.where(target[:2], 5.0, 1.0)).mean()
    iou = mask_iou(large > 0, target[:2])
    by_hand = (
        2 * bce
        + dice_loss(large, target[:2])
        + 0.5 * object_loss(occlusion, torch.tensor([True, True, False]))
        + 0.1 * (quality[:2] - iou).square().mean()
    )
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert log["bce"].item() == pytest.approx(
        weighted_bce(large, target[:2].float()).item(), rel=1e-5
    )
    assert log["iou"].item() == pytest.approx(iou.mean().item())
    assert set(log) == {"bce", "dice", "object", "iou", "hit", "hit_absent"}


def test_without_a_visible_object_only_the_occlusion_score_is_trained():
    logits, quality, occlusion, target = example()
    total, log = nano_mask_losses(logits, quality, occlusion, torch.zeros_like(target))
    assert list(log) == ["object"]
    assert total == object_loss(occlusion, torch.zeros(3, dtype=torch.bool))

"""Losses against the reference implementation's numbers, and the training of nano in miniature."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vrshq_nb import VRSHQ
from vrshq_nb.minivrs import FAMILIES, MiniVRS
from vrshq_nb.train import bce_loss, dice_loss, summary, train_nano

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

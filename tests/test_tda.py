"Stage 2: parity with the reference numbers, invariants, gradients, bad input."

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vrshq_nb.files import VRSError
from vrshq_nb.tda import FORMS, frame_similarity, frame_weights, tda

DATA = np.load(Path(__file__).parent / "data" / "tda_tks.npz")
CASES = sorted({k.split("/")[0] for k in DATA.files if not k.startswith("crop")})


def tensors(case, *names):
    dtype = torch.bfloat16 if case.startswith("bf16") else torch.float32
    return [torch.tensor(DATA[f"{case}/{n}"]).to(dtype) for n in names]


@pytest.fixture
def tokens():
    g = torch.Generator().manual_seed(0)
    return torch.randn(7, 16, generator=g), torch.randn(1, 16, generator=g)


@pytest.mark.parametrize("case", CASES)
def test_reference_numbers(case):
    seg, tak, cos, weights, fused = tensors(case, "seg", "tak", "cos", "weights", "fused")
    got_fused, got_weights = tda(seg, tak, alpha=float(DATA[f"{case}/alpha"]))
    # in bf16 the last of 8 bits may fall differently on another processor
    tol = dict(atol=1e-4, rtol=2**-7 if case.startswith("bf16") else 1e-5)
    torch.testing.assert_close(frame_similarity(seg, tak), cos[:, 0], **tol)
    torch.testing.assert_close(got_weights, weights[:, 0], **tol)
    torch.testing.assert_close(got_fused, fused, **tol)
    if not case.startswith("bf16"):
        assert int(got_weights.argmax()) == int(DATA[f"{case}/train_keyframe"])


def test_plain_loop(tokens):
    seg, tak = tokens
    e = [math.exp(float(s @ tak[0] / (s.norm() * tak.norm())) / 0.3) for s in seg]
    loop = tak[0] + 0.25 * sum(x / sum(e) * s for x, s in zip(e, seg))
    torch.testing.assert_close(tda(seg, tak, alpha=0.25, temperature=0.3)[0][0], loop)


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_dtypes_and_sums(tokens, how, dtype):
    fused, weights = tda(*(x.to(dtype) for x in tokens), how=how)
    assert fused.shape == (1, 16) and weights.shape == (7,)
    assert fused.dtype == weights.dtype == dtype
    assert weights.float().sum().item() == pytest.approx(
        1, abs=1e-5 if dtype == torch.float32 else 0.02
    )
    assert (weights >= 0).all()


@pytest.mark.parametrize("how", FORMS)
def test_one_frame_gets_all(tokens, how):
    seg, tak = tokens
    fused, weights = tda(seg[:1], tak, alpha=0.5, how=how)
    assert weights.tolist() == [1.0]
    torch.testing.assert_close(fused, tak if how == "none" else tak + 0.5 * seg[:1])


def test_variants(tokens):
    seg, tak = tokens
    cos = frame_similarity(seg, tak)
    assert frame_weights(seg, tak, how="mean").unique().tolist() == pytest.approx([1 / 7])
    assert frame_weights(seg, tak, how="max").argmax() == cos.argmax()
    torch.testing.assert_close(
        frame_weights(seg, tak, how="attention"), (seg @ tak[0] / 4).softmax(0)
    )
    torch.testing.assert_close(frame_weights(seg, tak, how="none"), frame_weights(seg, tak))
    assert frame_weights(seg, tak, temperature=1e-3).max() > 0.99


def test_weights_at_temperature_one_are_nearly_flat():
    seg = torch.cat([torch.ones(1, 4), -torch.ones(11, 4)])
    weights = frame_weights(seg, torch.ones(1, 4))
    assert weights.max().item() == pytest.approx(math.e**2 / (math.e**2 + 11), abs=1e-5)


def test_length_does_not_change_the_weights(tokens):
    seg, tak = tokens
    torch.testing.assert_close(
        frame_weights(seg * torch.arange(1, 8)[:, None], 9 * tak), frame_weights(seg, tak)
    )


def test_zero_tokens_have_no_opinion(tokens):
    seg, tak = tokens
    assert frame_similarity(seg, torch.zeros(1, 16)).tolist() == [0.0] * 7
    assert frame_similarity(torch.zeros(2, 16), tak).tolist() == [0.0, 0.0]


def test_gradients(tokens):
    seg, tak = (x.requires_grad_() for x in tokens)
    alpha = torch.tensor(0.1, requires_grad=True)
    tda(seg, tak, alpha=alpha)[0].square().sum().backward()
    assert (seg.grad.norm(dim=1) > 0).all() and tak.grad.norm() > 0 and alpha.grad != 0
    assert torch.autograd.gradcheck(
        lambda s, t: tda(s, t, temperature=0.5)[0],
        (seg.double().detach().requires_grad_(), tak.double().detach().requires_grad_()),
    )


def test_alpha_zero_and_none_leave_the_token(tokens):
    seg, tak = tokens
    assert torch.equal(tda(seg, tak, alpha=0)[0], tak)
    assert torch.equal(tda(seg, tak, alpha=5, how="none")[0], tak)


@pytest.mark.parametrize(
    "kwargs, words",
    [
        (dict(seg=torch.zeros(0, 16)), "at least one frame"),
        (dict(seg=torch.zeros(16)), "seg must be"),
        (dict(seg=torch.zeros(2, 7, 16)), "seg must be"),
        (dict(seg=torch.zeros(7, 15)), r"tak must be \(1, 15\)"),
        (dict(tak=torch.zeros(7, 16)), r"tak must be \(1, 16\)"),
        (dict(tak=torch.zeros(16)), "tak must be"),
        (dict(seg=torch.zeros(7, 16, dtype=torch.long)), "floating-point"),
        (dict(tak=[[0.0] * 16]), "floating-point"),
        (dict(alpha=math.nan), "alpha"),
        (dict(alpha=math.inf), "alpha"),
        (dict(temperature=0), "temperature"),
        (dict(temperature=-1.0), "temperature"),
        (dict(temperature=math.nan), "temperature"),
        (dict(how="median"), "how must be"),
    ],
)
def test_bad_input(tokens, kwargs, words):
    with pytest.raises(VRSError, match=words) as e:
        tda(**{"seg": tokens[0], "tak": tokens[1], **kwargs})
    assert "\n" not in str(e.value)

"The check of frames, and resizing: `vrshq_nb.transforms` against plain torch calls."

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vrshq_nb.files import VRSError
from vrshq_nb.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    center_crop,
    check_frames,
    frames_tensor,
    inner_size,
    limit_side,
    normalize,
    pil_resize,
    signed_square,
    to_square,
)

SIZES = [(1, 96, 144), (3, 97, 61), (2, 64, 64), (2, 33, 300), (5, 20, 33)]
CALLS = [
    check_frames,
    frames_tensor,
    lambda f: to_square(f, 8),
    lambda f: signed_square(f, 8),
    lambda f: center_crop(f, 8),
    lambda f: center_crop(f, 8, pil=True),
    lambda f: limit_side(f, 8),
    lambda f: pil_resize(f, 8, 8),
]


def noise(n, h, w):
    return np.random.default_rng(n + h + w).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


def channels_first(frames):
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)


def test_the_check_needs_no_torch():
    code = """
import sys, numpy
from vrshq_nb.transforms import check_frames
check_frames(numpy.zeros((1, 2, 2, 3), "uint8"))
print("torch" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


# ---- the one check
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize(
    "bad, hint",
    [
        (np.zeros((2, 4, 4, 3)), "astype('uint8')"),
        (np.zeros((2, 4, 4, 3), np.float32), "uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), "channels last"),
        (np.zeros((4, 4, 3), np.uint8), "image[None]"),
        (np.zeros((0, 4, 4, 3), np.uint8), "at least one"),
        (np.zeros((2, 0, 4, 3), np.uint8), "nothing"),
        (np.zeros((2, 4, 4), np.uint8), "(T, H, W, 3)"),
        (np.zeros((2, 4, 4, 4), np.uint8), "(T, H, W, 3)"),
        (np.zeros((2, 4, 4, 3), bool), "uint8"),
    ],
)
def test_bad_frames(call, tensor, bad, hint):
    with pytest.raises(VRSError) as e:
        call(torch.from_numpy(bad) if tensor else bad)
    assert hint in str(e.value) and "\n" not in str(e.value)


def test_good_frames_are_not_copied():
    frames = noise(2, 8, 9)
    assert check_frames(frames) is frames
    x = frames_tensor(frames)
    assert x.data_ptr() == frames.ctypes.data and x.shape == (2, 3, 8, 9)
    assert frames_tensor(torch.from_numpy(frames)).data_ptr() == frames.ctypes.data
    assert (check_frames(list(frames)) == frames).all()
    assert (check_frames(torch.from_numpy(frames)) == frames).all()


@pytest.mark.filterwarnings("error")
def test_read_only_and_turned_frames():
    frames = noise(2, 8, 9)
    frames.flags.writeable = False
    assert (frames_tensor(frames).numpy() == frames.transpose(0, 3, 1, 2)).all()
    assert (frames_tensor(frames[:, ::-1]).numpy() == frames[:, ::-1].transpose(0, 3, 1, 2)).all()


# ---- bit for bit what plain calls give
@pytest.mark.parametrize("size", [24, 64, 128])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
def test_to_square(shape, size, how):
    x = channels_first(noise(*shape))
    wanted = F.interpolate(x, (size, size), mode=how, antialias=True, align_corners=False)
    got = to_square(noise(*shape), size, how)
    assert got.dtype == torch.uint8 and torch.equal(got, wanted)
    assert torch.equal(to_square(torch.from_numpy(noise(*shape)), size, how), wanted)


@pytest.mark.parametrize("size", [24, 64, 128])
@pytest.mark.parametrize("shape", SIZES)
def test_signed_square(shape, size):
    x = channels_first(noise(*shape))
    if x.shape[2:] != (size, size):
        x = F.interpolate(
            x.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
        )
    assert torch.equal(signed_square(noise(*shape), size), x.float() / 127.5 - 1)


@pytest.mark.parametrize("size", [24, 64, 128])
@pytest.mark.parametrize("shape", SIZES)
def test_center_crop(shape, size):
    x, (h, w) = channels_first(noise(*shape)), shape[1:]
    new = (size * h // min(h, w), size * w // min(h, w))
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    x = F.interpolate(x, new, mode="bicubic", antialias=True, align_corners=False)
    x = x[..., top : top + size, left : left + size].float().round().clamp(0, 255) / 255
    assert torch.equal(center_crop(noise(*shape), size), x)
    frames = [Image.fromarray(f).resize(new[::-1], Image.Resampling.BICUBIC) for f in noise(*shape)]
    frames = np.stack([np.asarray(f) for f in frames])[:, top : top + size, left : left + size]
    got = center_crop(noise(*shape), size, pil=True)
    assert torch.equal(got, channels_first(frames).float() / 255)
    assert (got - x).abs().max() * 255 < 2.01  # PIL and torch: two grey levels at most


@pytest.mark.parametrize("side", [16, 50, 97])
@pytest.mark.parametrize("shape", SIZES)
def test_limit_side(shape, side):
    x = channels_first(noise(*shape))
    scale = side / max(x.shape[2:])
    if scale < 1:
        new = [max(1, round(s * scale)) for s in x.shape[2:]]
        x = F.interpolate(x, new, mode="bilinear", antialias=True, align_corners=False)
    assert torch.equal(limit_side(noise(*shape), side), x)


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_pil_resize(how):
    frames = noise(2, 40, 30)
    got = pil_resize(frames, 20, 25, how)
    image = Image.fromarray(frames[1]).resize((25, 20), Image.Resampling[how.upper()])
    assert (got[1].permute(1, 2, 0).numpy() == np.asarray(image)).all()
    assert pil_resize(frames, 40, 30).data_ptr() == frames.ctypes.data  # the right size already


@pytest.mark.parametrize(
    "mean, std", [(IMAGENET_MEAN, IMAGENET_STD), (CLIP_MEAN, CLIP_STD), ((0.5,) * 3, (0.5,) * 3)]
)
def test_normalize(mean, std):
    x = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 4, 1)
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    wanted = (x.float() / 255 - m) / s
    assert torch.equal(normalize(x, mean, std), wanted)
    assert torch.equal(normalize(x.float() / 255, mean, std, "cpu"), wanted)
    kept = x.clone()
    normalize(x, mean, std)
    assert torch.equal(x, kept)  # the input stays as it was


def test_layout_in_memory_is_that_of_the_plain_calls():
    "Convolutions may round differently for another layout: results then differ in the last bit."
    x = channels_first(noise(3, 40, 60))
    plain = F.interpolate(x, (32, 32), mode="bicubic", antialias=True, align_corners=False)
    got = to_square(noise(3, 40, 60), 32)
    assert got.stride() == plain.stride()
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert normalize(got).stride() == ((plain.float() / 255 - m) / s).stride()


@pytest.mark.parametrize(
    "hw, size, wanted",
    [((480, 854), 1024, (576, 1024)), ((72, 54), 128, (128, 96)), ((1, 1), 128, (128, 128))],
)
def test_inner_size(hw, size, wanted):
    assert inner_size(*hw, size) == wanted

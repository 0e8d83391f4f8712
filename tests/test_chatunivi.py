"""The paper's own language model against the reference implementation.

`data/chatunivi` holds inputs and outputs of the reference run (float32, CPU, noise 0) with its tiny
weights; SAM 2's are drawn again from their seed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from torch.nn import functional as F

from vrshq_nb.chatunivi import (
    PaddedPredictor,
    average_clusters,
    clip_images,
    cluster_tokens,
    crop_logits,
    expand_ids,
    merge_tokens,
    nearby_frames,
)
from vrshq_nb.files import VRSError
from vrshq_nb.protocols import FrameScorer, MaskPredictor, TokenEncoder
from vrshq_nb.transforms import inner_size, pil_resize

DATA = Path(__file__).parent / "data" / "chatunivi"
tensor = reference.tensor
close = torch.testing.assert_close


def npz(name):
    return dict(np.load(DATA / f"{name}.npz"))


def cases(arrays, depth=1):
    return sorted({"/".join(k.split("/")[:depth]) for k in arrays})


@pytest.fixture(scope="module")
def model():
    return reference.run_model(DATA)


def test_the_parts_follow_the_protocols(model):
    assert isinstance(model.encoder, TokenEncoder)
    assert isinstance(model.sam2, MaskPredictor) and type(model.sam2) is PaddedPredictor
    assert isinstance(model.scorer, FrameScorer)


@pytest.mark.parametrize("text", ["the <image>", "a </s> b", "<s>", "<unk> dog"])
def test_a_sentence_cannot_hold_the_model_s_marks(model, text):
    with pytest.raises(VRSError, match="must not contain"):
        model.encoder.prompt(text, 2)


# ------------------------------ merging

NOISE = npz("dpc_knn_noise")
UNIVI = npz("chatunivi_tiny")


@pytest.mark.parametrize("case", cases(NOISE))
def test_clusters_with_recorded_noise(case):
    x, n = tensor(NOISE[f"{case}/x"]).float(), int(NOISE[f"{case}/cluster_num"])
    k, noise = int(NOISE[f"{case}/k_used"]), tensor(NOISE[f"{case}/noise_u01"])
    assigned = cluster_tokens(x, n, k, noise)
    assert np.array_equal(assigned.numpy(), NOISE[f"{case}/idx_cluster"])
    means = average_clusters(x, assigned, n)
    close(means, tensor(NOISE[f"{case}/merged"]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", ["b3_256_64", "c64_32"])
def test_clusters_without_noise(case):
    x, n = tensor(UNIVI[f"ctm/{case}/x"]), UNIVI[f"ctm/{case}/merged"].shape[1]
    k = int(UNIVI[f"ctm/{case}/meta_ratio_k_numclusters_kused"][1])
    assigned = cluster_tokens(x, n, k).numpy()
    assert np.array_equal(assigned, UNIVI[f"ctm/{case}/idx_cluster"])


def test_three_levels_and_the_connector(model):
    x = tensor(UNIVI["project_image/0/in"])
    levels = torch.cat([tensor(UNIVI[f"project_image/0/level{i}"]) for i in range(3)], 1)
    close(merge_tokens(x), levels, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        visual = model.encoder.visual_tokens(x)
    close(visual, tensor(UNIVI["project_image/0/out"]), atol=1e-5, rtol=1e-5)


def test_noise_is_an_argument():
    torch.manual_seed(0)
    x, noise = torch.randn(2, 256, 8), [torch.rand(2, n) for n in (256, 64, 32)]
    assert merge_tokens(x).shape == (2, 112, 8)
    assert torch.equal(merge_tokens(x), merge_tokens(x))
    assert torch.equal(merge_tokens(x, noise=noise), merge_tokens(x, noise=noise))
    assert merge_tokens(x, noise="random").isfinite().all()


def test_shares_and_limits_of_clusters():
    share = ((1 / 16, 5),)
    assert merge_tokens(torch.randn(1, 40, 8), share).shape == (1, 3, 8)
    assert merge_tokens(torch.randn(1, 4, 8), share).shape == (1, 1, 8)
    assert merge_tokens(torch.ones(1, 256, 4)).isfinite().all()
    for n in (0, 257):
        with pytest.raises(VRSError, match="cannot form"):
            cluster_tokens(torch.randn(2, 256, 8), n)


# ------------------------------ the language model


@torch.no_grad()
def test_teacher_forced_states(model):
    ids, e = tensor(UNIVI["fwd/input_ids"])[0], model.encoder
    visual = tensor(UNIVI["fwd/visual_tokens"])
    seg, tak = e.states(visual, ids)
    for ours, theirs in (
        (seg, "fwd/hidden_used_for_seg(pos-1)"),
        (tak, "fwd/hidden_used_for_tak(pos-1)"),
        (e.project(seg), "fwd/pred_seg"),
        (e.project(tak), "fwd/pred_tak"),
    ):
        close(ours, tensor(UNIVI[theirs]), atol=1e-4, rtol=1e-4)
    places = (expand_ids(ids, 112) == e.seg_id).nonzero()[:, 0]
    assert places.tolist() == UNIVI["fwd/seg_positions_in_expanded"].tolist()
    labels = tensor(UNIVI["fwd/labels_expanded"])[0]
    logits = e.llm.lm_head(e.hidden(e.embed(visual, ids)))
    loss = F.cross_entropy(logits[:-1], labels[1:])
    assert abs(float(loss) - float(UNIVI["fwd/loss"])) < 1e-5


@torch.no_grad()
def test_a_call(model):
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 70, 3), dtype=np.uint8)
    visual = model.encoder.encode_frames(frames, batch_size=2)
    assert visual.shape == (3, 112, 64)
    close(visual, model.encoder.encode_frames(frames), atol=1e-5, rtol=1e-5)
    tokens, answer = model.encoder(visual, "The  DOG", [0, 4, 8])
    assert tokens.seg.shape == (3, 64) and tokens.tak.shape == (1, 64)
    assert tokens.frames == [0, 4, 8]
    assert answer.startswith("Sure, the segmentation result of each frame is (0) [SEG]")
    assert answer.endswith("[TAK].")


@torch.no_grad()
def test_calls_that_do_not_fit(model):
    frames = np.zeros((3, 40, 70, 3), np.uint8)
    visual = model.encoder.encode_frames(frames)
    with pytest.raises(ValueError, match="2 frame numbers for 3 frames"):
        model.encoder(visual, "the dog", [0, 1])
    with pytest.raises(ValueError, match="2 frames for 3 places"):
        model.encoder.embed(visual[:2], model.encoder.prompt("the dog", 3)[0])
    with pytest.raises(VRSError, match="fewer candidates"):
        model.encoder(visual[:1].expand(40, -1, -1), "the dog")
    with pytest.raises(VRSError, match="no frames"):
        model.encoder.encode_frames(frames[:0])


def test_the_cost_of_a_sentence(model):
    visual, length = model.encoder.cost("the dog", 3)
    assert (visual, length) == (112, len(model.encoder.prompt("the dog", 3)[0]) + 3 * 111)


# ------------------------------ pixels and padding

PIXELS = npz("preprocess")


@pytest.mark.parametrize("case", [c for c in cases(PIXELS, 2) if c.startswith("sam")])
def test_padded_frames(model, case):
    rgb, size = PIXELS[f"{case}/rgb"], int(case.split("_to")[1])
    h, w = inner_size(*rgb.shape[:2], size)
    assert (h, w) == tuple(PIXELS[f"{case}/resize_hw"])
    resized = pil_resize(rgb[None], h, w)[0].permute(1, 2, 0)
    assert np.array_equal(resized.numpy(), PIXELS[f"{case}/resized"])
    before, model.sam2.image_size = model.sam2.image_size, size
    try:
        ours = model.sam2.prepare(rgb[None])[0]
    finally:
        model.sam2.image_size = before
    close(ours, tensor(PIXELS[f"{case}/normalised_padded"]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", [c for c in cases(PIXELS, 2) if c.startswith("clip")])
def test_clip_s_pixels(case):
    ours = clip_images(PIXELS[f"{case}/rgb"][None], 64)[0]
    close(ours, tensor(PIXELS[f"{case}/pixel_values"]), atol=1e-6, rtol=1e-6)


def test_three_rows_of_pixels_are_not_taken_for_channels():
    frames = np.random.default_rng(0).integers(0, 256, (1, 3, 40, 3), dtype=np.uint8)
    assert clip_images(frames, 32).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "hw, size, wanted",
    [
        ((480, 854), 1024, (576, 1024)),
        ((333, 500), 1024, (682, 1024)),
        ((100, 1000), 1024, (102, 1024)),
        ((719, 1279), 1024, (576, 1024)),
        ((72, 54), 128, (128, 96)),
        ((1, 1), 128, (128, 128)),
    ],
)
def test_inner_sizes(hw, size, wanted):
    assert inner_size(*hw, size) == wanted


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_bad_frames(model, frames):
    for call in (lambda: clip_images(frames, 64), lambda: model.sam2.prepare(frames)):
        with pytest.raises(VRSError, match="uint8"):
            call()


def test_a_mask_comes_back_where_it_was():
    true = torch.zeros(1, 60, 100, dtype=torch.bool)
    true[0, 20:50, 10:60] = True
    h, w = inner_size(60, 100, 128)
    square = torch.zeros(1, 1, 128, 128)
    square[..., :h, :w] = F.interpolate(true[None].float(), (h, w), mode="area")
    logits = (F.interpolate(square, (32, 32), mode="area")[:, 0] - 0.5) * 10
    back = crop_logits(logits, 128, (h, w), 60, 100)
    assert back.shape == (1, 60, 100) and back.dtype == torch.bool
    assert float((back & true).sum() / (back | true).sum()) > 0.95
    five = crop_logits(logits.repeat(5, 1, 1), 128, (h, w), 60, 100, chunk=2)
    assert torch.equal(five, back.repeat(5, 1, 1))


# ------------------------------ training's own rules


@pytest.mark.parametrize(
    "key, n, wanted",
    [
        (0, 8, ([0, 1, 2], 0)),
        (7, 8, ([5, 6, 7], 2)),
        (3, 8, ([2, 3, 4], 1)),
        (1, 2, ([1], 0)),
        (0, 2, ([0, 1], 0)),
        (2, 3, ([0, 1, 2], 2)),
        (0, 1, ([0], 0)),
    ],
)
def test_neighbours(key, n, wanted):
    assert nearby_frames(key, n) == wanted


# ------------------------------ whole runs


@pytest.mark.parametrize("name", ["e2e_infer_T1", "e2e_infer_T4"])
def test_inference(name):
    report = reference.check_inference(DATA / f"{name}.npz")
    assert report.first is None and len(report.differences) == 19
    assert report.differences["mask logits"] < 1e-3 and report.differences["seg token"] < 1e-4


@pytest.mark.parametrize("case", reference.cases(np.load(DATA / "e2e_training.npz")))
def test_training(case):
    [report] = reference.check_training(DATA / "e2e_training.npz", only=case).values()
    compared = {"loss", "gradient of lm_head", "gradient of mask_tokens", "mask logits 0"}
    assert report.first is None and compared <= set(report.differences)


def another_letter(ids):
    return np.where(np.arange(ids.shape[1]) == 5, 3 + ord("a"), ids)


@pytest.mark.parametrize(
    "key, change, named",
    [
        ("fused", lambda x: x + 0.01, "fused token"),
        ("llm_input_ids", another_letter, "token ids"),
        ("anchor", lambda x: 1 - x, "anchor"),
        ("pred_masks", lambda x: x + 0.01, "mask logits"),
        ("resize", lambda x: x - 1, "size in the padded square"),
        ("alpha", lambda x: x + 0.5, "fused token"),
    ],
)
def test_a_difference_is_named(tmp_path, key, change, named):
    arrays = npz("e2e_infer_T1")
    np.savez(tmp_path / "other.npz", **arrays | {key: change(arrays[key])})
    with pytest.raises(AssertionError, match=f"other.npz: {named}") as e:
        reference.check_inference(tmp_path / "other.npz", DATA)
    assert e.value.report.first.startswith(named)


def portrait_run(model, text):
    "Our own run on 14 frames of a portrait video, and its inputs in the reference's format"
    frames = np.random.default_rng(3).integers(0, 256, (14, 72, 54, 3), dtype=np.uint8)
    prompt = "".join(reference.temporal_prompt(text, 7))
    arrays = npz("e2e_infer_T1") | dict(
        images_sam=model.sam2.prepare(frames).numpy(),
        images_clip=clip_images(frames, 64).numpy(),
        clip_pixel_values=clip_images(frames, 32).numpy(),
        alpha=np.array(1.0),
        resize=np.array(inner_size(72, 54, 128)),
        orig_hw=np.array((72, 54)),
        llm_input_ids=np.array([model.encoder.tokenizer.prompt_ids(prompt)]),
    )
    with torch.no_grad():
        encoded = reference.stored_video(model, arrays | {"frame_ids": np.arange(14)})
        options = reference.Options(alpha=1.0, gate=False)
        return reference.segment_one(model, encoded, text, options), arrays


def test_a_longer_run_is_compared_too(tmp_path):
    "So long that not all frames are candidates; one of our own numbers is changed"
    seg, arrays = portrait_run(reference.run_model(DATA), "the dog")
    results = dict(
        clip_logits_per_image=seg.clip_logits[:, None].numpy(),
        anchor=seg.anchor,
        frame_ids=seg.tokens.frames,
        keyframe=seg.keyframe + 1,
    )
    np.savez(tmp_path / "T14.npz", **arrays | results)
    with pytest.raises(AssertionError) as e:
        reference.check_inference(tmp_path / "T14.npz", DATA)
    report = e.value.report
    assert report.differences["token ids"] == report.differences["candidate frames"] == 0
    assert len(seg.tokens.frames) == 7
    assert report.first.startswith("inputs of the language model")
    assert report.differences["keyframe"] == 1


def test_the_script(tmp_path, capsys):
    def run(*args):
        command = [sys.executable, str(Path(reference.__file__)), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    reference.main([DATA / "e2e_infer_T1.npz"])
    printed = capsys.readouterr().out
    assert "mask logits" in printed and "DIFFERS" not in printed
    arrays = npz("e2e_infer_T1")
    np.savez(tmp_path / "x.npz", **arrays | {"keyframe": arrays["keyframe"] + 1})
    done = run(tmp_path / "x.npz", DATA)
    assert done.returncode == 1
    assert "keyframe differs by 1" in done.stderr and "Traceback" not in done.stderr


# ------------------------------ the comparison itself


def test_places_and_numbers_of_frames():
    "A run names candidates by their place among the candidates, or by their number in the video"
    d = dict(np.load(DATA / "e2e_infer_T4.npz"))
    score = torch.from_numpy(d["tks_obj_logits"]).softmax(0)
    frames = np.array([1, 3, 5, 7])
    best, worst = frames[int(score.argmax())], frames[int(score.argmin())]
    numbers = d | dict(frame_ids=frames, tks_frame_ids=frames, keyframe=best)
    place = np.int64(score.argmax())
    for case in (numbers, numbers | dict(tks_frame_ids=np.arange(4), keyframe=place)):
        got = reference.video_numbers(case)
        assert got["tks_frame_ids"].tolist() == frames.tolist()
        assert got["keyframe"] == best
    wrong = reference.video_numbers(numbers | dict(keyframe=np.int64(worst)))
    assert wrong["keyframe"] != best  # a wrong one stays wrong


def test_weights_need_not_lie_beside_the_run(tmp_path):
    shutil.copy(DATA / "e2e_infer_T1.npz", tmp_path)
    assert reference.check_inference(tmp_path / "e2e_infer_T1.npz").first is None

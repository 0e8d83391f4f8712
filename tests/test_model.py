"""The whole: segmenting, counting encodes, saving results and models, loading them strictly."""
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vrshq_nb import VRSHQ, Video, VRSError
from vrshq_nb.minivrs import make_clip
from vrshq_nb.model import Segmentation, find_device, load_masks

TEXTS = ["the red car", "what flies?", "every animal", "the thing that leaves first", "the lamp on the left"]


@pytest.fixture(scope="module")
def model():
    return VRSHQ.from_pretrained("nano")


@pytest.fixture(scope="module")
def clip():
    return make_clip("val", 77, 0, size=96, n_frames=24)


@pytest.fixture(scope="module")
def result(model, clip):
    "Not gated, so that masks are not empty whatever the weights."
    return model.segment(clip.frames, clip.expressions[0].text, gate=False)


def count_rows(module, calls):
    return module.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))


@pytest.mark.parametrize("sentences", [1, 5])
def test_each_frame_is_encoded_once_whatever_the_number_of_sentences(model, clip, sentences):
    sam2, clip_, eye = [], [], []
    handles = [count_rows(model.sam2.image_encoder, sam2), count_rows(model.clip.clip.visual, clip_), count_rows(model.encoder.eye, eye)]
    try: model.segment(clip.frames, TEXTS[:sentences])
    finally: [h.remove() for h in handles]
    assert sum(sam2) == sum(clip_) == 24
    assert 0 < sum(eye) <= 24


def test_a_result_holds_everything(result, clip, model):
    T, H, W = clip.frames.shape[:3]
    assert isinstance(result, Segmentation) and result.masks.shape == (T, H, W) and result.masks.dtype == bool
    frames = [c.frame for c in result.candidates]
    assert result.keyframe in frames and result.anchor in frames and frames == sorted(set(frames))
    best = max(result.candidates, key=lambda c: c.score)
    assert best.frame == result.keyframe
    assert result.tokens.frames == frames and result.tokens.seg.shape == (len(frames), model.sam2.hidden_dim) and result.tokens.tak.shape == result.fused.shape
    assert torch.allclose(result.weights.sum(), torch.tensor(1.)) and len(result.clip_logits) == len(result.object_logits) == T
    assert {"SAM 2 encoder", "tokens", "keyframe"} <= set(result.timings) and all(v >= 0 for v in result.timings.values())


def test_a_list_gives_what_single_sentences_give(model, clip):
    many = model.segment(clip.frames, TEXTS[:3])
    one = [model.segment(clip.frames, t) for t in TEXTS[:3]]
    assert [s.text for s in many] == TEXTS[:3]
    for a, b in zip(many, one):
        assert a.keyframe == b.keyframe and a.answer == b.answer and np.array_equal(a.masks, b.masks)


def test_the_same_call_gives_the_same_masks(model, clip, result):
    assert np.array_equal(model.segment(clip.frames, result.text, gate=False).masks, result.masks)


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 51, 83), (13, 240, 33)])
def test_odd_sizes_and_short_videos(model, shape):
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert model.segment(frames, "the cat", gate=False).masks.shape == shape


def test_variants_are_arguments(model, clip):
    shared = model.encode(clip.frames)
    for options in (dict(alpha=0), dict(how="mean"), dict(temperature=.1), dict(sampling="uniform"), dict(sampling="top", k=6), dict(sampling="all"),
                    dict(terms=("similarity", "occlusion", "clip")), dict(terms=("occlusion",)), dict(prompt="token"), dict(k=3)):
        seg = model.segment(shared, "the cat", gate=False, **options)
        assert seg.masks.shape == clip.frames.shape[:3]
        if options.get("sampling") == "all": assert len(seg.candidates) == 24
    with pytest.raises(ValueError, match="how must be"): model.segment(shared, "the cat", sampling="best")


def test_nothing_found_means_no_mask(model, clip):
    head = model.sam2.sam_mask_decoder.pred_obj_score_head.layers[-1]
    before = head.bias.detach().clone()
    with torch.no_grad(): head.bias.sub_(1e3)
    try: seg = model.segment(clip.frames, "the red car")
    finally:
        with torch.no_grad(): head.bias.copy_(before)
    assert not seg.found and not seg.masks.any()


@pytest.mark.parametrize("text", ["", "  \n ", "a" * 200_000, 7])
def test_bad_sentences(model, clip, text):
    with pytest.raises(VRSError): model.segment(clip.frames[:2], [text])


@pytest.mark.parametrize("name", ["out.json", "masks", "out.mp4", "out.gif"])
def test_saving(result, tmp_path, name):
    path = result.save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    if name in ("out.json", "masks"): assert np.array_equal(load_masks(path), result.masks)
    else:
        video = Video.open(path)
        assert len(video) == len(result.masks) and (video.height, video.width) == result.masks.shape[1:]
    if name == "out.json":
        record = json.loads(path.read_text())
        assert record["keyframe"] == result.keyframe and len(record["candidates"]) == len(result.candidates)


def test_saving_in_an_unknown_format_or_place(result, tmp_path):
    with pytest.raises(VRSError, match=".mp4"): result.save(tmp_path / "out.avi")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "no" / "out.json", tmp_path / "file" / "masks"):
        with pytest.raises(VRSError): result.save(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_model_saved_and_loaded_is_the_same(model, clip, tmp_path):
    folder = model.save_pretrained(tmp_path / "model")
    again = VRSHQ.from_pretrained(folder)
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys() and all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    assert np.array_equal(again.segment(clip.frames, "what flies?", gate=False).masks, model.segment(clip.frames, "what flies?", gate=False).masks)


@pytest.fixture
def saved(model, tmp_path):
    return model.save_pretrained(tmp_path / "model", torch.float16)


def change(folder, edit):
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


KEY = "encoder.project.0.weight"


@pytest.mark.parametrize("edit, message", [
    (lambda s: s.pop(KEY), f"1 missing.*{KEY}"),
    (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected.*extra"),
    (lambda s: s.update({KEY: torch.zeros(2, 2)}), f"1 of another shape.*{KEY}"),
    (lambda s: s[KEY].fill_(float("nan")), f"1 not finite.*{KEY}"),
])
def test_weights_that_do_not_fit_are_named(saved, edit, message):
    change(saved, edit)
    with pytest.raises(VRSError, match=message): VRSHQ.from_pretrained(saved)


@pytest.mark.parametrize("name, content", [("model.safetensors", b"\x08"), ("config.json", b"{"), ("config.json", b"{}"), ("model.safetensors", None), ("tokenizer.json", None)])
def test_broken_models(saved, name, content):
    (saved / name).unlink()
    if content is not None: (saved / name).write_bytes(content)
    with pytest.raises(VRSError): VRSHQ.from_pretrained(saved)


def test_unknown_models_and_devices(tmp_path):
    for name in ("giga", str(tmp_path), str(tmp_path / "nothing")):
        with pytest.raises(VRSError): VRSHQ.from_pretrained(name)
    for name in ("tpu9", "cuda:99"):
        with pytest.raises(VRSError, match="device"): find_device(name)


def test_the_embedded_model_is_small():
    from importlib.resources import files
    folder = files("vrshq_nb") / "weights" / "nano"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 25e6

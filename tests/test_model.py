"""The whole: segmenting, counting encodes, saving results and models, loading them strictly."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vrshq_nb import VRSHQ, Video, VRSError
from vrshq_nb.folders import find_weights
from vrshq_nb.masks import load_masks
from vrshq_nb.minivrs import make_clip
from vrshq_nb.model import Options, Segmentation, Stopwatch
from vrshq_nb.tokens import TemporalTokens
from vrshq_nb.weights import find_device, own_state, weight_problems

TEXTS = [
    "the red car",
    "what flies?",
    "every animal",
    "the thing that leaves first",
    "the lamp on the left",
]


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
    handles = [
        count_rows(model.sam2.image_encoder, sam2),
        count_rows(model.scorer.clip.visual, clip_),
        count_rows(model.encoder.vision_tower, eye),
    ]
    try:
        model.segment(clip.frames, TEXTS[:sentences])
    finally:
        for handle in handles:
            handle.remove()
    assert sum(sam2) == sum(clip_) == 24
    assert 0 < sum(eye) <= 24


def test_a_result_holds_everything(result, clip, model):
    T, H, W = clip.frames.shape[:3]
    assert (
        isinstance(result, Segmentation)
        and result.masks.shape == (T, H, W)
        and result.masks.dtype == bool
    )
    frames = [c.frame for c in result.candidates]
    assert result.keyframe in frames and result.anchor in frames and frames == sorted(set(frames))
    best = max(result.candidates, key=lambda c: c.score)
    assert best.frame == result.keyframe
    assert (
        result.tokens.frames == frames
        and result.tokens.seg.shape == (len(frames), model.sam2.hidden_dim)
        and result.tokens.tak.shape == result.fused.shape
    )
    assert (
        torch.allclose(result.weights.sum(), torch.tensor(1.0))
        and len(result.clip_logits) == len(result.object_logits) == T
    )
    assert {"SAM 2 encoder", "tokens", "keyframe"} <= set(result.timings) and all(
        v >= 0 for v in result.timings.values()
    )


def test_a_list_gives_what_single_sentences_give(model, clip):
    many = model.segment(clip.frames, TEXTS[:3])
    one = [model.segment(clip.frames, t) for t in TEXTS[:3]]
    assert [s.text for s in many] == TEXTS[:3]
    for a, b in zip(many, one):
        assert (
            a.keyframe == b.keyframe and a.answer == b.answer and np.array_equal(a.masks, b.masks)
        )


def test_the_same_call_gives_the_same_masks(model, clip, result):
    assert np.array_equal(model.segment(clip.frames, result.text, gate=False).masks, result.masks)


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 51, 83), (13, 240, 33)])
def test_odd_sizes_and_short_videos(model, shape):
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert model.segment(frames, "the cat", gate=False).masks.shape == shape


def test_variants_are_arguments(model, clip):
    shared = model.encode(clip.frames)
    for options in (
        dict(alpha=0),
        dict(how="mean"),
        dict(temperature=0.1),
        dict(sampling="uniform"),
        dict(sampling="top", k=6),
        dict(sampling="all"),
        dict(terms=("similarity", "occlusion", "clip")),
        dict(terms=("occlusion",)),
        dict(prompt="token"),
        dict(k=3),
    ):
        seg = model.segment(shared, "the cat", gate=False, **options)
        assert seg.masks.shape == clip.frames.shape[:3]
        if options.get("sampling") == "all":
            assert len(seg.candidates) == 24
    with pytest.raises(VRSError, match="sampling must be"):
        model.segment(shared, "the cat", sampling="best")


def test_nothing_found_means_no_mask(model, clip):
    head = model.sam2.sam_mask_decoder.pred_obj_score_head.layers[-1]
    before = head.bias.detach().clone()
    with torch.no_grad():
        head.bias.sub_(1e3)
    try:
        seg = model.segment(clip.frames, "the red car")
    finally:
        with torch.no_grad():
            head.bias.copy_(before)
    assert not seg.found and not seg.masks.any()


@pytest.mark.parametrize("text", ["", "  \n ", "a" * 200_000, 7])
def test_bad_sentences(model, clip, text):
    with pytest.raises(VRSError):
        model.segment(clip.frames[:2], [text])


@pytest.mark.parametrize("name", ["out.json", "masks", "out.mp4", "out.gif"])
def test_saving(result, tmp_path, name):
    path = result.save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    if name in ("out.json", "masks"):
        assert np.array_equal(load_masks(path), result.masks)
    else:
        video = Video.open(path)
        assert (
            len(video) == len(result.masks)
            and (video.height, video.width) == result.masks.shape[1:]
        )
    if name == "out.json":
        record = json.loads(path.read_text())
        assert record["keyframe"] == result.keyframe and len(record["candidates"]) == len(
            result.candidates
        )


def test_saving_in_an_unknown_format_or_place(result, tmp_path):
    with pytest.raises(VRSError, match=".mp4"):
        result.save(tmp_path / "out.avi")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "no" / "out.json", tmp_path / "file" / "masks"):
        with pytest.raises(VRSError):
            result.save(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_model_saved_and_loaded_is_the_same(model, clip, tmp_path):
    folder = model.save_pretrained(tmp_path / "model")
    again = VRSHQ.from_pretrained(folder)
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys() and all(
        torch.equal(v, state[k]) for k, v in again.state_dict().items()
    )
    assert np.array_equal(
        again.segment(clip.frames, "what flies?", gate=False).masks,
        model.segment(clip.frames, "what flies?", gate=False).masks,
    )


@pytest.fixture
def saved(model, tmp_path):
    return model.save_pretrained(tmp_path / "model", torch.float16)


def change(folder, edit):
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


KEY = "encoder.project.0.weight"


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda s: s.pop(KEY), f"1 missing.*{KEY}"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected.*extra"),
        (lambda s: s.update({KEY: torch.zeros(2, 2)}), f"1 of another shape.*{KEY}"),
        (lambda s: s[KEY].fill_(float("nan")), f"1 not finite.*{KEY}"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved, edit, message):
    change(saved, edit)
    with pytest.raises(VRSError, match=message):
        VRSHQ.from_pretrained(saved)


@pytest.mark.parametrize(
    "name, content",
    [
        ("model.safetensors", b"\x08"),
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("config.json", b"[1]"),
        ("model.safetensors", None),
        ("tokenizer.json", None),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff"),
    ],
)
def test_broken_models(saved, name, content):
    (saved / name).unlink()
    if content is not None:
        (saved / name).write_bytes(content)
    with pytest.raises(VRSError):
        VRSHQ.from_pretrained(saved)


def test_unknown_models_and_devices(tmp_path):
    for name in ("", " ", "giga", "./nano", tmp_path, str(tmp_path / "nothing")):
        with pytest.raises(VRSError):
            VRSHQ.from_pretrained(name)
    for name in ("tpu9", "cuda:99", 1.5):
        with pytest.raises(VRSError, match="device"):
            find_device(name)


def test_the_embedded_model_is_small():
    from importlib.resources import files

    folder = files("vrshq_nb") / "weights" / "nano"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 25e6


def test_the_embedded_model_is_found_by_name_and_by_folder():
    folder = find_weights("nano")
    assert folder.name == "nano" and find_weights(folder) == find_weights(str(folder)) == folder


@pytest.mark.parametrize(
    "text, message",
    [
        ([], "no sentence"),
        ((), "no sentence"),
        (7, "int"),
        (None, "NoneType"),
        (b"the cat", "bytes"),
        ({"the cat": 1}, "dict"),
        (["the cat", 7], "int"),
    ],
)
def test_questions_that_are_none(model, clip, text, message):
    with pytest.raises(VRSError, match=message):
        model.segment(clip.frames[:2], text)


def test_any_iterable_of_sentences_gives_a_list(model, clip):
    shared = model.encode(clip.frames[:2])
    for texts in (("a cat", "A  CAT"), iter(["a cat", "a cat"])):
        segs = model.segment(shared, texts)
        assert [s.text for s in segs] == ["a cat", "a cat"]
    assert isinstance(model.segment(shared, ["a cat"]), list) and isinstance(
        model.segment(shared, "a cat"), Segmentation
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(k=0),
        dict(k="many"),
        dict(sampling="best"),
        dict(terms="similarity"),
        dict(terms=()),
        dict(alpha=float("nan")),
        dict(temperature=0),
        dict(how="median"),
        dict(prompt="word"),
    ],
)
def test_options_are_checked_before_any_work(model, options):
    with pytest.raises(VRSError, match=next(iter(options))):
        model.segment("no such file.mp4", "the cat", **options)


def test_a_model_in_training_mode_refuses(model, clip):
    before = {k: v.clone() for k, v in model.encoder.vision_tower.state_dict().items()}
    shared = model.encode(clip.frames[:2])
    model.train()
    try:
        for video in (clip.frames[:2], shared):
            with pytest.raises(VRSError, match="eval"):
                model.segment(video, "the cat")
    finally:
        model.eval()
    assert all(
        torch.equal(v, before[k]) for k, v in model.encoder.vision_tower.state_dict().items()
    )


def test_results_are_plain_float32_on_the_cpu(result):
    tensors = [
        result.tokens.seg,
        result.tokens.tak,
        result.fused,
        result.weights,
        result.clip_logits,
        result.object_logits,
    ]
    assert all(
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not x.requires_grad
        and not x.is_inference()
        for x in tensors
    )
    assert all(np.isfinite(x.numpy()).all() for x in tensors)


def test_results_are_plain_whatever_the_precision(model, clip):
    half = VRSHQ(model.encoder, model.sam2, model.scorer)
    half.autocast = torch.bfloat16
    seg = half.segment(clip.frames[:4], "the cat", gate=False)
    assert seg.tokens.seg.dtype == seg.fused.dtype == seg.clip_logits.dtype == torch.float32
    assert seg.masks.dtype == bool


def test_options_in_a_record_and_as_arguments_are_the_same(model, clip):
    shared = model.encode(clip.frames[:4])
    record = model.segment(shared, "the cat", Options(alpha=0.5, gate=False))
    arguments = model.segment(shared, "the cat", alpha=0.5, gate=False)
    both = model.segment(shared, "the cat", Options(alpha=0.2, gate=False), alpha=0.5)
    assert torch.equal(record.fused, arguments.fused) and torch.equal(record.fused, both.fused)
    with pytest.raises(VRSError, match="unknown option 'beta'"):
        model.segment(shared, "the cat", beta=1)


def test_tda_is_computed_once_and_its_weights_are_the_similarity_term(model, clip):
    seg = model.segment(clip.frames[:4], "the cat", temperature=0.1, gate=False)
    assert [c.similarity for c in seg.candidates] == seg.weights.tolist()


class BrightnessScorer:
    "A frame scorer that inherits nothing."

    def encode_frames(self, frames):
        return torch.as_tensor(frames).float().mean((1, 2, 3))[:, None]

    def logits(self, frame_features, texts):
        return frame_features.T.expand(len(texts), -1)


def test_a_part_is_anything_that_follows_its_protocol(model, clip):
    own = VRSHQ(model.encoder, model.sam2, BrightnessScorer())
    seg = own.segment(clip.frames, "the cat", gate=False)
    brightness = clip.frames.mean((1, 2, 3))
    assert brightness[seg.anchor] == brightness.max() and len(repr(own)) < 200
    with pytest.raises(VRSError, match="put together by hand"):
        own.save_pretrained("nowhere")


def test_a_token_can_learn_from_encoded_features(model, clip):
    "What `encode` returns may take part in a gradient."
    shared = model.encode(clip.frames[:3])
    token = model.segment(shared, "the cat").fused.requires_grad_()
    model.sam2.decode(shared.features, [0, 2], token).object_logit.sum().backward()
    assert token.grad.abs().sum() > 0


def test_two_results_can_be_compared_and_shown_as_text(result, model, clip):
    assert result == result and result != model.segment(clip.frames[:2], result.text)
    assert result.text in repr(result) and "%" in repr(result) and len(repr(result)) < 500
    result_not_found = Segmentation(**(vars(result) | dict(found=False)))
    assert "nothing found" in repr(result_not_found)


def test_stopwatch_adds_up_also_after_an_error():
    watch = Stopwatch()
    for _ in range(2):
        with pytest.raises(KeyError), watch("stage"):
            raise KeyError
    assert list(watch.each("each", [1, 2])) == [1, 2]
    assert watch.seconds.keys() == {"stage", "each"} and all(v >= 0 for v in watch.seconds.values())


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"masks": []}',
        b'{"masks": [1]}',
        b'{"masks": [{"size": [4, 4]}]}',
        b'{"masks": [{"size": [4, 4], "counts": 7}]}',
        b'{"masks": [{"size": [2, 2], "counts": "04"}, {"size": [3, 3], "counts": "09"}]}',
        b"\x00\xff\x00",
    ],
)
def test_json_without_masks(tmp_path, content):
    with pytest.raises(VRSError, match="masks"):
        load_masks(write(tmp_path / "out.json", content))


def test_folders_without_masks(tmp_path):
    with pytest.raises(VRSError, match="no file"):
        load_masks(tmp_path / "nothing")
    with pytest.raises(VRSError, match="no masks"):
        load_masks(tmp_path)
    write(tmp_path / "0.png", b"not a picture")
    with pytest.raises(VRSError, match="no masks"):
        load_masks(tmp_path)
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    with pytest.raises(VRSError, match="not masks"):
        load_masks(tmp_path)


def test_weights_that_a_type_cannot_hold_are_not_written(model, tmp_path):
    weight = model.encoder.project[0].weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = 1e6
    try:
        with pytest.raises(VRSError, match=KEY):
            model.save_pretrained(tmp_path / "model", torch.float16)
        assert not list(tmp_path.iterdir())
        model.save_pretrained(tmp_path / "model", torch.bfloat16)
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_every_tensor_is_written_once(model):
    own, whole = own_state(model), model.state_dict()
    assert own.keys() < whole.keys() and not any(weight_problems(own, own).values())
    pointers = [v.data_ptr() for v in own.values() if v.numel()]
    assert len(pointers) == len(set(pointers)) and {
        whole[k].data_ptr() for k in whole.keys() - own.keys()
    } <= set(pointers)


class Broken:
    "A part whose answers have the wrong shape."

    def __init__(self, part, **answers):
        self.part, self.answers = part, answers

    def encode_frames(self, frames):
        return self.answers.get("rows", self.part.encode_frames)(frames)

    def logits(self, frame_features, texts):
        return self.answers["logits"](self.part.logits(frame_features, texts))

    def __call__(self, visual, text, frames):
        tokens, answer = self.part(visual, text, frames)
        return self.answers.get("tokens", lambda t: t)(tokens), answer


def wider(tokens):
    seg, tak = (torch.nn.functional.pad(x, (0, 1)) for x in (tokens.seg, tokens.tak))
    return TemporalTokens(seg, tak, tokens.frames)


def test_a_part_with_answers_of_another_shape_is_named(model, clip):
    scorer = Broken(model.scorer, logits=lambda x: x.T)
    with pytest.raises(VRSError, match=r"frame scorer must give logits \(1, 24\)"):
        VRSHQ(model.encoder, model.sam2, scorer).segment(clip.frames, "the cat")
    with pytest.raises(VRSError, match=r"token encoder must give seg \(8, 128\)"):
        encoder = Broken(model.encoder, tokens=wider)
        VRSHQ(encoder, model.sam2, model.scorer).segment(clip.frames, "the cat")
    with pytest.raises(VRSError, match="rows of features"):
        encoder = Broken(model.encoder, rows=lambda frames: model.encoder.encode_frames(frames[1:]))
        VRSHQ(encoder, model.sam2, model.scorer).segment(clip.frames, "the cat")


def test_a_part_that_lacks_a_method_is_refused(model):
    with pytest.raises(VRSError, match="scorer, a object, has no 'encode_frames'"):
        VRSHQ(model.encoder, model.sam2, object())
    with pytest.raises(VRSError, match="has no 'logits'"):
        VRSHQ(model.scorer, model.sam2, model.encoder)
    with pytest.raises(VRSError, match="class BrightnessScorer"):
        VRSHQ(model.encoder, model.sam2, BrightnessScorer)

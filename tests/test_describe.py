"Parameters, bytes and tokens of a model, before it is downloaded."

import json

import pytest
import torch
import transformers

from tiny_vlms import FAMILIES, checkpoint, clip, trained
from vrshq_nb import VRSHQ
from vrshq_nb.describe import describe_model
from vrshq_nb.files import VRSError
from vrshq_nb.sam2_sizes import sam2_pretrained
from vrshq_nb.tks import candidate_frames

pytest.importorskip("peft")
for_families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def test_description_adds_up():
    nano = VRSHQ.from_pretrained("nano")
    about = describe_model("nano", n_frames=16)
    assert json.loads(json.dumps(about)) == about
    assert (
        sum(about["parts"].values())
        == about["parameters"]
        == about["trained"]
        == sum(p.numel() for p in nano.parameters())
    )
    shared = nano.encode(clip()[0].frames)
    assert about["video"]["sam2_bytes"] == sum(x.nbytes for x in shared.features.levels)
    assert (
        about["bytes"]["fp32"]
        == 2 * about["bytes"]["bf16"]
        > about["bytes"]["int8"]
        > about["bytes"]["int4"]
    )


@for_families
def test_description_of_a_family(family, tmp_path):
    model, *_ = trained(family)
    about = describe_model(model, n_frames=16, height=256, width=256)
    assert (
        sum(about["parts"].values())
        == about["parameters"]
        == sum(p.numel() for p in model.parameters())
    )
    frames = candidate_frames(16, 0)
    with torch.no_grad():
        reading = model.encoder.answer_states(
            model.encoder.encode_frames(clip()[0].frames[frames]),
            "the bird still flying at the end",
        )
    assert about["video"]["sequence"] == len(reading.ids) and about["video"][
        "visual_tokens"
    ] == int(reading.visual.sum())
    linear = [m for m in model.encoder.language_model.modules() if type(m) is torch.nn.Linear]
    few = sum(m.weight.numel() for m in linear)
    lora = [x for n, x in model.encoder.language_model.named_parameters() if ".lora_" in n]
    few -= sum(x.numel() for x in lora)
    assert about["bytes"]["int8"] == about["bytes"]["bf16"] - few
    for whole in (True, False):
        assert (
            describe_model(model.save_pretrained(tmp_path / str(whole), whole=whole), 16, 256, 256)
            == about
        )


def test_description_before_a_download():
    about = describe_model(dict(llm=checkpoint("qwen3_vl"), sam2="large"))
    assert about["parts"]["SAM 2"] == 224_446_642 and about["parts"]["CLIP"] == 427_944_193
    assert about["video"]["sam2_bytes_per_frame"] == 4 * (32 * 256**2 + 64 * 128**2 + 256 * 64**2)
    for bad, match in (
        (dict(llm="/gone"), "no folder"),
        (dict(sam2="large"), "bad arguments"),
        ("nonsense", "unknown model"),
    ):
        with pytest.raises(VRSError, match=match):
            describe_model(bad)


def test_description_of_an_encoder_of_another_make():
    model = torch.nn.Module()
    model.encoder, model.sam2, model.scorer = (
        torch.nn.Sequential(torch.nn.Linear(3, 4)),
        sam2_pretrained("tiny", image_size=128, weights=False),
        torch.nn.Linear(2, 2),
    )
    about = describe_model(model)
    assert (
        about["parts"]["0"] == 16
        and about["video"]["sequence"] is None
        and sum(about["parts"].values()) == about["parameters"]
    )
    json.dumps(about)


def test_features_of_sam2_are_counted_right():
    model = sam2_pretrained("tiny", image_size=128, weights=False)
    with torch.no_grad():
        features = model.encode(clip()[0].frames[:2])
    assert sum(x[0].nbytes for x in features.levels) == 4 * (32 * 32**2 + 64 * 16**2 + 256 * 8**2)

"Five families of vision–language models as token encoders. Offline, random weights."

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tiny_vlms import CHOSEN, FAMILIES, checkpoint, clip
from vrshq_nb import vlm_encoder
from vrshq_nb.files import VRSError
from vrshq_nb.tiny import tiny_vlm
from vrshq_nb.tokens import build_conversation
from vrshq_nb.transforms import limit_side
from vrshq_nb.vlm_encoder import (
    VLMEncoder,
    VLMOptions,
    answer_loss,
    attach_lora,
    load_vlm,
    quantization,
    user_message,
)

pytest.importorskip("peft")
for_families = pytest.mark.parametrize("family", FAMILIES)
TEXT = "the red kite"


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def wide():
    "Five frames that are not square."
    frames = clip()[0].frames
    return np.concatenate([frames, frames[:, :, :128]], 2)[:5]


def encoder_of(family, **options):
    torch.manual_seed(0)
    return VLMEncoder(*load_vlm(checkpoint(family)), 128, VLMOptions(**options)).eval()


def own_inputs(encoder, frames, text):
    "Question and images as the family's own processor prepares them."
    said = [user_message(build_conversation(text, len(frames)).question)]
    whole = encoder.processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    return encoder.processor(
        text=[whole],
        images=[list(limit_side(frames, encoder.side))],
        add_special_tokens=False,
        return_tensors="pt",
        **encoder.tiling,
    )


def test_import_is_light():
    code = """
import sys, vrshq_nb.vlm
late = "peft", "bitsandbytes", "transformers.models.qwen3_vl.modeling_qwen3_vl"
print([m for m in late if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@for_families
def test_checkpoint_is_read_by_the_auto_classes(family):
    vlm, processor = load_vlm(checkpoint(family))
    assert vlm.config.model_type == family and type(vlm).__name__.endswith(
        "ForConditionalGeneration"
    )
    assert type(processor).__name__.lower().startswith(
        family.replace("_", "")[:6].lower()
    ) or family.startswith("qwen")
    assert sum(p.numel() for p in vlm.parameters()) < 3e5


@for_families
def test_prompt_is_the_processors_own(family, wide):
    e = encoder_of(family, lora=None)
    visual = e.encode_frames(wide)
    assert visual.shape[0] == 5 and visual.shape[-1] == e.width and not visual.isnan().any()
    asked, answer = e.prompt(TEXT, 5, visual[0, 0, ..., 0].numel())
    assert asked.tolist() == own_inputs(e, wide, TEXT)["input_ids"][0].tolist()
    assert (
        (answer == e.seg_id).sum() == 5
        and (answer == e.tak_id).sum() == 1
        and answer[-1] == e.tokenizer.eos_token_id
    )
    assert int((asked == e.image_id).sum()) == visual[:, 0, ..., 0].numel()


@for_families
@torch.no_grad()
def test_states_are_those_of_the_familys_own_forward(family, wide):
    e = encoder_of(family, lora=None)
    reading = e.answer_states(e.encode_frames(wide), TEXT)
    given = {k: v for k, v in own_inputs(e, wide, TEXT).items() if k in e.forward_arguments}
    own = e.vlm.base_model(**given).last_hidden_state[0]
    torch.testing.assert_close(reading.hidden[: reading.start], own, atol=1e-4, rtol=1e-4)
    assert (
        len(reading.hidden) == len(reading.ids) == len(reading.visual)
        and reading.visual.sum() == (reading.ids == e.image_id).sum()
    )


@for_families
@torch.no_grad()
def test_a_frame_gives_the_same_features_alone(family, wide):
    e = encoder_of(family, lora=None)
    alone = torch.cat([e.encode_frames(frame[None]) for frame in wide])
    torch.testing.assert_close(e.encode_frames(wide, batch_size=2), alone, atol=1e-5, rtol=1e-4)
    tall = np.ascontiguousarray(wide.transpose(0, 2, 1, 3))
    tokens, _ = e(e.encode_frames(tall[:1]), TEXT)  # a still picture, higher than wide
    assert tokens.seg.shape == (1, 128) and tokens.frames == [0]


@for_families
@torch.no_grad()
def test_tokens_stand_one_position_before(family, wide):
    e = encoder_of(family)
    visual = e.encode_frames(wide)
    tokens, answer = e(visual, TEXT, [3, 5, 7, 9, 11])
    r = e.answer_states(visual, TEXT)
    at = (r.ids == e.seg_id).nonzero()[:, 0] - 1
    torch.testing.assert_close(tokens.seg, e.project(r.hidden[at]))
    assert (
        tokens.seg.shape == (5, 128)
        and tokens.tak.shape == (1, 128)
        and tokens.frames == [3, 5, 7, 9, 11]
    )
    assert answer.count("[SEG]") == 5 and answer.endswith("[TAK].")
    with pytest.raises(ValueError, match="frame numbers"):
        e(visual, TEXT, [1, 2])


def test_new_rows_take_all_the_gradient():
    e = encoder_of("llava_onevision", lora=None)
    e.vlm.requires_grad_(False)
    loss = answer_loss(e, e.answer_states(e.encode_frames(clip()[0].frames[:2]), TEXT))
    loss.backward()
    assert e.rows.read.grad.abs().sum(1).min() > 0 and e.rows.score.grad.abs().sum(1).min() > 0
    assert e.vlm.get_input_embeddings().weight.grad is None
    tied = encoder_of("qwen3_vl", lora=None)
    assert not hasattr(tied.rows, "score")


def test_spare_rows_are_kept():
    vlm, processor = load_vlm(checkpoint("internvl"))
    rows = len(vlm.get_input_embeddings().weight)
    assert rows > len(processor.tokenizer)
    assert len(VLMEncoder(vlm, processor, 128).vlm.get_input_embeddings().weight) == rows
    vlm.resize_token_embeddings(len(processor.tokenizer) - 1, mean_resizing=False)
    assert len(
        VLMEncoder(vlm, processor, 128, VLMOptions(lora=None)).vlm.get_input_embeddings().weight
    ) == len(processor.tokenizer)


def test_lora_is_the_formula():
    vlm, _ = load_vlm(checkpoint("qwen2_5_vl"))
    attach_lora(vlm.get_decoder())
    layer = vlm.get_decoder().layers[1].self_attn.v_proj.eval()
    A, B, x = layer.lora_A["default"].weight, layer.lora_B["default"].weight, torch.randn(3, 64)
    assert A.shape == (8, 64) and not B.any() and torch.equal(layer(x), layer.base_layer(x))
    B.data.normal_()
    torch.testing.assert_close(
        layer(x), layer.base_layer(x) + 2 * (x @ A.T) @ B.T, atol=1e-4, rtol=1e-4
    )


def test_written_and_given_answers_agree():
    e = encoder_of("internvl").requires_grad_(True)
    visual = e.encode_frames(clip()[0].frames[CHOSEN]).detach()
    with pytest.raises(VRSError, match="from which no tokens can be taken"):
        e.write(visual, TEXT)
    optimizer = torch.optim.AdamW(e.parameters(), 2e-3, weight_decay=0)
    for _ in range(100):
        loss = answer_loss(e, e.answer_states(visual, TEXT))
        if loss < 0.2:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    given, answer = e(visual, TEXT)
    e.answer = "generated"
    wrote, words = e(visual, TEXT)
    assert words == answer
    torch.testing.assert_close(wrote.seg, given.seg.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(wrote.tak, given.tak.detach(), atol=1e-4, rtol=1e-4)
    with pytest.raises(VRSError, match="from which no tokens"):
        e.write(visual, TEXT, most=5)


def test_frames_are_limited_and_never_enlarged():
    assert limit_side(np.zeros((2, 1080, 1920, 3), np.uint8), 448).shape == (2, 3, 252, 448)
    assert limit_side(np.zeros((1, 30, 20, 3), np.uint8), 448).shape == (1, 3, 30, 20)
    frozen = np.zeros((1, 8, 8, 3), np.uint8)
    frozen.flags.writeable = False
    limit_side(frozen, 4)
    for bad in (
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
    ):
        with pytest.raises(VRSError):
            limit_side(bad, 448)


def test_too_many_frames():
    e = encoder_of("llava_onevision", lora=None)
    e.vlm.config.get_text_config().max_position_embeddings = 100
    with pytest.raises(VRSError, match="smaller k or side"):
        e(e.encode_frames(clip()[0].frames[:6]), TEXT)


def test_a_template_without_images():
    e = encoder_of("smolvlm", lora=None)
    e.processor.chat_template = (
        "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    )
    with pytest.raises(VRSError, match="wrote 0 images for 2 frames"):
        e.prompt(TEXT, 2, 4)
    e.processor.chat_template = None
    with pytest.raises(VRSError, match="chat template"):
        e.prompt(TEXT, 2, 4)


def test_weights_that_are_missing(tmp_path):
    folder = shutil.copytree(checkpoint("internvl"), tmp_path / "broken")
    state = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "q_proj" not in k},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(VRSError, match="weights of .* are missing"):
        load_vlm(folder)


@pytest.mark.parametrize(
    "name, match",
    [
        ("/no/such/folder", "no folder"),
        ("nobody/nothing", "cannot load"),
        ("", "cannot load|no folder"),
    ],
)
def test_language_models_that_are_not_there(name, match):
    with pytest.raises(VRSError, match=match):
        load_vlm(name)


def test_a_folder_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(VRSError, match="cannot load"):
        load_vlm(tmp_path)


def test_packages_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(vlm_encoder, "is_installed", lambda package: None)
    with pytest.raises(VRSError, match="bitsandbytes"):
        load_vlm(checkpoint("qwen3_vl"), bits=4)
    with pytest.raises(VRSError, match="peft"):
        encoder_of("qwen3_vl")
    assert encoder_of("qwen3_vl", lora=None)


@pytest.mark.parametrize("family", FAMILIES)
def test_few_bits_are_for_the_language_model_alone(monkeypatch, family):
    "By transformers' own rule for the names that are kept as they are."
    import transformers
    from transformers.quantizers.quantizers_utils import should_convert_module

    monkeypatch.setattr(vlm_encoder, "is_installed", lambda package: True)
    monkeypatch.setattr(
        transformers, "BitsAndBytesConfig", lambda **kwargs: kwargs["llm_int8_skip_modules"]
    )
    kept, (vlm, _) = quantization(4), load_vlm(checkpoint(family))
    words = {m for m in vlm.get_decoder().modules() if isinstance(m, torch.nn.Linear)}
    changed = {
        m
        for n, m in vlm.named_modules()
        if isinstance(m, torch.nn.Linear) and should_convert_module(n, kept)
    }
    assert changed == words and len(words) > 10


@pytest.mark.parametrize("bits", [4, 8])
def test_quantization_spares_tower_and_head(monkeypatch, bits):
    monkeypatch.setattr(vlm_encoder, "is_installed", lambda package: True)
    import transformers

    given = {}
    monkeypatch.setattr(transformers, "BitsAndBytesConfig", lambda **kwargs: given.update(kwargs))
    quantization(bits)
    assert given["load_in_4bit"] == (bits == 4) and given["load_in_8bit"] == (bits == 8)
    assert {"lm_head", "visual", "vision_tower"} <= set(given["llm_int8_skip_modules"])


def test_frames_that_a_family_refuses():
    e = encoder_of("qwen2_5_vl", lora=None)
    with pytest.raises(VRSError, match="refused by the model's image processor"):
        e.encode_frames(np.zeros((1, 4, 1000, 3), np.uint8))


def test_an_unknown_family(tmp_path):
    with pytest.raises(VRSError, match="no tiny model of family 'gpt'"):
        tiny_vlm("gpt", tmp_path)


def test_a_processor_whose_package_is_missing(monkeypatch):
    from transformers.models.smolvlm import processing_smolvlm

    folder = checkpoint("smolvlm")
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(VRSError, match=r"num2words.*vrshq_nb\[vlm\]"):
        load_vlm(folder)

"Published parts in nano's places: five families of vision–language models, SAM 2 in eight sizes, OpenCLIP. Offline, random weights."

import json
import shutil
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_vlms import CHOSEN, FAMILIES, checkpoint, clip, clip_name, overlap, tiny_model, trained
from vrshq_nb import VRSHQ
from vrshq_nb import backbones as bb
from vrshq_nb.backbones import BackboneModel, VLMEncoder, describe_model, load_vlm, sam2_pretrained
from vrshq_nb.video import VRSError

pytest.importorskip("peft")
for_families = pytest.mark.parametrize("family", FAMILIES)
SIZES = sorted(bb.sam2_table())
TEXT = "the red kite"


@pytest.fixture(scope="module", autouse=True)
def quiet():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def wide():
    "Five frames that are not square."
    frames = clip()[0].frames
    return np.concatenate([frames, frames[:, :, :128]], 2)[:5]


def encoder_of(family, **options):
    torch.manual_seed(0)
    return VLMEncoder(*load_vlm(checkpoint(family)), **(dict(prompt_width=128) | options)).eval()


def own_inputs(encoder, frames, text):
    "Question and pictures as the family's own processor prepares them."
    said = [dict(role="user", content=bb.conversation(text, len(frames))[0])]
    whole = encoder.processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    pictures = list(bb.shrink(frames, encoder.side))
    return encoder.processor(
        text=[whole],
        images=[pictures],
        add_special_tokens=False,
        return_tensors="pt",
        **encoder.tiling,
    )


# the package


def test_import_is_light():
    code = "import sys, vrshq_nb.backbones; print([m for m in ('peft', 'bitsandbytes', 'transformers.models.qwen3_vl.modeling_qwen3_vl') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


# five families


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
    cells = e.see(wide)
    assert cells.shape[0] == 5 and cells.shape[-1] == e.width and not cells.isnan().any()
    asked, answer = e.prompt(TEXT, 5, cells[0, 0, ..., 0].numel())
    assert asked.tolist() == own_inputs(e, wide, TEXT)["input_ids"][0].tolist()
    assert (
        (answer == e.seg_id).sum() == 5
        and (answer == e.tak_id).sum() == 1
        and answer[-1] == e.tokenizer.eos_token_id
    )
    assert int((asked == e.image_id).sum()) == cells[:, 0, ..., 0].numel()


@for_families
@torch.no_grad()
def test_states_are_those_of_the_familys_own_forward(family, wide):
    e = encoder_of(family, lora=None)
    reading = e.read(e.see(wide), TEXT)
    given = {k: v for k, v in own_inputs(e, wide, TEXT).items() if k in e.knows}
    own = e.vlm.base_model(**given).last_hidden_state[0]
    torch.testing.assert_close(reading.hidden[: reading.start], own, atol=1e-4, rtol=1e-4)
    assert (
        len(reading.hidden) == len(reading.ids) == len(reading.visual)
        and reading.visual.sum() == (reading.ids == e.image_id).sum()
    )


@for_families
@torch.no_grad()
def test_a_frame_gives_the_same_cells_alone(family, wide):
    e = encoder_of(family, lora=None)
    alone = torch.cat([e.see(frame[None]) for frame in wide])
    torch.testing.assert_close(e.see(wide, batch_size=2), alone, atol=1e-5, rtol=1e-4)
    tall = np.ascontiguousarray(wide.transpose(0, 2, 1, 3))
    tokens, _ = e(e.see(tall[:1]), TEXT)  # a still picture, higher than wide
    assert tokens.seg.shape == (1, 128) and tokens.frames == [0]


@for_families
@torch.no_grad()
def test_tokens_stand_one_position_before(family, wide):
    e = encoder_of(family)
    cells = e.see(wide)
    tokens, answer = e(cells, TEXT, [3, 5, 7, 9, 11])
    r = e.read(cells, TEXT)
    at = (r.ids == e.seg_id).nonzero()[:, 0] - 1
    torch.testing.assert_close(tokens.seg, e.project(r.hidden[at]))
    assert (
        tokens.seg.shape == (5, 128)
        and tokens.tak.shape == (1, 128)
        and tokens.frames == [3, 5, 7, 9, 11]
    )
    assert answer.count("[SEG]") == 5 and answer.endswith("[TAK].")
    with pytest.raises(ValueError, match="frame numbers"):
        e(cells, TEXT, [1, 2])


@for_families
def test_training_moves_what_is_trained_and_nothing_else(family):
    model, losses, before, result = trained(family)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert losses[-1] < losses[0] - 0.5
    assert all(map(bb.is_trained, changed))
    assert any("lora_A" in k for k in changed) and any("lora_B" in k for k in changed)
    assert {
        "encoder.project.0.weight",
        "encoder.rows.read",
        "sam2.sam_mask_decoder.iou_token.weight",
    } <= changed
    assert not any("lora" in k and ("vision" in k or "visual" in k) for k in model.state_dict())
    assert {k for k, p in model.named_parameters() if p.requires_grad} == {
        k for k, _ in model.named_parameters() if bb.is_trained(k)
    }
    assert result.found and overlap(result.masks, clip()[2]) > 0.5


@for_families
@pytest.mark.parametrize("whole", [True, False])
def test_saved_and_loaded_it_gives_the_same_masks(family, whole, tmp_path):
    model, _, _, result = trained(family)
    folder = model.save_pretrained(tmp_path / "model", whole=whole)
    config = json.loads((folder / "config.json").read_text())
    assert config["kind"] == "backbones" and config["whole"] == whole
    again = BackboneModel.from_pretrained(folder)
    same = again.segment(clip()[0].frames, clip()[1])
    assert (
        result.masks.any()
        and np.array_equal(same.masks, result.masks)
        and torch.equal(same.fused, result.fused)
    )
    assert set(load_file(folder / "model.safetensors")) == set(bb.kept_state(again, whole))


# the adapter


def test_the_model_is_a_vrshq():
    model, *_, result = trained("qwen3_vl")
    assert isinstance(model, VRSHQ) and model.device.type == "cpu"
    with model.precision():
        pass
    video, text, _ = clip()
    shared = model.encode(video.frames)
    both = model.segment(shared, [text, "the insect"])
    assert np.array_equal(both[0].masks, result.masks) and both[0].answer == result.answer
    model.train()
    with pytest.raises(VRSError, match="training mode"):
        model.segment(video.frames, text)
    model.eval()


def test_every_frame_is_looked_at_once():
    model, *_ = trained("smolvlm")
    seen = []
    hook = model.encoder.vlm.base_model.vision_model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    model.encoder.listed  # asked once a model
    seen.clear()
    results = model.segment(clip()[0].frames, [clip()[1], "the insect", "show the big flower"])
    hook.remove()
    assert sum(seen) == len({c.frame for r in results for c in r.candidates})


def test_new_rows_take_all_the_gradient():
    e = encoder_of("llava_onevision", lora=None)
    e.vlm.requires_grad_(False)
    loss = bb.answer_loss(e, e.read(e.see(clip()[0].frames[:2]), TEXT))
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
    assert len(VLMEncoder(vlm, processor, 128, lora=None).vlm.get_input_embeddings().weight) == len(
        processor.tokenizer
    )


def test_lora_is_the_formula():
    vlm, _ = load_vlm(checkpoint("qwen2_5_vl"))
    bb.attach_lora(vlm.get_decoder(), **bb.LORA)
    layer = vlm.get_decoder().layers[1].self_attn.v_proj.eval()
    A, B, x = layer.lora_A["default"].weight, layer.lora_B["default"].weight, torch.randn(3, 64)
    assert A.shape == (8, 64) and not B.any() and torch.equal(layer(x), layer.base_layer(x))
    B.data.normal_()
    torch.testing.assert_close(
        layer(x), layer.base_layer(x) + 2 * (x @ A.T) @ B.T, atol=1e-4, rtol=1e-4
    )


def test_written_and_given_answers_agree():
    e = encoder_of("internvl").requires_grad_(True)
    cells = e.see(clip()[0].frames[CHOSEN]).detach()
    with pytest.raises(VRSError, match="from which no tokens can be taken"):
        e.write(cells, TEXT)
    optimizer = torch.optim.AdamW(e.parameters(), 2e-3, weight_decay=0)
    for _ in range(100):
        loss = bb.answer_loss(e, e.read(cells, TEXT))
        if loss < 0.2:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    given, answer = e(cells, TEXT)
    e.answer = "generated"
    wrote, words = e(cells, TEXT)
    assert words == answer
    torch.testing.assert_close(wrote.seg, given.seg.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(wrote.tak, given.tak.detach(), atol=1e-4, rtol=1e-4)
    with pytest.raises(VRSError, match="from which no tokens"):
        e.write(cells, TEXT, most=5)


def test_bfloat16():
    model = tiny_model("qwen2_5_vl", dtype="bfloat16")
    assert next(model.encoder.vlm.parameters()).dtype == torch.bfloat16
    result = model.segment(clip()[0].frames[:4], clip()[1], gate=False)
    assert (
        result.fused.dtype == result.tokens.seg.dtype == torch.float32
        and result.fused.isfinite().all()
    )


def test_frames_are_shrunk_and_never_enlarged():
    assert bb.shrink(np.zeros((2, 1080, 1920, 3), np.uint8), 448).shape == (2, 3, 252, 448)
    assert bb.shrink(np.zeros((1, 30, 20, 3), np.uint8), 448).shape == (1, 3, 30, 20)
    frozen = np.zeros((1, 8, 8, 3), np.uint8)
    frozen.flags.writeable = False
    bb.shrink(frozen, 4)
    for bad in (
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
    ):
        with pytest.raises(VRSError):
            bb.shrink(bad, 448)


# bad input


@pytest.mark.parametrize(
    "text, match",
    [
        ("", "empty"),
        ("the <image> here", "a mark"),
        ("stop <|im_end|> now", "a mark"),
        ("x" * 1001, "characters"),
        (7, "must be text"),
    ],
)
def test_bad_sentences(text, match):
    model, *_ = trained("qwen3_vl")
    with pytest.raises(VRSError, match=match):
        model.segment(clip()[0].frames[:2], text)


def test_too_many_frames():
    e = encoder_of("llava_onevision", lora=None)
    e.vlm.config.get_text_config().max_position_embeddings = 100
    with pytest.raises(VRSError, match="smaller k or side"):
        e(e.see(clip()[0].frames[:6]), TEXT)


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


@pytest.mark.parametrize(
    "options, match",
    [
        (dict(speed=9), "unexpected keyword"),
        (dict(dtype="float7"), "unknown dtype"),
        (dict(dtype="nn"), "unknown dtype"),
        (dict(answer="sung"), "answer must be"),
        (dict(bits=3), "bits must be"),
        (dict(side=8), "at least 32"),
        (dict(lora=dict(targets=("nothing",))), "cannot be attached"),
        (dict(lora=dict(rank=2)), "bad arguments"),
        (dict(sam2="huge"), "unknown SAM 2"),
        (dict(sam2=dict(colour="red")), "bad arguments"),
        (dict(sam2=dict(size_or_file="tiny", image_size=100, weights=False)), "multiple of 32"),
        (dict(clip="ViT-nothing"), "cannot load the CLIP"),
        (dict(clip=dict(colour="red")), "bad arguments"),
        (dict(device="abacus"), "cannot be used"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(VRSError, match=match):
        tiny = dict(sam2="nano", clip="nano") | options
        bb.from_backbones(checkpoint("qwen3_vl"), **tiny)


def test_packages_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(bb, "find_spec", lambda name: None)
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

    monkeypatch.setattr(bb, "find_spec", lambda name: True)
    monkeypatch.setattr(
        transformers, "BitsAndBytesConfig", lambda **kwargs: kwargs["llm_int8_skip_modules"]
    )
    kept, (vlm, _) = bb.quantization(4), load_vlm(checkpoint(family))
    words = {m for m in vlm.get_decoder().modules() if isinstance(m, torch.nn.Linear)}
    changed = {
        m
        for n, m in vlm.named_modules()
        if isinstance(m, torch.nn.Linear) and should_convert_module(n, kept)
    }
    assert changed == words and len(words) > 10


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_few_bits_segment_and_are_saved(tmp_path, family, bits):
    pytest.importorskip("bitsandbytes")
    frames, text = clip()[0].frames, clip()[1]
    model = bb.from_backbones(checkpoint(family), "nano", "nano", bits=bits)
    seg = model.segment(frames, text, gate=False)
    again = VRSHQ.from_pretrained(model.save_pretrained(tmp_path / "few", whole=False)).segment(
        frames, text, gate=False
    )
    assert np.array_equal(seg.masks, again.masks) and torch.isfinite(seg.fused).all()
    with pytest.raises(VRSError, match="whole=False"):
        model.save_pretrained(tmp_path / "all", whole=True)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantization_spares_tower_and_head(monkeypatch, bits):
    monkeypatch.setattr(bb, "find_spec", lambda name: True)
    import transformers

    given = {}
    monkeypatch.setattr(transformers, "BitsAndBytesConfig", lambda **kwargs: given.update(kwargs))
    bb.quantization(bits)
    assert given["load_in_4bit"] == (bits == 4) and given["load_in_8bit"] == (bits == 8)
    assert {"lm_head", "visual", "vision_tower"} <= set(given["llm_int8_skip_modules"])


def test_frames_that_a_family_refuses():
    e = encoder_of("qwen2_5_vl", lora=None)
    with pytest.raises(VRSError, match="refused by the model's image processor"):
        e.see(np.zeros((1, 4, 1000, 3), np.uint8))


def test_generated_answers_in_the_pipeline():
    model = tiny_model("smolvlm", answer="generated")
    with pytest.raises(VRSError, match="from which no tokens can be taken"):
        model.segment(clip()[0].frames[:3], TEXT)


# saving


def test_files_that_do_not_fit(tmp_path):
    model, *_ = trained("qwen3_vl")
    folder = model.save_pretrained(tmp_path / "model", whole=False)
    state = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "lora_A" not in k} | {"spare": torch.ones(1)},
        folder / "model.safetensors",
    )
    with pytest.raises(VRSError, match=r"4 missing \(.*lora_A.*1 unexpected \(spare\)"):
        BackboneModel.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(VRSError, match="cannot be read"):
        BackboneModel.from_pretrained(folder)
    with pytest.raises(VRSError, match="not made of published"):
        BackboneModel.from_pretrained("nano")
    with pytest.raises(VRSError, match="no folder"):
        model.save_pretrained(tmp_path / "no" / "where")


def test_parts_that_have_moved(tmp_path):
    model, *_, result = trained("qwen3_vl")
    folder = model.save_pretrained(tmp_path / "model", whole=False)
    home = shutil.copytree(checkpoint("qwen3_vl"), tmp_path / "elsewhere")
    same = BackboneModel.from_pretrained(folder, llm=home, clip="nano").segment(
        clip()[0].frames, clip()[1]
    )
    assert np.array_equal(same.masks, result.masks)
    for parts, match in ((dict(llm="/gone"), "no folder"), (dict(eyes="x"), "bad arguments")):
        with pytest.raises(VRSError, match=match):
            BackboneModel.from_pretrained(folder, **parts)


def test_half_precision_file(tmp_path):
    model, *_ = trained("internvl")
    folder = model.save_pretrained(tmp_path / "half", torch.float16)
    assert {
        v.dtype for v in load_file(folder / "model.safetensors").values() if v.is_floating_point()
    } == {torch.float16}
    assert BackboneModel.from_pretrained(folder).segment(clip()[0].frames, clip()[1]).found


# SAM 2


@pytest.mark.parametrize("name", SIZES)
def test_sam2_is_the_packages_own_build(name):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    with torch.device("meta"), bb.CountOnly():
        ours = bb.sam2_from_config(bb.sam2_settings(name))
        theirs = instantiate(OmegaConf.load(str(files("sam2") / bb.sam2_table()[name][1])).model)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    flags = {
        k
        for k, v in vars(theirs).items()
        if isinstance(v, (bool, int, float)) and getattr(ours, k) != v
    } - {"training"}
    assert flags == {
        "multimask_output_in_sam",
        "multimask_output_for_tracking",
        "use_multimask_token_for_obj_ptr",
        "binarize_mask_from_pts_for_mem_enc",
    }
    for a, b in zip(ours.image_encoder.trunk.blocks, theirs.image_encoder.trunk.blocks):
        assert a.window_size == b.window_size


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_sam2_runs_on_a_small_frame(name):
    model = sam2_pretrained(name, image_size=128, weights=False)
    out = model.decode(model.encode(clip()[0].frames[:1]), 0, torch.randn(1, 256))
    assert out.logits.shape == (1, 32, 32) and out.raw.isfinite().all()


@torch.no_grad()
def test_an_official_file(tmp_path):
    one = sam2_pretrained("tiny", image_size=128, weights=False)
    for file, size in (("sam2.1_hiera_tiny.pt", None), ("mine.pt", "tiny")):
        torch.save({"model": one.state_dict()}, tmp_path / file)
        two = sam2_pretrained(tmp_path / file, size, image_size=128)
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values())
        )
    model = bb.from_backbones(
        checkpoint("internvl"),
        sam2=dict(size_or_file=str(tmp_path / "mine.pt"), size="tiny", image_size=128),
        clip="nano",
    )
    assert model.encoder.project[-1].out_features == 256
    result = model.segment(clip()[0].frames[:3], TEXT, gate=False)
    folder = model.save_pretrained(tmp_path / "model", whole=True)
    (tmp_path / "mine.pt").unlink()  # a whole model does not need it any more
    assert torch.equal(
        BackboneModel.from_pretrained(folder)
        .segment(clip()[0].frames[:3], TEXT, gate=False)
        .object_logits,
        result.object_logits,
    )


@pytest.mark.parametrize(
    "change, match",
    [
        (
            lambda s: {"model": {k: v for k, v in s.items() if "no_mem" not in k}},
            r"2 missing \(no_mem_embed, no_mem_pos_enc\)",
        ),
        (lambda s: {"model": s | {"spare": torch.ones(1)}}, r"1 unexpected \(spare\)"),
        (lambda s: {"model": s | {"no_mem_embed": torch.ones(1, 1, 2)}}, "1 of another shape"),
        (lambda s: {"model": s | {"no_mem_embed": s["no_mem_embed"] * torch.nan}}, "1 not finite"),
        (lambda s: s, "no SAM 2 checkpoint"),
        (lambda s: torch.nn.Linear(1, 1), "no SAM 2 checkpoint"),
    ],
)
def test_files_that_are_not_sam2(tmp_path, change, match):
    state = sam2_pretrained("tiny", image_size=128, weights=False).state_dict()
    torch.save(change(state), tmp_path / "sam2.1_hiera_tiny.pt")
    with pytest.raises(VRSError, match=match):
        sam2_pretrained(tmp_path / "sam2.1_hiera_tiny.pt", image_size=128)


def test_sam2_names(tmp_path):
    assert (
        bb.sam2_name("base_plus")
        == bb.sam2_name("facebook/sam2.1-hiera-base-plus")
        == "sam2.1-hiera-base-plus"
    )
    assert bb.sam2_name("sam2_hiera_small.pt") == "sam2-hiera-small"
    for bad in ("b+", "", "sam3"):
        with pytest.raises(VRSError, match="unknown SAM 2"):
            bb.sam2_name(bad)
    with pytest.raises(VRSError, match="no file"):
        sam2_pretrained(tmp_path / "sam2_hiera_small.pt")
    (tmp_path / "x.pt").write_text("text")
    with pytest.raises(VRSError, match="no SAM 2 checkpoint"):
        sam2_pretrained(tmp_path / "x.pt", "tiny")


def test_the_hub_is_asked_and_says_no():
    with pytest.raises(VRSError, match="could not be fetched"):
        sam2_pretrained("large", image_size=128)


# OpenCLIP


@torch.no_grad()
def test_an_openclip_model(tmp_path):
    spec = dict(name=clip_name(), weights=None)
    torch.manual_seed(0)
    scorer = bb.clip_pretrained(**spec)
    logits = scorer.logits(scorer.encode_frames(clip()[0].frames[:3]), [TEXT, "a dog"])
    assert logits.shape == (2, 3) and logits.isfinite().all()
    blank = bb.clip_pretrained(**spec, blank=True)
    assert {k: v.shape for k, v in blank.state_dict().items()} == {
        k: v.shape for k, v in scorer.state_dict().items()
    }
    assert torch.equal(blank.mean, scorer.mean) and blank.image_size == scorer.image_size
    model = bb.from_backbones(checkpoint("qwen2_5_vl"), sam2="nano", clip=spec)
    result = model.segment(clip()[0].frames, TEXT, gate=False)
    again = BackboneModel.from_pretrained(model.save_pretrained(tmp_path / "model")).segment(
        clip()[0].frames, TEXT, gate=False
    )
    assert torch.equal(again.clip_logits, result.clip_logits) and torch.equal(
        again.fused, result.fused
    )


# what it costs


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
    frames = bb.candidate_frames(16, 0)
    with torch.no_grad():
        reading = model.encoder.read(
            model.encoder.see(clip()[0].frames[frames]), "the bird still flying at the end"
        )
    assert about["video"]["sequence"] == len(reading.ids) and about["video"][
        "visual_tokens"
    ] == int(reading.visual.sum())
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
    model.encoder, model.sam2, model.clip = (
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

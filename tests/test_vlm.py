"A published language model, SAM 2 and CLIP in one model. Offline, random weights."

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tiny_vlms import FAMILIES, checkpoint, clip, clip_name, overlap, tiny_model, trained
from vrshq_nb import VRSHQ, vlm
from vrshq_nb.files import VRSError
from vrshq_nb.sam2_sizes import sam2_pretrained
from vrshq_nb.scorer import scorer_pretrained
from vrshq_nb.vlm import is_trained
from vrshq_nb.vlm_encoder import load_vlm

pytest.importorskip("peft")
for_families = pytest.mark.parametrize("family", FAMILIES)
TEXT = "the red kite"


def model_of(parts):
    return VRSHQ(parts.encoder, parts.sam2, parts.scorer, parts.config)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@for_families
def test_training_moves_what_is_trained_and_nothing_else(family):
    model, losses, before, result = trained(family)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert losses[-1] < losses[0] - 0.5
    assert all(map(is_trained, changed))
    assert any("lora_A" in k for k in changed) and any("lora_B" in k for k in changed)
    assert {
        "encoder.project.0.weight",
        "encoder.rows.read",
        "sam2.sam_mask_decoder.iou_token.weight",
    } <= changed
    assert not any("lora" in k and ("vision" in k or "visual" in k) for k in model.state_dict())
    assert {k for k, p in model.named_parameters() if p.requires_grad} == {
        k for k, _ in model.named_parameters() if is_trained(k)
    }
    assert result.found and overlap(result.masks, clip()[2]) > 0.5


@for_families
@pytest.mark.parametrize("whole", [True, False])
def test_saved_and_loaded_it_gives_the_same_masks(family, whole, tmp_path):
    model, _, _, result = trained(family)
    folder = model.save_pretrained(tmp_path / "model", whole=whole)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "vrshq_vlm" and config["whole"] == whole
    again = VRSHQ.from_pretrained(folder)
    same = again.segment(clip()[0].frames, clip()[1])
    assert (
        result.masks.any()
        and np.array_equal(same.masks, result.masks)
        and torch.equal(same.fused, result.fused)
    )
    names = set(load_file(folder / "model.safetensors"))
    kept = set(vlm.kept_state(again.parts, whole))
    assert names == (kept if whole else {name for name in kept if ".lora_" not in name})
    assert (folder / vlm.ADAPTER).exists() == (not whole)


def test_one_sentence_or_several():
    model, *_, result = trained("qwen3_vl")
    assert isinstance(model, VRSHQ) and model.device.type == "cpu"
    video, text, _ = clip()
    shared = model.encode(video.frames)
    both = model.segment(shared, [text, "the insect"])
    assert np.array_equal(both[0].masks, result.masks) and both[0].answer == result.answer
    model.train()
    with pytest.raises(VRSError, match="training mode"):
        model.segment(video.frames, text)
    model.eval()


def test_every_frame_is_encoded_once():
    model, *_ = trained("smolvlm")
    seen = []
    hook = model.encoder.vlm.base_model.vision_model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    assert model.encoder.features_are_listed in (True, False)  # asked once a model
    seen.clear()
    results = model.segment(clip()[0].frames, [clip()[1], "the insect", "show the big flower"])
    hook.remove()
    assert sum(seen) == len({c.frame for r in results for c in r.candidates})


def test_bfloat16():
    model = tiny_model("qwen2_5_vl", dtype="bfloat16")
    assert next(model.encoder.vlm.parameters()).dtype == torch.bfloat16
    result = model.segment(clip()[0].frames[:4], clip()[1], gate=False)
    assert (
        result.fused.dtype == result.tokens.seg.dtype == torch.float32
        and result.fused.isfinite().all()
    )


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
        VRSHQ.from_backbones(checkpoint("qwen3_vl"), **tiny)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_few_bits_segment_and_are_saved(tmp_path, family, bits):
    pytest.importorskip("bitsandbytes")
    frames, text = clip()[0].frames, clip()[1]
    model = VRSHQ.from_backbones(checkpoint(family), "nano", "nano", bits=bits)
    seg = model.segment(frames, text, gate=False)
    again = VRSHQ.from_pretrained(model.save_pretrained(tmp_path / "few", whole=False)).segment(
        frames, text, gate=False
    )
    assert np.array_equal(seg.masks, again.masks) and torch.isfinite(seg.fused).all()
    with pytest.raises(VRSError, match="whole=False"):
        model.save_pretrained(tmp_path / "all", whole=True)


def test_generated_answers_in_the_pipeline():
    model = tiny_model("smolvlm", answer="generated")
    with pytest.raises(VRSError, match="from which no tokens can be taken"):
        model.segment(clip()[0].frames[:3], TEXT)


def test_files_that_do_not_fit(tmp_path):
    model, *_ = trained("qwen3_vl")
    folder = model.save_pretrained(tmp_path / "model", whole=False)
    adapter = load_file(folder / vlm.ADAPTER)
    save_file({k: v for k, v in adapter.items() if "lora_A" not in k}, folder / vlm.ADAPTER)
    state = load_file(folder / "model.safetensors")
    save_file(state | {"spare": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(VRSError, match=r"4 missing \(.*lora_A.*1 unexpected \(spare\)"):
        VRSHQ.from_pretrained(folder)
    for file in (vlm.ADAPTER, "model.safetensors"):
        (folder / file).write_bytes(b"nothing")
        with pytest.raises(VRSError, match="cannot be read"):
            VRSHQ.from_pretrained(folder)
    with pytest.raises(VRSError, match="not made of published"):
        vlm.load("nano")
    with pytest.raises(VRSError, match="no folder"):
        model.save_pretrained(tmp_path / "no" / "where")


def test_parts_that_have_moved(tmp_path):
    model, *_, result = trained("qwen3_vl")
    folder = model.save_pretrained(tmp_path / "model", whole=False)
    home = shutil.copytree(checkpoint("qwen3_vl"), tmp_path / "elsewhere")
    parts = vlm.load(folder, llm=home, clip="nano")
    same = model_of(parts).segment(clip()[0].frames, clip()[1])
    assert np.array_equal(same.masks, result.masks)
    for parts, match in ((dict(llm="/gone"), "no folder"), (dict(scorer="x"), "bad arguments")):
        with pytest.raises(VRSError, match=match):
            vlm.load(folder, **parts)


def test_half_precision_file(tmp_path):
    model, *_ = trained("internvl")
    folder = model.save_pretrained(tmp_path / "half", torch.float16)
    assert {
        v.dtype for v in load_file(folder / "model.safetensors").values() if v.is_floating_point()
    } == {torch.float16}
    assert VRSHQ.from_pretrained(folder).segment(clip()[0].frames, clip()[1]).found


@torch.no_grad()
def test_an_official_file(tmp_path):
    one = sam2_pretrained("tiny", image_size=128, weights=False)
    for file, size in (("sam2.1_hiera_tiny.pt", None), ("mine.pt", "tiny")):
        torch.save({"model": one.state_dict()}, tmp_path / file)
        two = sam2_pretrained(tmp_path / file, size, image_size=128)
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values())
        )
    model = VRSHQ.from_backbones(
        checkpoint("internvl"),
        sam2=dict(size_or_file=str(tmp_path / "mine.pt"), size="tiny", image_size=128),
        clip="nano",
    )
    assert model.encoder.project[-1].out_features == 256
    result = model.segment(clip()[0].frames[:3], TEXT, gate=False)
    folder = model.save_pretrained(tmp_path / "model", whole=True)
    (tmp_path / "mine.pt").unlink()  # a whole model does not need it any more
    assert torch.equal(
        VRSHQ.from_pretrained(folder).segment(clip()[0].frames[:3], TEXT, gate=False).object_logits,
        result.object_logits,
    )


@torch.no_grad()
def test_an_openclip_model(tmp_path):
    spec = dict(name=clip_name(), weights=None)
    torch.manual_seed(0)
    scorer = scorer_pretrained(**spec)
    logits = scorer.logits(scorer.encode_frames(clip()[0].frames[:3]), [TEXT, "a dog"])
    assert logits.shape == (2, 3) and logits.isfinite().all()
    blank = scorer_pretrained(**spec, blank=True)
    assert {k: v.shape for k, v in blank.state_dict().items()} == {
        k: v.shape for k, v in scorer.state_dict().items()
    }
    assert blank.mean == scorer.mean and blank.image_size == scorer.image_size
    model = VRSHQ.from_backbones(checkpoint("qwen2_5_vl"), sam2="nano", clip=spec)
    result = model.segment(clip()[0].frames, TEXT, gate=False)
    again = VRSHQ.from_pretrained(model.save_pretrained(tmp_path / "model")).segment(
        clip()[0].frames, TEXT, gate=False
    )
    assert torch.equal(again.clip_logits, result.clip_logits) and torch.equal(
        again.fused, result.fused
    )


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_of_an_earlier_version(tmp_path, whole):
    "It has `kind`, the prefix `clip.`, options of LoRA without targets, and LoRA in the one file."
    model, *_, result = trained("internvl")
    folder = model.save_pretrained(tmp_path / "model", whole=whole)
    shutil.rmtree(folder / "llm" / "adapter", ignore_errors=True)
    state = vlm.packed_state(vlm.kept_state(model.parts, whole))
    old = {n.replace("scorer.", "clip.", 1) if n[0] == "s" else n: x for n, x in state.items()}
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"], config["llm"]["lora"]["targets"]
    (folder / "config.json").write_text(json.dumps(config | dict(kind="backbones")))
    same = VRSHQ.from_pretrained(folder).segment(clip()[0].frames, clip()[1])
    assert np.array_equal(same.masks, result.masks) and torch.equal(same.fused, result.fused)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft itself
@for_families
def test_the_adapter_is_one_of_peft(family, tmp_path):
    from peft import PeftModel

    model, *_ = trained(family)
    folder = model.save_pretrained(tmp_path / "model", whole=False)
    published = load_vlm(checkpoint(family))[0].get_decoder()
    theirs = PeftModel.from_pretrained(published, (folder / vlm.ADAPTER).parent).eval()
    x = torch.randn(1, 6, 64)
    with torch.no_grad():
        ours = model.encoder.vlm.get_decoder()(inputs_embeds=x).last_hidden_state
        torch.testing.assert_close(theirs(inputs_embeds=x).last_hidden_state, ours)


def test_weights_that_are_nowhere_else(tmp_path):
    random_sam2 = dict(size_or_file="tiny", image_size=128, weights=False)
    model = VRSHQ.from_backbones(checkpoint("qwen3_vl"), random_sam2, "nano")
    with pytest.raises(VRSError, match="random weights of sam2 .* whole=True"):
        model.save_pretrained(tmp_path / "model", whole=False)

"""The released checkpoint: good ones, damaged ones, converted ones, with and without CLIP."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from vrshq_nb import cli
from vrshq_nb.chatunivi import MERGE_LEVELS, ChatUniViEncoder, PaddedPredictor
from vrshq_nb.files import VRSError
from vrshq_nb.model import VRSHQ
from vrshq_nb.nano import as_module, build_tokenizer
from vrshq_nb.released import (
    SAM2_LARGE,
    VISION_TOWERS,
    LazyScorer,
    build,
    convert,
    find_shards,
    load,
    load_released,
    load_shapes,
    read_shard,
    released_config,
    released_name,
    save,
)
from vrshq_nb.llama_tokenizer import LegacyLlamaTokenizer
from vrshq_nb.scorer import load_transformers_scorer

DATA = Path(__file__).parent / "data" / "chatunivi"
PROMPTS = json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model():
    return reference.run_model(DATA)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return reference.write_released(tmp_path_factory.mktemp("released") / "ckpt", DATA, "bin", 3)


@pytest.fixture
def frames():
    return np.random.default_rng(1).integers(0, 256, (5, 40, 70, 3), dtype=np.uint8)


def same_weights(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


# ------------------------------ loading


@pytest.mark.parametrize(
    "kind, shards", [("bin", 1), ("bin", 3), ("safetensors", 1), ("safetensors", 2)]
)
def test_every_form_of_checkpoint_loads_the_same(tmp_path, model, kind, shards):
    folder = reference.write_released(tmp_path / "c", DATA, kind, shards)
    assert len(find_shards(folder)) == shards
    loaded = VRSHQ.from_pretrained(folder)
    assert type(loaded) is VRSHQ and not loaded.training
    assert isinstance(loaded.encoder, ChatUniViEncoder)
    assert isinstance(loaded.sam2, PaddedPredictor)
    assert same_weights(model, loaded)


def test_every_tensor_has_the_file_s_numbers(model):
    stored = reference.released_state(DATA)
    stored = {k: v for k, v in stored.items() if not k.endswith("rotary_emb.inv_freq")}
    ours = {released_name(k): v for k, v in model.state_dict().items()}
    assert ours.keys() == stored.keys()
    assert all(torch.equal(v, stored[k]) for k, v in ours.items())
    gamma = [k for k in stored if k.endswith("gamma")]
    assert len(gamma) == 2
    assert all(k.startswith("model.visual_model.memory_encoder.fuser") for k in gamma)


def test_rotary_tables_are_real_after_loading(model):
    tables = dict(model.named_buffers())
    assert {v.device.type for v in [*tables.values(), *model.parameters()]} == {"cpu"}
    stored = reference.released_state(DATA)["model.layers.0.self_attn.rotary_emb.inv_freq"]
    torch.testing.assert_close(model.encoder.llm.model.rotary_emb.inv_freq, stored)


def test_weights_want_gradients_after_loading(model):
    assert all(p.requires_grad for p in model.parameters())


def test_converted_is_identical(tmp_path, checkpoint, model):
    out = convert(checkpoint, tmp_path / "ours")
    assert json.loads((out / "config.json").read_text())["model_type"] == "vrshq_chatunivi"
    names = load_file(out / "model.safetensors").keys()
    assert any(k.endswith("gamma") for k in names)
    assert any(k.startswith("encoder.vision_tower.") for k in names)
    again = VRSHQ.from_pretrained(out)
    assert same_weights(model, again)
    case = PROMPTS["tiny"][7]
    assert again.encoder.tokenizer.prompt_ids(case["prompt"]) == case["input_ids"]
    assert same_weights(VRSHQ.from_pretrained(again.save_pretrained(tmp_path / "twice")), again)


def test_a_folder_of_an_older_version_loads(tmp_path, checkpoint, model):
    "It says `kind` instead of `model_type`, and calls two parts by other names"
    out = convert(checkpoint, tmp_path / "old")
    config = json.loads((out / "config.json").read_text())
    del config["model_type"]
    (out / "config.json").write_text(json.dumps({"kind": "chatunivi", **config}))
    old = {}
    for key, value in load_file(out / "model.safetensors").items():
        key = key.replace("encoder.vision_tower.", "encoder.eye.", 1)
        old["clip." + key.removeprefix("scorer.") if key.startswith("scorer.") else key] = value
    save_file(old, out / "model.safetensors", metadata={"format": "pt"})
    again = VRSHQ.from_pretrained(out)
    assert same_weights(model, again)
    assert again.config["model_type"] == "vrshq_chatunivi" and "kind" not in again.config


def test_shapes_alone(tmp_path, checkpoint, model):
    for folder in (checkpoint, convert(checkpoint, tmp_path / "ours")):
        parts = as_module(load_shapes(folder))
        ours = {k: v.shape for k, v in parts.state_dict().items()}
        assert ours == {k: v.shape for k, v in model.state_dict().items()}


# ------------------------------ damaged checkpoints


def shard(folder, i=0):
    return find_shards(folder)[i]


def change(folder, edit):
    "Edits the state of the shard that holds a `gamma`"
    for path in find_shards(folder):
        state = torch.load(path, weights_only=True)
        if key := next((k for k in state if k.endswith("gamma")), None):
            edit(state, key)
            torch.save(state, path)
            return


def first_bytes(path, n):
    path.write_bytes(path.read_bytes()[:n])


def replace_once(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


class Evil:
    def __reduce__(self):
        return print, ("run",)


def rename_key(state, key):
    state[key.replace("gamma", "weight")] = state.pop(key)


def add_key(state, key):
    state["model.extra"] = state[key]


def cut_value(state, key):
    state[key] = state[key][:-1]


def infinite_value(state, key):
    state[key] = state[key] * float("inf")


def delete_weights(folder):
    for path in folder.glob("pytorch_model*"):
        path.unlink()


def unknown_tower(folder):
    config = {"mm_hidden_size": 32, "mm_vision_tower": "some/tower"}
    (folder / "config.json").write_text(json.dumps(config))


INDEX = "pytorch_model.bin.index.json"
UNREADABLE = "00001-of-00003.bin cannot be read"
DAMAGE = {
    "shard cut off": (lambda f: first_bytes(shard(f), 5000), UNREADABLE),
    "shard cut off at the end": (
        lambda f: first_bytes(shard(f), shard(f).stat().st_size - 100),
        UNREADABLE,
    ),
    "shard empty": (lambda f: shard(f).write_bytes(b""), UNREADABLE),
    "shard missing": (lambda f: shard(f, 1).unlink(), "1 of 3 shards are missing.*00002-of-00003"),
    "shard with code": (lambda f: torch.save({"a": Evil()}, shard(f)), UNREADABLE),
    "shard of lists": (
        lambda f: torch.save({"a": [1, 2]}, shard(f)),
        "something else than tensors",
    ),
    "key renamed": (lambda f: change(f, rename_key), "1 missing .*gamma.*1 unexpected .*weight"),
    "key missing": (lambda f: change(f, lambda s, k: s.pop(k)), "1 missing .*gamma"),
    "key left over": (lambda f: change(f, add_key), r"1 unexpected \(model.extra\)"),
    "key misshapen": (
        lambda f: change(f, cut_value),
        r"1 of another shape .*gamma \[63\] instead of \[64\]",
    ),
    "not finite": (lambda f: change(f, infinite_value), "1 not finite .*gamma"),
    "index broken": (lambda f: first_bytes(f / INDEX, 50), "no index of shards"),
    "index of nothing": (lambda f: (f / INDEX).write_text("{}"), "no index of shards"),
    "no weights": (delete_weights, "holds no weights"),
    "no vocabulary": (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model"),
    "config of another size": (
        lambda f: replace_once(
            f / "config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 4'
        ),
        "missing .*layers",
    ),
    "config of nonsense": (
        lambda f: replace_once(
            f / "config.json", '"num_attention_heads": 4', '"num_attention_heads": "four"'
        ),
        "config.json does not describe",
    ),
    "tower unknown": (unknown_tower, "unknown vision tower 'tower'"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_one_error(tmp_path, checkpoint, how, capsys):
    damage, words = DAMAGE[how]
    folder = shutil.copytree(checkpoint, tmp_path / "bad")
    damage(folder)
    with pytest.raises(VRSError, match=words) as e:
        VRSHQ.from_pretrained(folder)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600
    assert capsys.readouterr().out == ""


def test_a_damaged_safetensors_shard(tmp_path):
    folder = reference.write_released(tmp_path / "c", DATA, "safetensors", 2)
    first_bytes(shard(folder), 4000)
    with pytest.raises(VRSError, match="00001-of-00002.safetensors cannot be read"):
        load(folder)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: first_bytes(f / "model.safetensors", 9000), "cannot be read"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "vrshq_chatunivi"}'),
            "does not describe",
        ),
        (lambda f: (f / "config.json").write_text('{"kind": "chatunivi"}'), "does not describe"),
        (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model"),
    ],
)
def test_a_damaged_conversion(tmp_path, checkpoint, damage, words):
    damage(convert(checkpoint, tmp_path / "ours"))
    with pytest.raises(VRSError, match=words):
        VRSHQ.from_pretrained(tmp_path / "ours")


def test_nothing_is_left_where_converting_fails(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "bad")
    shard(folder).unlink()
    with pytest.raises(VRSError, match="missing"):
        convert(folder, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


def test_index_and_shards_must_agree(tmp_path):
    folder = reference.write_released(tmp_path / "c", DATA, "safetensors", 3)
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    first, second = sorted(set(whole["weight_map"].values()))[:2]
    more = whole["weight_map"] | {"model.extra.weight": second}
    index.write_text(json.dumps(whole | {"weight_map": more}))
    with pytest.raises(VRSError, match=f"1 tensors are not where.*model.extra.weight in {second}"):
        load(folder)
    index.write_text(json.dumps(whole))
    state = load_file(folder / second)
    name, value = next(iter(load_file(folder / first).items()))
    save_file(state | {name: value + 1}, folder / second)
    with pytest.raises(VRSError, match="in two shards"):
        load(folder)


def test_every_wrong_key_is_told_to_programs(tmp_path):
    folder = reference.write_released(tmp_path / "c", DATA)
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    save_file({k + "x" if i < 20 else k: v for i, (k, v) in enumerate(sorted(state.items()))}, path)
    with pytest.raises(VRSError, match="20 missing.*20 unexpected") as e:
        load(folder)
    assert len(e.value.problems["missing"]) == len(e.value.problems["unexpected"]) == 20


def test_shards_of_another_ending_are_read_by_it(tmp_path):
    state = {"a": torch.ones(2)}
    torch.save(state, tmp_path / "x.bin")
    save_file(state, tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("x.bin", "x.safetensors", "old.bin"):
        assert torch.equal(read_shard(tmp_path / name)["a"], torch.ones(2))


def test_added_words_without_ids_end_the_loading(tmp_path):
    folder = reference.write_released(tmp_path / "c", DATA)
    (folder / "added_tokens.json").write_text("[]")
    with pytest.raises(VRSError, match="added_tokens.json"):
        load(folder)


def test_another_model_is_not_converted(tmp_path, checkpoint, capsys):
    with pytest.raises(VRSError, match="no released checkpoint"):
        convert("nano", tmp_path / "out")
    with pytest.raises(VRSError, match="already"):
        convert(convert(checkpoint, tmp_path / "ours"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    other = tmp_path / "other"
    other.mkdir()
    for text in ("", "[1]", '{"kind": "backbones"}', '{"model_type": "qwen2_5_vl"}'):
        (other / "config.json").write_text(text)
        assert cli.main(["info", str(other)]) == 2
        assert "config.json" in capsys.readouterr().err


# ------------------------------ number types


def test_halves_stay_halves_and_run(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "half")
    for path in find_shards(folder):
        torch.save({k: v.bfloat16() for k, v in torch.load(path, weights_only=True).items()}, path)
    half, full = load(folder), load(folder, dtype=torch.float32)
    assert half.encoder.llm.dtype == torch.bfloat16
    assert half.sam2.memory_encoder.fuser.layers[0].gamma.dtype == torch.float32
    assert half.encoder.project[0].weight.dtype == torch.float32
    assert {v.dtype for v in as_module(full).state_dict().values()} == {torch.float32}
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 70, 3), dtype=np.uint8)
    tak = []
    with torch.no_grad():
        for parts in (half, full):
            visual = parts.encoder.encode_frames(frames)
            tak.append(parts.encoder(visual, "the dog")[0].tak)
    assert tak[0].dtype == torch.float32 and 0 < (tak[0] - tak[1]).abs().max() < 0.5
    again = VRSHQ.from_pretrained(convert(folder, tmp_path / "ours"))
    assert again.encoder.llm.dtype == torch.bfloat16


def test_saved_in_another_number_type(tmp_path, checkpoint):
    out = save(load(checkpoint), tmp_path / "half", dtype=torch.float16)
    state = load_file(out / "model.safetensors")
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}


# ------------------------------ the released size


def test_the_released_size():
    "Names and shapes of the 7B model: 1620 keys, 32 of them rotary tables (ignored)"
    words = type("Words", (), {"convert_tokens_to_ids": lambda self, word: 32000})()
    config = dict(
        llama=dict(vocab_size=32002),
        vision=VISION_TOWERS["clip-vit-large-patch14"],
        select_layer=-2,
        levels=MERGE_LEVELS,
        prompt_width=256,
        sam2=SAM2_LARGE,
        clip=None,
        clip_name="",
    )
    state = as_module(build(config, words, meta=True)).state_dict()
    shapes = {released_name(k): tuple(v.shape) for k, v in state.items()}
    starts = {
        "model.visual_model.": 900,
        "model.vision_tower.": 391,
        "model.text_hidden_fcs.": 4,
        "clip_model.": 0,
    }
    assert len(shapes) == 1620 - 32
    assert {s: sum(k.startswith(s) for k in shapes) for s in starts} == starts
    tower = "model.vision_tower.vision_tower.vision_model."
    some = {
        "model.embed_tokens.weight": (32002, 4096),
        "lm_head.weight": (32002, 4096),
        "model.layers.31.mlp.down_proj.weight": (4096, 11008),
        "model.mm_projector.weight": (4096, 1024),
        "model.text_hidden_fcs.0.2.weight": (256, 4096),
        tower + "embeddings.position_embedding.weight": (257, 1024),
        "model.visual_model.image_encoder.trunk.blocks.0.attn.qkv.weight": (432, 144),
        "model.visual_model.memory_encoder.fuser.layers.0.gamma": (256,),
    }
    assert {k: shapes[k] for k in some} == some


def test_released_config_by_names(tmp_path):
    "A config.json as LLaVA's descendants write it, without a word on CLIP's or SAM 2's sizes"
    released = dict(
        model_type="llava",
        vocab_size=32000,
        hidden_size=4096,
        rms_norm_eps=1e-5,
        rope_scaling=None,
        mm_vision_tower="openai/clip-vit-large-patch14",
        mm_hidden_size=1024,
        mm_vision_select_layer=-2,
        config=dict(
            use_cluster=True,
            spatial_cluster_rate0=64,
            spatial_cluster_rate1=32,
            spatial_cluster_rate2=16,
            temporal_cluster_rate=1 / 16,
        ),
    )
    (tmp_path / "config.json").write_text(json.dumps(released))
    config = released_config(tmp_path, LegacyLlamaTokenizer(DATA / "tiny_tokenizer"))
    assert config["vision"] == VISION_TOWERS["clip-vit-large-patch14"]
    assert config["sam2"] == SAM2_LARGE and config["prompt_width"] == 256
    assert config["clip"] is None
    assert config["llama"]["rms_norm_eps"] == 1e-5 and "rope_scaling" not in config["llama"]
    assert config["levels"] == [[64, 5], [32, 3], [16, 3]]


# ------------------------------ CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    words = build_tokenizer(["the red kite", "a boat"], 400)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    text = dict(
        vocab_size=400,
        max_position_embeddings=20,
        eos_token_id=words.eos_token_id,
        bos_token_id=0,
        pad_token_id=0,
    )
    vision = dict(image_size=32, patch_size=8)
    config = CLIPConfig(projection_dim=16, text_config=sizes | text, vision_config=sizes | vision)
    CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def without_clip(folder):
    "A released checkpoint that does not bring CLIP's weights"
    reference.write_released(folder, DATA)
    state = reference.released_state(DATA)
    state = {k: v for k, v in state.items() if not k.startswith("clip_model.")}
    save_file(state, folder / "model.safetensors")
    return folder


def test_from_pixels_and_text_alone(tmp_path, clip_folder, frames):
    "clip/ beside the checkpoint: segment works, and the converted folder brings CLIP along"
    folder = without_clip(tmp_path / "c")
    shutil.copytree(clip_folder, folder / "clip")
    first = VRSHQ.from_pretrained(folder)
    second = VRSHQ.from_pretrained(convert(folder, tmp_path / "ours"))
    texts = ["the red kite", "what is it?"]
    one, two = (m.segment(frames, texts, gate=False) for m in (first, second))
    assert one[0].masks.shape == (5, 40, 70) and len(one) == 2
    assert [c.frame for c in one[0].candidates] == list(range(5))
    for a, b in zip(one, two):  # at another place in memory numbers may be added in another order
        torch.testing.assert_close(a.fused, b.fused, atol=1e-5, rtol=1e-5)
        assert a.keyframe == b.keyframe and (a.masks != b.masks).mean() < 1e-3


def test_clip_from_a_folder_of_its_own(tmp_path, clip_folder, checkpoint, frames):
    parts = load(convert(checkpoint, tmp_path / "ours"), clip=clip_folder)
    model = VRSHQ(parts.encoder, parts.sam2, parts.scorer, parts.config)
    assert model.segment(frames, "the red kite", gate=False).masks.shape == (5, 40, 70)


def test_without_clip_loading_works_and_the_first_frame_says_why(tmp_path, frames):
    folder = without_clip(tmp_path / "c")
    model = VRSHQ.from_pretrained(folder)
    assert isinstance(model.scorer, LazyScorer)
    assert not any(k.startswith("scorer") for k in model.state_dict())
    model.scorer.name = "no such folder"
    with pytest.raises(VRSError, match="clip/"):
        model.segment(frames, "the red kite")
    again = VRSHQ.from_pretrained(convert(folder, tmp_path / "ours"))
    assert isinstance(again.scorer, LazyScorer)


def test_a_clip_that_was_fetched_later_is_no_part_of_the_weights(clip_folder, frames):
    scorer = LazyScorer(clip_folder)
    features = scorer.encode_frames(frames)
    assert scorer.logits(features, ["the red kite", "a boat"]).shape == (2, 5)
    assert not scorer.state_dict() and not list(scorer.parameters())
    assert scorer.scorer is scorer.scorer  # loaded once


def test_clip_s_weights_without_its_words(frames):
    with pytest.raises(VRSError, match="tokenizer"):
        reference.run_model(DATA).segment(frames, "the red kite")


def test_clip_beside_a_checkpoint_that_holds_one(tmp_path, clip_folder, frames):
    folder = reference.write_released(tmp_path / "c", DATA)
    shutil.copytree(clip_folder, folder / "clip")
    seg = VRSHQ.from_pretrained(folder).segment(frames, "the red kite", gate=False)
    assert seg.masks.shape == frames.shape[:3]  # the one with a tokenizer is taken


def test_clip_with_a_weight_missing_is_refused(tmp_path, clip_folder):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VRSError, match="1 of its weights are missing"):
        load_transformers_scorer(folder)


def test_clip_s_tokenizer_damaged(tmp_path, clip_folder):
    folder = without_clip(tmp_path / "c")
    shutil.copytree(clip_folder, folder / "clip")
    ours = convert(folder, tmp_path / "ours")
    (ours / "clip" / "tokenizer.json").write_text("{")
    with pytest.raises(VRSError, match="CLIP's tokenizer.*convert"):
        load(ours)


def test_long_sentences_keep_their_end(clip_folder):
    scorer = load_transformers_scorer(clip_folder)
    ids = scorer.tokenize(["the red kite " * 30, "a boat"])
    assert ids.shape[1] <= 20
    assert scorer.encode_text(["the red kite " * 30]).isfinite().all()


# ------------------------------ other doors


def test_other_models_are_loaded_as_before():
    nano = VRSHQ.from_pretrained("nano")
    assert type(nano) is VRSHQ and not isinstance(nano.encoder, ChatUniViEncoder)


def test_the_functions_for_both_formats_agree(tmp_path, checkpoint, model):
    assert same_weights(as_module(load_released(checkpoint)), model)
    assert same_weights(as_module(load(convert(checkpoint, tmp_path / "ours"))), model)


def test_info_and_convert(tmp_path, checkpoint, capsys):
    assert cli.main(["info", str(checkpoint), "--json", "--video", "40"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["parameters"] == sum(about["parts"].values()) > 1e5
    assert about["bytes"]["bf16"] == 2 * about["parameters"]
    tokens, candidates = (about["video"][k] for k in ("visual_tokens_per_frame", "candidates"))
    assert tokens == 112 and 10 <= candidates <= 12
    assert about["video"]["sequence"] > candidates * 112
    ours = str(tmp_path / "ours")
    assert cli.main(["convert", str(checkpoint), ours, "--dtype", "fp32"]) == 0
    assert "ours" in capsys.readouterr().out
    assert cli.main(["info", ours, "--video", "40"]) == 0
    assert f"{about['parameters']:,}" in capsys.readouterr().out
    assert cli.main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    assert cli.main(["convert", str(checkpoint), ours]) == 2  # never over what is there

"""The paper's own language model against the reference implementation, and its checkpoints: good ones and damaged ones.

`data/chatunivi` holds inputs and outputs of the reference run (float32, CPU, noise 0) with its tiny weights; SAM 2's are drawn again from their seed.
"""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

import reference
from vrshq_nb import chatunivi, cli
from vrshq_nb.llama_tokenizer import IMAGE_ID, split_added
from vrshq_nb.chatunivi import (
    LEVELS,
    TOWERS,
    ChatUniViVRSHQ,
    HubClip,
    PaddedPredictor,
    PaperTokenizer,
    Pieces,
    clip_images,
    cluster,
    crop_logits,
    decode_prompt,
    load_clip,
    merge,
    merge_cells,
    merge_pairs,
    nearby_frames,
    read_pieces,
)
from vrshq_nb.released import (
    SAM2_LARGE,
    convert,
    find_shards,
    load_released,
    read_shard,
    released_name,
)
from vrshq_nb.transforms import inner_size, pil_resize
from vrshq_nb.folders import read_config
from vrshq_nb.model import VRSHQ
from vrshq_nb.tokens import SEG, TAK
from vrshq_nb.nano import build_tokenizer
from vrshq_nb.files import VRSError

DATA = Path(__file__).parent / "data" / "chatunivi"
PROMPTS = json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))
tensor = reference.tensor


def npz(name):
    return dict(np.load(DATA / f"{name}.npz"))


def cases(arrays, depth=1):
    return sorted({"/".join(k.split("/")[:depth]) for k in arrays})


@pytest.fixture(scope="module")
def model():
    return reference.run_model(DATA)


@pytest.fixture(scope="module")
def tokenizer():
    return PaperTokenizer(DATA / "tiny_tokenizer")


# ---- the vocabulary


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def write_vocabulary(folder, pieces, kind=2, keep_blanks=True, prefix=True):
    folder.mkdir(exist_ok=True)
    rows = [
        field(1, field(1, text.encode()) + field(2, float(score)) + field(3, k))
        for text, score, k in pieces
    ]
    (folder / "tokenizer.model").write_bytes(
        b"".join(rows)
        + field(2, field(3, kind))
        + field(3, field(3, int(prefix)) + field(4, int(not keep_blanks)))
    )
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    "LLaMA's vocabulary as far as the conversations can use it, at the true ids; the rest are pieces that nothing matches"
    named = {i: t for t, i in PROMPTS["llama_pieces"].items()}
    head = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)] + [
        (f"<0x{b:02X}>", 0, 6) for b in range(256)
    ]
    score = lambda t, i: (
        -1e9 if len(t) > 1 and set(t) == {"▁"} else 259 - i
    )  # runs of blanks come last in LLaMA
    rest = [(named.get(i, f"\0{i}"), score(named.get(i, "\0"), i), 1) for i in range(259, 32000)]
    return PaperTokenizer(write_vocabulary(tmp_path_factory.mktemp("llama"), head + rest))


@pytest.mark.parametrize("which", ["tiny", "llama"])
def test_conversations_have_the_reference_s_ids(which, tokenizer, llama):
    words = {"tiny": tokenizer, "llama": llama}[which]
    assert len(PROMPTS[which]) == {"tiny": 50, "llama": 30}[which]
    for case in PROMPTS[which]:
        ids = words.prompt_ids(case["prompt"])
        assert ids == case["input_ids"]
        assert len(ids) + 111 * ids.count(IMAGE_ID) == case["expanded_len"]
        assert decode_prompt(words, ids) == case["prompt"]


def test_llama_s_new_ids(llama):
    assert (
        len(llama) == 32002
        and llama.new == {SEG: 32000, TAK: 32001}
        and (llama.bos, llama.eos) == (1, 2)
    )
    assert llama.model.encode(" the") == [
        PROMPTS["llama_pieces"][p] for p in ("▁", "▁the")
    ]  # not the two blanks first


def test_added_words_eat_blanks():
    added = {SEG: 7, TAK: 8, "</s>": 2}
    assert split_added("a [SEG]  , b[TAK]\n.</s> c", added, (SEG, TAK)) == [
        "a",
        7,
        ", b",
        8,
        ".",
        2,
        " c",
    ]
    assert (
        split_added("[SEG][SEG]", added, (SEG, TAK)) == [7, 7]
        and split_added("", added, (SEG,)) == []
    )


def test_ids_from_added_tokens_json(tmp_path):
    shutil.copytree(DATA / "tiny_tokenizer", tmp_path / "t")
    (tmp_path / "t" / "added_tokens.json").write_text(json.dumps({"[SEG]": 520, "[TAK]": 512}))
    words = PaperTokenizer(tmp_path / "t")
    assert words.encode("[SEG][TAK]") == [1, 520, 512] and len(words) == 521


@pytest.mark.parametrize("text", ["naïve 凧 🪁", "a  b   c", "  x ", "é\n\n x", "\0", "%s {}"])
def test_text_goes_there_and_back(tokenizer, text):
    assert tokenizer.model.decode(tokenizer.model.encode(text)) == " " + text


def test_merging_is_what_the_plain_loop_does():
    rng, scores = (
        np.random.default_rng(0),
        {"aa": 0, "ab": -1, "aaa": -2, "ba": -3, "bab": -4, "abab": -5, "ac": -1},
    )  # equal scores, too

    def slow(text):
        parts = list(text)
        while pairs := [
            (scores[a + b], -i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in scores
        ]:
            i = -max(pairs)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts

    for _ in range(300):
        text = "".join(rng.choice(list("aaabbc"), rng.integers(0, 40)))
        assert merge_pairs(text, scores) == slow(text)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:1000],
        lambda b: b"",
        lambda b: b"no vocabulary",
        lambda b: b[:7],
        lambda b: np.random.default_rng(0).bytes(500),
    ],
)
def test_a_damaged_vocabulary(tmp_path, damage):
    (tmp_path / "tokenizer.model").write_bytes(
        damage((DATA / "tiny_tokenizer" / "tokenizer.model").read_bytes())
    )
    with pytest.raises(VRSError, match="tokenizer.model"):
        PaperTokenizer(tmp_path)


def test_no_vocabulary(tmp_path):
    with pytest.raises(VRSError, match="tokenizer.model"):
        PaperTokenizer(tmp_path)


@pytest.mark.parametrize("other", [dict(kind=1), dict(keep_blanks=False)])
def test_another_kind_of_vocabulary_is_refused(tmp_path, other):
    pieces, _, _ = read_pieces(DATA / "tiny_tokenizer" / "tokenizer.model")
    with pytest.raises(VRSError, match="byte-pair"):
        Pieces(write_vocabulary(tmp_path / "v", pieces, **other) / "tokenizer.model")


@pytest.mark.parametrize("text", ["the <image>", "a </s> b", "<s>", "<unk> dog"])
def test_a_sentence_cannot_hold_the_model_s_marks(model, text):
    with pytest.raises(VRSError, match="must not contain"):
        model.encoder.prompt(text, 2)


# ---- merging

NOISE = npz("dpc_knn_noise")
UNIVI = npz("chatunivi_tiny")


@pytest.mark.parametrize("case", cases(NOISE))
def test_clusters_with_recorded_noise(case):
    x, n, k = (
        tensor(NOISE[f"{case}/x"]).float(),
        int(NOISE[f"{case}/cluster_num"]),
        int(NOISE[f"{case}/k_used"]),
    )
    assigned = cluster(x, n, k, tensor(NOISE[f"{case}/noise_u01"]))
    assert np.array_equal(assigned.numpy(), NOISE[f"{case}/idx_cluster"])
    torch.testing.assert_close(
        merge(x, assigned, n), tensor(NOISE[f"{case}/merged"]), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("case", ["b3_256_64", "c64_32"])
def test_clusters_without_noise(case):
    x, n, k = (
        tensor(UNIVI[f"ctm/{case}/x"]),
        UNIVI[f"ctm/{case}/merged"].shape[1],
        int(UNIVI[f"ctm/{case}/meta_ratio_k_numclusters_kused"][1]),
    )
    assert np.array_equal(cluster(x, n, k).numpy(), UNIVI[f"ctm/{case}/idx_cluster"])


def test_three_levels_and_the_projector(model):
    x = tensor(UNIVI["project_image/0/in"])
    levels = torch.cat([tensor(UNIVI[f"project_image/0/level{i}"]) for i in range(3)], 1)
    torch.testing.assert_close(merge_cells(x), levels, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(
            model.encoder.tokens_of(x), tensor(UNIVI["project_image/0/out"]), atol=1e-5, rtol=1e-5
        )


def test_noise_is_an_argument():
    torch.manual_seed(0)
    x, noise = torch.randn(2, 256, 8), [torch.rand(2, n) for n in (256, 64, 32)]
    assert merge_cells(x).shape == (2, 112, 8) and torch.equal(merge_cells(x), merge_cells(x))
    assert (
        torch.equal(merge_cells(x, noise=noise), merge_cells(x, noise=noise))
        and merge_cells(x, noise="random").isfinite().all()
    )
    assert merge_cells(torch.randn(1, 40, 8), ((1 / 16, 5),)).shape == (1, 3, 8) and merge_cells(
        torch.randn(1, 4, 8), ((1 / 16, 5),)
    ).shape == (1, 1, 8)
    assert (
        merge_cells(torch.ones(1, 256, 4)).allclose(torch.ones(1, 112, 4), atol=1e-5)
        or merge_cells(torch.ones(1, 256, 4)).isfinite().all()
    )
    with pytest.raises(VRSError, match="cannot form"):
        cluster(x, 257)


# ---- the language model


@torch.no_grad()
def test_teacher_forced_states(model):
    ids, e = tensor(UNIVI["fwd/input_ids"])[0], model.encoder
    cells = tensor(UNIVI["fwd/visual_tokens"])
    seg, tak = e.states(cells, ids)
    for ours, theirs in (
        (seg, "fwd/hidden_used_for_seg(pos-1)"),
        (tak, "fwd/hidden_used_for_tak(pos-1)"),
        (e.project(seg), "fwd/pred_seg"),
        (e.project(tak), "fwd/pred_tak"),
    ):
        torch.testing.assert_close(ours, tensor(UNIVI[theirs]), atol=1e-4, rtol=1e-4)
    long = e.expand(ids, 112)
    assert (long == e.seg_id).nonzero()[:, 0].tolist() == UNIVI[
        "fwd/seg_positions_in_expanded"
    ].tolist()
    labels = tensor(UNIVI["fwd/labels_expanded"])[0]
    loss = torch.nn.functional.cross_entropy(
        e.llm.lm_head(e.hidden(e.embed(cells, ids)))[:-1], labels[1:]
    )
    assert abs(float(loss) - float(UNIVI["fwd/loss"])) < 1e-5


@torch.no_grad()
def test_a_call(model):
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 70, 3), dtype=np.uint8)
    cells = model.encoder.see(frames, batch_size=2)
    assert cells.shape == (3, 112, 64)
    torch.testing.assert_close(cells, model.encoder.see(frames), atol=1e-5, rtol=1e-5)
    tokens, answer = model.encoder(cells, "The  DOG", [0, 4, 8])
    assert (
        tokens.seg.shape == (3, 64) and tokens.tak.shape == (1, 64) and tokens.frames == [0, 4, 8]
    )
    assert answer.startswith(
        "Sure, the segmentation result of each frame is (0) [SEG]"
    ) and answer.endswith("[TAK].")
    with pytest.raises(ValueError, match="2 frame numbers for 3 frames"):
        model.encoder(cells, "the dog", [0, 1])
    with pytest.raises(ValueError, match="2 frames for 3 places"):
        model.encoder.embed(cells[:2], model.encoder.prompt("the dog", 3)[0])
    with pytest.raises(VRSError, match="fewer candidates"):
        model.encoder(cells[:1].expand(40, -1, -1), "the dog")
    with pytest.raises(VRSError, match="no frames"):
        model.encoder.see(frames[:0])


# ---- pixels and padding

PIXELS = npz("preprocess")


@pytest.mark.parametrize("case", [c for c in cases(PIXELS, 2) if c.startswith("sam")])
def test_padded_frames(model, case):
    rgb, size = PIXELS[f"{case}/rgb"], int(case.split("_to")[1])
    h, w = inner_size(*rgb.shape[:2], size)
    assert (h, w) == tuple(PIXELS[f"{case}/resize_hw"])
    assert np.array_equal(
        pil_resize(rgb[None], h, w)[0].permute(1, 2, 0).numpy(), PIXELS[f"{case}/resized"]
    )
    before, model.sam2.image_size = model.sam2.image_size, size
    try:
        ours = model.sam2.prepare(rgb[None])[0]
    finally:
        model.sam2.image_size = before
    torch.testing.assert_close(
        ours, tensor(PIXELS[f"{case}/normalised_padded"]), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("case", [c for c in cases(PIXELS, 2) if c.startswith("clip")])
def test_clip_s_pixels(case):
    torch.testing.assert_close(
        clip_images(PIXELS[f"{case}/rgb"][None], 64)[0],
        tensor(PIXELS[f"{case}/pixel_values"]),
        atol=1e-6,
        rtol=1e-6,
    )


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


def test_a_mask_comes_back_where_it_was(model):
    true = torch.zeros(1, 60, 100, dtype=torch.bool)
    true[0, 20:50, 10:60] = True
    h, w = inner_size(60, 100, 128)
    square = torch.zeros(1, 1, 128, 128)
    square[..., :h, :w] = torch.nn.functional.interpolate(true[None].float(), (h, w), mode="area")
    logits = (torch.nn.functional.interpolate(square, (32, 32), mode="area")[:, 0] - 0.5) * 10
    back = crop_logits(logits, 128, (h, w), 60, 100)
    assert back.shape == (1, 60, 100) and back.dtype == torch.bool
    assert float((back & true).sum() / (back | true).sum()) > 0.95
    assert torch.equal(
        crop_logits(logits.repeat(5, 1, 1), 128, (h, w), 60, 100, chunk=2), back.repeat(5, 1, 1)
    )
    assert isinstance(model.sam2, PaddedPredictor)


# ---- whole runs


@pytest.mark.parametrize("name", ["e2e_infer_T1", "e2e_infer_T4"])
def test_inference(name):
    report = reference.check_inference(DATA / f"{name}.npz")
    assert report.first is None and len(report.differences) == 19
    assert report.differences["mask logits"] < 1e-3 and report.differences["seg token"] < 1e-4


@pytest.mark.parametrize("case", reference.cases(np.load(DATA / "e2e_training.npz")))
def test_training(case):
    [report] = reference.check_training(DATA / "e2e_training.npz", only=case).values()
    assert report.first is None and {
        "loss",
        "gradient of lm_head",
        "gradient of mask_tokens",
        "mask logits 0",
    } <= set(report.differences)


@pytest.mark.parametrize(
    "key, change, named",
    [
        ("fused", lambda x: x + 0.01, "fused token"),
        (
            "llm_input_ids",
            lambda x: np.where(np.arange(x.shape[1]) == 5, 3 + ord("a"), x),
            "token ids",
        ),
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


def test_a_longer_run_is_compared_too(tmp_path, model):
    "14 frames of a portrait video, so that not all are candidates: our own numbers written in the reference's format, with one of them changed"
    rng, T, hw = np.random.default_rng(3), 14, (72, 54)
    frames = rng.integers(0, 256, (T, *hw, 3), dtype=np.uint8)
    run = reference.run_model(DATA)
    arrays = npz("e2e_infer_T1") | dict(
        images_sam=run.sam2.prepare(frames).numpy(),
        images_clip=clip_images(frames, 64).numpy(),
        clip_pixel_values=clip_images(frames, 32).numpy(),
        alpha=np.array(1.0),
        resize=np.array(inner_size(*hw, 128)),
        orig_hw=np.array(hw),
    )
    arrays["llm_input_ids"] = np.array(
        [run.tokenizer.prompt_ids("".join(reference.temporal_prompt("the dog", 7)))]
    )
    with torch.no_grad():
        shared = reference.stored_video(run, arrays | {"frame_ids": np.arange(T)})
        seg = reference.segment_one(
            run, shared, "the dog", reference.Options(alpha=1.0, gate=False)
        )
    np.savez(
        tmp_path / "T14.npz",
        **arrays
        | dict(
            clip_logits_per_image=seg.clip_logits[:, None].numpy(),
            anchor=seg.anchor,
            frame_ids=seg.tokens.frames,
            keyframe=seg.keyframe + 1,
        ),
    )
    with pytest.raises(AssertionError) as e:
        reference.check_inference(tmp_path / "T14.npz", DATA)
    report = e.value.report
    assert (
        report.differences["token ids"] == report.differences["candidate frames"] == 0
        and len(seg.tokens.frames) == 7
    )
    assert (
        report.first.startswith("inputs of the language model")
        and report.differences["keyframe"] == 1
    )


def test_the_script(tmp_path):
    def run(*args):
        return subprocess.run(
            [sys.executable, str(Path(reference.__file__)), *map(str, args)],
            capture_output=True,
            text=True,
            timeout=300,
        )

    done = run(DATA / "e2e_infer_T1.npz")
    assert done.returncode == 0 and "mask logits" in done.stdout and "DIFFERS" not in done.stdout
    arrays = npz("e2e_infer_T1")
    np.savez(tmp_path / "x.npz", **arrays | {"keyframe": arrays["keyframe"] + 1})
    done = run(tmp_path / "x.npz", DATA)
    assert (
        done.returncode == 1
        and "keyframe differs by 1" in done.stderr
        and "Traceback" not in done.stderr
    )


# ---- checkpoints


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return reference.write_released(tmp_path_factory.mktemp("released") / "ckpt", DATA, "bin", 3)


@pytest.mark.parametrize(
    "kind, shards", [("bin", 1), ("bin", 3), ("safetensors", 1), ("safetensors", 2)]
)
def test_every_form_of_checkpoint_loads_the_same(tmp_path, model, kind, shards):
    folder = reference.write_released(tmp_path / "c", DATA, kind, shards)
    assert len(find_shards(folder)) == shards
    loaded = VRSHQ.from_pretrained(folder)
    assert isinstance(loaded, ChatUniViVRSHQ) and not loaded.training
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_every_tensor_has_the_file_s_numbers(model):
    stored = {
        k: v
        for k, v in reference.released_state(DATA).items()
        if not k.endswith("rotary_emb.inv_freq")
    }
    ours = {released_name(k): v for k, v in model.state_dict().items()}
    assert ours.keys() == stored.keys() and all(torch.equal(v, stored[k]) for k, v in ours.items())
    gamma = [k for k in stored if k.endswith("gamma")]
    assert len(gamma) == 2 and all(
        k.startswith("model.visual_model.memory_encoder.fuser") for k in gamma
    )


def test_rotary_tables_are_real_after_loading(model):
    tables = {k: v for k, v in model.named_buffers()}
    assert all(v.device.type == "cpu" for v in [*tables.values(), *model.parameters()])
    stored = reference.released_state(DATA)["model.layers.0.self_attn.rotary_emb.inv_freq"]
    torch.testing.assert_close(model.encoder.llm.model.rotary_emb.inv_freq, stored)


def test_converted_is_identical(tmp_path, released, model):
    out = convert(released, tmp_path / "ours")
    assert json.loads((out / "config.json").read_text())["kind"] == "chatunivi"
    assert any(k.endswith("gamma") for k in load_file(out / "model.safetensors"))
    again = VRSHQ.from_pretrained(out)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())
    assert (
        again.tokenizer.prompt_ids(PROMPTS["tiny"][7]["prompt"]) == PROMPTS["tiny"][7]["input_ids"]
    )
    once_more = VRSHQ.from_pretrained(again.save_pretrained(tmp_path / "twice"))
    assert all(torch.equal(v, theirs[k]) for k, v in once_more.state_dict().items())


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


class Evil:
    def __reduce__(self):
        return print, ("run",)


DAMAGE = {
    "shard cut off": (lambda f: first_bytes(shard(f), 5000), "00001-of-00003.bin cannot be read"),
    "shard cut off at the end": (
        lambda f: first_bytes(shard(f), shard(f).stat().st_size - 100),
        "00001-of-00003.bin cannot be read",
    ),
    "shard empty": (lambda f: shard(f).write_bytes(b""), "00001-of-00003.bin cannot be read"),
    "shard missing": (lambda f: shard(f, 1).unlink(), "1 of 3 shards are missing.*00002-of-00003"),
    "shard with code": (
        lambda f: torch.save({"a": Evil()}, shard(f)),
        "00001-of-00003.bin cannot be read",
    ),
    "shard of lists": (
        lambda f: torch.save({"a": [1, 2]}, shard(f)),
        "something else than tensors",
    ),
    "key renamed": (
        lambda f: change(f, lambda s, k: s.__setitem__(k.replace("gamma", "weight"), s.pop(k))),
        "1 missing .*gamma.*1 unexpected .*weight",
    ),
    "key missing": (lambda f: change(f, lambda s, k: s.pop(k)), "1 missing .*gamma"),
    "key left over": (
        lambda f: change(f, lambda s, k: s.__setitem__("model.extra", s[k])),
        r"1 unexpected \(model.extra\)",
    ),
    "key misshapen": (
        lambda f: change(f, lambda s, k: s.__setitem__(k, s[k][:-1])),
        r"1 of another shape .*gamma \[63\] instead of \[64\]",
    ),
    "not finite": (
        lambda f: change(f, lambda s, k: s.__setitem__(k, s[k] * float("inf"))),
        "1 not finite .*gamma",
    ),
    "index broken": (
        lambda f: first_bytes(f / "pytorch_model.bin.index.json", 50),
        "no index of shards",
    ),
    "index of nothing": (
        lambda f: (f / "pytorch_model.bin.index.json").write_text("{}"),
        "no index of shards",
    ),
    "no weights": (lambda f: [p.unlink() for p in f.glob("pytorch_model*")], "holds no weights"),
    "no vocabulary": (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model"),
    "config of another size": (
        lambda f: (f / "config.json").write_text(
            (f / "config.json")
            .read_text()
            .replace('"num_hidden_layers": 2', '"num_hidden_layers": 4', 1)
        ),
        "missing .*layers",
    ),
    "config of nonsense": (
        lambda f: (f / "config.json").write_text(
            (f / "config.json")
            .read_text()
            .replace('"num_attention_heads": 4', '"num_attention_heads": "four"', 1)
        ),
        "config.json does not describe",
    ),
    "tower unknown": (
        lambda f: (f / "config.json").write_text(
            json.dumps({"mm_hidden_size": 32, "mm_vision_tower": "some/tower"})
        ),
        "unknown vision tower 'tower'",
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_one_error(tmp_path, released, how, capsys):
    damage, words = DAMAGE[how]
    folder = shutil.copytree(released, tmp_path / "bad")
    damage(folder)
    with pytest.raises(VRSError, match=words) as e:
        VRSHQ.from_pretrained(folder)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600 and capsys.readouterr().out == ""


def test_a_damaged_safetensors_shard(tmp_path):
    folder = reference.write_released(tmp_path / "c", DATA, "safetensors", 2)
    first_bytes(shard(folder), 4000)
    with pytest.raises(VRSError, match="00001-of-00002.safetensors cannot be read"):
        load_released(folder)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: first_bytes(f / "model.safetensors", 9000), "cannot be read"),
        (lambda f: (f / "config.json").write_text('{"kind": "chatunivi"}'), "does not describe"),
        (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model"),
    ],
)
def test_a_damaged_conversion(tmp_path, released, damage, words):
    damage(convert(released, tmp_path / "ours"))
    with pytest.raises(VRSError, match=words):
        VRSHQ.from_pretrained(tmp_path / "ours")


def test_nothing_is_left_where_converting_fails(tmp_path, released):
    folder = shutil.copytree(released, tmp_path / "bad")
    shard(folder).unlink()
    with pytest.raises(VRSError, match="missing"):
        convert(folder, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad"]


def test_halves_stay_halves_and_run(tmp_path, released):
    folder = shutil.copytree(released, tmp_path / "half")
    for path in find_shards(folder):
        torch.save({k: v.bfloat16() for k, v in torch.load(path, weights_only=True).items()}, path)
    half, full = load_released(folder), load_released(folder, dtype=torch.float32)
    assert (
        half.encoder.llm.dtype == torch.bfloat16
        and half.sam2.memory_encoder.fuser.layers[0].gamma.dtype
        == half.encoder.project[0].weight.dtype
        == torch.float32
    )
    assert {v.dtype for v in full.state_dict().values()} == {torch.float32}
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 70, 3), dtype=np.uint8)
    with torch.no_grad():
        tokens = [m.encoder(m.encoder.see(frames), "the dog")[0].tak for m in (half, full)]
    assert tokens[0].dtype == torch.float32 and 0 < (tokens[0] - tokens[1]).abs().max() < 0.5
    assert (
        VRSHQ.from_pretrained(convert(folder, tmp_path / "ours")).encoder.llm.dtype
        == torch.bfloat16
    )


def test_the_released_size():
    "The 7B model's names and shapes on the meta device: 1620 keys with the 32 rotary tables that follow from the config"
    words = type("Words", (), {"convert_tokens_to_ids": lambda self, w: 32000})()
    config = dict(
        llama=dict(vocab_size=32002),
        vision=TOWERS["clip-vit-large-patch14"],
        select_layer=-2,
        levels=LEVELS,
        prompt_width=256,
        sam2=SAM2_LARGE,
        clip=None,
        clip_name="",
    )
    shapes = {
        released_name(k): tuple(v.shape)
        for k, v in ChatUniViVRSHQ(config, words, meta=True).state_dict().items()
    }
    count = lambda start: sum(k.startswith(start) for k in shapes)
    assert (
        len(shapes) == 1620 - 32
        and count("model.visual_model.") == 900
        and count("model.vision_tower.") == 391
        and count("model.text_hidden_fcs.") == 4
        and count("clip_model.") == 0
    )
    some = {
        "model.embed_tokens.weight": (32002, 4096),
        "lm_head.weight": (32002, 4096),
        "model.layers.31.mlp.down_proj.weight": (4096, 11008),
        "model.mm_projector.weight": (4096, 1024),
        "model.text_hidden_fcs.0.2.weight": (256, 4096),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight": (
            257,
            1024,
        ),
        "model.visual_model.image_encoder.trunk.blocks.0.attn.qkv.weight": (432, 144),
        "model.visual_model.memory_encoder.fuser.layers.0.gamma": (256,),
    }
    assert {k: shapes[k] for k in some} == some


def test_released_config_by_names(tmp_path, tokenizer):
    "A config.json as LLaVA's descendants write it, without a word on CLIP's or SAM 2's sizes"
    (tmp_path / "config.json").write_text(
        json.dumps(
            dict(
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
        )
    )
    config = read_config(tmp_path, tokenizer)
    assert (
        config["vision"] == TOWERS["clip-vit-large-patch14"]
        and config["sam2"] == SAM2_LARGE
        and config["prompt_width"] == 256
        and config["clip"] is None
    )
    assert (
        config["llama"]["rms_norm_eps"] == 1e-5
        and "rope_scaling" not in config["llama"]
        and config["levels"] == [[64, 5], [32, 3], [16, 3]]
    )


# ---- CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder, words = (
        tmp_path_factory.mktemp("clip"),
        build_tokenizer(["the red kite", "a boat"], 400),
    )
    config = CLIPConfig(
        projection_dim=16,
        text_config=dict(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=20,
            eos_token_id=words.eos_token_id,
            bos_token_id=0,
            pad_token_id=0,
        ),
        vision_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        ),
    )
    CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def frames():
    return np.random.default_rng(1).integers(0, 256, (5, 40, 70, 3), dtype=np.uint8)


def test_from_pixels_and_text_alone(tmp_path, clip_folder, frames):
    "clip/ beside the checkpoint: segment works, and the converted folder brings CLIP along"
    state = {
        k: v for k, v in reference.released_state(DATA).items() if not k.startswith("clip_model.")
    }
    folder = reference.write_released(tmp_path / "c", DATA)
    save_file(state, folder / "model.safetensors")
    shutil.copytree(clip_folder, folder / "clip")
    first = VRSHQ.from_pretrained(folder)
    second = VRSHQ.from_pretrained(convert(folder, tmp_path / "ours"))
    one, two = (
        m.segment(frames, ["the red kite", "what is it?"], gate=False) for m in (first, second)
    )
    assert (
        one[0].masks.shape == (5, 40, 70)
        and len(one) == 2
        and [c.frame for c in one[0].candidates] == list(range(5))
    )
    for a, b in zip(
        one, two
    ):  # the same numbers at another place in memory may be added up in another order
        torch.testing.assert_close(a.fused, b.fused, atol=1e-5, rtol=1e-5)
        assert a.keyframe == b.keyframe and (a.masks != b.masks).mean() < 1e-3


def test_without_clip_loading_works_and_the_first_frame_says_why(tmp_path, frames):
    folder = reference.write_released(tmp_path / "c", DATA)
    save_file(
        {
            k: v
            for k, v in reference.released_state(DATA).items()
            if not k.startswith("clip_model.")
        },
        folder / "model.safetensors",
    )
    model = VRSHQ.from_pretrained(folder)
    assert isinstance(model.clip, HubClip) and not any(
        k.startswith("clip") for k in model.state_dict()
    )
    model.clip.name = "no such folder"
    with pytest.raises(VRSError, match="clip/"):
        model.segment(frames, "the red kite")
    assert isinstance(VRSHQ.from_pretrained(convert(folder, tmp_path / "ours")).clip, HubClip)


def test_clip_s_weights_without_its_words(frames):
    with pytest.raises(VRSError, match="tokenizer"):
        reference.run_model(DATA).segment(frames, "the red kite")


def test_clip_with_a_weight_missing_is_refused(tmp_path, clip_folder):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VRSError, match="1 of its weights are missing"):
        load_clip(folder)


def test_long_sentences_keep_their_end(clip_folder):
    scorer = load_clip(clip_folder)
    ids = scorer.ids_of(["the red kite " * 30, "a boat"])
    assert ids.shape[1] <= 20 and scorer.encode_text(["the red kite " * 30]).isfinite().all()


# ---- training's own rules


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


def test_shards_of_another_ending_are_read_by_it(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin")
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert all(
        torch.equal(read_shard(tmp_path / n)["a"], torch.ones(2))
        for n in ("x.bin", "x.safetensors")
    )
    torch.save({"a": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read_shard(tmp_path / "old.bin")["a"], torch.ones(2))


def test_other_models_are_loaded_as_before():
    assert type(VRSHQ.from_pretrained("nano")) is VRSHQ and chatunivi.VRSHQ is VRSHQ


# ---- the command line


def test_info_and_convert(tmp_path, released, capsys):
    assert cli.main(["info", str(released), "--json", "--frames", "40"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (
        about["parameters"] == sum(about["parts"].values()) > 1e5
        and about["bytes"]["bf16"] == 2 * about["parameters"]
    )
    tokens, seen = about["video"]["visual_tokens_per_frame"], about["video"]["candidates"]
    assert tokens == 112 and 10 <= seen <= 12 and about["video"]["sequence"] > seen * 112
    assert cli.main(["convert", str(released), str(tmp_path / "ours"), "--dtype", "fp32"]) == 0
    assert "ours" in capsys.readouterr().out
    assert (
        cli.main(["info", str(tmp_path / "ours")]) == 0
        and f"{about['parameters']:,}" in capsys.readouterr().out
    )
    assert (
        cli.main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
        and not (tmp_path / "out").exists()
    )
    assert (
        cli.main(["convert", str(released), str(tmp_path / "ours")]) == 2
    )  # never over what is there


# ---- what a folder may be wrong about


def test_clip_beside_a_checkpoint_that_holds_one(tmp_path, clip_folder, frames):
    folder = reference.write_released(tmp_path / "c", DATA)
    shutil.copytree(clip_folder, folder / "clip")
    seg = VRSHQ.from_pretrained(folder).segment(
        frames, "the red kite", gate=False
    )  # the one with words is taken
    assert seg.masks.shape == frames.shape[:3]


def test_index_and_shards_must_agree(tmp_path):
    folder = reference.write_released(tmp_path / "c", DATA, "safetensors", 3)
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    first, second = sorted(set(whole["weight_map"].values()))[:2]
    index.write_text(
        json.dumps(whole | {"weight_map": whole["weight_map"] | {"model.extra.weight": second}})
    )
    with pytest.raises(VRSError, match=f"1 tensors are not where.*model.extra.weight in {second}"):
        load_released(folder)
    index.write_text(json.dumps(whole))
    state = load_file(folder / second)
    name, tensor = next(iter(load_file(folder / first).items()))
    save_file(state | {name: tensor + 1}, folder / second)
    with pytest.raises(VRSError, match="in two shards"):
        load_released(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"[SEG]": -5}', '{"[SEG]": "7"}'])
def test_added_words_that_have_no_ids(tmp_path, text):
    folder = reference.write_released(tmp_path / "c", DATA)
    (folder / "added_tokens.json").write_text(text)
    with pytest.raises(VRSError, match="added_tokens.json"):
        load_released(folder)


def test_another_model_is_not_converted(tmp_path, released, capsys):
    with pytest.raises(VRSError, match="no released checkpoint"):
        convert("nano", tmp_path / "out")
    with pytest.raises(VRSError, match="already"):
        convert(convert(released, tmp_path / "ours"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for text in ("", "[1]", '{"kind": "backbones"}', '{"model_type": "qwen2_5_vl"}'):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "config.json").write_text(text)
        assert (
            cli.main(["info", str(tmp_path / "other")]) == 2
            and "config.json" in capsys.readouterr().err
        )


def test_every_wrong_key_is_told_to_programs(tmp_path):
    folder = reference.write_released(tmp_path / "c", DATA)
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    save_file({k + "x" if i < 20 else k: v for i, (k, v) in enumerate(sorted(state.items()))}, path)
    with pytest.raises(VRSError, match="20 missing.*20 unexpected") as e:
        load_released(folder)
    assert len(e.value.problems["missing"]) == len(e.value.problems["unexpected"]) == 20


# ---- the comparison itself


def test_places_and_numbers_of_frames():
    "A run may name candidates by their place among the candidates, or by their number in the video."
    d = dict(np.load(DATA / "e2e_infer_T4.npz"))
    score = torch.from_numpy(d["tks_obj_logits"]).softmax(0)
    frames = np.array([1, 3, 5, 7])
    numbers = d | dict(frame_ids=frames, tks_frame_ids=frames, keyframe=frames[int(score.argmax())])
    places = numbers | dict(tks_frame_ids=np.arange(4), keyframe=np.int64(score.argmax()))
    for case in (numbers, places):
        got = reference.video_numbers(case)
        assert (
            got["tks_frame_ids"].tolist() == frames.tolist()
            and got["keyframe"] == numbers["keyframe"]
        )
    wrong = reference.video_numbers(numbers | dict(keyframe=np.int64(frames[int(score.argmin())])))
    assert wrong["keyframe"] != numbers["keyframe"]  # a wrong one stays wrong


def test_weights_need_not_lie_beside_the_run(tmp_path):
    shutil.copy(DATA / "e2e_infer_T1.npz", tmp_path)
    assert reference.check_inference(tmp_path / "e2e_infer_T1.npz").first is None

"Nano: tokenizer, connector, mask, a small encoder with random weights, and the builder."

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vrshq_nb.files import VRSError
from vrshq_nb.nano import (
    MAX_FRAMES,
    MODEL_TYPE,
    NanoEncoder,
    VideoConnector,
    build_tokenizer,
    cache_argument,
    current_name,
    load,
    save,
    shared_video_attention,
    shared_video_mask,
)
from vrshq_nb.tokens import SEG, TAK
from vrshq_nb.transforms import signed_square
from vrshq_nb.folders import find_weights

TEXTS = [
    "the red kite",
    "which kite leaves first?",
    "the thing that keeps the rain off",
    "find the boat",
]
CONFIG = dict(
    image_size=32,
    cells=4,
    prompt_width=12,
    tower=dict(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"),
    llama=dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    ),
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TEXTS, 400)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    torch.manual_seed(0)
    return NanoEncoder(CONFIG, tokenizer).eval()


@pytest.fixture(scope="module")
def visual(encoder):
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        return encoder.encode_frames(frames)


# tokenizer


@pytest.mark.parametrize("text", [*TEXTS, "velociraptors' 凧 🪁 são", "it's 3, no: (four)!"])
def test_tokenizer_round_trip(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == text.lower() and tokenizer.unk_token_id not in ids


def test_special_words_stay_whole(tokenizer, tmp_path):
    row = f"<user> the red kite<assistant>(0){SEG}({MAX_FRAMES - 1}){SEG}<video>{TAK}<end>"
    ids = tokenizer(row, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[-8:] == [
        "<assistant>",
        "(0)",
        SEG,
        f"({MAX_FRAMES - 1})",
        SEG,
        "<video>",
        TAK,
        "<end>",
    ]
    assert tokenizer.pad_token_id == 0 and tokenizer.eos_token_id == len(tokenizer) - 1
    tokenizer.save_pretrained(tmp_path)
    assert (
        type(tokenizer).from_pretrained(tmp_path)(row, add_special_tokens=False)["input_ids"] == ids
    )


def test_tokenizer_refuses():
    for args in [("one string", 400), (TEXTS, 100)]:
        with pytest.raises(ValueError, match="list of sentences"):
            build_tokenizer(*args)


# frames


def test_signed_square():
    x = signed_square(np.full((2, 48, 64, 3), 255, np.uint8), 32)
    assert x.shape == (2, 3, 32, 32) and x.dtype == torch.float32
    torch.testing.assert_close(x, torch.ones_like(x))
    black = signed_square(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), 32)
    assert black.unique().tolist() == [-1]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3)),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
    ],
)
def test_signed_square_refuses(frames):
    with pytest.raises(VRSError, match="uint8|RGB"):
        signed_square(frames, 32)


def test_seeing_in_parts_is_the_same(encoder):
    frames = np.random.default_rng(1).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.encode_frames(frames, batch_size=2),
            encoder.encode_frames(frames),
            atol=1e-5,
            rtol=1e-5,
        )
    with pytest.raises(VRSError, match="no frames"):
        encoder.encode_frames(frames[:0])


def test_connector_blocks_and_change():
    torch.manual_seed(0)
    connector, visual = VideoConnector(3, 8, 4), torch.randn(1, 2, 3, 4, 4)
    change = torch.stack([torch.zeros_like(visual[0, 0]), visual[0, 1] - visual[0, 0]])
    rows = torch.stack(
        [
            torch.stack(
                [
                    torch.cat([visual[0, t], change[t]])[:, y : y + 2, x : x + 2].flatten()
                    for y in (0, 2)
                    for x in (0, 2)
                ]
            )
            for t in (0, 1)
        ]
    )
    torch.testing.assert_close(
        connector(visual)[0], connector.out(connector.proj(connector.norm(rows))) + connector.place
    )
    still = connector(visual[:, :1].expand(-1, 5, -1, -1, -1))
    torch.testing.assert_close(still, still[:, :1].expand_as(still))


def test_mask():
    mask = shared_video_mask(3, 2, 2)[0, 0]
    assert mask.int().tolist() == [[1, 1, 1, 0, 0, 0, 0]] * 3 + [
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("parts", [(3, 2, 2), (5, 1, 4), (1, 3, 1)], ids=str)
def test_shared_attention_is_ordinary_attention_with_the_mask(parts):
    P, S, L = parts
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, P + S * L, 8, requires_grad=True) for _ in range(3))
    out, _ = shared_video_attention(nn.Identity(), q, k, v, None, parts=parts)
    mask = shared_video_mask(*parts)
    wanted = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(out, wanted, atol=1e-6, rtol=1e-5)
    weight = torch.randn_like(out)
    for x, own, theirs in zip(
        "qkv",
        torch.autograd.grad((out * weight).sum(), (q, k, v)),
        torch.autograd.grad((wanted * weight).sum(), (q, k, v)),
    ):
        torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-4, msg=x)


def test_without_parts_attention_is_ordinary():
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    out, _ = shared_video_attention(nn.Identity(), q, k, v, None, 8**-0.5)
    assert out.shape == (1, 5, 2, 8)
    module = nn.Identity()
    module.is_causal = True
    causal, _ = shared_video_attention(module, q, k, v, None, 8**-0.5)
    wanted = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(causal, wanted.transpose(1, 2), atol=1e-6, rtol=1e-5)


# the encoder


def test_state_dict_keys(encoder):
    assert {k.split(".")[0] for k in encoder.state_dict()} == {
        "vision_tower",
        "llm",
        "connector",
        "project",
    }
    shapes = {
        k: tuple(v.shape)
        for k, v in encoder.state_dict().items()
        if k.startswith(("connector", "project"))
    }
    assert shapes == {
        "connector.place": (4, 32),
        "connector.norm.weight": (64,),
        "connector.norm.bias": (64,),
        "connector.proj.0.weight": (64, 64),
        "connector.proj.0.bias": (64,),
        "connector.proj.2.weight": (32, 64),
        "connector.proj.2.bias": (32,),
        "connector.out.weight": (32,),
        "connector.out.bias": (32,),
        "project.0.weight": (32, 32),
        "project.0.bias": (32,),
        "project.2.weight": (12, 32),
        "project.2.bias": (12,),
    }


@torch.no_grad()
def test_call(encoder, visual):
    tokens, answer = encoder(visual, "The RED kite", [0, 4, 8], max_words=3)
    assert (
        tokens.seg.shape == (3, 12)
        and tokens.tak.shape == (1, 12)
        and tokens.frames == [0, 4, 8]
        and isinstance(answer, str)
    )
    again, silent = encoder(visual, "the  red kite", max_words=0)
    assert torch.equal(again.tak, tokens.tak) and again.frames == [0, 1, 2] and silent == ""
    assert encoder(visual[:1], "the red kite")[0].seg.shape == (1, 12)


@torch.no_grad()
def test_tokens_are_the_states_one_before(encoder, visual):
    ids = encoder.sentence_ids(["find the boat"], 3)
    read = encoder.run_llm(visual[None], ids[None])
    hidden, P = read.sentences, read.video.shape[1]
    marks = [encoder.tokenizer.convert_tokens_to_ids(w) for w in ("(0)", "(1)", "(2)", "<video>")]
    where = [int((ids[0] == m).nonzero()[0]) for m in marks]
    tokens, _ = encoder(visual, "find the boat")
    torch.testing.assert_close(
        encoder.project(hidden[0, 0, where]),
        torch.cat([tokens.seg, tokens.tak]),
        atol=1e-5,
        rtol=1e-5,
    )
    assert P == 3 * (1 + 4)


@torch.no_grad()
def test_batch_equals_single(encoder, visual):
    other = visual.flip(0)
    ids = encoder.sentence_ids(TEXTS, 3)
    assert (ids == encoder.pad_id).any()
    hidden = encoder.run_llm(torch.stack([visual, other]), torch.stack([ids, ids])).sentences
    for b, video in enumerate((visual, other)):
        for s, text in enumerate(TEXTS):
            one = encoder.sentence_ids([text], 3)
            alone = encoder.run_llm(video[None], one[None]).sentences
            torch.testing.assert_close(
                hidden[b, s, : one.shape[1]], alone[0, 0], atol=1e-4, rtol=1e-4
            )


@torch.no_grad()
def test_frames_see_one_another_but_not_the_sentence(encoder, visual):
    def video(c, text):
        return encoder.run_llm(c[None], encoder.sentence_ids([text], len(c))[None]).video[0]

    other = visual.clone()
    other[-1] = 0
    first = slice(0, 5)
    assert (video(visual, TEXTS[0])[first] - video(other, TEXTS[0])[first]).abs().max() > 1e-5
    torch.testing.assert_close(
        video(visual, TEXTS[0]), video(visual, TEXTS[3]), atol=1e-5, rtol=1e-5
    )


def test_words_in_the_sentence_are_never_tokens(encoder):
    ids = encoder.sentence_ids(["the [SEG] and the [TAK]"], 2)[0]
    assert (ids == encoder.seg_id).sum() == 2 and (ids == encoder.tak_id).sum() == 1


def test_endings(encoder):
    ids = encoder.sentence_ids(TEXTS[:2], 2, ["it is the red kite", "there is no such thing"])
    rows = encoder.tokenizer.batch_decode(ids)
    assert "[TAK] it is the red kite<end><pad>" in rows[0] and rows[1].endswith(
        "[TAK] there is no such thing<end>"
    )
    with pytest.raises(ValueError, match="1 endings for 2 sentences"):
        encoder.sentence_ids(TEXTS[:2], 2, ["one"])


@torch.no_grad()
def test_too_many_frames(encoder, visual):
    with pytest.raises(VRSError, match=f"{MAX_FRAMES + 1} frames.*at most {MAX_FRAMES}"):
        encoder(visual[:1].expand(MAX_FRAMES + 1, -1, -1, -1), "the red kite")
    assert encoder(visual[:1].expand(MAX_FRAMES, -1, -1, -1), "the red kite", max_words=0)[
        0
    ].seg.shape == (MAX_FRAMES, 12)


def test_frame_numbers_must_fit(encoder, visual):
    with pytest.raises(ValueError, match="2 frame numbers for 3 frames"):
        encoder(visual, "the red kite", [0, 1])


def test_gradient_reaches_everything(encoder, visual):
    encoder.zero_grad()
    tokens, _ = encoder(visual, "the red kite", max_words=0)
    (tokens.seg.square().mean() + tokens.tak.square().mean()).backward()
    for part in (
        encoder.project[0],
        encoder.project[2],
        encoder.connector.proj[0],
        encoder.llm.model.layers[0].self_attn.q_proj,
    ):
        assert part.weight.grad.abs().sum() > 0
    encoder.zero_grad()


class Script(nn.Module):
    "A head that says what it is told, word after word."

    def __init__(self, words, size):
        super().__init__()
        self.words, self.size = iter(words), size

    def forward(self, state):
        return nn.functional.one_hot(next(self.words), self.size).float()


def scripted(encoder, words):
    encoder = copy.deepcopy(encoder)
    encoder.llm.lm_head = Script(words, len(encoder.tokenizer))
    return encoder


@torch.no_grad()
def test_writing_the_same_gives_the_same_tokens(encoder, visual):
    given, _ = encoder(visual, "the red kite", [1, 2, 3], max_words=0)
    ids = encoder.sentence_ids(["the red kite"], 3, ["it is the red kite"])[0]
    rest = ids[int((ids == encoder.seg_id).nonzero()[0]) + 1 :]
    own, wrote = scripted(encoder, rest).write(visual, "the red kite", [1, 2, 3])
    torch.testing.assert_close(own.seg, given.seg, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(own.tak, given.tak, atol=1e-4, rtol=1e-4)
    assert own.frames == [1, 2, 3] and wrote.endswith("[TAK] it is the red kite")


@torch.no_grad()
@pytest.mark.parametrize(
    "words, problem",
    [
        (["<end>"], "found 1 and 0"),
        (["(1)", SEG, TAK, "<end>"], "2 .SEG.s"),
        (["(1)", SEG, TAK, TAK, "<end>"], "found 2 and 2"),
    ],
)
def test_writing_something_else_is_an_error(encoder, visual, words, problem):
    ids = torch.tensor(encoder.tokenizer.convert_tokens_to_ids(words))
    with pytest.raises(VRSError, match=problem):
        scripted(encoder, ids).write(visual, "the red kite")


# the builder


def test_old_names():
    assert current_name("encoder.eye.a") == "encoder.vision_tower.a"
    assert current_name("clip.clip.b") == "scorer.clip.b"
    for key in ("encoder.vision_tower.a", "scorer.clip.b", "sam2.c", "encoder.llm.eye.d"):
        assert current_name(key) == key


def test_the_cache_has_the_name_that_transformers_gives_it(encoder):
    name = cache_argument(encoder.llm.model)
    assert name == encoder.cache_name and name in ("cache", "past_key_values")


@pytest.mark.filterwarnings("error")
def test_nothing_is_printed(encoder, visual, capfd):
    with torch.no_grad():
        encoder(visual, "the red kite", max_words=3)
    assert capfd.readouterr() == ("", "")


def test_save_and_load(tmp_path):
    parts = load(find_weights("nano"))
    save(parts, tmp_path / "copy")
    again = load(tmp_path / "copy")
    assert again.config == parts.config and again.config["model_type"] == MODEL_TYPE
    for name in ("encoder", "sam2", "scorer"):
        old, new = (getattr(p, name).state_dict() for p in (parts, again))
        assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)
    assert not parts.encoder.training and not parts.sam2.training and not parts.scorer.training


def test_half_the_size(tmp_path):
    parts = load(find_weights("nano"))
    folders = save(parts, tmp_path / "whole"), save(parts, tmp_path / "half", torch.float16)
    whole, half = ((f / "model.safetensors").stat().st_size for f in folders)
    assert half < 0.55 * whole
    assert next(load(tmp_path / "half").encoder.parameters()).dtype == torch.float32


def test_loading_accounts_for_every_key(tmp_path):
    folder = save(load(find_weights("nano")), tmp_path / "copy")
    state = load_file(folder / "model.safetensors")
    state["encoder.other"] = state.pop("encoder.project.0.bias")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        VRSError, match="missing .encoder.project.0.bias.*unexpected .encoder.other"
    ):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(VRSError, match="cannot be read"):
        load(folder)

"The frame scorer: squares, token ids, the logits of open_clip and transformers, bad input."

from pathlib import Path

import numpy as np
import pytest
import torch

from vrshq_nb.files import VRSError
from vrshq_nb.protocols import FrameScorer
from vrshq_nb.scorer import (
    FrameTextScorer,
    clip_tokenize,
    fit_frames,
    scorer_from_config,
    scorer_pretrained,
    transformers_scorer,
)

DATA = np.load(Path(__file__).parent / "data" / "tda_tks.npz")

CONFIG = dict(
    embed_dim=16,
    vision_cfg=dict(layers=1, width=32, head_width=16, patch_size=8, image_size=16),
    text_cfg=dict(
        context_length=8, vocab_size=64, width=32, heads=2, layers=1, pool_type="eos", eos_id=2
    ),
)


def letters(texts, end=2):
    rows = [[3 + ord(c) % 60 for c in t][:7] + [end] for t in texts]
    return torch.tensor([r + [0] * (8 - len(r)) for r in rows])


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    return scorer_from_config(CONFIG, letters, fit="stretch").eval()


@pytest.fixture
def frames():
    return torch.randint(
        0, 256, (5, 20, 33, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("case", ["crop37x91"])
def test_crop_of_the_reference(case):
    got = fit_frames(torch.tensor(DATA[f"{case}/rgb"])[None], 64)[0] * 255
    assert (
        got - torch.tensor(DATA[f"{case}/square"]).float()
    ).abs().max() <= 1.01  # one grey level


def test_stretch_keeps_the_borders():
    frames = torch.zeros(1, 10, 40, 3, dtype=torch.uint8)
    frames[:, :, :4] = 255
    assert (
        fit_frames(frames, 10, "crop").max() == 0 and fit_frames(frames, 10, "stretch").max() > 0.9
    )


@pytest.mark.parametrize(
    "bad, fit",
    [
        (torch.zeros(1, 4, 4, 3), "crop"),
        (torch.zeros(0, 4, 4, 3, dtype=torch.uint8), "crop"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "crop"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "crop"),
        (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), "pad"),
    ],
)
def test_bad_frames(bad, fit):
    with pytest.raises(VRSError):
        fit_frames(bad, 8, fit)


def test_logits_are_those_of_open_clip(scorer, frames):
    texts = ["a red kite", "b"]
    with torch.no_grad():
        images, _ = scorer.clip.get_logits(scorer.preprocess(frames), letters(texts))
        torch.testing.assert_close(
            scorer.logits(scorer.encode_frames(frames), texts), images.T, atol=1e-5, rtol=1e-5
        )


def test_each_frame_is_encoded_once(scorer, frames):
    seen = []
    scorer.clip.visual.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    with torch.no_grad():
        features = scorer.encode_frames(frames, batch_size=2)
        logits = scorer.logits(features, ["one", "two", "three"])
    assert seen == [2, 2, 1] and logits.shape == (3, 5)
    torch.testing.assert_close(features, scorer.encode_frames(frames.numpy()), atol=1e-5, rtol=1e-5)


def test_one_sentence_is_a_list_of_one(scorer, frames):
    assert torch.equal(scorer.encode_text("a cat"), scorer.encode_text(["a cat"]))
    torch.testing.assert_close(scorer.encode_text(["a cat", "dog"]).norm(dim=1), torch.ones(2))


def test_the_scorer_trains_and_saves_only_clip(scorer, frames):
    scorer.logits(scorer.encode_frames(frames), ["a cat"]).sum().backward()
    assert all(p.grad is not None for n, p in scorer.named_parameters())
    assert all(k.startswith("clip.") for k in scorer.state_dict())


def test_bf16(scorer, frames):
    features = scorer.bfloat16().encode_frames(frames)
    assert features.dtype == torch.float32 and scorer.logits(features, "a cat").isfinite().all()


@pytest.mark.parametrize(
    "tokenize, words",
    [
        (lambda texts: letters(texts)[:, :5], "reads 8 tokens"),
        (lambda texts: letters(texts) + 100, "does not fit"),
        (lambda texts: letters(texts, end=1), "no end token"),
    ],
)
def test_tokens_that_would_be_misread(scorer, tokenize, words):
    scorer.tokenize = tokenize
    with pytest.raises(VRSError, match=words):
        scorer.encode_text("a cat")


def test_no_frames(scorer):
    with pytest.raises(VRSError, match="no frames"):
        scorer.encode_frames(torch.zeros(0, 4, 4, 3, dtype=torch.uint8))


def test_clip_tokenize():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({"[PAD]": 0, "[END]": 1, "red": 2, "kite": 3}, unk_token="[PAD]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="[END]", pad_token="[PAD]"
    )
    assert clip_tokenize(tokenizer, ["red kite", "", "kite " * 9], 5).tolist() == [
        [2, 3, 1, 0, 0],
        [1, 0, 0, 0, 0],
        [3, 3, 3, 3, 1],
    ]
    with pytest.raises(VRSError, match="end token"):
        clip_tokenize(PreTrainedTokenizerFast(tokenizer_object=words), ["red"], 5)


@pytest.mark.parametrize(
    "config", [{}, {**CONFIG, "nonsense": 1}, {**CONFIG, "vision_cfg": {"nonsense": 1}}]
)
def test_bad_config(config):
    with pytest.raises(VRSError, match="does not describe"):
        scorer_from_config(config, letters)


def test_unknown_pretrained_model():
    with pytest.raises(VRSError, match="cannot load .*'ViT-Nobody'"):
        scorer_pretrained("ViT-Nobody", "openai")


def test_a_blank_scorer_has_the_published_one_s_shape():
    blank = scorer_pretrained("ViT-B-32", "openai", blank=True)
    assert isinstance(blank, FrameTextScorer) and isinstance(blank, FrameScorer)
    assert blank.image_size == 224 and blank.fit == "crop"


# transformers' CLIP

SMALL = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
PAPER = dict(
    text_config=SMALL | dict(vocab_size=64, max_position_embeddings=8, eos_token_id=2),
    vision_config=SMALL | dict(image_size=16, patch_size=8),
    projection_dim=8,
)


def test_transformers_clip(frames):
    torch.manual_seed(0)
    scorer = transformers_scorer(PAPER).eval()
    scorer.tokenize = letters
    with torch.no_grad():
        ours = scorer.logits(scorer.encode_frames(frames, batch_size=2), ["a red kite", "b"])
        out = scorer.clip(
            input_ids=letters(["a red kite", "b"]), pixel_values=scorer.preprocess(frames)
        )
    torch.testing.assert_close(ours, out.logits_per_text, atol=1e-5, rtol=1e-5)


def test_pil_crop_is_the_reference_s():
    got = fit_frames(DATA["crop37x91/rgb"][None], 64, "pil")[0] * 255
    assert torch.equal(got.round().byte(), torch.tensor(DATA["crop37x91/square"]))


def test_transformers_clip_without_its_tokenizer():
    with pytest.raises(VRSError, match="without its tokenizer"):
        transformers_scorer(PAPER).encode_text("a cat")

"""Stage 4 against numbers of the reference implementation (float32, CPU), and its own promises.

`data/mdp_reference.npz` holds outputs only: weights, video and tokens of the reference run are
drawn again from their seeds.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reference import draw_weights
from vrshq_nb.masks import upscale
from vrshq_nb.mdp import Features, MaskOutput, TokenPredictor, sam2_from_config, vision_inputs
from vrshq_nb.sam2_config import sam2_arguments
from vrshq_nb.transforms import to_square

REFERENCE = np.load(Path(__file__).parent / "data" / "mdp_reference.npz")
TINY = dict(
    image_size=128,
    d_model=64,
    mem_dim=16,
    memory_attention=dict(num_layers=2, dim_feedforward=128),
    trunk=dict(embed_dim=8, stages=[1, 1, 2, 1], global_att_blocks=[3], window_spec=[8, 4, 8, 4]),
)
TOLERANCE = 1e-4


def reference_video():
    "Six frames of colour noise with a moving disk, normalised floats [6, 3, 128, 128]"
    g = torch.Generator().manual_seed(20240505)
    ground = F.interpolate(torch.randn(1, 3, 12, 12, generator=g), (128, 128), mode="bicubic")[0]
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    colour = torch.tensor([1.8, -1.2, 0.7])[:, None, None]
    return torch.stack(
        [
            ground
            + 0.1 * torch.randn(3, 128, 128, generator=g)
            + colour * ((x - 40 - 7 * t) ** 2 + (y - 50 - 4 * t) ** 2 < 22**2)
            for t in range(6)
        ]
    )


@pytest.fixture(scope="module")
def built():
    model = draw_weights(sam2_from_config(TINY))
    with torch.no_grad():
        return model, model.encode_batch(reference_video())


@pytest.fixture
def model(built):
    return copy.deepcopy(built[0])


@pytest.fixture
def features(built):
    return Features(*built[1], 128, 128)


@pytest.fixture
def tokens():
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (7, 40, 60, 3), dtype=np.uint8)


def lower_object_logit(model, by):
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[2].bias += by


def close(ours, key, tolerance=TOLERANCE):
    theirs = REFERENCE[key]
    assert tuple(ours.shape) == theirs.shape
    assert np.abs(ours.detach().numpy() - theirs).max() <= tolerance


def without_dropout(model):
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
        if hasattr(m, "dropout_p"):
            m.dropout_p = 0.0
    return model


# ---- parity with the reference implementation


@pytest.mark.parametrize("t", [0, 3])
@torch.no_grad()
def test_prompt_and_keyframe_mask(model, features, tokens, t):
    sparse, _ = model.prompt_embeddings(1, {"token": tokens[:1]})
    with model.prompted(tokens[:1]):
        assert torch.equal(sparse, model.prompt_embeddings(1)[0])
    close(sparse[0], f"sparse{t}")
    close(model.decode(features, t, tokens[:1]).logits[0], f"decode{t}")


@torch.no_grad()
def test_candidate_scores(model, features, tokens):
    """In float64, where every processor gives the same: in float32 they differ by up to 4e-4.

    The reference ran in float32, and its own rounding is 1.5e-4.
    """
    exact = copy.deepcopy(model).double()
    exact.sam_prompt_encoder.pe_layer.float()  # sam2 gives it float32 coordinates
    exact_features = Features(*exact.encode_batch(reference_video().double()), 128, 128)

    def logits(m, f):
        return torch.stack([m.object_logits(f, range(6), k[None].to(f.levels[0])) for k in tokens])

    close(
        torch.stack([exact.decode(exact_features, range(6), k[None].double()).iou for k in tokens]),
        "ious",
    )
    for key, by in (("object_logits", 0.0), ("object_logits_low", -3.9)):
        for m in (model, exact):
            lower_object_logit(m, by)
        ours = logits(exact, exact_features)
        close(ours, key, 2e-4)
        assert (logits(model, features) - ours).abs().max() < 1e-3  # and float32 is float32


@pytest.mark.parametrize(
    "case, t, token, bias",
    [
        ("infer_k0", 0, 0, 0),
        ("infer_k2", 2, 0, 0),
        ("infer_k5", 5, 0, 0),
        ("infer_mixobj_k2", 2, 0, "mixed_delta"),
        ("infer_negkey_tok2_k5", 5, 2, -3.9),
        ("infer_lowobj_k2", 2, 0, -3.9),
    ],
)
@torch.no_grad()
def test_propagation(model, features, tokens, case, t, token, bias):
    "Keyframe first, in the middle, last; a frame without the object; an empty keyframe"
    lower_object_logit(model, float(REFERENCE[bias]) if isinstance(bias, str) else bias)
    key = upscale(model.decode(features, t, tokens[token : token + 1]).logits, 128, 128)[0]
    logits = model.propagate(features, t, key)
    close(upscale(logits, 128, 128, None)[:, ::8, ::8], case)
    pixels = upscale(logits, 128, 128).sum((1, 2)).numpy()
    assert np.abs(pixels - REFERENCE[f"{case}_pixels"]).max() <= 2  # a pixel may lie at 0


@pytest.mark.parametrize("t", [0, 1, 2])
def test_propagation_from_the_token_and_its_gradient(model, features, tokens, t):
    clip = features[1:4]
    with torch.no_grad():
        logits = model.propagate(clip, t, prompt="token", token=tokens[:1])
    close(upscale(logits, 128, 128, None)[:, ::8, ::8], f"train_evalmode_k{t}")
    without_dropout(model).train()
    token = tokens[:1].clone().requires_grad_()
    logits = upscale(model.propagate(clip, t, prompt="token", token=token), 128, 128, None)
    close(logits[:, ::8, ::8], f"train_trainmode_nodropout_k{t}")
    logits.sigmoid().mean().backward()
    close(token.grad, f"grad_k{t}")


# ---- a real subclass of SAM 2's predictor


def test_is_sam2_with_sam2s_keys():
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    model, stock = sam2_from_config(TINY), SAM2VideoPredictor(**sam2_arguments(TINY))
    assert isinstance(model, SAM2VideoPredictor) and isinstance(model, TokenPredictor)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in stock.state_dict().items()
    }


@torch.no_grad()
def test_without_token_it_is_stock_sam2(model, features):
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    stock = draw_weights(SAM2VideoPredictor(**sam2_arguments(TINY)).eval())
    heads = dict(
        backbone_features=features.levels[2][:2],
        high_res_features=[x[:2] for x in features.levels[:2]],
    )
    for ours, theirs in zip(model._forward_sam_heads(**heads), stock._forward_sam_heads(**heads)):
        assert torch.equal(ours, theirs)


def test_the_token_leaves_after_the_context(model, tokens):
    with pytest.raises(RuntimeError):
        with model.prompted(tokens[:1]):
            raise RuntimeError
    assert model.token is None
    assert not any("token" == k.split(".")[-1] for k in model.state_dict())


def test_published_size_and_small_decoder():
    def count(config):
        return sum(p.numel() for p in sam2_from_config(config).parameters())

    assert 38e6 < count({}) < 40e6  # SAM 2's tiny model has 38.9 M
    assert count(TINY) - count(TINY | {"decoder_mlp_dim": 96}) == 2 * (2048 - 96) * (2 * 64 + 1)


@pytest.mark.parametrize(
    "config, word", [({"dmodel": 64}, "dmodel"), ({"image_size": 130}, "multiple of 32")]
)
def test_config_errors(config, word):
    with pytest.raises(ValueError, match=word):
        sam2_from_config(config)


@pytest.mark.parametrize("size", [128, 256])
@torch.no_grad()
def test_sizes(size, frames):
    torch.manual_seed(0)
    model = sam2_from_config(TINY | {"image_size": size})
    model.hide_absent = False
    out = model.propagate(model.encode(frames[:3]), 1, prompt="token", token=torch.randn(1, 64))
    assert out.shape == (3, size // 4, size // 4) and out.isfinite().all()


# ---- features


@torch.no_grad()
def test_every_frame_is_encoded_once(model, frames, tokens):
    seen = []
    hook = model.image_encoder.register_forward_hook(
        lambda module, args, out: seen.append(len(args[0]))
    )
    features = model.encode(frames, batch_size=3)
    model.object_logits(features, range(7), tokens[:1])
    for k in tokens[:2]:
        model.propagate(features, 3, model.decode(features, 3, k[None]).masks[0])
    hook.remove()
    assert seen == [3, 3, 1]
    assert len(features) == 7 and (features.height, features.width) == (40, 60)
    assert [p.shape[0] for p in features.positions] == [1, 1, 1]


@torch.no_grad()
def test_features_by_chunk_and_from_a_lazy_video(model, frames):
    class Lazy:
        asked = []

        def __len__(self):
            return len(frames)

        def frames(self, indices):
            self.asked.append(list(indices))
            return frames[list(indices)]

    whole, done = model.encode(frames), []
    lazy = model.encode(Lazy(), batch_size=4, progress=lambda i, n: done.append((i, n)))
    parts = Features.cat([model.encode(frames[:5]), model.encode(torch.from_numpy(frames[5:]))])
    for other in (lazy, parts):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole.levels, other.levels))
    assert Lazy.asked == [[0, 1, 2, 3], [4, 5, 6]] and done == [(4, 7), (7, 7)]
    assert torch.equal(whole[[3, 3, 0]].levels[1][1], whole.levels[1][3]) and len(whole[-2:]) == 2


@torch.no_grad()
def test_features_may_be_kept_as_halves(model, frames, tokens):
    full, half = model.encode(frames), model.encode(frames, dtype=torch.bfloat16)
    assert half.levels[0].dtype == torch.bfloat16
    a, b = (model.decode(f, 2, tokens[:1]).raw for f in (full, half))
    assert b.dtype == torch.float32 and 0 < (a - b).abs().max() < 0.5


def test_frames_are_squeezed_as_pil_does():
    from PIL import Image

    y, x = np.mgrid[:90, :160]
    frame = np.stack([x + y, 2 * y, 255 - x], -1).clip(0, 255).astype(np.uint8)
    ours = (
        to_square(frame[None, ::-1], 128)[0].permute(1, 2, 0).numpy().astype(int)
    )  # a view with a negative stride
    assert (
        np.abs(ours - np.asarray(Image.fromarray(frame[::-1]).resize((128, 128))).astype(int)).max()
        <= 1
    )


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
    ],
)
def test_bad_frames(model, bad):
    with pytest.raises(ValueError, match="uint8"):
        model.encode(bad)


def test_no_frames(model):
    with pytest.raises(ValueError, match="no frames"):
        model.encode(np.zeros((0, 8, 8, 3), np.uint8))


# ---- decoding


@torch.no_grad()
def test_one_batch_equals_one_by_one(model, features, tokens):
    batch = model.object_logits(features, [4, 0, 4, 2], tokens[:1])
    single = torch.cat([model.object_logits(features, [t], tokens[:1]) for t in (4, 0, 4, 2)])
    assert batch.shape == (4,) and torch.allclose(batch, single, atol=1e-5)
    mixed = model.decode(features, [5, 0, 3], tokens[:3])
    for b, t in enumerate((5, 0, 3)):
        assert torch.allclose(
            mixed.logits[b], model.decode(features, t, tokens[b]).logits[0], atol=1e-4
        )
    with pytest.raises(ValueError, match="2 tokens do not fit 3 frames"):
        model.decode(features, [0, 1, 2], tokens[:2])


@torch.no_grad()
def test_absent_means_empty(model, features, tokens):
    lower_object_logit(model, -20)
    out = model.decode(features, range(6), tokens[:1])
    assert isinstance(out, MaskOutput) and (out.object_logit <= 0).all()
    assert (
        (out.logits == -1024).all()
        and not out.masks.any()
        and not upscale(out.logits, 50, 70).any()
    )
    assert out.raw.std() > 0.1  # the mask that a loss sees is still there
    model.hide_absent = False
    assert torch.equal(model.decode(features, range(6), tokens[:1]).logits, out.raw)
    model.hide_absent = None
    whole = model.propagate(features, 2, torch.ones(128, 128, dtype=torch.bool), details=True)
    others = [0, 1, 3, 4, 5]
    assert (
        (whole.object_logit[others] <= 0).all()
        and (whole.logits[others] == -1024).all()
        and whole.masks[2].all()
    )


def test_gradient_reaches_every_token(model, features, tokens):
    lower_object_logit(model, -20)  # the raw mask has a gradient though the object is "absent"
    token = tokens.clone().requires_grad_()
    model.decode(features, [0, 1, 2, 3], token).raw.sigmoid().mean().backward()
    assert (token.grad.norm(dim=1) > 0).all() and token.grad.isfinite().all()


# ---- propagation


@pytest.mark.parametrize("t", [0, 3, 5])
@torch.no_grad()
def test_shapes_order_and_progress(model, features, t):
    mask, done = torch.zeros(40, 60, dtype=torch.bool), []
    mask[10:30, 20:50] = True
    out = model.propagate(
        features, t, mask, details=True, progress=lambda i, n: done.append((i, n))
    )
    assert out.logits.shape == out.raw.shape == (
        6,
        32,
        32,
    ) and out.iou.shape == out.object_logit.shape == (6,)
    assert done == [(i, 6) for i in range(2, 7)]
    assert (
        out.logits[t].min() == -10 and out.logits[t].max() == 10
    )  # the prompt itself, as SAM 2 keeps it
    back = upscale(out.logits[t : t + 1], 40, 60)[0]
    assert ((back & mask).sum() / (back | mask).sum()) > 0.9


@torch.no_grad()
def test_one_frame(model, features, tokens):
    out = model.propagate(features[:1], 0, model.decode(features, 0, tokens[:1]).masks[0])
    assert out.shape == (1, 32, 32)


@torch.no_grad()
def test_batches_of_tokens_masks_and_clips(model, features, tokens):
    masks = model.decode(features, 2, tokens[:2]).masks
    batch = model.propagate(features, 2, masks)
    for b in range(2):
        assert torch.allclose(batch[b], model.propagate(features, 2, masks[b]), atol=1e-4)
    rows = torch.tensor([[0, 1, 2, 3], [5, 4, 3, 2]])
    model.hide_absent = False
    batch = model.propagate(features, 1, prompt="token", token=tokens[:2], rows=rows)
    assert batch.shape == (2, 4, 32, 32)
    for b in range(2):
        single = model.propagate(features[rows[b]], 1, prompt="token", token=tokens[b : b + 1])
        assert torch.allclose(batch[b], single, atol=1e-4)


@torch.no_grad()
def test_forgetting_changes_nothing_and_bounds_memory(model, features, tokens):
    long = features[[0, 1, 2, 3, 4, 5, 4, 3, 2, 1] * 4]
    start, kept = model.start(long, 20, mask=model.decode(long, 20, tokens[:1]).masks), []
    for order in (range(21, 40), range(19, -1, -1)):  # everything is kept here
        past = {}
        for s in order:
            past[s] = model.track_step(
                frame_idx=s,
                is_init_cond_frame=False,
                **vision_inputs(model, long[s]),
                point_inputs=None,
                mask_inputs=None,
                output_dict={"cond_frame_outputs": {20: start}, "non_cond_frame_outputs": past},
                num_frames=40,
                track_in_reverse=s < 20,
            )
        kept.append(past)
    held, track_step = [], model.track_step
    model.track_step = lambda **kw: (
        held.append(len(kw["output_dict"]["non_cond_frame_outputs"])) or track_step(**kw)
    )
    for reverse, past in zip((False, True), kept):
        for s, out in model.track(long, 20, start, reverse):
            assert torch.allclose(out.logits, past[s]["pred_masks"][:, 0], atol=1e-5)
    assert max(held) == model.max_obj_ptrs_in_encoder == 16


@torch.no_grad()
def test_memory_is_float32(model, features, tokens):
    start = model.start(features, 0, mask=model.decode(features, 0, tokens[:1]).masks)
    assert start["maskmem_features"].dtype == torch.float32
    assert not torch.equal(start["maskmem_features"], start["maskmem_features"].bfloat16().float())


@pytest.mark.parametrize(
    "arguments, word",
    [
        (dict(t=6, mask=torch.ones(8, 8)), "outside"),
        (dict(t=-1, mask=torch.ones(8, 8)), "outside"),
        (dict(t=0), "needs"),
        (dict(t=0, prompt="token"), "needs"),
        (dict(t=0, mask=torch.ones(8, 8), prompt="click"), "click"),
    ],
)
def test_propagate_errors(model, features, arguments, word):
    with pytest.raises(ValueError, match=word):
        model.propagate(features, **arguments)


def test_upscale_by_chunks():
    logits = torch.randn(7, 8, 8, generator=torch.Generator().manual_seed(0))
    large = upscale(logits, 30, 50, threshold=None)
    assert large.shape == (7, 30, 50) and large.dtype == torch.float32
    for chunk in (1, 3, 100):
        assert torch.equal(upscale(logits, 30, 50, chunk=chunk), large > 0)
    assert torch.equal(upscale(logits, 30, 50, threshold=0.5), large > 0.5)


def test_works_on_a_gpu_if_there_is_one(frames, tokens):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    cpu = draw_weights(sam2_from_config(TINY))
    gpu = draw_weights(sam2_from_config(TINY)).cuda()
    with torch.no_grad():
        a, b = (
            m.propagate(
                m.encode(frames), 3, m.decode(m.encode(frames), 3, tokens[:1].to(m.device)).masks[0]
            )
            for m in (cpu, gpu)
        )
    assert (a - b.cpu()).abs().max() < 0.1


def test_a_decode_unpacks_into_mask_iou_and_object_logit(model, features, tokens):
    out = model.decode(features, 0, tokens[:1])
    logits, iou, object_logit = out
    assert logits is out.logits and iou is out.iou and object_logit is out.object_logit

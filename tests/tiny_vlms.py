"What the tests of published models share: tiny checkpoints of five families, a clip, a training."

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.nn import functional as F

from vrshq_nb import VRSHQ
from vrshq_nb.minivrs import MiniVRS
from vrshq_nb.tda import tda
from vrshq_nb.tiny import TINY, tiny_vlm
from vrshq_nb.vlm_encoder import answer_loss
from vrshq_nb.losses import bce_loss, dice_loss, object_loss

FAMILIES = tuple(TINY)
SCRATCH = TemporaryDirectory(prefix="tiny_vlms_")
CHOSEN = [0, 4, 8, 12]  # frames that the short training sees


@cache
def checkpoint(family):
    "Folder of a family's tiny checkpoint, written once."
    return tiny_vlm(family, Path(SCRATCH.name) / family)


@cache
def clip():
    "(clip, sentence, bool (T, H, W) of what it means)"
    clip = MiniVRS("val", seed=14)[67]
    meant = next(e for e in clip.expressions if e.targets)
    return clip, meant.text, clip.masks(meant)


@cache
def clip_name():
    "A tiny architecture that open_clip knows by name."
    from open_clip import add_model_config

    file = Path(SCRATCH.name) / "clip-tiny-test.json"
    file.write_text(
        json.dumps(
            dict(
                embed_dim=16,
                vision_cfg=dict(image_size=32, layers=1, width=64, patch_size=16),
                text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=1),
            )
        )
    )
    add_model_config(file)
    return file.stem


def tiny_model(family, seed=0, **options):
    "A tiny language model of a family between nano's SAM 2 and CLIP."
    torch.manual_seed(seed)
    return VRSHQ.from_backbones(checkpoint(family), sam2="nano", clip="nano", **options)


def loss_of(model, visual, features, text, true):
    "The paper's loss and the occlusion score's, for frames `CHOSEN`."
    states = model.encoder.answer_states(visual, text)
    tokens = model.encoder.project_tokens(states.hidden, states.ids, len(visual))
    out = model.sam2.decode(features, range(len(visual)), tda(tokens.seg, tokens.tak)[0])
    logits = F.interpolate(out.raw[:, None], true.shape[-2:], mode="bilinear")[:, 0]
    return (
        answer_loss(model.encoder, states)
        + 2 * bce_loss(logits, true.float())
        + 0.5 * dice_loss(logits, true.float())
        + object_loss(out.object_logit, true.flatten(1).any(1))
    )


def train(model, steps=25, lr=3e-4):
    "Losses of a few steps on one sentence."
    video, text, true = clip()
    with torch.no_grad():
        visual = model.encoder.encode_frames(video.frames[CHOSEN])
        features = model.sam2.encode(video.frames[CHOSEN])
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr, weight_decay=0
    )
    losses = []
    model.train()
    for _ in range(steps):
        loss = loss_of(model, visual, features, text, torch.as_tensor(true[CHOSEN]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


@cache
def trained(family):
    "(model, losses, state before, result): trained once for all tests, not to be changed."
    model = tiny_model(family)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    losses = train(model)
    return model, losses, before, model.segment(clip()[0].frames, clip()[1])


def overlap(pred, true):
    "Mean IoU over frames."
    return float(np.mean([(a & b).sum() / max((a | b).sum(), 1) for a, b in zip(pred, true)]))

"""What nano learns from: the teacher's tokens, queries, and labels of frames and sentences."""

import numpy as np
import pytest
import torch

from vrshq_nb.mdp import sam2_from_config
from vrshq_nb.minivrs import COLOURS, held_out, make_clip
from vrshq_nb.nano_teacher import (
    ALL_FAMILIES,
    ANY_COLOUR,
    ANY_KIND,
    COLOUR_NAMES,
    KIND_NAMES,
    MAX_OBJECTS,
    NANO_CONFIG,
    NOT_IN_FRAME,
    NOTHING,
    QueryPart,
    Teacher,
    attribute_query,
    caption_fits,
    clip_labels,
    clip_patch_labels,
    draw_caption,
    draw_collage,
    draw_sentences,
    frame_part,
    look_losses,
    pair_bias,
    patch_occupancy,
    random_query,
    sentence_labels,
    sentence_query,
    unnamed_colours,
    video_part,
)


@pytest.fixture(scope="module")
def clip():
    return make_clip("train", 1, 3, 64, 8, 0)


def test_occupancy_and_labels_of_patches(clip):
    n = len(clip.record.things)
    occupancy = patch_occupancy(clip.ids, n)
    assert occupancy.shape == (n, 8, 8, 8)
    assert np.allclose(occupancy.sum(0).mean((1, 2)), (clip.ids > 0).mean((1, 2)), atol=1e-6)
    labels = clip_patch_labels(clip.record, clip.ids, np.array([0, 2]))
    assert labels["kind"].shape == (2, 8, 8) and labels["numbers"].shape == (2, 3, 8, 8)
    empty = occupancy[:, [0, 2]].max(0) < 0.08
    assert ((labels["kind"] == ANY_KIND) == empty).all()
    assert ((labels["colour"] == ANY_COLOUR) == empty).all()


def test_the_offset_of_a_patch_points_at_the_objects_centre(clip):
    labels = clip_patch_labels(clip.record, clip.ids, np.array([0]))
    occupancy = patch_occupancy(clip.ids[:1], len(clip.record.things))[:, 0]
    y, x = np.unravel_index(occupancy.max(0).argmax(), (8, 8))
    i = occupancy[:, y, x].argmax()
    place = (np.array([x, y]) + 0.5) / 8 + labels["numbers"][0, :2, y, x] / 4
    assert place == pytest.approx(clip.record.xy[i, 0], abs=1e-5)


def test_a_teacher_token_depends_on_what_and_where():
    sam2, teacher = sam2_from_config(NANO_CONFIG["sam2"]), Teacher(128)

    def token(*part):
        return teacher(sam2, [[QueryPart(*part)]])[0]

    here = token(1, 2, [(0.2, 0.3)])
    assert torch.equal(here, token(1, 2, [(0.2, 0.3)]))
    others = (
        token(0, 2, [(0.2, 0.3)]),
        token(1, 3, [(0.2, 0.3)]),
        token(1, 2, [(0.6, 0.3)]),
        token(1, 2, (), NOT_IN_FRAME),
    )
    assert not any(torch.allclose(here, other) for other in others)
    parts = [QueryPart(1, 2, [(0.2, 0.3)]), QueryPart(0, 2, [(0.2, 0.3)])]
    mean = (here + token(0, 2, [(0.2, 0.3)])) / 2
    assert torch.allclose(teacher(sam2, [parts])[0], mean, atol=1e-6)


def test_queries_name_objects_of_the_clip(clip):
    rng = np.random.default_rng(0)
    for _ in range(50):
        query, meant = random_query(clip.record, rng, 2)
        assert len(query) >= 1 and all(0 <= i < len(clip.record.things) for i in meant)


def test_an_attribute_query_means_all_objects_that_fit(clip):
    rng = np.random.default_rng(0)
    query, meant = attribute_query(clip.record, ANY_KIND, ANY_COLOUR, rng)
    assert meant == list(range(len(clip.record.things))) and query[0].special == 0
    wanted = {(k, c) for k, c in zip(clip.record.kind, clip.record.colour)}
    free = next(
        (k, c)
        for k in range(len(KIND_NAMES))
        for c in range(len(COLOUR_NAMES))
        if (KIND_NAMES[k], COLOUR_NAMES[c]) not in wanted
    )
    assert attribute_query(clip.record, *free, rng)[1] == []


def test_the_parts_of_a_sentence(clip):
    sentences = draw_sentences(clip.record, np.random.default_rng(1), 12, ALL_FAMILIES)
    assert len(sentences) == 12
    for e in sentences:
        video, frame = sentence_query(clip.record, e), sentence_query(clip.record, e, 3)
        assert len(video) == len(frame) == max(len(e.targets), 1)
        if not e.targets:
            assert video == frame == [NOTHING]
    hidden = np.argwhere(clip.record.share < 0.02)
    for i, t in hidden[:3]:
        assert frame_part(clip.record, i, t).special == NOT_IN_FRAME
    shown = clip.record.seen.sum(1)
    assert all(len(video_part(clip.record, i).places) == n for i, n in enumerate(shown))


def test_a_collage_labels_what_it_shows():
    collage = draw_collage(np.random.default_rng(4), n=6)
    assert collage.frame.shape == (256, 256, 3) and collage.frame.dtype == np.uint8
    assert 1 <= len(collage.visible) <= 6
    labelled = set(collage.labels["kind"].flatten().tolist()) - {ANY_KIND}
    assert {kind for kind, _ in collage.visible} & labelled


def test_unnamed_colours_are_far_from_named_ones_and_teach_the_kind_alone():
    for rgb in unnamed_colours():
        assert all(np.linalg.norm(np.subtract(rgb, named)) > 60 for named in COLOURS.values())
    labels = draw_collage(np.random.default_rng(4), n=8, unnamed=1.0).labels
    assert (labels["colour"] == ANY_COLOUR).all() and (labels["kind"] < ANY_KIND).any()


def test_pairs_that_are_never_shown_are_left_out_of_the_softmax():
    apart = [[held_out(k, c) for c in COLOUR_NAMES] for k in KIND_NAMES]
    assert ((pair_bias()[:-1, :-1] < 0) == torch.tensor(apart)).all()
    assert (pair_bias()[-1] == 0).all() and (pair_bias()[:, -1] == 0).all()
    n = len(COLOUR_NAMES)
    kind, colour = torch.zeros(n, ANY_KIND + 1), torch.zeros(n, ANY_COLOUR + 1)
    kind.requires_grad_()
    kinds, colours = torch.full((n,), ANY_KIND), torch.arange(n)
    by_kind, by_colour = look_losses(kind, colour, kinds, colours)
    by_kind.sum().backward()
    assert ((kind.grad[:, :-1] == 0) == torch.tensor(apart).T).all()
    assert torch.allclose(by_colour, torch.tensor(ANY_COLOUR + 1.0).log())


def test_captions_fit_the_object_they_are_about():
    rng = np.random.default_rng(0)
    looks = [(k, c) for k in range(len(KIND_NAMES)) for c in range(len(COLOUR_NAMES))]
    for _ in range(50):
        kind, colour = looks[rng.integers(len(looks))]
        caption = draw_caption(rng, kind, colour)
        assert caption.text and caption_fits(caption, kind, colour)
        assert not all(caption_fits(caption, *look) for look in looks)


def test_labels_of_sentences(clip):
    item = clip_labels(clip, 64)
    assert all(len(x) == MAX_OBJECTS for x in item.values())
    row = draw_sentences(clip.record, np.random.default_rng(2), 8, ALL_FAMILIES)
    frames = np.array([0, 3, 6])
    truth = sentence_labels([item], [row], frames)
    for s, e in enumerate(row):
        assert truth.targets[0, s].nonzero().flatten().tolist() == sorted(e.targets)
        assert bool(truth.single[0, s]) == (len(e.targets) == 1)
        if len(e.targets) == 1:
            (i,) = e.targets
            assert KIND_NAMES[truth.look[0, s, 0]] == clip.record.kind[i]
            place = torch.as_tensor(clip.record.xy[i, frames]).float()
            assert torch.allclose(truth.place[0, s], place)
        elif not e.targets:
            assert truth.look[0, s].tolist() == [ANY_KIND, ANY_COLOUR]
            assert not truth.present[0, s].any()

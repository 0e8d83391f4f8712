"""Sentences: true by an independent reading, within the limits of their split."""

import re
from functools import lru_cache

import numpy as np
import pytest

from vrshq_nb.minivrs import COLOURS, FACTS, KINDS, RESTRICTORS, SPLITS, draw_expressions, held_out
from vrshq_nb.minivrs import make_clip, make_world
from vrshq_nb.minivrs.sentences import CLASSES, FAMILY_WEIGHTS, graded_truth, stands_out


@lru_cache(maxsize=None)
def clips(split, n=60, size=64):
    return [make_clip(split, 77, i, size, 16, 12) for i in range(n)]


def sentences(split, n=60):
    return [(clip, e) for clip in clips(split, n) for e in clip.expressions]


@pytest.mark.parametrize("split", [s for s in SPLITS if s != "compose"])
def test_held_out_pairs_are_neither_shown_nor_named(split):
    worlds = [
        make_world(np.random.default_rng([SPLITS[split], 5, i]), 8, split) for i in range(150)
    ]
    assert not [t for w in worlds for t in w.things if held_out(t.kind, t.colour)]
    named = [
        e.text
        for _, e in sentences(split)
        for k in KINDS.values()
        for c in COLOURS
        if held_out(k.name, c) and re.search(rf"\b{c} ({k.name}|{k.plural})\b", e.text)
    ]
    assert named == []


def test_compose_is_about_held_out_pairs():
    for clip, e in sentences("compose"):
        assert not e.targets or any(
            held_out(clip.record.kind[i], clip.record.colour[i]) for i in e.targets
        )
    assert 0 < sum(held_out(k, c) for k in KINDS for c in COLOURS) < len(KINDS) * len(COLOURS) / 5


HELD_OUT_WORDINGS = [
    "please point out the",
    "that can be seen",
    *(w[-1] for w in FACTS.values()),
    *(r.clauses[-1] for name, r in RESTRICTORS.items() if name != "part at end"),
]


@pytest.mark.parametrize("split", ["train", "val", "compose", "long"])
def test_held_out_wordings_are_not_said(split):
    assert [e.text for _, e in sentences(split) for w in HELD_OUT_WORDINGS if w in e.text] == []


def test_phrase_says_nothing_but_held_out_wordings():
    texts = [e.text for _, e in sentences("phrase")]
    assert (
        len(texts) > 300 and [t for t in texts if not any(w in t for w in HELD_OUT_WORDINGS)] == []
    )


PLURALS = [k.plural for k in KINDS.values()]
NOUNS = "|".join([*KINDS, *PLURALS, *CLASSES, *CLASSES.values(), "things?"])
NOUN = (
    rf"(?:(?P<colour>{'|'.join(COLOURS)}) |(?P<size>small|medium|big) )?"
    rf"(?P<noun>{NOUNS})"
)


LOOK = re.compile(
    r"(?:the|show the|find the|where is the|please point out the|all the|all|every|each) "
    rf"{NOUN}(?: in the video| that can be seen)?\??"
)


SINGULAR = {k.plural: k.name for k in KINDS.values()} | {v: k for k, v in CLASSES.items()}


BY_FACT = {
    wording: {k.name for k in KINDS.values() if fact in k.facts}
    for fact, four in FACTS.items()
    for wording in four
}


def read(text, things):
    "The targets of a sentence about looks or common sense, from its words; None for any other."
    if text in BY_FACT:
        return tuple(i for i, t in enumerate(things) if t.kind in BY_FACT[text])
    m = LOOK.fullmatch(text)
    if not m:
        return None
    noun = SINGULAR.get(m["noun"], m["noun"])
    fits = {"thing": lambda t: True, "things": lambda t: True}.get(
        noun, lambda t: t.kind == noun or noun in KINDS[t.kind].classes
    )
    return tuple(
        i
        for i, t in enumerate(things)
        if fits(t) and m["colour"] in (None, t.colour) and m["size"] in (None, t.size)
    )


@pytest.mark.parametrize("split", SPLITS)
def test_sentences_are_true_by_an_independent_reading(split):
    checked = {"look": 0, "sense": 0, "several": 0, "absent": 0}
    for clip, e in sentences(split):
        targets = read(e.text, clip.world.things)
        if targets is None:
            assert e.family not in ("look", "sense"), e.text
            continue
        assert targets == e.targets, (e, [(t.colour, t.kind, t.size) for t in clip.world.things])
        union = np.isin(clip.ids, [i + 1 for i in targets])
        assert (clip.masks(e) == union).all()
        checked[e.family] += 1
    assert min(checked.values()) > 10


def test_time_is_true_by_the_masks():
    "What comes, goes and hides, checked on pixels: no record, no rules."
    checked = dict.fromkeys(
        [
            "enters",
            "leaves",
            "hides",
            "part at end",
            "still",
            "moves left",
            "moves right",
            "moves up",
            "moves down",
        ],
        0,
    )
    for split in ("train", "val", "phrase"):
        for clip, e in sentences(split):
            if e.template not in checked or e.family == "absent":
                continue
            area = np.stack([(clip.ids == i + 1).sum((1, 2)) for i in e.targets])[0].astype(float)
            shown, checked[e.template] = np.flatnonzero(area), checked[e.template] + 1
            if e.template == "enters":
                assert area[0] <= 0.05 * area.max() and area[-1] > 0 or area[0] == 0
            elif e.template == "leaves":
                assert area[-1] <= 0.05 * area.max()
            elif e.template == "hides":
                assert (area[shown[0] : shown[-1]] < 0.15 * area.max()).sum() >= 2
            elif e.template == "part at end":
                assert 0 < area[-1] < 0.5 * area.max()
            else:
                centres = (
                    np.array([np.argwhere(clip.ids[t] == e.targets[0] + 1).mean(0) for t in shown])
                    / 64
                )
                dy, dx = centres[-1] - centres[0]
                if e.template == "still":
                    whole = area > 0.9 * area.max()
                    assert (
                        np.ptp(centres[whole[shown]], 0).max() < 0.12
                    )  # moving parts and the camera
                else:
                    assert {"left": -dx, "right": dx, "up": -dy, "down": dy}[
                        e.template.split()[1]
                    ] > 0.05
    assert min(checked.values()) > 0, checked


@pytest.mark.parametrize("split", SPLITS)
def test_targets_are_visible_and_counted(split):
    for clip, e in sentences(split):
        assert (e.type_id == 2) == (not e.targets) == (e.family == "absent")
        assert len(e.targets) > 1 if e.family == "several" else len(e.targets) <= 1
        for i in e.targets:
            assert (clip.ids == i + 1).any((1, 2)).sum() >= 2
    for clip in clips(split):
        assert len({e.text for e in clip.expressions}) == len(clip.expressions) <= 12
        assert np.array_equal(
            clip.foreground, np.any([clip.ids == i + 1 for i in range(len(clip.world.things))], 0)
        )


def test_every_family_and_type_is_there():
    es = [e for _, e in sentences("val")]
    assert {e.family for e in es} == set(FAMILY_WEIGHTS) and {e.type_id for e in es} == {0, 1, 2}
    assert len({e.template for e in es}) >= 60


def test_truth_values():
    assert np.array_equal(graded_truth([0, 0.05, 0.1], 0.1, 0.02), [1, np.nan, 0], equal_nan=True)
    everyone, nobody = np.ones(3, bool), np.zeros(3, bool)
    assert stands_out(np.array([1.0, 3.0, 2.0]), everyone, 1).tolist() == [0, 1, 0]
    assert np.isnan(stands_out(np.array([1.0, 3.0, 2.0]), everyone, 1.5)).all()
    assert np.isnan(stands_out(np.array([1.0, 3.0, 2.0]), nobody, 1)).all()
    assert stands_out(
        np.array([9.0, 3.0, 1.0]), np.array([False, True, True]), 2, ratio=True
    ).tolist() == [0, 1, 0]


@pytest.mark.parametrize("n_frames", [1, 2, 3, 7])
def test_short_clips_say_only_what_they_show(n_frames):
    for i in range(40):
        clip = make_clip("val", 8, i, 48, n_frames)
        assert clip.frames.shape == (n_frames, 48, 48, 3)
        for e in clip.expressions:
            assert all((clip.ids == k + 1).any() for k in e.targets)
            assert (
                n_frames > 1
                or e.family not in ("motion", "time")
                and e.template not in ("fastest", "farthest")
            )
            assert e.template.removeprefix("all ") not in ("bounces", "zigzags", "circles")


def test_weights_choose_families():
    clip = clips("train", 5)[0]
    for family in ("look", "motion", "absent"):
        es = draw_expressions(clip.record, np.random.default_rng(0), 20, weights={family: 1})
        assert es and {e.family for e in es} == {family}

"""MiniVRS and its sprites: the same for ever, true by an independent reading, and written without loss."""

import json
import pickle
import re
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from vrshq_nb import minivrs as mv
from vrshq_nb import sprites
from vrshq_nb.minivrs import COLOURS, FACTS, KINDS, RESTRICTORS, SPLITS, MiniVRS, make_clip
from vrshq_nb.video import Video, VRSError


@lru_cache(maxsize=None)
def clips(split, n=60, size=64):
    return [make_clip(split, 77, i, size, 16, 12) for i in range(n)]


def sentences(split, n=60):
    return [(clip, e) for clip in clips(split, n) for e in clip.expressions]


# ---------------------------------------------------------------- sprites


@pytest.mark.parametrize("kind", sprites.SPRITES)
def test_sprite_fills_its_box(kind):
    for size in (4, 7, 40, 131):
        rgba = sprites.draw_sprite(kind, (30, 95, 225), size, 0.3)
        assert rgba.dtype == np.uint8 and rgba.shape[2] == 4 and max(rgba.shape[:2]) == size
        assert (rgba[..., 3] > 127).mean() > 0.15
    still, moved = (sprites.draw_sprite(kind, (30, 95, 225), 60, phase) for phase in (0, 0.25))
    assert still.shape == moved.shape and (still != moved).any()


def test_there_is_a_sprite_for_each_kind():
    assert (
        list(sprites.SPRITES) == list(KINDS)
        and len(KINDS) >= 16
        and len(COLOURS) >= 8
        and len(sprites.SCENES) >= 5
    )


@pytest.mark.parametrize("name", sprites.SCENES)
def test_scene(name):
    a, b, c = (sprites.draw_scene(name, 51, 80, np.random.default_rng(i)) for i in (1, 1, 2))
    assert a.shape == (51, 80, 3) and (a == b).all() and (a != c).any()


@pytest.mark.parametrize("kind", sprites.OCCLUDERS)
def test_occluder_covers_most_of_its_box(kind):
    solid = sprites.draw_occluder(kind, 60, 50, np.random.default_rng(0))[..., 3] > 127
    assert solid.shape == (60, 50) and solid.mean() > 0.6 and solid[20:40, 15:35].all()


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: sprites.draw_sprite("unicorn", (0, 0, 0), 20), "cat"),
        (lambda: sprites.draw_sprite("cat", (0, 0, 0), 2), "4 pixels"),
        (lambda: sprites.draw_scene("desert", 20, 20, np.random.default_rng(0)), "meadow"),
        (lambda: sprites.draw_occluder("curtain", 20, 20, np.random.default_rng(0)), "tree"),
        (lambda: mv.sprite("cat", "beige", 20, 0), "purple"),
    ],
)
def test_unknown_names_are_answered_with_the_known(call, word):
    with pytest.raises(VRSError, match=word) as e:
        call()
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- drawing


def test_paste_blends_and_counts():
    rng = np.random.default_rng(0)
    frame, layer = (
        rng.integers(0, 256, (40, 50, 3), dtype=np.uint8),
        rng.integers(0, 256, (14, 18, 4), dtype=np.uint8),
    )
    before, ids = frame.astype(int), np.zeros((40, 50), np.uint8)
    area = mv.paste(frame, ids, layer, 48.0, 5.0, 7)  # sticks out on the right and at the top
    top, left = round(5 - 7), round(48 - 9)
    cut = layer[-top:, : 50 - left].astype(int)
    alpha = cut[..., 3:]
    assert (
        frame[: 14 + top, left:]
        == (before[: 14 + top, left:] * (255 - alpha) + cut[..., :3] * alpha) // 255
    ).all()
    assert ((ids[: 14 + top, left:] == 7) == (alpha[..., 0] > 127)).all()
    assert (frame[:, :left] == before[:, :left]).all() and not ids[14 + top :].any()
    assert area == (layer[..., 3] > 127).sum()


@pytest.mark.parametrize("size", [16, 33, 97, 300])
def test_any_size(size):
    clip = make_clip("val", 0, 2, size, 5)
    assert (
        clip.frames.shape == (5, size, size, 3)
        and clip.frames.dtype == np.uint8
        and clip.ids.shape == (5, size, size)
    )
    big = make_clip("val", 0, 2, 192, 5)
    assert big.world.seed == clip.world.seed and [t.kind for t in big.world.things] == [
        t.kind for t in clip.world.things
    ]
    assert (
        size < 33 or abs(clip.foreground.mean() - big.foreground.mean()) < 0.04
    )  # below, things have a least size


def test_ids_lie_where_the_things_are():
    for clip in clips("val", 20):
        h = clip.ids.shape[1]
        for i, thing in enumerate(clip.world.things):
            for t in range(0, 16, 5):
                ys, xs = np.nonzero(clip.ids[t] == i + 1)
                if len(ys):
                    far = max(
                        abs(xs / h - thing.xy[t, 0]).max(), abs(ys / h - thing.xy[t, 1]).max()
                    )
                    assert (
                        far <= thing.extent / 2 + 0.015 + 2.5 / h
                    )  # half the thing, the camera's drift, rounding


# ---------------------------------------------------------------- the same for ever


def test_clips_follow_from_their_arguments():
    a, b = make_clip("val", 3, 5, 64), make_clip("val", 3, 5, 64)
    assert (
        (a.frames == b.frames).all() and (a.ids == b.ids).all() and a.expressions == b.expressions
    )
    others = [make_clip("val", 3, 6, 64), make_clip("val", 4, 5, 64), make_clip("train", 3, 5, 64)]
    assert all((a.frames != o.frames).any() for o in others)


@pytest.mark.parametrize(
    "split, scene, cast, text",
    [
        (
            "train",
            "room",
            [
                "red sailboat straight",
                "blue balloon bouncing",
                "orange balloon leaving",
                "yellow sailboat entering",
                "green ball hiding",
                "orange ball straight",
            ],
            "which thing leaves before the end?",
        ),
        (
            "val",
            "night",
            [
                "purple rocket straight",
                "purple butterfly circling",
                "yellow fish leaving",
                "green fish straight",
                "yellow fish stopping",
                "green balloon straight",
            ],
            "the thing on the left at the start",
        ),
        (
            "compose",
            "room",
            [
                "orange sailboat straight",
                "blue lamp straight",
                "orange bus speeding",
                "yellow butterfly zigzag",
            ],
            "the yellow thing that moves in a zigzag",
        ),
        (
            "phrase",
            "meadow",
            ["purple flower straight", "purple balloon still", "purple rabbit straight"],
            "the living thing with petals",
        ),
        (
            "long",
            "night",
            [
                "orange butterfly leaving",
                "orange dog still",
                "blue butterfly hiding",
                "pink butterfly zigzag",
                "white bus circling",
            ],
            "the butterfly furthest to the right",
        ),
    ],
)
def test_the_world_has_not_changed(split, scene, cast, text):
    "Models were trained on this world: another cast for the same seed means that it is another world."
    clip = make_clip(split, 0, 1, 64, 16)
    assert (
        clip.world.scene == scene
        and [f"{t.colour} {t.kind} {t.motion}" for t in clip.world.things] == cast
    )
    assert clip.expressions[0].text == text


def test_no_clip_is_in_two_splits():
    seeds = [(split, clip.world.seed) for split in SPLITS for clip in clips(split, 10, 32)]
    assert len({seed for _, seed in seeds}) == len(seeds)


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("split", [s for s in SPLITS if s != "compose"])
def test_held_out_pairs_are_neither_shown_nor_named(split):
    worlds = [
        mv.make_world(np.random.default_rng([SPLITS[split], 5, i]), 8, split) for i in range(150)
    ]
    assert not [t for w in worlds for t in w.things if mv.held_out(t.kind, t.colour)]
    named = [
        e.text
        for _, e in sentences(split)
        for k in KINDS.values()
        for c in COLOURS
        if mv.held_out(k.name, c) and re.search(rf"\b{c} ({k.name}|{k.plural})\b", e.text)
    ]
    assert named == []


def test_compose_is_about_held_out_pairs():
    for clip, e in sentences("compose"):
        assert not e.targets or any(
            mv.held_out(clip.record.kind[i], clip.record.colour[i]) for i in e.targets
        )
    assert (
        0 < sum(mv.held_out(k, c) for k in KINDS for c in COLOURS) < len(KINDS) * len(COLOURS) / 5
    )


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


def test_long_clips_are_long():
    assert (
        MiniVRS("long", n=1, size=32)[0].frames.shape[0] == 48
        and MiniVRS("long", n=1, size=32, n_frames=64).n_frames == 64
    )


# ---------------------------------------------------------------- truth

NOUN = (
    rf"(?:(?P<colour>{'|'.join(COLOURS)}) |(?P<size>small|medium|big) )?"
    rf"(?P<noun>{'|'.join([*KINDS, *(k.plural for k in KINDS.values()), *mv.CLASSES, *mv.CLASSES.values(), 'things?'])})"
)
LOOK = re.compile(
    rf"(?:the|show the|find the|where is the|please point out the|all the|all|every|each) {NOUN}(?: in the video| that can be seen)?\??"
)
SINGULAR = {k.plural: k.name for k in KINDS.values()} | {v: k for k, v in mv.CLASSES.items()}
BY_FACT = {
    wording: {k.name for k in KINDS.values() if fact in k.facts}
    for fact, four in FACTS.items()
    for wording in four
}


def read(text, things):
    "The targets of a sentence about looks or common sense, from its words alone; None for any other sentence."
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
    assert {e.family for e in es} == set(mv.FAMILY_WEIGHTS) and {e.type_id for e in es} == {0, 1, 2}
    assert len({e.template for e in es}) >= 60


def test_truth_values():
    assert np.array_equal(mv.between([0, 0.05, 0.1], 0.1, 0.02), [1, np.nan, 0], equal_nan=True)
    everyone, nobody = np.ones(3, bool), np.zeros(3, bool)
    assert mv.stands_out(np.array([1.0, 3.0, 2.0]), everyone, 1).tolist() == [0, 1, 0]
    assert np.isnan(mv.stands_out(np.array([1.0, 3.0, 2.0]), everyone, 1.5)).all()
    assert np.isnan(mv.stands_out(np.array([1.0, 3.0, 2.0]), nobody, 1)).all()
    assert mv.stands_out(
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
        es = mv.draw_expressions(clip.record, np.random.default_rng(0), 20, weights={family: 1})
        assert es and {e.family for e in es} == {family}


# ---------------------------------------------------------------- the dataset


def test_dataset_is_a_sequence():
    data = MiniVRS("train", n=5, size=32, n_frames=4)
    assert len(data) == 5 and [c.name for c in data] == [f"train_0_{i:05d}" for i in range(5)]
    assert data[-1].name == data[4].name and [c.name for c in data[1:4:2]] == [
        "train_0_00001",
        "train_0_00003",
    ]
    for i in (5, -6):
        with pytest.raises(IndexError):
            data[i]
    assert "train" in repr(data) and "32x32" in repr(data[0])


def test_defaults():
    data = MiniVRS()
    assert (data.split, len(data), data.seed, data.size, data.n_frames) == (
        "val",
        100,
        0,
        256,
        16,
    ) and data[0].fps == 8


def test_clips_can_be_sent_to_other_processes():
    clip = pickle.loads(pickle.dumps(make_clip("val", 0, 0, 32, 4)))
    assert (
        clip.foreground.any() and pickle.loads(pickle.dumps(MiniVRS(size=32)))[0].name == clip.name
    )


@pytest.mark.parametrize(
    "kwargs, word",
    [
        (dict(split="test"), "train, val"),
        (dict(size=8), "16"),
        (dict(size=64.5), "whole"),
        (dict(n_frames=0), "n_frames"),
        (dict(n=-1), "n must"),
        (dict(seed=-1), "seed"),
        (dict(n_expressions="8"), "n_expressions"),
        (dict(n_frames=True), "n_frames"),
    ],
)
def test_bad_arguments_are_named(kwargs, word):
    with pytest.raises(VRSError, match=word) as e:
        MiniVRS(**kwargs)
    assert "\n" not in str(e.value)
    if "n" not in kwargs:
        with pytest.raises(VRSError, match=word):
            make_clip(**{"split": "val", "seed": 0, "index": 0} | kwargs)


def test_clip_is_saved_as_a_video(tmp_path):
    clip = make_clip("val", 0, 0, 48, 6)
    video = Video.open(clip.save(tmp_path / "clip.mp4"))
    assert (
        len(video) == 6
        and video.fps == 8
        and np.abs(video.frames().astype(int) - clip.frames).mean() < 8
    )
    with pytest.raises(VRSError):
        clip.save(tmp_path / "clip.avi")


# ---------------------------------------------------------------- as files


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    data = MiniVRS("val", n=3, seed=2, size=48, n_frames=6)
    return data, data.save(tmp_path_factory.mktemp("revos") / "set", progress=False)


def test_revos_folder(written):
    data, folder = written
    assert sorted(p.name for p in folder.iterdir()) == [
        "JPEGImages",
        "mask_dict.json",
        "mask_dict_foreground.json",
        "meta_expressions_valid_.json",
        "videos",
    ]
    videos = json.loads((folder / "meta_expressions_valid_.json").read_text())["videos"]
    assert list(videos) == [c.name for c in data] and [v["vid_id"] for v in videos.values()] == [
        0,
        1,
        2,
    ]
    for clip, (name, video) in zip(data, videos.items()):
        assert (video["height"], video["width"], video["frames"]) == (
            48,
            48,
            [f"{i:05d}" for i in range(6)],
        )
        stored = np.stack(
            [
                np.asarray(Image.open(folder / "JPEGImages" / name / f"{f}.jpg"))
                for f in video["frames"]
            ]
        )
        assert np.abs(stored.astype(int) - clip.frames).mean() < 8
        assert len(Video.open(folder / "videos" / f"{name}.mp4")) == 6
        assert [
            (e["exp"], e["type_id"], tuple(e["obj_id"])) for e in video["expressions"].values()
        ] == [(e.text, e.type_id, e.targets) for e in clip.expressions]


def decoded(codes, shape):
    return np.stack(
        [np.zeros(shape, bool) if c is None else coco.decode(c).astype(bool) for c in codes]
    )


def test_masks_come_back_exactly(written):
    data, folder = written
    masks, foreground, meta = (
        json.loads((folder / f"{f}.json").read_text())
        for f in ("mask_dict", "mask_dict_foreground", "meta_expressions_valid_")
    )
    assert len(masks) == sum(len(c.world.things) for c in data)
    for clip in data:
        assert (decoded(foreground[clip.name]["masks_rle"], (48, 48)) == clip.foreground).all()
        assert np.allclose(foreground[clip.name]["foreground_ratio"], clip.foreground.mean((1, 2)))
        for e, entry in zip(clip.expressions, meta["videos"][clip.name]["expressions"].values()):
            union = np.zeros((6, 48, 48), bool)
            for a in entry["anno_id"]:
                union |= decoded(masks[str(a)], (48, 48))
            assert (union == clip.masks(e)).all()


def test_a_folder_with_something_in_it_is_left_alone(written, tmp_path):
    data, folder = written
    before = sorted(p.name for p in folder.rglob("*"))
    with pytest.raises(VRSError, match="not empty"):
        data.save(folder, progress=False)
    assert sorted(p.name for p in folder.rglob("*")) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(VRSError, match="is a file"):
        data.save(tmp_path / "file", progress=False)
    with pytest.raises(VRSError, match="no folder"):
        data.save(tmp_path / "not" / "there", progress=False)
    (tmp_path / "empty").mkdir()
    assert (
        MiniVRS("train", n=1, size=32, n_frames=2).save(tmp_path / "empty", progress=False)
        / "meta_expressions_train_.json"
    ).exists()


def test_after_an_error_nothing_is_left(tmp_path):
    clip = make_clip("val", 0, 0, 32, 2)

    def breaking():
        yield clip
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError):
        mv.write_revos(breaking(), tmp_path / "set", progress=False)
    with pytest.raises(VRSError, match="two clips"):
        mv.write_revos([clip, clip], tmp_path / "set", progress=False)
    with pytest.raises(VRSError, match="no clips"):
        mv.write_revos([], tmp_path / "set", progress=False)
    assert list(tmp_path.iterdir()) == []

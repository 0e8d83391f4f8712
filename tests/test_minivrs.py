"""MiniVRS: the same for ever, and written without loss."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from vrshq_nb.minivrs import SPLITS, MiniVRS, make_clip, write_revos
from vrshq_nb.video import Video
from vrshq_nb.files import VRSError


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
            "which pixels belong to the pumpkin-coloured element that looks the smallest?",
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
            "the fish that looks the smallest",
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
            "there is the butterfly and there is the pumpkin-coloured bus, mark the two",
        ),
        (
            "phrase",
            "meadow",
            ["purple flower straight", "purple balloon still", "purple rabbit straight"],
            "the entities, as many as you can find",
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
            "which butterfly is the last to go?",
        ),
    ],
)
def test_the_world_has_not_changed(split, scene, cast, text):
    "Models were trained on this world: other things for the same seed make another world."
    clip = make_clip(split, 0, 1, 64, 16)
    assert (
        clip.world.scene == scene
        and [f"{t.colour} {t.kind} {t.motion}" for t in clip.world.things] == cast
    )
    assert clip.expressions[0].text == text


def test_no_clip_is_in_two_splits():
    seeds = [
        (split, clip.world.seed)
        for split in SPLITS
        for clip in MiniVRS(split, n=10, seed=77, size=32)
    ]
    assert len({seed for _, seed in seeds}) == len(seeds)


def test_long_clips_are_long():
    assert (
        MiniVRS("long", n=1, size=32)[0].frames.shape[0] == 48
        and MiniVRS("long", n=1, size=32, n_frames=64).n_frames == 64
    )


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
        write_revos(breaking(), tmp_path / "set", progress=False)
    with pytest.raises(VRSError, match="two clips"):
        write_revos([clip, clip], tmp_path / "set", progress=False)
    with pytest.raises(VRSError, match="no clips"):
        write_revos([], tmp_path / "set", progress=False)
    assert list(tmp_path.iterdir()) == []

"The readers of the benchmarks, on small folders in the official layouts with known masks."

import json
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from vrshq_nb.datasets import (
    DATASETS,
    ExpressionSample,
    MiniVRSData,
    ReVOS,
    VideoEntry,
    VRSDataset,
    check_folder,
    detect_dataset,
    open_dataset,
)
from vrshq_nb.datasets.base import Field, as_name, merge_similar, read_json, run_lengths
from vrshq_nb.datasets.images import paint_polygons, read_pickle
from vrshq_nb.datasets.opening import class_from
from vrshq_nb.datasets.videos import read_annotation
from vrshq_nb.files import VRSError
from vrshq_nb.minivrs import MiniVRS
from vrshq_nb.video import Video

T, H, W = 3, 12, 16
NAMES = ["00000", "00005", "00010"]  # every fifth frame, as Ref-YouTube-VOS has them


def block(*frames):
    "Masks (T, H, W) of a block; (row, column) a frame, None: not there."
    out = np.zeros((T, H, W), bool)
    for t, at in enumerate(frames):
        if at:
            out[t, at[0] : at[0] + 4, at[1] : at[1] + 5] = True
    return out


ONE = block((2, 1), (2, 3), (2, 5))
TWO = block(None, (4, 5), (4, 5))  # overlaps with ONE from its first frame on
assert (ONE & TWO).any() and not TWO[0].any()


def rle(mask):
    if not mask.any():
        return None
    code = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode()}


def rles(masks):
    return [rle(m) for m in masks]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit(path, change):
    "Read a json file, change it, write it back."
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def frame(i):
    return np.full((H, W, 3), 40 + 20 * i, np.uint8)


def write_frames(folder, names=NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(frame(i)).save(folder / f"{name}.jpg", quality=95)


def write_palette(folder, maps, names=NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, m in zip(names, maps):
        image = Image.fromarray(m.astype(np.uint8)).convert("P")
        image.frombytes(m.astype(np.uint8).tobytes())
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
        image.save(folder / f"{name}.png")


# ---- one folder a layout: {(video, exp_id): (text, type_id, counts)}, {video: foreground} ----

NONE = np.zeros((T, H, W), int)


def make_revos(root):
    def e(exp, anno_id, type_id):
        return {"exp": exp, "obj_id": [0], "anno_id": anno_id, "type_id": type_id}

    first = {
        "0": e("the block", [7], 0),
        "3": e("all that moves", [7, 8], 1),
        "4": e("a cow", [], 2),
    }
    second = {"0": e("what comes late?", [9], 1)}
    video = {"frames": NAMES, "height": H, "width": W, "vid_id": 0}
    write_json(
        root / "meta_expressions_valid_.json",
        {
            "videos": {
                "sub/first": video | {"expressions": first},
                "second": video | {"vid_id": 1, "expressions": second},
            }
        },
    )
    write_json(
        root / "meta_expressions_train_.json",
        {"videos": {"second": video | {"expressions": second}}},
    )
    write_json(root / "mask_dict.json", {"7": rles(ONE), "8": rles(TWO), "9": rles(TWO)})
    third = block((8, 8), None, None)  # an object that no sentence is about
    both = {"sub/first": ONE | TWO | third, "second": TWO | third}
    write_json(
        root / "mask_dict_foreground.json",
        {
            k: {"masks_rle": rles(m), "foreground_ratio": m.mean((1, 2)).tolist()}
            for k, m in both.items()
        },
    )
    for v in both:
        write_frames(root / "JPEGImages" / v)
    return {
        ("sub/first", "0"): ("the block", 0, ONE),
        ("sub/first", "3"): ("all that moves", 1, ONE.astype(int) + TWO),
        ("sub/first", "4"): ("a cow", 2, NONE),
        ("second", "0"): ("what comes late?", 1, TWO),
    }, both


def make_mevis(root):
    def e(exp, anno_id):
        return {"exp": exp, "obj_id": [0], "anno_id": anno_id}

    expressions = {"0": e("moving right", [0]), "1": e("both", [0, 1])}
    for split in ("train", "valid_u"):
        write_json(
            root / split / "meta_expressions.json",
            {"videos": {"ab": {"frames": NAMES, "vid_id": 0, "expressions": expressions}}},
        )
        write_json(root / split / "mask_dict.json", {"0": rles(ONE), "1": rles(TWO)})
        write_frames(root / split / "JPEGImages/ab")
    write_json(
        root / "valid/meta_expressions.json",
        {
            "videos": {
                "cd": {"frames": NAMES, "vid_id": 0, "expressions": {"0": {"exp": "moving left"}}}
            }
        },
    )
    write_frames(root / "valid/JPEGImages/cd")
    return {
        ("ab", "0"): ("moving right", None, ONE),
        ("ab", "1"): ("both", None, ONE.astype(int) + TWO),
    }, {"ab": ONE | TWO}


NUMBERS = np.where(TWO, 2, np.where(ONE, 1, 0))
NUMBERS[0, 10, 10] = 255  # nobody knows


def make_youtube(root):
    expressions = {
        "0": {"exp": "the first", "obj_id": "1"},
        "1": {"exp": "the second", "obj_id": "2"},
    }
    write_json(
        root / "meta_expressions/train/meta_expressions.json",
        {"videos": {"v": {"frames": NAMES, "expressions": expressions}}},
    )
    blind = {"frames": NAMES, "expressions": {"0": {"exp": "a thing"}}}
    write_json(
        root / "meta_expressions/valid/meta_expressions.json", {"videos": {"w": blind, "x": blind}}
    )
    write_json(root / "meta_expressions/test/meta_expressions.json", {"videos": {"x": blind}})
    write_frames(root / "train/JPEGImages/v")
    write_frames(
        root / "valid/JPEGImages/w", [f"{i:05d}" for i in range(11)]
    )  # all frames are there, a few are listed
    write_palette(root / "train/Annotations/v", NUMBERS)
    return {
        ("v", "0"): ("the first", None, NUMBERS == 1),
        ("v", "1"): ("the second", None, NUMBERS == 2),
    }, {"v": (NUMBERS > 0) & (NUMBERS < 255)}


def make_davis(root):
    texts = [f"annotator {i % 4} about object {i // 4 + 1}" for i in range(8)]
    write_json(
        root / "meta_expressions/valid/meta_expressions.json",
        {
            "videos": {
                "bear": {
                    "frames": NAMES,
                    "expressions": {str(i): {"exp": t} for i, t in enumerate(texts)},
                }
            }
        },
    )
    write_frames(root / "valid/JPEGImages/bear")
    write_palette(root / "valid/Annotations/bear", NUMBERS)
    return {("bear", str(i)): (t, None, NUMBERS == i // 4 + 1) for i, t in enumerate(texts)}, {
        "bear": (NUMBERS > 0) & (NUMBERS < 255)
    }


def make_reasonvos(root):
    def e(obj_id, exp_id, text):
        return {"obj_id": obj_id, "exp_id": exp_id, "exp_text": text, "is_sent": True}

    videos = {
        "12": {"source": "MOSE", "expressions": [e(3, 0, "who runs?"), e(4, 1, "who waits?")]},
        "13": {"source": "BURST", "frames": NAMES, "expressions": [e(1, 0, "which one?")]},
    }
    write_json(root / "meta_expressions.json", {"videos": videos})
    write_frames(root / "JPEGImages/12")
    write_frames(root / "JPEGImages/BURST_13")
    for folder, masks in (("MOSE_12_3", ONE), ("MOSE_12_4", TWO), ("BURST_13_1", ONE)):
        (root / "Annotations" / folder).mkdir(parents=True)
        for name, m in zip(NAMES, masks):
            Image.fromarray(m.astype(np.uint8) * 255).save(
                root / "Annotations" / folder / f"{name}.png"
            )
    return {
        ("12", "0"): ("who runs?", None, ONE),
        ("12", "1"): ("who waits?", None, TWO),
        ("13", "0"): ("which one?", None, ONE),
    }, {"12": ONE | TWO, "13": ONE}


def corners(top, left, bottom, right):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def make_reasonseg(root):
    shapes = [
        {"label": "ignore", "points": corners(4, 4, 5, 5)},
        {"label": "target", "points": corners(2, 2, 8, 10)},
        {"label": "Target", "points": [[12.7, 9.2], [14.9, 9], [14, 10.6], [12, 10]]},
        {"label": "flag", "points": [[0, 0]]},
    ]
    write_json(
        root / "val/dinner.json",
        {"shapes": shapes, "text": ["what would one eat with?", "the fork"], "is_sentence": True},
    )
    (root / "val/caf\u00e9.json").write_bytes(
        json.dumps(
            {"shapes": [], "text": ["caf\u00e9 cr\u00e8me"], "is_sentence": False},
            ensure_ascii=False,
        ).encode("cp1252")
    )
    for name in ("dinner", "caf\u00e9"):
        Image.fromarray(frame(0)).save(root / f"val/{name}.jpg")
    target = np.zeros((1, H, W), bool)
    target[0, 2:9, 2:11] = True
    target[0, 4:6, 4:6] = False
    target[0, 9:11, 12:15] = True
    return {
        ("caf\u00e9", "0"): ("caf\u00e9 cr\u00e8me", None, np.zeros((1, H, W), int)),
        ("dinner", "0"): ("what would one eat with?", None, target),
        ("dinner", "1"): ("the fork", None, target),
    }, {"dinner": target}


def make_refcoco(root, name="refcoco"):
    a, b = ONE[0], TWO[1]
    polygon = [
        [1, 2, 6, 2, 6, 6, 1, 6]
    ]  # COCO counts from the corners of pixels: rows 2 to 5, columns 1 to 5
    annotations = [
        {"id": 50, "image_id": 9, "segmentation": polygon},
        {"id": 51, "image_id": 9, "segmentation": rle(b)},
        {"id": 52, "image_id": 9, "segmentation": [rle(ONE[2])]},
    ]
    write_json(
        root / f"refer_seg/{name}/instances.json",
        {
            "images": [{"id": 9, "file_name": "COCO_train2014_9.jpg", "height": H, "width": W}],
            "annotations": annotations,
        },
    )

    def ref(ref_id, ann_id, split, *sents):
        sentences = [
            {"sent_id": i, "sent": s, "raw": s.upper(), "tokens": s.split()} for i, s in sents
        ]
        return {
            "ref_id": ref_id,
            "ann_id": ann_id,
            "image_id": 9,
            "split": split,
            "file_name": "COCO_train2014_9_50.jpg",
            "category_id": 1,
            "sentences": sentences,
        }

    second, who = ("test", "umd") if name == "refcocog" else ("testA", "unc")
    refs = [
        ref(1, 50, "val", (4, "left one"), (5, "not right")),
        ref(2, 51, "val", (6, "right one")),
        ref(3, 50, second, (7, "it")),
        ref(4, 50, "train", (8, "this")),
    ]
    (root / f"refer_seg/{name}/refs({who}).p").write_bytes(pickle.dumps(refs, 0))
    images = root / "refer_seg/images/mscoco/images/train2014"
    images.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame(0)).save(images / "COCO_train2014_9.jpg")
    key = "COCO_train2014_9"
    return {
        (key, "1_4"): ("left one", None, a[None]),
        (key, "1_5"): ("not right", None, a[None]),
        (key, "2_6"): ("right one", None, b[None]),
    }, {key: (a | b | ONE[2])[None]}


MAKERS = {
    "revos": make_revos,
    "mevis": make_mevis,
    "ref-youtube-vos": make_youtube,
    "ref-davis17": make_davis,
    "reasonvos": make_reasonvos,
    "reasonseg": make_reasonseg,
    "refcoco": make_refcoco,
    "refcoco+": lambda root: make_refcoco(root, "refcoco+"),
    "refcocog": lambda root: make_refcoco(root, "refcocog"),
}
SPLIT = {"ref-youtube-vos": "train"}  # the only one with masks


@pytest.fixture(params=MAKERS)
def layout(request, tmp_path):
    root = tmp_path / "data"
    expected, foreground = MAKERS[request.param](root)
    return request.param, root, expected, foreground


@pytest.fixture
def revos(tmp_path):
    make_revos(tmp_path / "r")
    return tmp_path / "r"


# ---- what every dataset gives ----------------------------------------------------------


def test_reads_back(layout):
    name, root, expected, foreground = layout
    data = open_dataset(name, root, SPLIT.get(name))
    assert data.name == name and data.has_truth and data.split == SPLIT.get(name, data.splits[0])
    assert [(s.video, s.exp_id) for s in data] == list(expected) and len(data) == len(expected)
    assert list(data.videos) == list(dict.fromkeys(v for v, _ in expected))
    for i, s in enumerate(data):
        text, type_id, counts = expected[s.video, s.exp_id]
        assert data[i] is s is data.videos[s.video].samples[s.exp_id] and (s.text, s.type_id) == (
            text,
            type_id,
        )
        found = data.counts(s)
        assert found.dtype == np.uint8 and np.array_equal(found, counts)
        assert data.masks(s).dtype == bool and np.array_equal(data.masks(s), found > 0)
        assert data.size(s.video) == (H, W)
    for video, union in foreground.items():
        assert data.foreground(video).dtype == bool and np.array_equal(
            data.foreground(video), union
        )
    assert data.check() == []


def test_frames(layout):
    name, root, expected, _ = layout
    data = open_dataset(name, root, SPLIT.get(name))
    for video, entry in data.videos.items():
        v = data.video(video)
        assert isinstance(v, Video) and Video.open(v) is v and v.name == video
        assert len(v) == len(entry.frames) and (v.height, v.width) == (H, W)
        assert np.abs(v.frames([len(v) - 1]).astype(int) - frame(len(v) - 1)).max() <= 2  # JPEG
        again = pickle.loads(pickle.dumps(v))
        assert np.array_equal(again.frames(), v.frames()) and again.name == v.name
        assert entry.frames == (
            (video,) if name in ("reasonseg", "refcoco", "refcoco+", "refcocog") else tuple(NAMES)
        )


def test_detected_and_checked(layout):
    name, root, *_ = layout
    assert detect_dataset(root) == name
    found, splits = check_folder(root)
    present = {
        "revos": ["valid", "train"],
        "mevis": ["valid_u", "valid", "train"],
        "ref-youtube-vos": ["valid", "train"],
        "ref-davis17": ["valid"],
        "reasonvos": ["test"],
        "reasonseg": ["val"],
        "refcoco": ["val", "testA", "train"],
        "refcoco+": ["val", "testA", "train"],
        "refcocog": ["val", "test", "train"],
    }
    assert found == name and splits == {s: [] for s in present[name]}


def test_unknown_split_and_video(layout):
    name, root, *_ = layout
    with pytest.raises(VRSError, match="has no split 'night'"):
        open_dataset(name, root, "night")
    data = open_dataset(name, root)
    for ask in (data.video, data.size, lambda v: data.counts(ExpressionSample(v, "0", ""))):
        with pytest.raises(VRSError, match="nowhere|without masks"):
            ask("nowhere")


def test_missing_frame_is_one_line(layout):
    name, root, *_ = layout
    data = open_dataset(name, root, SPLIT.get(name))
    video = next(iter(data.videos))
    file = data.frame_file(video, data.videos[video].frames[-1])
    file.unlink()
    assert [line for line in data.check() if "missing" in line] == [
        f"{file.relative_to(root).as_posix()} is missing; copy it again"
    ]
    with pytest.raises(VRSError, match="missing"):
        data.video(video).frames()


def test_folder_that_is_not_there(tmp_path):
    for name in MAKERS:
        with pytest.raises(VRSError, match="no folder"):
            open_dataset(name, tmp_path / "no")
        with pytest.raises(VRSError, match=re.escape(name) + " needs its folder"):
            open_dataset(name)
        with pytest.raises(VRSError):
            open_dataset(name, tmp_path)  # empty


# ---- single layouts --------------------------------------------------------------------


def test_revos_objects_and_entries(revos):
    data = open_dataset("revos", revos)
    assert (
        data[1] == ExpressionSample("sub/first", "3", "all that moves", 1, ("7", "8"))
        and data.counts(data[1]).max() == 2
    )
    assert (
        isinstance(data.videos["second"], VideoEntry)
        and data.zip_prefix is None
        and data.void(data[0]) is None
    )
    assert open_dataset("revos", revos, "train")[0].video == "second"


def test_revos_all_kinds_of_codes(revos):
    "Text, or a list of run lengths; -1 for nothing."

    def change(masks):
        masks["7"][0] = {"size": [H, W], "counts": [2 + H, 4, 8, 4, 8, 4, 8, 4, 8, 4, H * W - 66]}

    edit(revos / "mask_dict.json", change)
    edit(
        revos / "meta_expressions_valid_.json",
        lambda m: m["videos"]["sub/first"]["expressions"]["4"].update(anno_id=[-1]),
    )
    data = open_dataset("revos", revos)
    assert np.array_equal(data.masks(data[0]), ONE) and data[2].objects == () and data.check() == []


def test_minivrs_folder_is_revos(tmp_path):
    clips = MiniVRS("val", 3, seed=6, size=48, n_frames=5)
    folder = clips.save(tmp_path / "mini", progress=False)
    read, drawn = (
        open_dataset(detect_dataset(folder), folder),
        open_dataset("minivrs", n=3, seed=6, size=48, n_frames=5),
    )
    assert check_folder(folder) == ("revos", {"valid": []})
    assert isinstance(read, ReVOS) and isinstance(drawn, MiniVRSData) and drawn.check() == []
    assert len(read) == len(drawn) == sum(len(c.expressions) for c in clips) and list(
        read.videos
    ) == [c.name for c in clips]
    for clip in clips:
        for data in (read, drawn):
            entry = data.videos[clip.name]
            assert entry.frames == ("00000", "00001", "00002", "00003", "00004") and data.size(
                clip.name
            ) == (48, 48)
            assert [(s.text, s.type_id) for s in entry.samples.values()] == [
                (e.text, e.type_id) for e in clip.expressions
            ]
            assert all(
                np.array_equal(data.masks(s), clip.masks(e))
                for s, e in zip(entry.samples.values(), clip.expressions)
            )
            assert np.array_equal(data.foreground(clip.name), clip.foreground)
        assert (
            np.array_equal(drawn.video(clip.name).frames(), clip.frames)
            and drawn.video(clip.name).name == clip.name
        )
        assert np.abs(read.video(clip.name).frames().astype(int) - clip.frames).mean() < 6  # JPEG
    assert {s.type_id for s in read} == {0, 1, 2} and any(len(s.objects) > 1 for s in read)


def test_minivrs_keeps_one_clip(monkeypatch):
    drawn, real = [], MiniVRS.__getitem__
    monkeypatch.setattr(MiniVRS, "__getitem__", lambda self, i: drawn.append(i) or real(self, i))
    data = open_dataset("minivrs", split="compose", n=2, size=32, n_frames=2)
    for s in data:
        data.masks(s), data.foreground(s.video), data.video(s.video)
    assert drawn == [0, 1, 0, 1]
    with pytest.raises(VRSError, match="opened as revos"):
        open_dataset("minivrs", "folder")
    with pytest.raises(VRSError, match="no option 'depth'.*n_frames"):
        open_dataset("minivrs", depth=3)
    with pytest.raises(VRSError, match="split"):
        open_dataset("minivrs", split="night")


def test_mevis_valid_has_no_masks(tmp_path):
    make_mevis(tmp_path)
    data = open_dataset("mevis", tmp_path, "valid")
    assert (
        not data.has_truth
        and data.zip_prefix == ""
        and data.size("cd") == (H, W)
        and data[0].objects == ()
    )
    for ask in (
        lambda: data.counts(data[0]),
        lambda: data.masks(data[0]),
        lambda: data.foreground("cd"),
    ):
        with pytest.raises(VRSError, match="valid of mevis comes without masks"):
            ask()
    shutil.rmtree(tmp_path / "valid_u/JPEGImages")  # then the size is that of the codes
    assert open_dataset("mevis", tmp_path).size("ab") == (H, W)


def test_youtube_valid_is_without_test(tmp_path):
    make_youtube(tmp_path)
    data = open_dataset("ref-youtube-vos", tmp_path)
    assert (
        data.split == "valid"
        and list(data.videos) == ["w"]
        and not data.has_truth
        and data.zip_prefix == "Annotations"
    )
    assert (
        len(data.video("w")) == 3
        and np.abs(data.video("w").frames([1])[0].astype(int) - frame(5)).max() <= 2
    )  # 00005 is the sixth file
    assert data.void(data[0]) is None
    (tmp_path / "meta_expressions/test/meta_expressions.json").unlink()
    with pytest.raises(
        VRSError,
        match=r"meta_expressions/test/meta_expressions.json is missing.*not for validation",
    ):
        open_dataset("ref-youtube-vos", tmp_path)
    assert (
        "test/meta_expressions.json is missing" in check_folder(tmp_path)[1]["valid"][0]
        and check_folder(tmp_path)[1]["train"] == []
    )


def test_palettes(tmp_path):
    make_davis(tmp_path)
    data = open_dataset("ref-davis17", tmp_path)
    assert (
        data.annotators == 4
        and [data.annotator(s) for s in data] == [0, 1, 2, 3] * 2
        and [s.objects for s in data] == [(1,)] * 4 + [(2,)] * 4
    )
    void = data.void(data[0])
    assert void.shape == (T, H, W) and np.argwhere(void).tolist() == [[0, 10, 10]]
    edit(
        tmp_path / "meta_expressions/valid/meta_expressions.json",
        lambda m: m["videos"]["bear"]["expressions"]["0"].update(obj_id="2"),
    )
    assert open_dataset("ref-davis17", tmp_path)[0].objects == (2,)
    write_palette(tmp_path / "valid/Annotations/bear", NUMBERS % 255)
    assert data.__class__(tmp_path).void(data[0]) is None


def test_reasonvos_repeated_ids(tmp_path):
    "Where the sentences are counted anew for each object, the object is part of the key."
    make_reasonvos(tmp_path)
    edit(
        tmp_path / "meta_expressions.json",
        lambda m: m["videos"]["12"]["expressions"][1].update(exp_id=0),
    )
    data = open_dataset("reasonvos", tmp_path)
    assert list(data.videos["12"].samples) == ["3_0", "4_0"] and np.array_equal(
        data.masks(data[1]), TWO
    )
    edit(
        tmp_path / "meta_expressions.json",
        lambda m: m["videos"]["12"]["expressions"][1].update(obj_id=3),
    )
    with pytest.raises(VRSError, match="videos/12/expressions/1/exp_id: 0 is there twice"):
        open_dataset("reasonvos", tmp_path)


def test_reasonvos_coloured_masks(tmp_path):
    make_reasonvos(tmp_path)
    Image.fromarray((ONE[0, ..., None] * np.uint8([0, 0, 9]))).save(
        tmp_path / "Annotations/MOSE_12_3/00000.png"
    )
    data = open_dataset("reasonvos", tmp_path)
    assert np.array_equal(data.masks(data[0]), ONE)


def test_reasonseg_void(tmp_path):
    make_reasonseg(tmp_path)
    data = open_dataset("reasonseg", tmp_path)
    cafe, dinner = data[0], data[1]
    assert data.void(cafe) is None and cafe.objects == ()
    assert np.argwhere(data.void(dinner)).tolist() == [[0, 4, 4], [0, 4, 5], [0, 5, 4], [0, 5, 5]]
    small_below = paint_polygons(
        [("target", corners(4, 4, 5, 5)), ("ignore it", corners(2, 2, 8, 8))], (H, W)
    )
    assert (small_below == 1).sum() == 4 and (small_below == 255).sum() == 49 - 4
    assert (
        paint_polygons([("target", [(3, 3)]), ("target", [(6, 1), (6, 4)])], (H, W)).sum() == 1 + 4
    )  # a point and a line


def test_refcoco_root_and_splits(tmp_path):
    make_refcoco(tmp_path)
    inner = open_dataset("refcoco", tmp_path / "refer_seg", "testA")
    assert (
        inner.splits == ("val", "testA", "train")
        and [s.exp_id for s in inner] == ["3_7"]
        and detect_dataset(tmp_path / "refer_seg") == "refcoco"
    )
    assert np.array_equal(inner.masks(inner[0]), ONE[:1])
    file = tmp_path / "refer_seg/refcoco/refs(unc).p"
    file.write_bytes(
        re.sub(rb"(?m)^V(.*)$", rb"S'\1'", file.read_bytes()).replace(
            b"S'right one'", rb"S'caf\xc3\xa9 right'"
        )
    )  # as Python 2 wrote text
    assert [s.text for s in open_dataset("refcoco", tmp_path)] == [
        "left one",
        "not right",
        "caf\u00e9 right",
    ]


def test_refcoco_targets_in_parts(tmp_path):
    make_refcoco(tmp_path)
    polygons = [[1, 2, 6, 2, 6, 6, 1, 6], [8, 8, 10, 8, 10, 10, 8, 10]]
    edit(
        tmp_path / "refer_seg/refcoco/instances.json",
        lambda i: (
            i["annotations"][0].update(segmentation=polygons),
            i["annotations"][1].update(segmentation=[rle(ONE[2]), rle(TWO[1])]),
        ),
    )
    data = open_dataset("refcoco", tmp_path)
    both = ONE[:1].copy()
    both[0, 8:10, 8:10] = True
    assert np.array_equal(data.masks(data[0]), both) and np.array_equal(
        data.masks(data[2])[0], ONE[2] | TWO[1]
    )


# ---- broken files ----------------------------------------------------------------------

META = "meta_expressions_valid_.json"


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda v: v["sub/first"]["expressions"]["3"].pop("exp"),
            f"{META}: videos/sub/first/expressions/3/exp: is missing",
        ),
        (
            lambda v: v["sub/first"]["expressions"]["3"].update(exp=["no", "text"]),
            f"{META}: videos/sub/first/expressions/3/exp: must be text, not ['no', 'text']",
        ),
        (lambda v: v["second"].pop("frames"), f"{META}: videos/second/frames: is missing"),
        (
            lambda v: v["second"].update(frames="00000"),
            f"{META}: videos/second/frames: must be a list",
        ),
        (lambda v: v["second"].update(frames=[]), f"{META}: videos/second/frames: there are none"),
        (
            lambda v: v["second"].update(frames=[0, 1]),
            f"{META}: videos/second/frames/0: must be text, not 0",
        ),
        (
            lambda v: v["second"].update(frames=["../../x"]),
            f"{META}: videos/second/frames/0: '../../x' cannot be the name",
        ),
        (
            lambda v: v.update({"../x": v.pop("second")}),
            f"{META}: videos/../x: '../x' cannot be the name",
        ),
        (
            lambda v: v["second"].update(height="12"),
            f"{META}: videos/second/height: must be a whole number, not '12'",
        ),
        (
            lambda v: v["second"].update(width=-4),
            f"{META}: videos/second/width: must be from 1 to 65535 pixels, not -4",
        ),
        (
            lambda v: v["second"].update(width=10**12),
            f"{META}: videos/second/width: must be from 1 to 65535 pixels",
        ),
        (
            lambda v: v["second"]["expressions"]["0"].pop("type_id"),
            f"{META}: videos/second/expressions/0/type_id: is missing",
        ),
        (
            lambda v: v["second"]["expressions"]["0"].update(type_id=7),
            f"{META}: videos/second/expressions/0/type_id: must be 0, 1 or 2",
        ),
        (
            lambda v: v["second"]["expressions"]["0"].update(type_id=True),
            f"{META}: videos/second/expressions/0/type_id: must be a whole number",
        ),
        (
            lambda v: v["second"]["expressions"]["0"].update(anno_id=9),
            f"{META}: videos/second/expressions/0/anno_id: must be a list",
        ),
        (
            lambda v: v["second"]["expressions"]["0"].update(anno_id=[9.5]),
            f"{META}: videos/second/expressions/0/anno_id/0: must be",
        ),
        (
            lambda v: v["second"].update(expressions=None),
            f"{META}: videos/second/expressions: must be an object",
        ),
        (lambda v: v.clear(), f"{META}: there is no sentence in it"),
    ],
)
def test_wrong_field(revos, change, message):
    edit(revos / META, lambda m: change(m["videos"]))
    with pytest.raises(VRSError) as e:
        open_dataset("revos", revos)
    assert str(e.value).startswith(message) and "\n" not in str(e.value)
    assert check_folder(revos)[1]["valid"] == [str(e.value)]


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"videos": {"a": {"frames": ["000', "not a whole json file"),
        (b"", "not a whole json file"),
        (b"[" * 100_000, "not a whole json file"),
        (b"[]", "must be an object"),
        (b"{}", "videos: is missing"),
        (b'{"videos": []}', "videos: must be an object"),
        (b"\xff\xfe\x00", "not a whole json file"),
    ],
)
def test_broken_json(revos, content, message):
    (revos / META).write_bytes(content)
    with pytest.raises(VRSError, match=f"{META}.*{message}"):
        open_dataset("revos", revos)


def test_no_mask_dict(revos):
    (revos / "mask_dict.json").unlink()
    with pytest.raises(VRSError, match="^mask_dict.json is missing"):
        open_dataset("revos", revos)
    assert all(
        lines[0].startswith("mask_dict.json is missing")
        for lines in check_folder(revos)[1].values()
    )


def lines_after(root, change=None, file="mask_dict.json"):
    if change:
        edit(root / file, change)
    return open_dataset("revos", root).check()


def test_masks_out_of_step(revos):
    lines = lines_after(revos, lambda m: m["7"].pop())
    assert len(lines) == 1 and lines[0].startswith(
        "mask_dict.json: 7: holds 2 masks, but the video sub/first has 3 frames"
    )
    data = open_dataset("revos", revos)
    with pytest.raises(VRSError, match="mask_dict.json: 7: holds 2 masks"):
        data.masks(data[0])
    assert np.array_equal(data.masks(data[3]), TWO)  # the others are as good as before


def test_unknown_anno_id(revos):
    lines = lines_after(revos, lambda m: m.pop("8"))
    assert lines == [
        "mask_dict.json: 8: is missing, but meta_expressions_valid_.json: videos/sub/first has a "
        "sentence with this anno_id; correct it, or download the file again"
    ]


def test_codes_of_another_size(revos):
    lines = lines_after(revos, lambda m: m.update({"7": [rle(np.ones((5, 6), bool))] * 3}))
    assert (
        len(lines) == 1
        and lines[0].startswith("mask_dict.json: 7/0/size: is 6x5, but the video is 16x12")
        and "2 more like this" in lines[0]
    )
    lines = lines_after(revos, lambda m: m["videos"]["second"].update(height=20), META)
    assert (
        sum(
            "second" in line
            and "00000.jpg is 16x12, but the masks are 16x20" in line
            and "(and 2 more like this)" in line
            for line in lines
        )
        == 1
    )


@pytest.mark.parametrize("size", [[H, 10**12], [0, W], [H], [H, W, 1], [H, 2.5], "12x16", None])
def test_sizes_that_are_none(revos, size):
    lines = lines_after(revos, lambda m: m["7"].__setitem__(1, {"size": size, "counts": "0"}))
    assert len(lines) == 1 and lines[0].startswith("mask_dict.json: 7/1/size")


@pytest.mark.parametrize(
    "counts, message",
    [
        ("W36>0000000000", "7/1/counts: covers 223 of 192 pixels"),
        ("0", "7/1/counts: covers 0 of 192 pixels"),
        ("", "7/1/counts"),
        (5, "7/1/counts: must be text"),
        ([1, 2], "7/1/counts: covers 3 of 192"),
        ([-5, 197], "7/1/counts"),
        (["a"], "7/1/counts"),
        ("\u00e9", "7/1/counts: is no run-length code"),
        ("oooooooooooooooooo0", "7/1/counts: is no run-length code"),
    ],
)
def test_damaged_codes(revos, counts, message):
    "pycocotools turns some of them into noise without a word."
    lines = lines_after(revos, lambda m: m["7"].__setitem__(1, {"size": [H, W], "counts": counts}))
    assert len(lines) == 1 and lines[0].startswith(f"mask_dict.json: {message}")
    data = open_dataset("revos", revos)
    with pytest.raises(VRSError, match=re.escape(message)):
        data.masks(data[0])


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for h, w, p in (
        (1, 1, 1.0),
        (7, 5, 0.5),
        (40, 60, 0.02),
        (300, 400, 0.5),
        (480, 640, 1e-4),
        (64, 64, 1.0),
    ):
        mask = np.asfortranarray(rng.random((h, w)) < p, np.uint8)
        flat = np.r_[0, mask.ravel(order="F")]
        edges = np.flatnonzero(np.diff(flat))  # the first pixel of each run but the first
        runs = np.diff(np.r_[0, edges, h * w])
        assert np.array_equal(run_lengths(coco.encode(mask)["counts"]), runs)
    for bad in (b"", b"\x20", b"oo", b"0\x7f0"):
        with pytest.raises(ValueError):
            run_lengths(bad)


def test_foreground_problems(revos):
    data = open_dataset("revos", revos)
    assert data.foreground("second").any()
    lines = lines_after(
        revos,
        lambda m: (m.pop("second"), m["sub/first"]["masks_rle"].pop()),
        "mask_dict_foreground.json",
    )
    assert len(lines) == 2 and any(
        line.startswith("mask_dict_foreground.json: second: is missing") for line in lines
    )
    assert any(
        line.startswith(
            "mask_dict_foreground.json: sub/first/masks_rle: holds 2 masks, "
            "but the video sub/first has 3 frames"
        )
        for line in lines
    )
    (revos / "mask_dict_foreground.json").unlink()
    assert [line.split(" in the folder")[0] for line in lines_after(revos)] == [
        "mask_dict_foreground.json is missing"
    ]
    data = open_dataset("revos", revos)
    assert data.masks(data[0]).any()  # only the foreground is gone
    with pytest.raises(VRSError, match="mask_dict_foreground.json is missing"):
        data.foreground("second")


def test_frame_problems(revos):
    folder = revos / "JPEGImages/second"
    (folder / "00000.jpg").rename(folder / "frame_0.jpg")
    (folder / "._00000.jpg").touch()  # macOS leaves such behind
    (folder / "00005.jpg").write_bytes(b"no picture")
    Image.fromarray(np.zeros((H, W + 2, 3), np.uint8)).save(folder / "00010.jpg")
    lines = lines_after(revos)
    assert len(lines) == 4 and lines[0] == "JPEGImages/second/00000.jpg is missing; copy it again"
    assert lines[1].startswith("JPEGImages/second/00005.jpg cannot be read as a picture")
    assert lines[2].startswith("JPEGImages/second/00010.jpg is 18x12, but the masks are 16x12")
    assert lines[3].startswith(
        "JPEGImages/second/frame_0 is a frame that "
        "meta_expressions_valid_.json: videos/second/frames does not list"
    )
    shutil.rmtree(folder)
    assert lines_after(revos) == [
        "JPEGImages/second/00000.jpg is missing; copy it again (and 2 more like this)"
    ]


def test_frames_of_two_sizes_do_not_load(revos):
    Image.fromarray(np.zeros((H, W + 2, 3), np.uint8)).save(revos / "JPEGImages/second/00010.jpg")
    video = open_dataset("revos", revos).video("second")
    assert video.frames([0, 1]).shape == (2, H, W, 3)
    with pytest.raises(VRSError, match="00010.jpg is 18x12, the first frame 16x12"):
        video.frames()


def test_text_problems(revos):
    def change(m):
        m["videos"]["second"]["expressions"]["0"]["exp"] = "  "
        m["videos"]["sub/first"]["expressions"]["0"]["anno_id"] = []
        m["videos"]["second"]["frames"] = ["00000", "00000", "00010"]

    lines = lines_after(revos, change, META)
    assert sorted(line for line in lines if line.startswith(META)) == [
        f"{META}: videos/second/expressions/0: the sentence is empty; write one, "
        "or take the expression away",
        f"{META}: videos/second/frames: 00000 is listed twice; take one away",
        f"{META}: videos/sub/first/expressions/0: names no target, though its type_id is 0; "
        "only type 2 may do so",
    ]


def test_palette_problems(tmp_path):
    make_davis(tmp_path)
    folder = tmp_path / "valid/Annotations/bear"

    def lines():
        return open_dataset("ref-davis17", tmp_path).check()

    write_palette(folder, np.where(NUMBERS == 2, 0, NUMBERS))
    assert lines() == [
        "meta_expressions/valid/meta_expressions.json: videos/bear: object 2 is in no annotation "
        "of the video; is its number right?"
    ]
    write_palette(folder, NUMBERS)
    Image.open(folder / "00005.png").convert("RGB").save(folder / "00005.png")
    assert lines() == [
        "valid/Annotations/bear/00005.png is a picture in colours (RGB), its object numbers are "
        "lost; copy the original, a PNG with a palette"
    ]
    data = open_dataset("ref-davis17", tmp_path)
    with pytest.raises(VRSError, match="00005.png is a picture in colours"):
        data.masks(data[0])
    write_palette(folder, [NUMBERS[1, :, :9]], ["00005"])
    assert lines()[0].startswith("valid/Annotations/bear/00005.png is 9x12, the first one 16x12")
    (folder / "00005.png").unlink()
    (folder / "00010.png").write_bytes(b"\x89PNG\r\n")
    found = lines()
    assert found[0] == "valid/Annotations/bear/00005.png is missing; copy it again" and found[
        1
    ].startswith("valid/Annotations/bear/00010.png cannot be read")


def test_davis_and_youtube_numbers(tmp_path):
    make_davis(tmp_path / "d")
    make_youtube(tmp_path / "y")
    meta = tmp_path / "d/meta_expressions/valid/meta_expressions.json"
    edit(meta, lambda m: m["videos"]["bear"]["expressions"].update(first={"exp": "x"}))
    with pytest.raises(
        VRSError, match="expressions/first: must be a whole number from 0 on, not 'first'"
    ):
        open_dataset("ref-davis17", tmp_path / "d")
    meta = tmp_path / "y/meta_expressions/train/meta_expressions.json"
    edit(meta, lambda m: m["videos"]["v"]["expressions"]["0"].update(obj_id="one"))
    with pytest.raises(VRSError, match="videos/v/expressions/0/obj_id: must be a whole number"):
        open_dataset("ref-youtube-vos", tmp_path / "y", "train")


def test_reasonvos_problems(tmp_path):
    make_reasonvos(tmp_path)

    def lines():
        return open_dataset("reasonvos", tmp_path).check()

    (tmp_path / "Annotations/MOSE_12_4/00005.png").unlink()
    assert lines() == ["Annotations/MOSE_12_4/00005.png is missing; copy it again"]
    for name in NAMES:
        Image.fromarray(np.zeros((H, W), np.uint8)).save(
            tmp_path / f"Annotations/MOSE_12_4/{name}.png"
        )
    assert lines() == [
        "meta_expressions.json: videos/12: object 4 is on no frame; is its number right?"
    ]
    Image.fromarray(np.ones((H, W + 1), np.uint8)).save(
        tmp_path / "Annotations/MOSE_12_4/00010.png"
    )
    assert lines() == [
        "Annotations/MOSE_12_4/00010.png is 17x12, the first one 16x12; copy it again"
    ]
    shutil.rmtree(tmp_path / "JPEGImages/12")
    with pytest.raises(VRSError, match="videos/12/frames: there are none"):
        open_dataset("reasonvos", tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.pop("shapes"), "val/dinner.json: shapes: is missing"),
        (lambda v: v.update(text="one"), "val/dinner.json: text: must be a list"),
        (lambda v: v["shapes"][1].pop("label"), "val/dinner.json: shapes/1/label: is missing"),
        (lambda v: v["shapes"][1].update(points=[]), "val/dinner.json: shapes/1/points: is empty"),
        (
            lambda v: v["shapes"][1]["points"].append([1]),
            r"val/dinner.json: shapes/1/points/4: must be \[x, y\]",
        ),
        (
            lambda v: v["shapes"][1]["points"].append([1, "2"]),
            "val/dinner.json: shapes/1/points/4/1: must be a whole number or a number",
        ),
        (
            lambda v: v["shapes"][1]["points"].append([1, float("nan")]),
            r"val/dinner.json: shapes/1/points/4: must be \[x, y\]",
        ),
        (
            lambda v: v["shapes"][1]["points"].append([1, 10**12]),
            r"val/dinner.json: shapes/1/points/4: must be \[x, y\] in pixels",
        ),
    ],
)
def test_reasonseg_problems(tmp_path, change, message):
    make_reasonseg(tmp_path)
    edit(tmp_path / "val/dinner.json", change)
    with pytest.raises(VRSError, match=message):
        open_dataset("reasonseg", tmp_path)


class Evil:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('was_here').touch()",))


def test_evil_pickle(tmp_path, monkeypatch):
    make_refcoco(tmp_path)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "refer_seg/refcoco/refs(unc).p"
    for bad, message in (
        (pickle.dumps([Evil()]), "it wants to run builtins.exec"),
        (file.read_bytes()[:-40], "cannot be used"),
        (b"", "cannot be used"),
        (pickle.dumps({"no": "list"}), "must be a list"),
    ):
        file.write_bytes(bad)
        with pytest.raises(VRSError, match=rf"refer_seg/refcoco/refs\(unc\).p.*{message}"):
            open_dataset("refcoco", tmp_path)
        assert message in check_folder(tmp_path)[1]["val"][0]
    assert not (tmp_path / "was_here").exists()


def test_refcoco_problems(tmp_path):
    make_refcoco(tmp_path)
    instances, refs = (
        tmp_path / "refer_seg/refcoco/instances.json",
        "refer_seg/refcoco/refs\\(unc\\).p",
    )
    edit(
        instances, lambda i: i["annotations"][0].update(segmentation=[[1, 2, 3, 4]])
    )  # pycocotools would take four numbers for a box
    data = open_dataset("refcoco", tmp_path)
    with pytest.raises(VRSError, match="instances.json: annotations/0/segmentation/0: must be"):
        data.masks(data[0])
    assert [line.partition(" must")[0] for line in data.check()] == [
        "refer_seg/refcoco/instances.json: annotations/0/segmentation/0:"
    ]
    edit(instances, lambda i: i["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 10**12]]))
    with pytest.raises(VRSError, match="annotations/0/segmentation/0: must be"):
        open_dataset("refcoco", tmp_path).masks(data[0])
    edit(instances, lambda i: i["annotations"][0].update(segmentation=[]))
    assert not open_dataset("refcoco", tmp_path).masks(data[0]).any()
    edit(instances, lambda i: i["annotations"].pop(1))
    with pytest.raises(VRSError, match=f"{refs}: 1/ann_id: 51 is not in instances.json"):
        open_dataset("refcoco", tmp_path)
    edit(instances, lambda i: i["images"].clear())
    with pytest.raises(VRSError, match=f"{refs}: 0/image_id: 9 is not in instances.json"):
        open_dataset("refcoco", tmp_path)
    instances.unlink()
    with pytest.raises(VRSError, match="refer_seg/refcoco/instances.json is missing"):
        open_dataset("refcoco", tmp_path)


# ---- the small parts -------------------------------------------------------------------


def test_field():
    f = Field({"a": [{"b": 3}], "none": None}, "x.json")
    assert (
        f["a"][0]["b"].of(int) == 3
        and f["a"][0]["b"].path == "a/0/b"
        and f.get("none") is None
        and f.get("z") is None
        and [k for k, _ in f.items()] == ["a", "none"]
    )
    for ask, message in (
        (lambda: f["z"], "x.json: z: is missing"),
        (lambda: f["a"][1], "x.json: a/1: is missing"),
        (lambda: f["a"][0]["b"].of(str, list), "x.json: a/0/b: must be text or a list"),
        (lambda: f["a"]["b"], r"x.json: a: must be an object"),
        (lambda: f[0], "x.json: must be a list"),
        (lambda: Field(True, "x.json", "t").of(int), "not True"),
    ):
        with pytest.raises(VRSError, match=message):
            ask()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc", "a//b", "a/../b", "a\\b", "a\nb", "a\0b", "a/"]
)
def test_names_that_lead_elsewhere(name):
    with pytest.raises(VRSError, match="x.json: k: .* cannot be the name"):
        as_name(name, Field(None, "x.json", "k"))


def test_names_that_are_fine():
    assert [as_name(n, None) for n in ("a", "a/b c", "..a", "\u00e9")] == [
        "a",
        "a/b c",
        "..a",
        "\u00e9",
    ]


def test_alike():
    assert (
        merge_similar(["f 1 of a", "f 22 of a", "other", "f 1 of a"])
        == ["f 1 of a (and 1 more like this)", "other"]
        and merge_similar([]) == []
    )


def test_read_json_with_a_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path, "a.json").value == [1]
    (tmp_path / "b.json").mkdir()
    with pytest.raises(VRSError, match="b.json cannot be read"):
        read_json(tmp_path, "b.json")


def test_read_pickle_of_plain_data(tmp_path):
    for protocol in range(5):
        (tmp_path / "a.p").write_bytes(
            pickle.dumps([{"x": (1, 2.5, None, "\u00e9", b"b")}], protocol)
            if protocol > 2
            else pickle.dumps([{"x": (1, 2.5, None, "\u00e9")}], protocol)
        )
        assert read_pickle(tmp_path, "a.p").value[0]["x"][:4] == (1, 2.5, None, "\u00e9")
    with pytest.raises(VRSError, match="b.p is missing"):
        read_pickle(tmp_path, "b.p")


def test_read_annotation_modes(tmp_path):
    m = np.array([[0, 1], [255, 0]], np.uint8)
    Image.fromarray(m).save(tmp_path / "l.png")
    Image.fromarray(m > 0).save(tmp_path / "bit.png")
    Image.fromarray(np.dstack([m * 0, m * 0, m, np.full_like(m, 255)])).save(tmp_path / "rgba.png")
    assert np.array_equal(read_annotation(tmp_path, "l.png"), m) and np.array_equal(
        read_annotation(tmp_path, "bit.png"), m > 0
    )
    assert all(
        np.array_equal(read_annotation(tmp_path, f, binary=True), m > 0)
        for f in ("l.png", "bit.png", "rgba.png")
    )
    with pytest.raises(VRSError, match="rgba.png is a picture in colours"):
        read_annotation(tmp_path, "rgba.png")


# ---- a dataset of one's own ------------------------------------------------------------

OWN = '''
from vrshq_nb.datasets import ExpressionSample, VideoEntry, VRSDataset
import numpy as np


class Mine(VRSDataset):
    name, splits, meta = "mine", ("all", "half"), "list.json"

    def __init__(self, root, split=None, shift=0):
        self.shift = shift
        super().__init__(root, split)

    def read(self):
        found = {}
        for v, text in self.json(self.meta).items():
            sample = ExpressionSample(v, "0", text.of(str), None, (1, 2))
            found[v] = VideoEntry(v, ("a", "b"), {"0": sample})
        return found

    def frame_file(self, video, frame):
        return self.root / f"{video}_{frame}.jpg"

    def object_masks(self, video, object_id):
        out = np.zeros((2, 12, 16), np.uint8)
        out[:, 2:6, self.shift + object_id] = 255
        return out[: self.frames_short] if hasattr(self, "frames_short") else out


class Not:
    pass
'''


@pytest.fixture
def own(tmp_path):
    write_json(tmp_path / "list.json", {"v": "the line", "w": "and this"})
    for v in "vw":
        for i, f in enumerate("ab"):
            Image.fromarray(frame(i)).save(tmp_path / f"{v}_{f}.jpg")
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path


def test_own_class(own):
    data = open_dataset(f"{own / 'mine.py'}:Mine", own, "half", shift=3)
    assert (
        data.name == "mine"
        and data.split == "half"
        and [s.text for s in data] == ["the line", "and this"]
    )
    expected = np.zeros((2, H, W), int)
    expected[:, 2:6, [4, 5]] = 1
    assert (
        np.array_equal(data.counts(data[0]), expected)
        and np.array_equal(data.foreground("v"), expected > 0)
        and data.void(data[0]) is None
    )
    assert len(data.video("v")) == 2 and data.size("v") == (H, W) and data.check() == []
    name, splits = check_folder(own, f"{own / 'mine.py'}:Mine")
    assert name.endswith("mine.py:Mine") and splits == {"all": [], "half": []}


def test_own_class_is_checked(own):
    data = open_dataset(f"{own / 'mine.py'}:Mine", own)
    data.frames_short = 1
    (own / "w_b.jpg").unlink()
    lines = data.check()
    assert (
        lines[0] == "list.json: v: the masks of object 1 are (1, 12, 16), they must be (T, H, W) = "
        "(2, 12, 16) (and 1 more like this)"
    )
    assert lines[1] == "w_b.jpg is missing; copy it again"
    with pytest.raises(VRSError, match="object 1 are"):
        data.counts(data[0])


@pytest.mark.parametrize(
    "name, message",
    [
        ("Not", "no subclass of VRSDataset called 'Not'"),
        ("None", "no subclass"),
        ("", "no subclass"),
    ],
)
def test_own_class_that_is_none(own, name, message):
    with pytest.raises(VRSError, match=message):
        open_dataset(f"{own / 'mine.py'}:{name}", own)


def test_own_module(own, monkeypatch):
    monkeypatch.syspath_prepend(str(own))
    assert (
        len(open_dataset("mine:Mine", own)) == 2 and class_from("vrshq_nb.datasets:ReVOS") is ReVOS
    )
    (own / "broken.py").write_text("import nothing_of_the_kind")
    for name, message in (
        (f"{own / 'broken.py'}:X", "cannot be imported .ModuleNotFoundError"),
        ("nothing_of_the_kind:X", "cannot be imported"),
        (f"{own / 'absent.py'}:X", "there is no file"),
        ("revoz", "no dataset is called 'revoz'"),
    ):
        with pytest.raises(VRSError, match=message):
            open_dataset(name, own)


def test_subclass_must_give_three_methods(tmp_path):
    with pytest.raises(NotImplementedError, match="read"):
        VRSDataset(tmp_path)


def test_datasets_open_without_torch():
    "`vrshq data` must not wait for torch."
    code = "import sys, vrshq_nb.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- guessing --------------------------------------------------------------------------


def test_names():
    assert list(DATASETS) == [
        "revos",
        "mevis",
        "ref-youtube-vos",
        "ref-davis17",
        "reasonvos",
        "reasonseg",
        "refcoco",
        "refcoco+",
        "refcocog",
        "minivrs",
    ]
    assert all(cls.name == name for name, cls in DATASETS.items())


def test_nothing_fits(tmp_path):
    for folder in ("train", "val", "JPEGImages"):
        (tmp_path / folder).mkdir()
    with pytest.raises(VRSError, match="looks like no dataset") as e:
        detect_dataset(tmp_path)
    assert all(
        f"{name}: {cls.layout}" in str(e.value)
        for name, cls in DATASETS.items()
        if name != "minivrs"
    )
    with pytest.raises(VRSError, match="no folder"):
        detect_dataset(tmp_path / "no")
    with pytest.raises(VRSError, match="looks like no dataset"):
        check_folder(tmp_path)
    assert (
        "meta_expressions_valid_.json is missing" in check_folder(tmp_path, "revos")[1]["valid"][0]
    )


def test_an_object_that_is_on_no_frame_is_told(tmp_path):
    from vrshq_nb import MiniVRS

    root = MiniVRS("val", n=1, seed=3, size=32, n_frames=3).save(tmp_path / "revos", progress=False)
    masks = json.loads((root / "mask_dict.json").read_text())
    wanted = next(o for s in open_dataset("revos", root) for o in s.objects)
    assert open_dataset("revos", root).check() == []
    (root / "mask_dict.json").write_text(json.dumps(masks | {wanted: [None] * 3}))
    (line,) = open_dataset("revos", root).check()
    assert f"object {wanted} is on no frame" in line

"""A benchmark run: the reference's numbers, interrupting and resuming, several processes, tables,
report and zip."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from vrshq_nb import VRSHQ, MiniVRS, VRSError, cli
from vrshq_nb.datasets import MiniVRSData, open_dataset
from vrshq_nb.evaluate import (
    PERCENT,
    FolderSource,
    ModelSource,
    annotator_scores,
    append_record,
    as_row,
    evaluate,
    fingerprint,
    image_scores,
    label_map,
    make_record,
    read_mask,
    read_prediction,
    read_records,
    records_file,
    run_samples,
    score_masks,
    score_table,
    write_masks,
    write_zip,
)
from vrshq_nb.metrics import boundary_f, jaccard

FILES = "results.json", "expressions.csv", "report.html"
KEYS = "J", "F", "JF", "A", "R", "R_compat"


@pytest.fixture(scope="module")
def model():
    return VRSHQ.from_pretrained("nano")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "Four little clips in the layout of ReVOS; the folder."
    return MiniVRS("val", n=4, seed=4321, size=64, n_frames=6).save(
        tmp_path_factory.mktemp("data") / "revos", progress=False
    )


def run(*words, launch=(), **kwargs):
    return subprocess.run(
        [sys.executable, *launch, "-m", "vrshq_nb", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
        **kwargs,
    )


def contents(folder):
    "Every result and every mask, as bytes."
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.name in FILES or p.suffix == ".png"
    }


# ---- the reference evaluator of ReVOS --------------------------------------------------
def rle(mask):
    if mask is None:
        return None
    code = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode()}


@pytest.fixture
def awkward(tmp_path):
    "ReVOS with a nested name, overlapping targets, null masks, absent targets; bad predictions."
    rng, (T, H, W), root, predictions = (
        np.random.default_rng(3),
        (4, 40, 52),
        tmp_path / "revos",
        tmp_path / "predictions",
    )
    meta, masks, foreground = {}, {}, {}
    for v, name in enumerate(("plain", "source/nested", "gone")):
        objects = np.zeros((3, T, H, W), bool)
        for o in range(3):
            objects[o, :, 5 + 6 * o : 25 + 6 * o, 4 + 7 * o : 24 + 7 * o] = (
                True  # neighbours overlap
            )
        objects[0, 1] = False
        for o in range(3):
            masks[str(3 * v + o)] = [rle(m) if m.any() else None for m in objects[o]]
        union = objects.any(0)
        union[3] = False
        foreground[name] = {
            "masks_rle": [rle(m) if m.any() else None for m in union],
            "foreground_ratio": union.mean((1, 2)).tolist(),
        }
        wanted = [(0, [0]), (0, [0, 1]), (1, [1, 2]), (1, [2]), (2, []), (0, [1]), (1, [0])]
        expressions = {
            str(i): {
                "exp": f"thing {i}",
                "obj_id": ids,
                "anno_id": [3 * v + o for o in ids],
                "type_id": t,
            }
            for i, (t, ids) in enumerate(wanted)
        }
        frames = [f"{t:05d}" for t in range(T)]
        meta[name] = {
            "frames": frames,
            "height": H,
            "width": W,
            "vid_id": v,
            "expressions": expressions,
        }
        for t in frames:
            path = root / "JPEGImages" / name / f"{t}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (H, W, 3), dtype=np.uint8)).save(path)
        for i, (_, ids) in enumerate(wanted):
            if name == "gone":
                continue
            pred = (
                np.roll(objects[ids].any(0), i, axis=2)
                if ids and i != 3
                else rng.random((T, H, W)) < 0.01
            )
            for f, m in zip(frames, pred):
                path = predictions / name / str(i) / f"{f}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(m.astype(np.uint8) * 255).save(path)
    Image.fromarray(np.zeros((H // 2, W // 2), np.uint8)).save(
        predictions / "plain" / "5" / "00002.png"
    )
    for file, content in (
        ("meta_expressions_valid_", {"videos": meta}),
        ("mask_dict", masks),
        ("mask_dict_foreground", foreground),
    ):
        (root / f"{file}.json").write_text(json.dumps(content))
    return root, predictions


def reference(root, predictions):
    """The reference evaluator, restated: uint8 sums, raw bytes of the files, percentages rounded
    to two decimals, means by type, the mean of the two."""
    meta = json.loads((root / "meta_expressions_valid_.json").read_text())["videos"]
    masks, fore = (
        json.loads((root / f"{f}.json").read_text()) for f in ("mask_dict", "mask_dict_foreground")
    )
    groups = {0: [], 1: [], 2: []}
    for name, v in meta.items():
        for exp_id, e in v["expressions"].items():
            true, pred, fg = (
                np.zeros((len(v["frames"]), v["height"], v["width"]), np.uint8) for _ in range(3)
            )
            usable = True
            for t, frame in enumerate(v["frames"]):
                for a in e["anno_id"]:
                    if masks[str(a)][t]:
                        true[t] += coco.decode(masks[str(a)][t])
                if fore[name]["masks_rle"][t]:
                    fg[t] = coco.decode(fore[name]["masks_rle"][t])
                path = predictions / name / exp_id / f"{frame}.png"
                image = np.array(Image.open(path)) if path.exists() else np.zeros((0, 0), np.uint8)
                if image.shape == pred[t].shape:
                    pred[t] = image
                else:
                    usable = False
            wrong = ((1 - true) * pred).astype(np.uint8).sum((1, 2)).astype(float)
            values = [
                jaccard(pred, true),
                boundary_f(pred, true),
                (true == pred).mean((1, 2)),
                np.maximum(1 - wrong / (fg.sum((1, 2)) + 1e-6), 0),
            ]
            groups[e["type_id"]].append(
                [round(100 * float(x.mean()), 2) if usable else 0.0 for x in values]
            )
    means = {
        g: np.mean(groups[t], axis=0)
        for g, t in (("referring", 0), ("reasoning", 1), ("no_target", 2))
    }
    return means | {"overall": (means["referring"] + means["reasoning"]) / 2}


def test_reference_numbers(awkward, tmp_path):
    root, predictions = awkward
    assert (
        cli.main(
            [
                "evaluate",
                "--dataset",
                "revos",
                "--root",
                str(root),
                "--predictions",
                str(predictions),
                "--out",
                str(tmp_path / "out"),
                "-q",
            ]
        )
        == 0
    )
    ours, wanted = (
        json.loads((tmp_path / "out" / "results.json").read_text()),
        reference(root, predictions),
    )
    for group, values in wanted.items():
        for key, value in zip(("J", "F", "A", "R_compat"), values):
            assert ours[group][key] == pytest.approx(value, abs=0.005), (group, key)
    assert ours["missing"] == ["plain/5", *(f"gone/{i}" for i in range(7))]
    assert all(set(KEYS) <= ours[g].keys() for g in ("referring", "reasoning", "overall"))
    assert (
        0 < ours["referring"]["R_compat"] < ours["referring"]["R"] <= 100
    )  # the scales do differ here
    assert ours["overall"]["JF"] == pytest.approx(
        (ours["overall"]["J"] + ours["overall"]["F"]) / 2, abs=0.01
    )


def test_masks_of_zero_and_one_are_masks_too(awkward, tmp_path):
    root, predictions = awkward
    for path in predictions.rglob("*.png"):
        Image.fromarray((np.array(Image.open(path)) > 0).astype(np.uint8)).save(path)
    ours, wanted = (
        evaluate(
            open_dataset("revos", root), tmp_path / "out", predictions=predictions, progress=False
        ),
        reference(root, predictions),
    )
    for group, values in wanted.items():
        for key, value in zip(("J", "F", "A", "R_compat"), values):
            assert ours[group][key] == pytest.approx(value, abs=0.005)


# ---- predictions -----------------------------------------------------------------------
def test_a_palette_that_begins_with_the_object(tmp_path):
    "Some programs write palettes with white first. The color counts then, not the number."
    mask = np.zeros((6, 9), np.uint8)
    mask[2:4, 3:] = 255
    image = Image.fromarray((mask == 0).astype(np.uint8), "P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png") > 0, mask > 0)
    Image.fromarray(np.stack([mask // 255, 0 * mask, 0 * mask], -1)).save(tmp_path / "dark.png")
    assert np.array_equal(read_mask(tmp_path / "dark.png") > 0, mask > 0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB"])
def test_every_kind_of_png_is_a_mask(tmp_path, mode):
    mask = np.zeros((6, 9), np.uint8)
    mask[2:4, 3:] = 1
    image = Image.fromarray(mask if mode == "P" else mask * 255, "P" if mode == "P" else None)
    if mode == "P":
        image.putpalette([0, 0, 0, 128, 0, 0])
    (image if mode in "LP" else image.convert(mode)).save(tmp_path / "m.png")
    got = read_mask(tmp_path / "m.png")
    assert got.dtype == np.uint8 and got.shape == mask.shape and np.array_equal(got > 0, mask > 0)
    assert got.max() == (1 if mode == "P" else 255)


def test_what_is_unusable_says_why(small, tmp_path):
    data = open_dataset("revos", small)
    s = data[0]
    where, frames = tmp_path / s.video / s.exp_id, data.videos[s.video].frames

    def why():
        with pytest.raises(VRSError) as e:
            read_prediction(tmp_path, data, s)
        return str(e.value)

    assert "no folder" in why()
    write_masks(data.masks(s), where, frames)
    assert np.array_equal(read_prediction(tmp_path, data, s) > 0, data.masks(s))
    (where / "00004.png").write_bytes(b"not a picture")
    assert "00004.png cannot be read" in why()
    (where / "00004.png").unlink()
    assert "00004.png is missing" in why()
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(where / "00004.png")
    assert "00004.png is 64x32, the annotation 64x64" in why()
    record = make_record(
        data, s, lambda: read_prediction(tmp_path, data, s), lambda: data.foreground(s.video)
    )
    row = as_row(record)
    assert row["problem"] and all(row[k] == 0 for k in PERCENT)


def test_scores_of_one_sentence():
    true = np.zeros((4, 10, 10), np.uint8)
    true[:, :5] = 1
    void = np.zeros_like(true, bool)
    void[:, 9] = True
    pred = true.copy()
    pred[0, 9] = 255
    out = score_masks(pred, true, np.ones_like(true, bool), void)
    assert (
        out["J"] == out["F"] == 1 and out["intersection"] == out["union"] == 200
    )  # the void row does not count in J and F
    assert out["R"] == pytest.approx(1 - 0.1 / 4) and out["A_binary"] == pytest.approx(1 - 0.1 / 4)


# ---- tables ----------------------------------------------------------------------------
def rows(*values):
    "Rows with (video, type, J = F)."
    return [
        as_row(
            dict(
                video=v,
                exp_id=str(i),
                type_id=t,
                text="",
                **dict.fromkeys(("J", "F", "A", "A_binary", "R", "R_compat"), j),
            )
        )
        for i, (v, t, j) in enumerate(values)
    ]


def test_overall_is_the_mean_of_two_means():
    got = score_table(
        rows(("a", 0, 0.9), ("a", 0, 0.7), ("b", 0, 0.8), ("b", 1, 0.2), ("c", 2, 1.0))
    )
    assert (
        got["referring"]["J"],
        got["reasoning"]["J"],
        got["overall"]["J"],
        got["no_target"]["J"],
    ) == (80, 20, 50, 100)
    assert (
        got["overall"]["n"] == 4 and got["reasoning"]["JF_interval"] is None
    )  # one video: nothing to resample
    low, high = got["overall"]["JF_interval"]
    assert low <= 50 <= high


def test_data_without_types_have_an_overall_only():
    got = score_table(rows(("a", None, 0.4), ("b", None, 0.8)))
    assert (
        got["overall"]["J"] == 60
        and got["referring"] is got["reasoning"] is got["no_target"] is None
    )


def test_one_type_alone():
    assert score_table(rows(("a", 0, 0.4)))["overall"]["J"] == 40


def test_percentages_are_rounded_before_the_mean():
    assert score_table(rows(("a", 0, 0.123449), ("b", 0, 0.123449)))["referring"]["J"] == 12.34


def test_still_images_have_two_ious():
    records = [
        dict(J=0.5, intersection=10, union=20),
        dict(J=1.0, intersection=1, union=1),
        dict(problem="gone", intersection=0, union=9),
    ]
    assert image_scores(records) == {"gIoU": 50.0, "cIoU": round(100 * 11 / 30, 4)}


# ---- records ---------------------------------------------------------------------------
def test_a_torn_line_is_no_record(tmp_path):
    path = records_file(tmp_path)
    path.write_bytes(b'{"video": "a/b", "exp_id": "0"}\n{"video": "a/b", "ex')
    assert list(read_records(tmp_path)) == [("a/b", "0")]
    append_record(records_file(tmp_path), {"video": "ü", "exp_id": "1"})
    assert list(read_records(tmp_path)) == [("a/b", "0"), ("ü", "1")]
    path.write_bytes(b"rubbish\n" + path.read_bytes())
    with pytest.raises(VRSError, match="line 1 is damaged"):
        read_records(tmp_path)


def test_a_later_start_is_right_whichever_process_wrote(tmp_path):
    for process, J in ((11, 0.1), (2, 0.2), (0, 0.3)):
        append_record(records_file(tmp_path, process), dict(video="a", exp_id="0", J=J))
    assert read_records(tmp_path)["a", "0"]["J"] == 0.3


def records_of(out):
    "All records that were ever written, in the order of starts."
    return [
        json.loads(line)
        for p in sorted(out.glob("scores-*.jsonl"))
        for line in p.read_bytes().splitlines()
    ]


def test_mended_predictions_are_scored_again(small, tmp_path):
    data, masks, out = open_dataset("revos", small), tmp_path / "masks", tmp_path / "out"
    for s in data.samples[1:]:
        write_masks(data.masks(s), masks / s.video / s.exp_id, data.videos[s.video].frames)
    first = evaluate(data, out, predictions=masks, progress=False)
    assert first["missing"] == [f"{data[0].video}/{data[0].exp_id}"]
    n = len(records_of(out))
    write_masks(
        data.masks(data[0]),
        masks / data[0].video / data[0].exp_id,
        data.videos[data[0].video].frames,
    )
    again = evaluate(data, out, predictions=masks, progress=False)
    assert again["missing"] == [] and again["overall"]["J"] == again["overall"]["F"] == 100
    assert len(records_of(out)) == n + 1  # that sentence only
    assert contents(out) != {} and evaluate(data, out, predictions=masks, progress=False) == again


# ---- models ----------------------------------------------------------------------------
def test_each_video_is_encoded_once(small, model, tmp_path, monkeypatch):
    data, encoded, seen = open_dataset("revos", small), [], []
    encode, encode_frames = type(model).encode, model.encoder.encode_frames
    monkeypatch.setattr(
        type(model),
        "encode",
        lambda self, video, *a, **k: encoded.append(video.name) or encode(self, video, *a, **k),
    )
    monkeypatch.setattr(
        model.encoder,
        "encode_frames",
        lambda frames: seen.append(len(frames)) or encode_frames(frames),
    )
    evaluate(data, tmp_path / "out", model, progress=False)
    assert encoded == list(data.videos) and sum(seen) == sum(
        len(v.frames) for v in data.videos.values()
    )
    evaluate(data, tmp_path / "out", model, progress=False)
    assert encoded == list(data.videos)  # nothing was left to do


def test_masks_without_a_record_are_not_made_again(small, model, tmp_path, monkeypatch):
    "Killed between the masks and their record: the masks are complete and only have to be scored."
    data, out = open_dataset("revos", small), tmp_path / "out"
    results = evaluate(data, out, model, limit=1, progress=False)
    (path,) = out.glob("scores-*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    monkeypatch.setattr(
        type(model), "segment", lambda *a, **k: pytest.fail("the model was asked again")
    )
    assert evaluate(data, out, model, limit=1, progress=False) == results and len(
        records_of(out)
    ) == len(lines)


def test_results_are_those_of_segment(small, model, tmp_path):
    data = open_dataset("revos", small)
    results = evaluate(data, tmp_path / "out", model, limit=2, progress=False)
    J = {0: [], 1: []}
    for v in list(data.videos)[:2]:
        for s in data.videos[v].samples.values():
            if s.type_id != 2:
                J[s.type_id].append(
                    jaccard(model.segment(data.video(v), s.text).masks, data.masks(s)).mean()
                )
    assert results["n_videos"] == 2
    for name, t in (("referring", 0), ("reasoning", 1)):
        assert results[name]["J"] == pytest.approx(100 * np.mean(J[t]), abs=0.2)


def test_options_reach_the_model(small, model, tmp_path):
    data, seen = open_dataset("revos", small), []
    source = ModelSource(model, tmp_path, dict(k=2, sampling="uniform"))
    original = model.segment
    model.segment = lambda *a, **k: seen.append(k) or original(*a, **k)
    try:
        list(source.records(data, data[0].video, [data[0]]))
    finally:
        del model.segment
    assert seen == [dict(k=2, sampling="uniform")]


def test_what_the_model_cannot_read_is_named_and_not_the_end(small, model, tmp_path):
    root = tmp_path / "revos"
    shutil.copytree(small, root)
    meta = json.loads((root / "meta_expressions_valid_.json").read_text())
    first = next(iter(meta["videos"]))
    meta["videos"][first]["expressions"]["0"]["exp"] = "kite " * 40_000
    (root / "meta_expressions_valid_.json").write_text(json.dumps(meta))
    second = list(meta["videos"])[1]
    (root / "JPEGImages" / second / "00003.jpg").unlink()
    results = evaluate(
        open_dataset("revos", root), tmp_path / "out", model, limit=3, progress=False
    )
    assert results["missing"] == [
        f"{first}/0",
        *(f"{second}/{e}" for e in meta["videos"][second]["expressions"]),
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "characters" in page and "00003.jpg" in page


def test_another_model_has_another_fingerprint(model):
    before = fingerprint(model)
    weight = next(model.parameters())
    old = weight.data.flatten()[0].item()
    weight.data.flatten()[0] += 1
    try:
        assert fingerprint(model) != before
    finally:
        weight.data.flatten()[0] = old
    assert fingerprint(model) == before


def test_a_folder_belongs_to_one_run(small, model, tmp_path):
    data, out = open_dataset("revos", small), tmp_path / "out"
    (tmp_path / "masks").mkdir()
    evaluate(data, out, predictions=tmp_path / "masks", limit=1, progress=False)
    with pytest.raises(VRSError, match="another run"):
        evaluate(data, out, model, limit=1, progress=False)
    with pytest.raises(VRSError, match="another run"):
        evaluate(data, out, predictions=tmp_path / "masks", limit=2, progress=False)
    with pytest.raises(VRSError, match="other files"):
        evaluate(data, small, predictions=tmp_path / "masks", progress=False)
    with pytest.raises(VRSError, match="either"):
        evaluate(data, out, progress=False)
    with pytest.raises(VRSError, match="no folder"):
        evaluate(data, tmp_path / "new", predictions=tmp_path / "nowhere", progress=False)
    assert not (tmp_path / "new").exists()


# ---- killed, and in two processes ------------------------------------------------------
def finished(out):
    return sum(p.read_bytes().count(b"\n") for p in out.glob("scores-*.jsonl"))


@pytest.fixture(scope="module")
def uninterrupted(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert (
        cli.main(["evaluate", "--dataset", "revos", "--root", str(small), "--out", str(out)]) == 0
    )
    return out


def test_killed_and_started_again(small, uninterrupted, tmp_path):
    out = tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "vrshq_nb",
        "evaluate",
        "--dataset",
        "revos",
        "--root",
        str(small),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        start = time.monotonic()
        while finished(out) < 5 and process.poll() is None and time.monotonic() - start < 300:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.wait()
    assert process.returncode == -signal.SIGKILL and not (out / "results.json").exists()
    (first,) = out.glob("scores-*.jsonl")
    before = first.read_bytes()
    assert run(*words[3:]).returncode == 0
    assert first.read_bytes() == before and before.count(b"\n") >= 5
    records = [
        json.loads(line)
        for p in sorted(out.glob("scores-*.jsonl"))
        for line in p.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    ]
    assert (
        len({(r["video"], r["exp_id"]) for r in records})
        == len(records)
        == len(open_dataset("revos", small))
    )  # each once
    assert contents(out) == contents(uninterrupted)


def test_two_processes_give_what_one_gives(small, uninterrupted, tmp_path):
    out = tmp_path / "out"
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "2",
        "--multi_gpu",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]  # --multi_gpu: several processes, also on a CPU
    done = subprocess.run(
        [
            sys.executable,
            *launch,
            "-m",
            "vrshq_nb",
            "evaluate",
            "--dataset",
            "revos",
            "--root",
            str(small),
            "--out",
            str(out),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(out.glob("scores-*.jsonl"))) == 2 and done.stdout.count("overall") == 1
    assert all(p.stat().st_size for p in out.glob("scores-*.jsonl"))
    assert contents(out) == contents(uninterrupted)


# ---- what is written -------------------------------------------------------------------
def test_files_agree_and_the_report_is_self_contained(uninterrupted, small):
    results, data = (
        json.loads((uninterrupted / "results.json").read_text()),
        open_dataset("revos", small),
    )
    lines = list(csv.DictReader(open(uninterrupted / "expressions.csv", newline="")))
    assert [(r["video"], r["exp_id"], r["text"]) for r in lines] == [
        (s.video, s.exp_id, s.text) for s in data
    ]
    means = {t: np.mean([float(r["J"]) for r in lines if r["type_id"] == t]) for t in "01"}
    assert results["referring"]["J"] == pytest.approx(means["0"], abs=1e-3) and results["overall"][
        "J"
    ] == pytest.approx(sum(means.values()) / 2, abs=1e-3)
    page = (uninterrupted / "report.html").read_text()
    assert page.count("data:image/jpeg") == page.count("<figure>") > 6 and "data:image/png" in page
    assert not any(x in page for x in ("http://", "https://", "<script", "<link"))
    assert str(small) not in page


def test_a_report_needs_no_frames(small, tmp_path):
    root = tmp_path / "revos"
    shutil.copytree(small, root, ignore=lambda folder, names: ["JPEGImages", "videos"])
    data = open_dataset("revos", root)
    for s in data:
        write_masks(
            data.masks(s), tmp_path / "masks" / s.video / s.exp_id, data.videos[s.video].frames
        )
    assert (
        evaluate(data, tmp_path / "out", predictions=tmp_path / "masks", progress=False)["overall"][
            "JF"
        ]
        == 100
    )
    assert (tmp_path / "out" / "report.html").read_text().count("<figure>") > 6


def test_text_in_the_report_is_text(small, tmp_path):
    root = tmp_path / "revos"
    shutil.copytree(small, root)
    path = root / "meta_expressions_valid_.json"
    meta = json.loads(path.read_text())
    for v in meta["videos"].values():
        v["expressions"]["0"]["exp"] = "<b>the kite</b>"
    path.write_text(json.dumps(meta))
    data = open_dataset("revos", root)
    for s in data:
        write_masks(
            ~data.masks(s) if s.exp_id == "0" else data.masks(s),
            tmp_path / "masks" / s.video / s.exp_id,
            data.videos[s.video].frames,
        )
    evaluate(data, tmp_path / "out", predictions=tmp_path / "masks", progress=False)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;the kite&lt;/b&gt;" in page and "<b>" not in page


# ---- servers ---------------------------------------------------------------------------
def server_set(kind, root):
    "Two videos of a data set whose masks a server keeps."
    base = root / "valid"
    frames, expressions = ["00000", "00005"], {"0": {"exp": "the kite"}, "1": {"exp": "the dog"}}
    for v in ("a", "b"):
        (base / "JPEGImages" / v).mkdir(parents=True)
        for f in frames:
            Image.new("RGB", (12, 8)).save(base / "JPEGImages" / v / f"{f}.jpg")
    meta = json.dumps(
        {"videos": {v: {"frames": frames, "expressions": expressions} for v in ("a", "b")}}
    )
    if kind == "mevis":
        (base / "meta_expressions.json").write_text(meta)
    else:
        for split, text in (
            ("valid", meta),
            ("test", json.dumps({"videos": {"b": json.loads(meta)["videos"]["b"]}})),
        ):
            (root / "meta_expressions" / split).mkdir(parents=True)
            (root / "meta_expressions" / split / "meta_expressions.json").write_text(text)
    return open_dataset(kind, root, "valid")


@pytest.mark.parametrize(
    "kind, prefix, videos", [("mevis", "", "ab"), ("ref-youtube-vos", "Annotations/", "a")]
)
def test_zip(kind, prefix, videos, tmp_path, capsys):
    data, masks, root = server_set(kind, tmp_path / "set"), tmp_path / "masks", tmp_path / "set"
    for s in data:
        write_masks(
            np.ones((2, 8, 12), bool), masks / s.video / s.exp_id, data.videos[s.video].frames
        )
    before = sorted(p for p in tmp_path.rglob("*"))
    words = [
        "evaluate",
        "--dataset",
        kind,
        "--root",
        root,
        "--split",
        "valid",
        "--predictions",
        masks,
        "--out",
        tmp_path / "out",
        "--zip",
        tmp_path / "x.zip",
        "-q",
    ]
    assert cli.main(list(map(str, words))) == 0
    with zipfile.ZipFile(tmp_path / "x.zip") as z:
        assert z.testzip() is None
        assert z.namelist() == [
            f"{prefix}{v}/{e}/{f}.png" for v in videos for e in "01" for f in ("00000", "00005")
        ]
    assert all(p.exists() for p in before) and "kept by a server" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        results["missing"] == []
        and "overall" not in results
        and (tmp_path / "out" / "report.html").exists()
    )
    packed = (tmp_path / "x.zip").read_bytes()
    with pytest.raises(VRSError, match="already"):
        write_zip(data, masks, tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == packed
    assert write_zip(data, masks, tmp_path / "y.zip").read_bytes() == packed


def test_a_zip_is_whole_or_not_there(tmp_path, small):
    data, masks = server_set("mevis", tmp_path / "set"), tmp_path / "masks"
    for s in data:
        write_masks(
            np.ones((2, 8, 12), bool), masks / s.video / s.exp_id, data.videos[s.video].frames
        )
    Image.new("L", (8, 12)).save(masks / "a/1/00005.png")
    (masks / "b/0/00000.png").unlink()
    with pytest.raises(VRSError, match=r"a/1/00005.png is 8x12, the video 12x8 \(and 1 more\)"):
        write_zip(data, masks, tmp_path / "x.zip")
    with pytest.raises(VRSError, match="no server"):
        write_zip(open_dataset("revos", small), masks, tmp_path / "x.zip")
    with pytest.raises(VRSError, match="end the name"):
        write_zip(data, masks, tmp_path / "x.tar")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["masks", "set"]


def test_a_model_writes_masks_for_a_server(tmp_path, model):
    data = server_set("mevis", tmp_path / "set")
    results = evaluate(data, tmp_path / "out", model, progress=False)
    assert results["missing"] == [] and len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 8
    assert write_zip(data, tmp_path / "out" / "masks", tmp_path / "x.zip").exists()


# ---- Ref-DAVIS17 -----------------------------------------------------------------------
@pytest.fixture
def davis(tmp_path):
    "One video, two objects side by side, eight sentences."
    ids = np.zeros((4, 20, 40), np.uint8)
    ids[:, 5:15, 4:14], ids[:, 5:15, 24:34] = 1, 2
    root = tmp_path / "davis"
    for part, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (root / "valid" / part / "v").mkdir(parents=True)
        for t in range(4):
            image = Image.new("RGB", (40, 20)) if ending == "jpg" else Image.fromarray(ids[t], "P")
            if ending == "png":
                image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            image.save(root / "valid" / part / "v" / f"{t:05d}.{ending}")
    (root / "meta_expressions" / "valid").mkdir(parents=True)
    meta = {
        "videos": {
            "v": {
                "frames": [f"{t:05d}" for t in range(4)],
                "expressions": {str(i): {"exp": f"thing {i}"} for i in range(8)},
            }
        }
    }
    (root / "meta_expressions" / "valid" / "meta_expressions.json").write_text(json.dumps(meta))
    return open_dataset("ref-davis17", root), ids


def test_the_two_protocols_of_davis(davis, tmp_path):
    data, ids = davis
    frames, right = data.videos["v"].frames, {1: ids == 1, 2: ids == 2}
    for s in data:  # person 3 gives both objects for each
        masks = ids > 0 if data.annotator(s) == 3 else right[s.objects[0]]
        write_masks(masks, tmp_path / "masks" / "v" / s.exp_id, frames)
    results = evaluate(data, tmp_path / "out", predictions=tmp_path / "masks", progress=False)
    assert (
        results["protocols"]["expressions"]["J"]
        == results["overall"]["J"]
        == 100 * (6 + 2 * 0.5) / 8
    )
    by_person = results["protocols"]["annotators"]
    assert [e["J"] for e in by_person["each"]] == [100, 100, 100, 25] and by_person[
        "J"
    ] == 325 / 4  # the first object has both: .5 and 0
    assert [e["J_recall"] for e in by_person["each"]] == [100, 100, 100, 0] and by_person[
        "J_decay"
    ] == 0


def test_label_maps_of_davis_are_predictions_too(davis, tmp_path):
    data, ids = davis
    for k in range(4):
        (tmp_path / "maps" / f"anno_{k}" / "v").mkdir(parents=True)
        for t, f in enumerate(data.videos["v"].frames):
            Image.fromarray(ids[t] if k else np.zeros_like(ids[t])).save(
                tmp_path / "maps" / f"anno_{k}" / "v" / f"{f}.png"
            )
    results = evaluate(data, tmp_path / "out", predictions=tmp_path / "maps", progress=False)
    assert (
        results["missing"] == []
        and results["overall"]["J"] == results["protocols"]["annotators"]["J"] == 75
    )
    shutil.rmtree(tmp_path / "maps" / "anno_2")
    assert annotator_scores(data, tmp_path / "maps", ["v"])["J"] == 50
    assert evaluate(data, tmp_path / "out", predictions=tmp_path / "maps", progress=False)[
        "missing"
    ] == ["v/2", "v/6"]


def test_the_first_of_equals_has_the_pixel():
    a, b = np.zeros((2, 1, 2, 3), np.uint8)
    a[..., :2], b[..., 1:] = 255, 1
    assert label_map([a, b])[0].tolist() == [[1, 1, 2]] * 2


# ---- the command line ------------------------------------------------------------------
def test_minivrs_needs_no_folder(tmp_path, capsys):
    words = [
        "evaluate",
        "--dataset",
        "minivrs",
        "--n",
        "1",
        "--seed",
        "9",
        "--size",
        "64",
        "--frames",
        "3",
        "--out",
        str(tmp_path / "out"),
        "--json",
        "-q",
    ]
    assert cli.main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (
        printed == json.loads((tmp_path / "out" / "results.json").read_text())
        and printed["dataset"] == "minivrs"
    )
    assert (
        cli.main([*words[:-2], "--set", "alpha=0"]) == 2
        and "another run" in capsys.readouterr().err
    )


def test_missing_ones_are_named_on_standard_error(small, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    assert (
        cli.main(
            [
                "evaluate",
                "--dataset",
                "revos",
                "--root",
                str(small),
                "--predictions",
                str(tmp_path / "none"),
                "--out",
                str(tmp_path / "out"),
                "-q",
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert (
        "no usable prediction" in err
        and f"{open_dataset('revos', small)[0].video}/0" in err
        and "overall" in out
    )


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "--dataset"),
        (["--dataset", "revos"], "folder"),
        (["--dataset", "coco"], "no dataset"),
        (["--dataset", "minivrs", "--root", "x"], "drawn"),
        (["--dataset", "minivrs", "--split", "nope"], "split"),
        (["--dataset", "minivrs", "--set", "beta=1"], "beta"),
        (["--dataset", "minivrs", "--set", "alpha"], "NAME=VALUE"),
        (["--dataset", "minivrs", "--set", "how=best"], "how"),
        (["--dataset", "minivrs", "--predictions", "x", "--model", "nano"], "--predictions"),
        (["--dataset", "minivrs", "--predictions", "x"], "no folder"),
        (["--dataset", "minivrs", "--zip", "x.zip"], "no server"),
        (["--dataset", "minivrs", "--model", "micro"], "micro"),
        (["--dataset", "minivrs", "--threads", "0"], "threads"),
    ],
)
def test_bad_commands_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(
            ["evaluate", *words, *(["--n", "1", "--size", "64"] if "minivrs" in words else [])]
        )
        == 2
    )
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []


def test_data_command(small, tmp_path, capsys):
    assert cli.main(["data", "check", str(small)]) == 0
    assert capsys.readouterr().out == "revos, valid: all is well\n"
    root = tmp_path / "revos"
    shutil.copytree(small, root)
    next((root / "JPEGImages").glob("*/00001.jpg")).unlink()
    assert cli.main(["data", "check", str(root)]) == 2
    out, err = capsys.readouterr()
    assert "00001.jpg" in out and "problems in valid" in err
    assert cli.main(["data", "list"]) == 0 and "ref-davis17" in capsys.readouterr().out
    assert cli.main(["data", "check"]) == 2 and cli.main(["data", "check", str(tmp_path)]) == 2


def test_minivrs_data_is_scored_like_its_folder(small, tmp_path):
    drawn, read = (
        MiniVRSData(split="val", n=4, seed=4321, size=64, n_frames=6),
        open_dataset("revos", small),
    )
    assert [(s.video, s.exp_id, s.text, s.type_id) for s in drawn] == [
        (s.video, s.exp_id, s.text, s.type_id) for s in read
    ]
    for s in drawn:
        write_masks(
            np.roll(drawn.masks(s), 2, 2),
            tmp_path / "masks" / s.video / s.exp_id,
            drawn.videos[s.video].frames,
        )
    a, b = (
        evaluate(d, tmp_path / d.name, predictions=tmp_path / "masks", progress=False)
        for d in (drawn, read)
    )
    assert all(a[g] == b[g] for g in ("referring", "reasoning", "overall", "no_target"))


def test_stopping_between_sentences_loses_none(small, tmp_path):
    data = open_dataset("revos", small)
    for s in data:
        write_masks(
            data.masks(s), tmp_path / "masks" / s.video / s.exp_id, data.videos[s.video].frames
        )

    class Stopping(FolderSource):
        asked, most = [], 3

        def records(self, data, video, samples):
            for r in super().records(data, video, samples):
                if len(self.asked) == self.most:
                    raise KeyboardInterrupt
                self.asked.append(r["exp_id"])
                yield r

    (tmp_path / "out").mkdir()
    source = Stopping(tmp_path / "masks")
    for most, wanted in ((3, 3), (7, 7)):
        source.most = most
        with pytest.raises(KeyboardInterrupt):
            run_samples(data, list(data.videos), source, tmp_path / "out", progress=False)
        assert len(read_records(tmp_path / "out")) == wanted


# ---- other data sets -------------------------------------------------------------------
def test_still_images_with_pixels_that_do_not_count(tmp_path):
    base = tmp_path / "reasonseg" / "val"
    base.mkdir(parents=True)
    for name, left in (("a", 2), ("b", 10)):
        Image.new("RGB", (30, 20)).save(base / f"{name}.jpg")
        shapes = []
        for label, x in (("target", left), ("ignore", 20)):
            points = [[x, 5], [x + 7, 5], [x + 7, 12], [x, 12]]
            shapes.append({"label": label, "points": points})
        (base / f"{name}.json").write_text(
            json.dumps({"shapes": shapes, "text": [f"what is {name}?"], "is_sentence": True})
        )
    data = open_dataset("reasonseg", tmp_path / "reasonseg")
    for s in data:
        masks = data.masks(s) | data.void(s)  # painting what does not count costs nothing
        if s.video == "b":
            masks[:, 15:] = True
        write_masks(masks, tmp_path / "masks" / s.video / s.exp_id, data.videos[s.video].frames)
    results = evaluate(data, tmp_path / "out", predictions=tmp_path / "masks", progress=False)
    target = 8 * 8
    assert results["referring"] is None and results["overall"]["n"] == 2
    assert results["images"]["gIoU"] == pytest.approx(results["overall"]["J"], abs=0.01)
    assert results["images"]["cIoU"] == pytest.approx(
        100 * 2 * target / (2 * target + 5 * 30), abs=1e-3
    )


def test_a_data_set_of_ones_own(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("""
import numpy as np
from PIL import Image
from vrshq_nb.datasets import ExpressionSample, VideoEntry, VRSDataset

class Mine(VRSDataset):
    "Pictures <video>_<frame>.png, whose red things are the answer."
    name = "mine"
    def read(self):
        videos = {}
        for v in sorted({p.stem.split("_")[0] for p in self.root.glob("*.png")}):
            frames = tuple(sorted(p.stem.split("_")[1] for p in self.root.glob(f"{v}_*.png")))
            sample = ExpressionSample(v, "0", "the red thing", 0, ("red",))
            videos[v] = VideoEntry(v, frames, {"0": sample})
        return videos

    def frame_file(self, video, frame):
        return self.root / f"{video}_{frame}.png"

    def object_masks(self, video, object_id):
        files = [self.frame_file(video, f) for f in self.videos[video].frames]
        return np.stack([np.asarray(Image.open(f))[..., 0] > 200 for f in files])
""")
    (tmp_path / "set").mkdir()
    for v in ("a", "b"):
        for t in range(3):
            image = np.zeros((24, 32, 3), np.uint8)
            image[4:12, 5 + t : 15 + t] = 255, 0, 0
            Image.fromarray(image).save(tmp_path / "set" / f"{v}_{t:03d}.png")
            path = tmp_path / "masks" / v / "0" / f"{t:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0] if v == "a" else 0 * image[..., 0]).save(path)
    words = [
        "evaluate",
        "--dataset",
        f"{tmp_path / 'mine.py'}:Mine",
        "--root",
        tmp_path / "set",
        "--predictions",
        tmp_path / "masks",
        "--out",
        tmp_path / "out",
        "-q",
    ]
    assert cli.main(list(map(str, words))) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        results["dataset"] == "mine" and results["referring"]["J"] == results["overall"]["J"] == 50
    )
    assert "referring" in capsys.readouterr().out


# ---- what is no fault of a prediction ends the run -------------------------------------
def test_a_place_that_cannot_be_written_is_no_score(small, model, tmp_path, monkeypatch):
    from vrshq_nb import evaluate as module

    data, written = open_dataset("revos", small), []

    def full(masks, folder, frames):
        if len(written) == 2:
            raise VRSError("cannot write masks (no space left on device): make room")
        written.append(folder)
        return write_masks(masks, folder, frames)

    monkeypatch.setattr(module, "write_masks", full)
    with pytest.raises(VRSError, match="no space"):
        evaluate(data, tmp_path / "out", model, limit=1, progress=False)
    assert not (tmp_path / "out" / "results.json").exists()
    monkeypatch.undo()
    assert evaluate(data, tmp_path / "out", model, limit=1, progress=False)["missing"] == []


def test_a_truth_that_is_missing_is_no_score(davis, tmp_path):
    data, ids = davis
    for s in data:
        write_masks(
            ids == s.objects[0], tmp_path / "masks" / "v" / s.exp_id, data.videos["v"].frames
        )
    first = data.root / "valid" / "Annotations" / "v" / "00000.png"
    first.rename(tmp_path / "kept.png")

    def run_it():
        data_again = open_dataset("ref-davis17", data.root)
        return evaluate(
            data_again, tmp_path / "out", predictions=tmp_path / "masks", progress=False
        )

    with pytest.raises(VRSError, match="00000.png"):
        run_it()
    (tmp_path / "kept.png").rename(first)
    results = run_it()
    assert results["overall"]["J"] == results["protocols"]["annotators"]["J"] == 100


def test_changed_sentences_are_another_run(small, tmp_path):
    root = tmp_path / "revos"
    shutil.copytree(small, root)
    (tmp_path / "masks").mkdir()
    evaluate(
        open_dataset("revos", root),
        tmp_path / "out",
        predictions=tmp_path / "masks",
        progress=False,
    )
    path = root / "meta_expressions_valid_.json"
    meta = json.loads(path.read_text())
    e = next(
        e for v in meta["videos"].values() for e in v["expressions"].values() if e["type_id"] == 0
    )
    e["type_id"] = 1
    path.write_text(json.dumps(meta))
    with pytest.raises(VRSError, match="another run"):
        evaluate(
            open_dataset("revos", root),
            tmp_path / "out",
            predictions=tmp_path / "masks",
            progress=False,
        )


def test_options_of_a_command_are_what_they_say(tmp_path, capsys):
    words = [
        "evaluate",
        "--dataset",
        "minivrs",
        "--n",
        "1",
        "--size",
        "32",
        "--frames",
        "2",
        "-q",
        "--out",
        str(tmp_path / "out"),
        "--set",
        "terms=occlusion",
        "gate=False",
    ]
    assert cli.main(words) == 0 and cli.main(words) == 0  # goes on, a tuple read back as a list
    assert json.loads((tmp_path / "out" / "run.json").read_text())["options"] == {
        "terms": ["occlusion"],
        "gate": False,
    }
    for bad in ("gate=maybe", "k=1.5", "seed=x"):
        assert (
            cli.main([*words[:-3], "--set", bad]) == 2
            and bad.split("=")[0] in capsys.readouterr().err
        )


def test_videos_without_a_sentence(small, tmp_path):
    root = tmp_path / "revos"
    shutil.copytree(small, root)
    path = root / "meta_expressions_valid_.json"
    meta = json.loads(path.read_text())
    next(iter(meta["videos"].values()))["expressions"] = {}
    path.write_text(json.dumps(meta))
    (tmp_path / "masks").mkdir()
    with pytest.raises(VRSError, match="no sentence"):
        evaluate(
            open_dataset("revos", root),
            tmp_path / "out",
            predictions=tmp_path / "masks",
            limit=1,
            progress=False,
        )
    assert (
        evaluate(
            open_dataset("revos", root),
            tmp_path / "out",
            predictions=tmp_path / "masks",
            limit=2,
            progress=False,
        )["n_videos"]
        == 2
    )


@pytest.mark.parametrize("text", ["", "[1]", '{"dataset": "other"}'])
def test_a_damaged_note_of_the_run(small, tmp_path, text):
    (tmp_path / "masks").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(text)
    with pytest.raises(VRSError, match="damaged|another run"):
        evaluate(
            open_dataset("revos", small),
            tmp_path / "out",
            predictions=tmp_path / "masks",
            progress=False,
        )
    (tmp_path / "file").touch()
    with pytest.raises(VRSError):
        evaluate(
            open_dataset("revos", small),
            tmp_path / "file" / "x",
            predictions=tmp_path / "masks",
            progress=False,
        )

"The sample clips: their rule, their files, and how the demo scores them."

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vrshq_nb import cli, samples
from vrshq_nb.card import demo_table
from vrshq_nb.folders import find_weights
from vrshq_nb.video import Video

SAMPLE_NAMES = [s.name for s in samples.SAMPLES]


class Answers:
    "A model that knows the masks beforehand."

    def __init__(self, masks):
        self.masks = masks

    def segment(self, video, text):
        picture = np.zeros((60, 758, 3), np.uint8)
        return SimpleNamespace(
            text=text,
            masks=self.masks,
            keyframe=0,
            found=bool(self.masks.any()),
            video=Video.open(video),
            save=lambda path: path,
            show=lambda: SimpleNamespace(array=picture),
        )


def row_of(sample, tmp_path, change):
    "The demo's row for a model that answers with the true masks after a change."
    name, clip, expression = sample
    (tmp_path / "clips").mkdir(exist_ok=True)
    masks = change(clip.masks(expression))
    return samples.demo_row(Answers(masks), name, clip, expression, tmp_path)


@pytest.fixture(scope="module")
def some():
    "A sample whose target is always in view, and one without a target."
    found = {}
    for sample in samples.sample_clips():
        _, clip, expression = sample
        if not expression.targets:
            found.setdefault("none", sample)
        elif clip.masks(expression).any((1, 2)).all():
            found.setdefault("one", sample)
        if len(found) == 2:
            break
    return found["one"], found["none"]


def right_part(masks):
    "Less than half of what is there, in each frame."
    keep = np.cumsum(masks, -1) <= 0.4 * masks.sum(-1, keepdims=True)
    return masks & keep


def one_frame(masks):
    "A few pixels in one frame."
    masks = masks.copy()
    masks[3, :4, :4] = True
    return masks


def test_right_means_that_most_of_it_is_right(some, tmp_path):
    "A target: J of at least .5, not only that something was found."
    rows = [row_of(some[0], tmp_path, f) for f in (lambda m: m, lambda m: ~m, right_part)]
    assert [row["right"] for row in rows] == [True, False, False]
    assert all(row["found"] and row["there"] for row in rows)
    assert 0.2 < rows[2]["J"] < samples.RIGHT
    nothing = row_of(some[0], tmp_path, np.zeros_like)
    assert not nothing["right"] and nothing["J"] < 0.5
    assert "yes, right" in cli.row_line(rows[0]) and "yes, wrong" in cli.row_line(rows[1])
    assert "no, wrong" in cli.row_line(nothing) and "1 of 3 right" in cli.mean_line(rows)


def test_nothing_is_right_where_nothing_is(some, tmp_path):
    "No target: nothing may be shown, in no frame."
    rows = [row_of(some[1], tmp_path, f) for f in (lambda m: m, one_frame)]
    assert [row["right"] for row in rows] == [True, False]
    assert rows[0]["J"] == rows[0]["F"] == 1 and rows[1]["J"] > 0.9
    assert "no, right" in cli.row_line(rows[0]) and "yes, wrong" in cli.row_line(rows[1])
    assert "1 of 2 right" in cli.mean_line(rows)


def test_picture_and_overview_say_what_the_table_says(some, tmp_path):
    rows = [row_of(sample, tmp_path, f) for sample, f in zip(some, (np.zeros_like, one_frame))]
    assert [samples.verdict(row)[-5:] for row in rows] == ["wrong", "wrong"]
    red = np.asarray(Image.open(tmp_path / f"{rows[0]['name']}.png"))[60:90]
    assert (red == [179, 21, 12]).all(-1).sum() > 5  # the verdict's colour
    sheet = samples.demo_overview(tmp_path, [row["name"] for row in rows]).array
    assert sheet.shape[1] == 1200 and sheet.std() > 10


def test_samples_are_of_many_kinds():
    from vrshq_nb.minivrs.sentences import FAMILIES

    assert len(set(SAMPLE_NAMES)) == len({s.index for s in samples.SAMPLES}) == len(SAMPLE_NAMES)
    assert len(SAMPLE_NAMES) >= 10
    assert {s.family for s in samples.SAMPLES} == {*FAMILIES, "absent"}


def test_samples_follow_their_rule():
    "Each row is the first clip, taken by no earlier row, that has such a sentence."
    from vrshq_nb.minivrs import MiniVRS

    taken = set()
    data = MiniVRS(samples.SAMPLE_SPLIT, n=1000, seed=samples.SAMPLE_SEED, n_expressions=0)
    records = {}
    for s in samples.SAMPLES:
        for i in sorted(set(range(s.index + 1)) - taken):
            record = records[i] = records.get(i) or data[i].record
            said = next(samples.matching_expressions(record, s), None)
            assert bool(said) == (i == s.index), (s.name, i)
        assert said.text == s.text
        taken.add(s.index)


def test_the_readme_tells_the_truth(root):
    "Table and count come from the stored run of the demo, and each verdict from its numbers."
    rows = json.loads((find_weights("nano") / "demo.json").read_text())
    readme = (root / "README.md").read_text()
    for row in rows:
        enough = row["found"] and row["J"] >= samples.RIGHT
        assert row["right"] == (enough if row["there"] else not row["found"])
    assert demo_table(rows) in readme
    assert f"{sum(r['right'] for r in rows)} of {len(rows)}\nare right" in readme


@pytest.fixture(scope="module")
def drawn():
    return {name: (clip, expression) for name, clip, expression in samples.sample_clips()}


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_sample_folder_holds_what_is_drawn(name, drawn, root):
    from pycocotools import mask as coco
    from vrshq_nb.minivrs import Expression

    folder, (clip, expression) = root / "data_samples", drawn[name]
    record = json.loads((folder / f"{name}.json").read_text())
    sample = next(s for s in samples.SAMPLES if s.name == name)
    assert (record["split"], record["seed"], record["index"]) == (
        samples.SAMPLE_SPLIT,
        samples.SAMPLE_SEED,
        sample.index,
    )
    assert [t["kind"] for t in record["things"]] == clip.record.kind
    first = record["expressions"][0]
    assert (first["text"], first["type_id"], tuple(first["targets"])) == (
        sample.text,
        expression.type_id,
        expression.targets,
    )
    video = Video.open(folder / record["video"])
    assert (len(video), video.height, video.width, video.fps) == (
        record["frames"],
        *record["size"],
        record["fps"],
    )
    difference = np.abs(video.frames().astype(int) - clip.frames)
    assert difference.mean() < 4 and (difference > 60).mean() < 0.01
    for e in record["expressions"]:
        masks = np.stack([coco.decode(m) for m in e["masks"]]).astype(bool)
        assert (masks == clip.masks(Expression(e["text"], e["type_id"], tuple(e["targets"])))).all()


def test_sample_folder_is_complete_and_small(root):
    folder = root / "data_samples"
    assert sorted(p.name for p in folder.iterdir()) == sorted(samples.sample_files())
    assert sum(p.stat().st_size for p in folder.iterdir()) < 5e6
    readme = (folder / "README.md").read_text()
    assert "Apache" in readme and all(f"| {s.text} |" in readme for s in samples.SAMPLES)

"The sample clips: their rule, their files, and how the demo scores them."

import json

import numpy as np
import pytest

from vrshq_nb import cli, samples
from vrshq_nb.video import Video

SAMPLE_NAMES = [s.name for s in samples.SAMPLES]


def test_demo_row_of_a_model_that_shows_nothing(tmp_path):
    "Where nothing of the kind is there, showing nothing scores 1; where something is, 0."

    class Blind:
        def segment(self, video, text):
            from types import SimpleNamespace

            video = Video.open(video)
            masks = np.zeros((len(video), video.height, video.width), bool)
            picture = np.zeros((60, 758, 3), np.uint8)
            return SimpleNamespace(
                text=text,
                masks=masks,
                keyframe=0,
                found=False,
                video=video,
                save=lambda p: p,
                show=lambda: SimpleNamespace(array=picture),
            )

    (tmp_path / "clips").mkdir()
    rows = {
        s[0]: samples.demo_row(Blind(), *s, tmp_path)
        for s in samples.sample_clips(["all_animals", "nothing"])
    }
    assert (
        rows["nothing"]["J"] == rows["nothing"]["F"] == 1
        and rows["all_animals"]["J"] == rows["all_animals"]["F"] == 0
    )
    assert "no, right" in cli.table_line(rows["nothing"]) and "no, wrong" in cli.table_line(
        rows["all_animals"]
    )


def test_samples_are_of_many_kinds():
    assert (
        len(set(SAMPLE_NAMES))
        == len({s.index for s in samples.SAMPLES})
        == len(samples.SAMPLES)
        >= 8
    )
    assert len({s.family for s in samples.SAMPLES}) >= 7


def test_samples_follow_their_rule():
    "Each row is the first clip, taken by no earlier row, that has such a sentence."
    from vrshq_nb.minivrs import SPLITS, MiniVRS, make_world

    data, taken = (
        MiniVRS(samples.SAMPLE_SPLIT, n=1000, seed=samples.SAMPLE_SEED, n_expressions=0),
        set(),
    )
    needed = {
        "common_sense": {"umbrella"},
        "tail": {"cat"},
        "still_flying": {"bird"},
        "wind": {"kite", "sailboat"},
    }  # only to skip clips quickly
    for s in samples.SAMPLES:
        for i in range(s.index + 1):
            world = make_world(
                np.random.default_rng([SPLITS[samples.SAMPLE_SPLIT], samples.SAMPLE_SEED, i]),
                16,
                samples.SAMPLE_SPLIT,
            )
            if (
                i in taken
                or s.name in needed
                and not needed[s.name] & {t.kind for t in world.things}
            ):
                continue
            texts = {
                e.text for e in samples.matching_expressions(data[i].record, s.family, s.pattern)
            }
            assert bool(texts) == (i == s.index), (s.name, i, texts)
        assert min(texts) == s.text
        taken.add(s.index)


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

"""The training of nano in miniature."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vrshq_nb import VRSHQ, train
from vrshq_nb.minivrs import make_clip
from vrshq_nb.train import (
    ANY_KIND,
    Teacher,
    cell_occupancy,
    eye_labels,
    random_query,
    SAM2_NANO,
    summary,
)
from vrshq_nb.mdp import sam2_from_config


def test_summary_counts_sentences_about_nothing_apart():
    row = dict(clip="a", family="look", type_id=0, JF=0.5, found=True)
    rows = [
        row,
        dict(row, clip="b", JF=0.7),
        dict(row, clip="b", family="time", type_id=1, JF=0.2),
        dict(row, family="absent", type_id=2, JF=0.0),
        dict(row, clip="b", family="absent", type_id=2, JF=1.0, found=False),
    ]
    out = summary(rows)
    assert out["referring"]["JF"] == pytest.approx(0.6) and out["referring"]["n"] == 2
    assert out["reasoning"]["JF"] == pytest.approx(0.2) and out["absent, nothing shown"][
        "share"
    ] == pytest.approx(0.5)


def test_occupancy_and_labels_of_cells():
    clip = make_clip("train", 1, 0, 64, 4, 0)
    n = len(clip.record.things)
    occupancy = cell_occupancy(clip.ids, n)
    assert occupancy.shape == (n, 4, 8, 8)
    assert np.allclose(occupancy.sum(0).mean((1, 2)), (clip.ids > 0).mean((1, 2)), atol=1e-6)
    labels = eye_labels(clip.record, clip.ids, np.array([0, 2]))
    assert (
        labels["kind"].shape == (2, 8, 8)
        and ((labels["kind"] == ANY_KIND) == (occupancy[:, [0, 2]].max(0) < 0.08)).all()
    )


def test_a_teacher_token_depends_on_what_and_where():
    sam2, teacher = sam2_from_config(SAM2_NANO), Teacher(128)
    token = lambda *part: teacher(sam2, [[part]])[0]
    here = token(1, 2, [(0.2, 0.3)])
    assert torch.equal(here, token(1, 2, [(0.2, 0.3)]))
    assert all(
        not torch.allclose(here, other)
        for other in (
            token(0, 2, [(0.2, 0.3)]),
            token(1, 3, [(0.2, 0.3)]),
            token(1, 2, [(0.6, 0.3)]),
            token(1, 2, 1),
        )
    )
    both = teacher(sam2, [[(1, 2, [(0.2, 0.3)]), (0, 2, [(0.2, 0.3)])]])[0]
    assert torch.allclose(both, (here + token(0, 2, [(0.2, 0.3)])) / 2, atol=1e-6)


def test_queries_name_things_of_the_clip():
    clip, rng = make_clip("train", 1, 3, 32, 4, 0), np.random.default_rng(0)
    for _ in range(50):
        query, meant = random_query(clip.record, rng, 2)
        assert len(query) >= 1 and all(0 <= i < len(clip.record.things) for i in meant)


# ---- a stage that is stopped and started again -----------------------------------------------------------------------
def small_stage(folder, stop_at=None, steps=8, every=2):
    "A stage of eight steps on a small network; it dies at the beginning of step `stop_at`."
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))

    def step_fn(step):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.from_numpy(np.random.default_rng(step).normal(size=(16, 4))).float()
        loss = (net(x)[:, 0] - x.prod(1)).square().mean()
        return loss, dict(loss=loss)

    train.run_stage("small", folder, dict(net=net), steps, step_fn, 1e-2, every=every)


def same(a, b):
    "Whether two checkpoints hold the same, to the last bit; the minutes are the clock's."
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "minutes")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("stops", [(0,), (1,), (2,), (3,), (7,), (3, 5, 6)], ids=str)
def test_a_stage_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, stops):
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            small_stage(tmp_path / "b", stop)
    small_stage(tmp_path / "b")
    small_stage(tmp_path / "a")
    assert same(load(tmp_path / "a/small.pt"), load(tmp_path / "b/small.pt"))
    lines = [
        [
            {k: v for k, v in json.loads(x).items() if k != "minutes"}
            for x in (tmp_path / f / "small.jsonl").read_text().splitlines()
        ]
        for f in "ab"
    ]
    assert [x["step"] for x in lines[0]] == [2, 4, 6, 8] and lines[0] == lines[1]


def test_a_finished_stage_is_not_run_again(tmp_path):
    small_stage(tmp_path)
    before = (tmp_path / "small.pt").stat().st_mtime_ns
    small_stage(tmp_path, stop_at=0)
    assert (tmp_path / "small.pt").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    "A folder in which the stages that others build on have made two steps."
    folder = tmp_path_factory.mktemp("begun")
    train.train_eye(folder, steps=2, frames=2)
    train.train_sam2_image(folder, steps=2, clips=1, frames=1, queries=2)
    train.train_sam2_memory(folder, steps=2, clips=1, tracks=1, length=3, queries=2)
    train.train_language(folder, steps=2, clips=2, sentences=2)
    return folder


SMALL = dict(
    eye=dict(frames=2),
    sam2_image=dict(clips=1, frames=2, queries=3),
    sam2_memory=dict(clips=1, tracks=2, length=3, queries=2),
    language=dict(clips=3, sentences=2, easy=2),
    joint=dict(clips=3, sentences=4),
    clip=dict(pairs=4),
)


@pytest.mark.parametrize("name", train.STAGES)
def test_each_stage_ends_at_the_same_weights_after_a_stop(begun, tmp_path, monkeypatch, name):
    def run(folder, stop=None):
        folder.mkdir(exist_ok=True)
        for part in ("eye", "sam2_image", "sam2_memory", "language"):
            if part != name:
                shutil.copy(begun / f"{part}.pt", folder)

        def run_stage(name, folder, modules, steps, step_fn, *args, **kwargs):
            def mortal(step):
                if step == stop:
                    raise KeyboardInterrupt
                return step_fn(step)

            original(name, folder, modules, steps, mortal, *args, **kwargs | dict(every=2))

        monkeypatch.setattr(train, "run_stage", run_stage)
        train.STAGES[name](folder, steps=4, **SMALL[name])

    original = train.run_stage
    run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop=3)
    assert load(tmp_path / f"b/{name}.pt")["step"] == 2
    run(tmp_path / "b")
    assert same(load(tmp_path / f"a/{name}.pt"), load(tmp_path / f"b/{name}.pt"))


KILLED = """
import sys, torch
from vrshq_nb import VRSHQ, train
torch.set_num_threads(1)
original = train.run_stage
train.run_stage = lambda *args, **kwargs: original(*args, **kwargs | dict(every=1))
train.train_sam2_image(sys.argv[1], steps=6, clips=1, frames=1, queries=2)
"""


def test_killed_in_the_middle_and_started_again(tmp_path):
    start = lambda folder: subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / folder)], stderr=subprocess.DEVNULL
    )
    log, process = tmp_path / "b/sam2_image.jsonl", start("b")
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 2):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    for folder in "ab":
        assert start(folder).wait() == 0
    assert same(*(load(tmp_path / f"{f}/sam2_image.pt") for f in "ab"))
    assert not list(tmp_path.rglob("*.part"))


def test_the_bank_of_a_step_does_not_depend_on_what_came_before(begun):
    encoder = train.new_encoder(begun).eval()
    old, fresh = (train.Bank(encoder, 7, size=64, most=6, new=1, start=3) for _ in range(2))
    for step in range(8):
        batch = old.batch(step, 3, np.random.default_rng(step))
    again = fresh.batch(7, 3, np.random.default_rng(7))
    assert [b["index"] for b in batch] == [b["index"] for b in again] and all(
        torch.equal(a["cells"], b["cells"]) for a, b in zip(batch, again)
    )
    assert max(old.items) == 10 and min(old.items) >= 5


def test_captions_fit_the_thing_they_are_about():
    rng = np.random.default_rng(0)
    for _ in range(50):
        kind, colour = int(rng.integers(len(train.KINDS))), int(rng.integers(len(train.COLOURS)))
        text, fits = train.caption(rng, kind, colour)
        assert (
            text
            and fits(kind, colour)
            and not all(
                fits(k, c) for k in range(len(train.KINDS)) for c in range(len(train.COLOURS))
            )
        )


def test_a_smoke_run_of_all_stages_makes_a_model_that_works(tmp_path):
    made = train.train_nano(tmp_path / "run", smoke=True)
    log = json.loads((made / "training_log.json").read_text())
    assert {stage: rows[-1]["step"] for stage, rows in log.items()} == dict.fromkeys(
        train.STAGES, 2
    )
    clip = make_clip("val", 9, 0, 64, 4)
    assert VRSHQ.from_pretrained(made).segment(
        clip.frames, clip.expressions[0].text, gate=False
    ).masks.shape == (4, 64, 64)
    assert sum(f.stat().st_size for f in made.iterdir()) < 25e6

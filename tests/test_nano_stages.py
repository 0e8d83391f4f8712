"""The eight stages: banks and losses by hand, and weights that do not depend on interruptions."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from vrshq_nb.nano_stages import (
    NANO_STAGES,
    ClipBank,
    block_majority,
    draw_window,
    encoded_clip,
    new_encoder,
    pair_losses,
    patch_losses,
    positions_before,
    right_object,
)
from vrshq_nb.nano_teacher import ANY_COLOUR, ANY_KIND, SentenceLabels
from vrshq_nb.training import run_stage

SMALL = dict(
    vision_tower=dict(frames=2),
    sam2_image=dict(clips=1, frames=2, queries=3),
    sam2_memory=dict(clips=1, tracks=2, length=3, queries=2),
    sam2_image_fine=dict(clips=1, frames=1, queries=2),
    sam2_memory_fine=dict(clips=1, tracks=1, length=3, queries=2),
    language=dict(clips=3, sentences=2, easy=2),
    joint=dict(clips=2, sentences=4, tracked=1),
    clip=dict(pairs=4),
)
FINE = ("sam2_image_fine", "sam2_memory_fine")
NEEDED = ("vision_tower", "sam2_image", "sam2_memory", *FINE, "language")  # by other stages


def train(name, folder, steps, stop_at=None, **sizes):
    "A few steps of a stage; it is stopped at the beginning of step `stop_at`."
    stage = NANO_STAGES[name](folder, steps, **sizes)

    def step(n):
        if n == stop_at:
            raise KeyboardInterrupt
        return stage.step(n)

    options = dict(every=2, final_rate=stage.final_rate, muon=stage.muon)
    run_stage(name, folder, stage.modules, steps, step, stage.lr, **options)


def same(a, b):
    "Whether two checkpoints hold the same, to the last bit; the minutes are the clock's."
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "minutes")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    "A folder in which the stages that others build on have made two steps."
    folder = tmp_path_factory.mktemp("begun")
    train("vision_tower", folder, 2, frames=2)
    train("sam2_image", folder, 2, clips=1, frames=1, queries=2)
    train("sam2_memory", folder, 2, clips=1, tracks=1, length=3, queries=2)
    for name in FINE:
        train(name, folder, 2, **SMALL[name])
    train("language", folder, 2, clips=2, sentences=2)
    return folder


@pytest.mark.parametrize("name", NANO_STAGES)
def test_each_stage_ends_at_the_same_weights_after_a_stop(begun, tmp_path, name):
    def run(folder, stop_at=None):
        folder.mkdir(exist_ok=True)
        for part in NEEDED:
            if part != name:
                shutil.copy(begun / f"{part}.pt", folder)
        train(name, folder, 4, stop_at, **SMALL[name])

    run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop_at=3)
    assert load(tmp_path / f"b/{name}.pt")["step"] == 2
    run(tmp_path / "b")
    assert same(load(tmp_path / f"a/{name}.pt"), load(tmp_path / f"b/{name}.pt"))


def test_the_log_of_a_stage_holds_its_losses(begun):
    log = json.loads((begun / "language.jsonl").read_text().splitlines()[-1])
    assert {"words", "occupancy", "align", "motion", "pointer", "like"} <= set(log)
    assert all(np.isfinite(x) for x in log.values())


def test_the_bank_of_a_step_does_not_depend_on_what_came_before(begun):
    encoder = new_encoder(begun).eval()
    make = partial(encoded_clip, encoder, seed=7, size=64)
    old, fresh = (ClipBank(make, most=6, new=1, start=3) for _ in range(2))
    for n in range(8):
        batch = old.batch(n, 3, np.random.default_rng(n))
    again = fresh.batch(7, 3, np.random.default_rng(7))
    assert [item["index"] for item in batch] == [item["index"] for item in again]
    assert all(torch.equal(a["visual"], b["visual"]) for a, b in zip(batch, again))
    assert max(old.items) == 10 and min(old.items) >= 5


def test_the_fine_stages_continue_at_twice_the_size(begun):
    coarse = NANO_STAGES["sam2_memory"](begun, 2)
    assert coarse.sam2.image_size == 128
    for name, before in zip(FINE, ("sam2_memory", "sam2_image_fine")):
        stage = NANO_STAGES[name](begun, 2)
        assert stage.sam2.image_size == 256
        assert same(dict(stage.sam2.state_dict()), load(begun / f"{before}.pt")["sam2"])
        assert not any(p.requires_grad for p in stage.teacher.parameters())


def test_a_stage_without_the_checkpoint_it_needs(tmp_path):
    with pytest.raises(FileNotFoundError):
        NANO_STAGES["joint"](tmp_path, 2)


def test_windows_stay_inside_the_clip():
    for seed in range(30):
        frames = draw_window(np.random.default_rng(seed), 6)
        assert len(set(frames.tolist())) == 6 and frames.min() >= 0 and frames.max() < 16
        assert len(set(np.diff(frames).tolist())) == 1


def test_positions_before_a_token():
    ids = torch.tensor([[[5, 9, 1, 9, 1], [9, 9, 9, 5, 9]]])[:, :1]
    assert positions_before(ids, 9).tolist() == [[[0, 2]]]


def test_the_majority_of_a_block():
    occupancy = torch.zeros(1, 2, 1, 4, 4)
    occupancy[0, 0, 0, 0, 0], occupancy[0, 1, 0, 0, 1] = 0.5, 0.6
    best, there = block_majority(occupancy)
    assert best[0, 0].tolist() == [1, 0, 0, 0] and there[0, 0].tolist() == [True] + [False] * 3


def test_patch_losses_vanish_for_the_right_answer():
    labels = {
        "kind": torch.full((1, 2, 2), ANY_KIND),
        "colour": torch.full((1, 2, 2), ANY_COLOUR),
        "numbers": torch.zeros(1, 3, 2, 2),
    }
    labels["kind"][0, 0, 0], labels["colour"][0, 0, 0] = 3, 1
    labels["numbers"][0, :, 0, 0] = 0.5
    kind = 50 * torch.nn.functional.one_hot(labels["kind"], ANY_KIND + 1).permute(0, 3, 1, 2)
    colour = 50 * torch.nn.functional.one_hot(labels["colour"], ANY_COLOUR + 1).permute(0, 3, 1, 2)
    loss, log = patch_losses((kind.float(), colour.float(), labels["numbers"]), labels)
    assert loss < 1e-6 and log["kind_right"] == log["colour_right"] == 1
    worse, _ = patch_losses((kind.float(), -colour.float(), labels["numbers"]), labels)
    assert worse > 1


def test_pair_losses_are_balanced_between_pairs_that_fit_and_others():
    fits = torch.eye(4, dtype=torch.bool)
    good, log = pair_losses(fits * 20.0, fits)
    bad, _ = pair_losses(~fits * 20.0, fits)
    assert good < bad and log["right_yes"] == log["right_no"] == 1


def test_the_right_object_is_the_one_under_the_occupancy_map():
    targets = torch.zeros(1, 1, 6)
    targets[0, 0, 1] = 1
    objects = torch.zeros(1, 6, 2, 64)
    objects[0, 0, :, :8], objects[0, 1, :, 8:16] = 1, 1
    share = torch.zeros(1, 6, 2)
    share[0, :2] = 1
    nothing = torch.zeros(1, 1, 2, 2)
    truth = SentenceLabels(
        occupancy=objects[:, 1:2],
        present=torch.ones(1, 1, 2, dtype=torch.bool),
        place=nothing,
        single=torch.ones(1, 1, dtype=torch.bool),
        look=torch.zeros(1, 1, 2, dtype=torch.long),
        targets=targets,
        objects=objects,
        share=share,
    )
    where = torch.full((1, 1, 2, 65), -9.0)
    where[0, 0, 0, 8:16] = 9  # frame 0 on the target, frame 1 on the other object
    where[0, 0, 1, :8] = 9
    assert right_object(where, truth).item() == 0.5

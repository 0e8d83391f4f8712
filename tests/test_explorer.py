"""The explorer: what is kept gives the same masks, widgets by their values, files, plans."""

import json
from dataclasses import replace
from datetime import datetime, timezone
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vrshq_nb import VRSHQ, VRSError, Video, cli
from vrshq_nb.explorer import (
    HIDE_STILL,
    TABS,
    Session,
    click_class,
    explore,
    knob_lines,
    memory_picture,
    python_lines,
    read_knobs,
    remembered_frames,
    sample_source,
    token_attention_picture,
)
from vrshq_nb.minivrs import make_clip
from vrshq_nb.model import Options
from vrshq_nb.panels import difference_picture, frame_at, overlap, timeline_chart, timeline_panel
from vrshq_nb.plans import Actor, Plan, compose_clip, drag_plan, plan_picture


@pytest.fixture(scope="module")
def model():
    return VRSHQ.from_pretrained("nano")


@pytest.fixture(scope="module")
def clip():
    return make_clip("val", 4242, 0, 96, 6)


@pytest.fixture(scope="module")
def text(clip):
    return next(e.text for e in clip.expressions if e.targets)


@pytest.fixture(scope="module")
def session(model, clip):
    return Session(model, clip)


@pytest.fixture(scope="module")
def shared_panel(model, clip):
    return explore(clip, model)


@pytest.fixture
def panel(shared_panel):
    "The panel with its knobs as at the start, and no gate, so that there are masks."
    for name, value in {"alpha": 0.1, "keyframe": None, "gate": False, "k": 12}.items():
        shared_panel.knobs[name].value = value
    shared_panel.tab.selected_index = 0
    shared_panel.views["truth"].value = False
    return shared_panel


CHANGES = ({}, {"alpha": 1.0}, {"keyframe": 4}, {"k": 3}, {"prompt": "token"}, {"how": "none"})


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_session_gives_the_masks_of_segment(session, model, clip, text, changes):
    seg = session.run(text, gate=False, **changes)
    alone = model.segment(clip.frames, text, gate=False, **changes)
    assert np.array_equal(seg.masks, alone.masks) and seg.keyframe == alone.keyframe
    assert seg.answer == alone.answer and seg.notes == alone.notes
    assert torch.equal(seg.object_logits, alone.object_logits)
    again = session.run(text, gate=False, **changes)
    assert np.array_equal(again.masks, seg.masks)


def test_steps_are_not_repeated(session, model, text, monkeypatch):
    key = session.run(text, gate=False, alpha=0.7).keyframe

    def again(*args, **kwargs):
        raise RuntimeError("this was done before")

    for part, step in ((model.sam2, "propagate"), (model.encoder, "encode_frames")):
        monkeypatch.setattr(part, step, again)
    session.run(text, gate=False, alpha=0.7)
    with pytest.raises(RuntimeError):
        session.run(text, gate=False, alpha=0.7, keyframe=(key + 1) % 6)


def test_what_is_kept_is_bounded(session, text):
    for i in range(60):
        session.run(text, gate=False, keyframe=i % 6, alpha=i / 10)
    assert len(session.encoded.kept) <= 100


def test_a_set_keyframe_is_used(session, text):
    chosen = session.run(text, gate=False)
    frames = [c.frame for c in chosen.candidates]
    other = next(t for t in range(6) if t != chosen.keyframe)
    assert session.run(text, gate=False, keyframe=other).keyframe == other
    few = session.run(text, gate=False, k=1, keyframe=other)  # not among the candidates
    assert few.keyframe == other and [c.frame for c in few.candidates] != frames
    with pytest.raises(VRSError, match="keyframe 6 is outside the video of 6 frames"):
        session.run(text, keyframe=6)
    for bad in (-1, 1.5, True, "3"):
        with pytest.raises(VRSError, match="keyframe must be"):
            Options(keyframe=bad)


def test_locate_stops_before_the_propagation(session, text):
    first, seg = session.locate(text, Options(alpha=0.3)), session.run(text, alpha=0.3)
    assert first.keyframe == seg.keyframe and first.candidates == seg.candidates
    assert first.masks.any((1, 2)).sum() <= 1
    with pytest.raises(VRSError):
        session.locate("")


def test_bad_videos(model):
    with pytest.raises(VRSError, match="at most 300"):
        Session(model, np.zeros((301, 8, 8, 3), np.uint8))
    with pytest.raises(VRSError):
        Session(model, "nowhere.mp4")


def test_attention_of_tokens(session, text):
    seg = session.run(text, gate=False)
    places, shares = session.attention(seg)
    n = len(seg.tokens.frames)
    assert places.shape == (n + 1, n, 4, 4) and shares.shape == (n + 1, n)
    assert (places >= 0).all() and (shares.sum(1) < 1 + 1e-5).all()
    assert token_attention_picture(session, seg, 0).dtype == np.uint8


def test_a_model_without_attention_says_so(session, text, monkeypatch):
    seg = session.run(text, gate=False)
    other = SimpleNamespace(encoder=object(), sam2=object())
    monkeypatch.setattr(session, "model", other)
    with pytest.raises(VRSError, match="does not show its attention"):
        session.attention(seg)
    with pytest.raises(VRSError, match="does not show its memory"):
        session.memory(seg)


def test_memory_weights_add_up(session, text):
    seg = session.run(text, gate=False, keyframe=2)
    looks = session.memory(seg)
    assert sorted(looks) == [0, 1, 3, 4, 5]
    assert looks[5].frames == [2, 3, 4] and looks[0].frames == [2, 1]
    for look in looks.values():
        assert (look.places >= 0).all() and 0 <= look.pointers < 1
        assert np.isclose(look.places.sum() + look.pointers, 1, atol=1e-5)
    with pytest.raises(VRSError, match="looks at no memory"):
        memory_picture(session, seg, 2)


def test_memory_weights_are_those_of_the_layer(session, text):
    "The layer's output is its values under these weights."
    from vrshq_nb.explorer import memory_weights

    layer = session.model.sam2.memory_attention.layers[-1].cross_attn_image
    torch.manual_seed(0)
    hw = layer.freqs_cis.shape[0]
    width, memory = layer.q_proj.in_features, layer.k_proj.in_features
    given = {"q": torch.randn(1, hw, width), "k": torch.randn(1, 2 * hw + 4, memory)}
    given |= {"v": torch.randn(1, 2 * hw + 4, memory), "num_k_exclude_rope": 4}
    mask = np.zeros((16, 16), bool)
    mask[3, 4] = True  # one place, so that the mean is over heads alone
    side = int(hw**0.5)
    assert side == 16
    with torch.no_grad():
        weights = memory_weights(layer, given, mask)
        heads = layer.num_heads
        values = layer._separate_heads(layer.v_proj(given["v"]), heads)
        out = layer(**given)[0, 3 * side + 4]
        if heads == 1:
            assert torch.allclose(layer.out_proj(weights @ values[0, 0]), out, atol=1e-4)
    assert len(weights) == 2 * hw + 4 and np.isclose(float(weights.sum()), 1, atol=1e-5)


def test_remembered_frames(model):
    assert remembered_frames(model.sam2, 5, 3) == [3, 4]
    assert remembered_frames(model.sam2, 12, 3) == [3, 6, 7, 8, 9, 10, 11]
    assert remembered_frames(model.sam2, 0, 12) == [12, 6, 5, 4, 3, 2, 1]


def test_places_of_the_timeline():
    for n in (1, 2, 16, 300):
        chart = timeline_chart(n)
        for t in {0, n // 2, n - 1}:
            assert frame_at(n, chart.at(t, 0)[0] / 2 / chart.width) == t
    assert frame_at(5, -1.0) == 0 and frame_at(5, 2.0) == 4


def test_panels_of_one_frame(model, clip, text):
    seg = model.segment(clip.frames[:1], text, gate=False)
    assert timeline_panel(seg, 0).shape[2] == 3
    assert explore(clip.frames[:1], model).still().array.shape[1] == 960


def test_overlap_and_difference(model, session, clip, text):
    a = np.zeros((2, 4, 4), bool)
    b = a.copy()
    a[0, :2], b[0, 1:3] = True, True
    assert overlap(a, b).tolist() == [1 / 3, 1]
    seg = session.run(text)
    with pytest.raises(VRSError, match="different videos"):
        difference_picture(seg, model.segment(clip.frames[:2], text), 0)


def test_python_lines_give_the_same_masks(session, text):
    source = sample_source("tail")
    mine = Session(session.model, source)
    text = list(source.truths)[0]
    options = Options(alpha=0.4, terms=("occlusion",), keyframe=5)
    there = {}
    exec(python_lines(source, text, options), there)
    assert np.array_equal(there["seg"].masks, mine.run(text, options).masks)


def test_a_plan_is_kept_to():
    plan = Plan((Actor("cat", "pink", "still", x=0.25, y=0.7), Actor("bird", motion="leaving")))
    clip = compose_clip(plan, size=64)
    assert np.array_equal(clip.frames, compose_clip(plan, size=64).frames)
    ys, xs = np.nonzero(clip.ids[8] == 1)
    assert abs(xs.mean() / 64 - 0.25) < 0.06 and abs(ys.mean() / 64 - 0.7) < 0.06
    gone = (clip.ids[-1] == 2).sum()
    assert gone == 0 and (clip.ids[0] == 2).any()
    moved = compose_clip(replace(plan, actors=(replace(plan.actors[0], x=0.8), plan.actors[1])), 64)
    assert np.array_equal(moved.ids == 2, clip.ids == 2) or moved.ids.shape == clip.ids.shape
    for e in clip.expressions:
        assert clip.masks(e).any() == bool(e.targets)


@pytest.mark.parametrize("motion", ["entering", "leaving", "parting", "hiding", "circling"])
def test_every_kind_of_motion_can_be_planned(motion):
    clip = compose_clip(
        Plan((Actor("cat", motion=motion), Actor("ball", "blue")), occluder="wall"), 48
    )
    assert (clip.ids == 1).any()


def test_bad_plans():
    with pytest.raises(VRSError, match="there is no kind 'dragon'"):
        Actor("dragon")
    with pytest.raises(VRSError, match="at least one thing"):
        Plan(())
    with pytest.raises(VRSError, match="no occluder"):
        Plan(occluder="house")


def test_dragging():
    plan = Plan(occluder="tree", at=(0.9, 0.9))
    moved, i = drag_plan(plan, (0.52, 0.5), (0.1, 1.4))
    assert i == 0 and (moved.actors[0].x, moved.actors[0].y) == (0.1, 1.0)
    moved, i = drag_plan(plan, (0.9, 0.88), (0.5, 0.5))
    assert i is None and moved.at == (0.5, 0.5) and moved.actors == plan.actors
    assert drag_plan(plan, (0.3, 0.7), (0.3, 0.7)) == (plan, 1)
    assert not np.array_equal(plan_picture(plan, 0, 80), plan_picture(moved, 0, 80))


def values(panel):
    return {name: picture.value for name, picture in panel.pictures.items()}


def test_a_knob_changes_its_pictures(panel):
    before = values(panel)
    other = next(t for t in range(6) if t != panel.seg.keyframe)
    panel.knobs["keyframe"].value = other
    after = values(panel)
    assert panel.seg.keyframe == other and panel.options.keyframe == other
    assert after["timeline"] != before["timeline"] and after["tokens"] == before["tokens"]
    panel.knobs["alpha"].value = 1.5
    assert panel.options.alpha == 1.5 and f"alpha={1.5}" in panel.lines.value
    assert panel.seconds[0] <= panel.seconds[1]


def test_frames_mask_and_truth(panel, text):
    panel.views["text"].value = text
    before = values(panel)
    panel.views["frame"].value = (panel.views["frame"].value + 1) % 6
    moved = values(panel)
    assert moved["frame"] != before["frame"] and moved["weights"] == before["weights"]
    panel.views["truth"].value = True
    assert values(panel)["frame"] != moved["frame"] and "no truth" not in panel.words.value
    panel.views["text"].value = "the thing that moves"
    assert "no truth is known" in panel.words.value
    panel.views["text"].value = text


def test_a_click_on_the_timeline_sets_the_keyframe(panel):
    if click_class() is None:
        pytest.skip("without anywidget the menu does it")
    other = next(t for t in range(6) if t != panel.seg.keyframe)
    chart = timeline_chart(6)
    x = chart.at(other, 0)[0] / 2 / chart.width
    panel.pictures["timeline"].gesture = [x, 0.5, x, 0.5, 1]
    assert panel.seg.keyframe == other == panel.knobs["keyframe"].value


def test_without_anywidget_the_picture_is_an_ordinary_one(monkeypatch):
    from vrshq_nb import explorer

    monkeypatch.setattr(explorer, "click_class", lambda: None)
    picture = explorer.click_picture(lambda gesture: None)
    assert type(picture).__name__ == "Image" and not hasattr(picture, "gesture")


def test_errors_are_words_and_the_result_stays(panel):
    seg = panel.seg
    panel.knobs["terms"].value = ()
    assert "terms must be some of" in panel.words.value and panel.seg is seg
    panel.knobs["terms"].value = ("similarity", "occlusion")
    assert "terms must be" not in panel.words.value
    text = panel.views["text"].value
    panel.views["text"].value = "  "
    assert "b3150c" in panel.words.value
    panel.views["text"].value = text


def test_every_tab(panel):
    for i, _ in enumerate(TABS):
        panel.tab.selected_index = i
    panel.tab.selected_index = TABS.index("compare")
    panel.a = None
    panel.knobs["alpha"].value = 0.2
    assert "keep a result as A first" in panel.words.value
    panel.views["keep"].click()
    panel.knobs["alpha"].value = 1.9
    assert panel.pictures["compare"].value[:2] == b"\xff\xd8"
    panel.tab.selected_index = TABS.index("attention of memory")
    panel.views["frame"].value = (panel.seg.keyframe + 1) % 6
    if panel.seg.masks.any():
        assert panel.pictures["memory"].value[:2] == b"\xff\xd8"


def test_files(panel, tmp_path):
    panel.views["folder"].value = str(tmp_path)
    for kind in ("mp4", "png", "json", "py"):
        panel.views[kind].click()
        assert "written" in panel.words.value
    name = panel.session.source.name
    assert len(Video.open(tmp_path / f"{name}_explorer.mp4")) == 6
    record = json.loads((tmp_path / f"{name}_explorer.json").read_text())
    assert record["options"]["gate"] is False and record["model"] == "nano"
    assert "model.segment(video" in (tmp_path / f"{name}_explorer.py").read_text()
    panel.views["folder"].value = str(tmp_path / "nowhere")
    panel.views["png"].click()
    assert "there is no folder" in panel.words.value


def test_what_a_notebook_stores(panel, monkeypatch):
    "A picture, then the widget; the picture is renewed by a change, and hidden by the widget."
    from vrshq_nb import explorer

    shown, renewed = [], []
    handle = SimpleNamespace(update=renewed.append)

    def display(what, **how):
        shown.append(what)
        return handle

    monkeypatch.setattr(explorer, "display", display)
    panel._ipython_display_()
    picture, view = shown
    assert picture._repr_jpeg_()[:2] == b"\xff\xd8"
    assert "application/vnd.jupyter.widget-view+json" in view
    panel.knobs["alpha"].value = 0.65
    assert renewed and not np.array_equal(renewed[-1].array, picture.array)
    assert panel.box.children[-1].value == HIDE_STILL
    panel.handle = None


def test_a_clip_to_order_in_the_panel(model, clip):
    panel = explore(clip, model)
    panel.menus["kind"].value = "fish"
    panel.menus["n_frames"].value = 5
    assert panel.plan.actors[0].kind == "fish" and panel.plan.n_frames == 5
    panel.menus["add"].click()
    assert len(panel.plan.actors) == 3 and panel.menus["which"].value == 2
    panel.menus["remove"].click()
    assert len(panel.plan.actors) == 2
    panel.dragged([panel.plan.actors[0].x, panel.plan.actors[0].y, 0.2, 0.3])
    assert panel.menus["which"].value == 0 and panel.menus["x"].value == 0.2
    panel.menus["use"].click()
    assert panel.session.source.name == "made" and len(panel.seg.masks) == 5
    assert "compose_clip(Plan(" in panel.lines.value.replace("&#x27;", "'")
    there = {}
    exec("\n".join(panel.session.source.lines[:2]), there)
    assert np.array_equal(there["clip"].frames, panel.session.source.video.frames())


def test_uploads(model, clip, tmp_path):
    panel = explore(clip, model)
    path = clip.save(tmp_path / "film.mp4")
    file = {"name": "../film.mp4", "type": "video/mp4", "last_modified": datetime.now(timezone.utc)}
    good = file | {"size": path.stat().st_size, "content": path.read_bytes()}
    panel.views["upload"].value = (good,)
    assert panel.session.source.name == "film" and len(panel.seg.masks) == 6
    panel.views["upload"].value = (file | {"size": 4, "content": b"oops"},)
    assert panel.session.source.name == "film" and "b3150c" in panel.words.value


def test_knobs_are_options(panel):
    known = set(Options.__dataclass_fields__) - {"prompt", "seed"}
    assert set(panel.knobs) == known and isinstance(read_knobs(panel.knobs), Options)


def test_a_table_of_times():
    lines = knob_lines({"k": (0.1, 0.2), "alpha": (0.05, 0.4)}).splitlines()
    assert lines[-1].split() == ["slowest", "100", "ms", "400", "ms"]


def test_the_command_writes_a_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explore", "tail", "-o", "panel.ipynb"]) == 0
    cells = json.loads((tmp_path / "panel.ipynb").read_text())["cells"]
    assert cells[-1]["source"].endswith("explore('tail', model='nano')")
    capsys.readouterr()
    for words in (["-o", "panel.ipynb"], ["-o", "a.txt"], ["nowhere.mp4", "-o", "b.ipynb"]):
        assert cli.main(["explore", *words]) == 2
        assert capsys.readouterr().err.startswith("vrshq: error: ")
    assert not (tmp_path / "b.ipynb").exists()


def test_the_command_opens_jupyterlab(tmp_path, monkeypatch):
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.subprocess, "run", lambda words, **how: calls.append(words))
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["explore"]) == 2 and not calls
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object())
    assert cli.main(["explore"]) == 0 and cli.main(["explore"]) == 0
    assert [words[-1] for words in calls] == ["explorer.ipynb", "explorer-2.ipynb"]

"""The stored tables of the ablations: complete, consistent with the scores beside them, and
measured with the weights in the package."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
import torch

from vrshq_nb import VRSHQ, MiniVRS
from vrshq_nb.metrics import bootstrap_interval, j_and_f
from vrshq_nb.folders import find_weights

USED = {5, 100, 300, 301, 400, 1000, 2000}  # seeds of training, of the scores and of the diagnosis
GROUPS = {"referring": (0,), "reasoning": (1,), "overall": (0, 1), "absent": (2,)}
LIVE = [
    {},
    {"terms": ["clip"]},
    {"k": 3, "sampling": "uniform"},
    {"prompt": "token"},
]  # what `segment` offers too


@pytest.fixture
def one_thread():
    "Nano is small: on a busy machine threads wait for one another."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def notebook(root):
    return json.loads((root / "nbs" / "24_ablations.ipynb").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def stored(root):
    return json.loads((root / "nbs" / "ablations.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plan(notebook):
    "`PLAN` of the notebook: split -> seeds, clips a seed, tables."
    space = {"Any": Any}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and ("TABLES = {" in source or "PLAN = {" in source):
            exec(source, space)
    return space["PLAN"]


def rows(stored):
    "(split, table, label, row) of everything stored."
    return [
        (s, t, label, row)
        for s, tables in stored["tables"].items()
        for t, labels in tables.items()
        for label, row in labels.items()
    ]


def of_group(data, group):
    return np.isin(data["type"], GROUPS[group])


def test_of_the_packaged_weights(stored):
    weights = (find_weights(stored["model"]) / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest()[:16] == stored["weights"], (
        "the weights have changed: VRSHQ_SLOW=1 in 24_ablations remakes the tables"
    )


def test_every_table_and_variant_is_there(stored, plan):
    wanted = {
        s: {
            t: {label: json.dumps(row) for label, row in labels.items()}
            for t, labels in p["tables"].items()
        }
        for s, p in plan.items()
    }
    found = {
        s: {
            t: {label: row["variant"] for label, row in labels.items()}
            for t, labels in tables.items()
        }
        for s, tables in stored["tables"].items()
    }
    assert found == wanted
    assert {row["variant"] for s, _, _, row in rows(stored) if s == "val"} == set(
        stored["splits"]["val"]["JF"]
    )
    for tables in found.values():
        assert all(list(labels.values()).count("{}") == 1 for labels in tables.values()), (
            "a table without the paper's setting"
        )


def test_data_that_nothing_else_has_seen(stored, plan):
    for split, p in plan.items():
        data = stored["splits"][split]
        assert (
            data["seeds"] == p["seeds"] and len(set(p["seeds"])) >= 3 and not USED & set(p["seeds"])
        )
        assert sorted(data["clips"]) == sorted(
            f"{split}_{seed}_{i:05d}" for seed in p["seeds"] for i in range(p["clips"])
        )
        columns = [data[k] for k in ("type", "clip", "family", "text")]
        assert {len(x) for x in (*columns, *data["JF"].values())} == {len(data["type"])}
        assert sorted(set(data["clip"])) == list(range(len(data["clips"])))
        assert 1 <= min(np.bincount(data["clip"])) <= max(np.bincount(data["clip"])) <= 4
    assert len(stored["splits"]["val"]["clips"]) >= 18
    assert of_group(stored["splits"]["val"], "overall").sum() >= 50
    assert len(stored["splits"]["long"]["clips"]) >= 3


def test_intervals_hold_their_means(stored):
    for split, table, label, row in rows(stored):
        for group in GROUPS:
            x, where = row[group], (split, table, label, group)
            assert (
                x["n"] == x["difference"]["n"] == of_group(stored["splits"][split], group).sum() > 0
            ), where
            data = stored["splits"][split]
            several = len(set(np.array(data["clip"])[of_group(data, group)])) > 1
            for one, least in (
                ((x, 0), (x["difference"], -1)) if several else ()
            ):  # one: no interval
                assert least <= one["low"] <= one["mean"] <= one["high"] <= 1, where
            default = next(
                r for r in stored["tables"][split][table].values() if r["variant"] == "{}"
            )[group]
            assert x["difference"]["mean"] == pytest.approx(
                x["mean"] - default["mean"], abs=2e-4
            ), where
        if row["variant"] == "{}":
            assert (
                row["changed"] == 0
                and row["overall"]["difference"]["low"] == row["overall"]["difference"]["high"] == 0
            )


def test_tables_are_made_of_the_scores(stored):
    for split, table, label, row in rows(stored):
        data = stored["splits"][split]
        scores, default = (np.array(data["JF"][name]) / 1000 for name in (row["variant"], "{}"))
        for group in GROUPS:
            assert row[group]["mean"] == pytest.approx(
                scores[of_group(data, group)].mean(), abs=1e-4
            ), (split, table, label, group)
        if label in ("no TKS", "random", "1"):  # the interval too, drawn again
            here = of_group(data, "overall")
            again = bootstrap_interval((scores - default)[here], np.array(data["clip"])[here])
            assert [
                row["overall"]["difference"][k] for k in ("mean", "low", "high")
            ] == pytest.approx(again, abs=1e-4)


def test_a_frame_alone_costs_points(stored):
    "A finding that is far larger than its interval."
    assert stored["tables"]["val"]["frames"]["1"]["overall"]["difference"]["high"] < -0.05


def test_the_page_shows_this_file(notebook, stored, root):
    outputs = json.dumps(
        [c["outputs"] for c in notebook["cells"] if c["cell_type"] == "code"], ensure_ascii=False
    )
    assert stored["weights"] in outputs and "measured with these weights" in outputs
    for _, table, label, row in rows(stored):
        assert f"| {label} | {row['referring']['mean']:.3f} " in outputs, (table, label)
    assert (root / "nbs" / "ablations.json").stat().st_size < 200_000


def test_the_first_clip_measured_again(stored, one_thread):
    data, model = stored["splits"]["val"], VRSHQ.from_pretrained(stored["model"])
    split, seed, index = data["clips"][0].split("_")
    clip = MiniVRS(split, n=int(index) + 1, seed=int(seed))[int(index)]
    first = [i for i, c in enumerate(data["clip"]) if c == 0]
    expressions = clip.expressions[: len(first)]
    assert [e.text for e in expressions] == [data["text"][i] for i in first], (
        "the sentences have changed: VRSHQ_SLOW=1 in 24_ablations remakes the tables"
    )
    assert [e.type_id for e in expressions] == [data["type"][i] for i in first]
    shared, seen = model.encode(clip.frames), set()
    first, expressions = first[:3], expressions[:3]
    for change in LIVE:
        options = change | ({"terms": tuple(change["terms"])} if "terms" in change else {})
        for i, e, seg in zip(
            first, expressions, model.segment(shared, [e.text for e in expressions], **options)
        ):
            score = (
                j_and_f(seg.masks, clip.masks(e))[2] if e.targets else float(not seg.masks.any())
            )
            assert score == pytest.approx(data["JF"][json.dumps(change)][i] / 1000, abs=0.02), (
                e.text,
                change,
            )
            seen.add(round(score, 2))
    assert len(seen) > 2  # scores of several sizes were compared

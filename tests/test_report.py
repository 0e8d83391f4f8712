"The report: one html page from numbers and pictures."

import numpy as np
import pytest

from vrshq_nb.report import best_and_worst, distribution_figure, report, results_table

MEANS = {k: 50.0 for k in ("J", "F", "JF", "A", "A_binary", "R", "R_compat")}


def rows(*values, **changes):
    "Sentences with (J&F, type)."
    made = []
    for i, (score, type_id) in enumerate(values):
        row = dict(video="v", exp_id=str(i), type_id=type_id, text="the kite", problem="")
        made.append(row | dict(J=score, F=score, JF=score) | changes)
    return made


def results(**more):
    return dict(dataset="made up", split="val", n_videos=1, n_expressions=2) | more


def picture(row):
    return np.zeros((20, 30, 3), np.uint8)


def test_the_table_leaves_out_what_is_not_there():
    lines = results_table(results(overall=MEANS | dict(n=2, JF_interval=[40, 60]), referring=None))
    assert [line[0] for line in lines] == ["", "overall"]
    assert lines[1][-2:] == ["2", "40.0 – 60.0"] and lines[1][3] == "50.0"
    more = results(
        overall=MEANS,
        images=dict(gIoU=12.34, cIoU=5),
        protocols=dict(annotators=dict(J=1.0, F=2.0, JF=1.5)),
    )
    names = [line[0] for line in results_table(more)]
    assert names == ["", "overall", "protocol: annotators", "gIoU 12.3, cIoU 5.0"]
    assert {len(line) for line in results_table(more)} == {10}


def test_best_and_worst_share_no_sentence():
    made = rows((90, 0), (10, 1), (50, 0), (100, 2), (0, 2))
    best, worst = best_and_worst(made, 2)
    assert [r["JF"] for r in best] == [90, 50] and [r["JF"] for r in worst] == [0, 10]
    best, worst = best_and_worst(made, 9)
    assert len(best) == 3 and all(r["type_id"] == 2 for r in worst)
    assert best_and_worst(rows((90, 0), problem="gone"), 2) == ([], [])


def test_the_page_has_all_sections():
    made = rows((90, 0), (10, 1)) + rows((0, 0), problem="00001.png is missing")
    page = report(results(overall=MEANS), made, picture, n=1)
    assert page.count("<figure>") == page.count("data:image/jpeg") == 2
    assert page.count("data:image/png") == 1 and page.count("<tr>") == 2
    assert "Without a usable prediction: 1" in page and "v/0: 00001.png is missing" in page
    assert page.index("The best") < page.index("The worst") < page.index("Without")


@pytest.mark.parametrize("field", ["text", "video", "problem"])
def test_everything_is_escaped(field):
    made = rows((90, 0), **{field: "<script>alert('&')</script>"})
    page = report(results(overall=MEANS), made, picture)
    assert "<script" not in page and "&lt;script&gt;" in page
    page = report(results(overall=MEANS, dataset="<b>x"), rows((90, 0)), picture)
    assert "<b>" not in page and "&lt;b&gt;x" in page


def test_without_truth_no_picture_is_asked_for():
    page = report(
        results(note="kept by a server"), rows((0, None)), lambda row: pytest.fail("asked")
    )
    assert "kept by a server" in page and "<table>" not in page and "<img" not in page


def test_the_same_results_give_the_same_page():
    made = rows((90, 0), (10, 1))
    one, two = (report(results(overall=MEANS), made, picture) for _ in range(2))
    assert one == two


def test_the_spread_of_data_without_types_has_no_legend():
    with_types, without = (distribution_figure(rows((90, t), (5, t))) for t in (0, None))
    assert with_types.axes[0].get_legend() and not without.axes[0].get_legend()
    assert without.axes[0].get_title() == "50% of the sentences are above 80, 50% below 10"

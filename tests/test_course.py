"The labs as files, and the two copies that `make course` writes."

import json
import re
import runpy

import pytest
from labs import LABS, cells, check_name, definitions, exercises, run_check

from vrshq_nb import checks


@pytest.fixture(scope="module")
def course(root, tmp_path_factory):
    "`course/` in a temporary folder."
    out = tmp_path_factory.mktemp("course")
    write_course = runpy.run_path(str(root / ".ci" / "course"))["write_course"]
    assert write_course(out) == []
    return out


def markdown(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown"]


def test_there_are_six_labs():
    assert [p.stem[:2] for p in LABS] == ["51", "52", "53", "54", "55", "56"]


@pytest.mark.parametrize("lab", LABS, ids=lambda p: p.stem)
def test_a_lab_has_a_card_and_four_to_six_exercises(lab):
    text = markdown(lab)
    for row in ("You need first", "Afterwards you can", "Time", "Difficulty"):
        assert f"**{row}**" in text[1]
    found = list(exercises(lab))
    marks = [re.findall(r"\*\*Exercise (\d)\*\* `(\*{1,3})` \*\d+ minutes\.\*", t) for t in text]
    numbers = [int(number) for mark in marks for number, _ in mark]
    assert 4 <= len(found) <= 6 and numbers == list(range(1, len(found) + 1))
    stars = [len(star) for mark in marks for _, star in mark]
    points = [known["points"] for _, known in cells(lab) if known.get("grade")]
    assert stars == points


@pytest.mark.parametrize("lab", LABS, ids=lambda p: p.stem)
def test_nbgrader_can_read_a_lab(lab):
    known = [about for _, about in cells(lab) if about]
    ids = [about["grade_id"] for about in known]
    assert len(set(ids)) == len(ids)
    for about in known:
        assert about["schema_version"] == 3 and about["solution"] != about["grade"]
        assert about["locked"] == about["grade"] and about["task"] is False


def test_a_students_copy_holds_no_solution(course):
    for lab in LABS:
        copy = (course / "student" / lab.name).read_text(encoding="utf-8")
        assert "SOLUTION" not in copy and "colab.research" not in copy
        nb = json.loads(copy)
        assert all(not c.get("outputs") for c in nb["cells"])
        for full, empty in zip(exercises(lab), exercises(course / "student" / lab.name)):
            hidden = re.search(r"BEGIN SOLUTION\n(.*)### END", full.solution, re.S)[1]
            lines = {line.strip() for line in hidden.splitlines() if len(line.strip()) > 12}
            assert not [line for line in lines if line in empty.solution]
            assert "raise NotImplementedError" in empty.solution
            assert empty.check == full.check


def test_every_check_of_a_students_copy_says_that_nothing_is_written(course):
    for lab in LABS:
        copy = course / "student" / lab.name
        names = definitions(copy)
        for exercise in exercises(copy):
            with pytest.raises(checks.CheckFailed, match="nothing is written yet"):
                run_check(exercise, names)


def test_an_instructors_copy_keeps_solutions_and_outputs(course):
    for lab in LABS:
        copy = course / "instructor" / lab.name
        assert list(map(check_name, exercises(copy))) == list(map(check_name, exercises(lab)))
        assert [e.solution for e in exercises(copy)] == [e.solution for e in exercises(lab)]
        assert '"outputs": [\n' in copy.read_text(encoding="utf-8")


@pytest.mark.parametrize("who", ["student", "instructor"])
def test_links_of_a_copy_lead_somewhere(root, course, who):
    place = root / "course" / who
    for lab in LABS:
        for text in markdown(course / who / lab.name):
            for link in re.findall(r"\]\(([^)\s#]+)\)", text):
                if "://" not in link:
                    known = (place / link).resolve()
                    assert known.exists() or (root / "nbs" / link).exists(), link


def test_work_of_a_student_is_kept(root, tmp_path):
    write_course = runpy.run_path(str(root / ".ci" / "course"))["write_course"]
    write_course(tmp_path)
    mine = tmp_path / "student" / LABS[0].name
    mine.write_text("my work")
    assert mine in write_course(tmp_path) and mine.read_text() == "my work"
    assert write_course(tmp_path, replace=True) == [] and mine.read_text() != "my work"

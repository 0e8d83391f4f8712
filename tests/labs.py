"What tests read from the labs: their exercises, solutions and checks, without running a page."

import ast
import json
from dataclasses import dataclass
from pathlib import Path

LABS = sorted((Path(__file__).resolve().parent.parent / "nbs").glob("5?_lab_*.ipynb"))


@dataclass(frozen=True)
class Exercise:
    "A cell with a function to be written, and the cell with its check."

    lab: Path
    solution: str  # source of the cell with the function
    check: str  # source of the cell below it


def cells(path):
    "(source, what nbgrader knows) of all code cells."
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"]), cell["metadata"].get("nbgrader", {})


def exercises(path):
    "All exercises of a lab, or of a copy of it."
    every = list(cells(path))
    for (source, known), (below, about) in zip(every, every[1:]):
        if known.get("solution"):
            assert about.get("grade"), f"{path.name}: no check below {known['grade_id']}"
            yield Exercise(path, source, below)


def check_name(exercise):
    "`check_cosine` of `checks.check_cosine(cosine)`."
    call = ast.parse(exercise.check).body[0].value
    return call.func.attr


def definitions(path):
    "A namespace with a page's imports and the functions of its exercises; nothing else is run."
    names = {}
    for source, _ in cells(path):
        if "COLAB" not in source:
            wanted = (ast.Import, ast.ImportFrom)
            tree = ast.parse(source)
            tree.body = [node for node in tree.body if isinstance(node, wanted)]
            exec(compile(tree, path.name, "exec"), names)
    for exercise in exercises(path):
        exec(compile(exercise.solution, path.name, "exec"), names)
    return names


def run_check(exercise, names):
    "What the check's cell gives."
    return eval(compile(exercise.check, exercise.lab.name, "eval"), names)

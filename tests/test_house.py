"""The rules of the house (CONTRIBUTING.md) that no linter knows, read from the source.

Each check is tried on a planted violation, so that one that finds nothing is known to work.
"""

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_ANCESTORS = 2
PUBLIC_NAMES = 190  # in all `__all__` together
# package on the index -> module that is imported, where the two names differ
MODULE_OF = {
    "open_clip_torch": "open_clip",
    "pillow": "PIL",
    "av": "av",
    "hydra-core": "hydra",
    "ipython": "IPython",
    "decord2": "decord",
    "scikit-image": "skimage",
}


def modules(root=ROOT / "vrshq_nb"):
    "{dotted name: syntax tree} of the package."
    found = {}
    for path in sorted(root.rglob("*.py")):
        if path.name == "_modidx.py":
            continue
        parts = path.relative_to(root.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def last_name(node):
    "`B` of `B`, `a.B` and `B[T]`."
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def classes(trees):
    "{class: names of its bases} of all modules."
    found = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name] = [last_name(base) for base in node.bases]
    return found


def ancestors(name, known, above=()):
    "Ancestors of a class that are classes of this package themselves."
    found = set()
    for base in known[name]:
        if base in known and base not in above and base != name:
            found |= {base} | ancestors(base, known, (*above, name))
    return found


def staircases(trees):
    "Classes with more than two ancestors of ours. Errors are exempt: a tree of errors is data."
    known = classes(trees)
    found = {name: ancestors(name, known) for name in known if not name.endswith("Error")}
    return {name: sorted(a) for name, a in found.items() if len(a) > MOST_ANCESTORS}


def public_names(tree):
    "What `__all__` lists."
    for node in tree.body:
        if isinstance(node, ast.Assign) and last_name(node.targets[0]) == "__all__":
            return [ast.literal_eval(item) for item in node.value.elts]
    return []


def defined(tree):
    "Names that a module defines at its top, not those it imports."
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                found |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    return found


def double_names(trees):
    "Names that are public in one module and defined in another as well."
    home = {}
    for module, tree in trees.items():
        names = set(public_names(tree)) & defined(tree)
        for name in names:
            home.setdefault(name, set()).add(module)
    return {name: sorted(m) for name, m in home.items() if len(m) > 1}


def imported(trees):
    "{top-level module: where} of all imports from outside, also inside functions."
    found = {}
    for module, tree in trees.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "vrshq_nb":
                    found.setdefault(top, module)
    return found


def declared():
    "Modules of all packages in settings.ini, extras included."
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    found = set()
    for key, value in parser["DEFAULT"].items():
        if key.endswith("requirements"):
            for name in re.findall(r"(?m)^\s*([\w-]+)", value):
                found.add(MODULE_OF.get(name, name.replace("-", "_")))
    return found


def undeclared(trees):
    known = declared()
    return {name: where for name, where in imported(trees).items() if name not in known}


def planted(**sources):
    "A made-up package."
    return {name: ast.parse(source) for name, source in sources.items()}


def test_a_staircase_is_seen():
    ladder = "class A: pass\nclass B(A): pass\nclass C(B): pass\nclass D(C): pass"
    assert staircases(planted(one=ladder)) == {"D": ["A", "B", "C"]}


def test_a_name_with_two_meanings_is_seen():
    source = "__all__ = ['Sample']\nclass Sample: pass"
    assert double_names(planted(one=source, two=source)) == {"Sample": ["one", "two"]}


def test_an_undeclared_import_is_seen():
    source = "import numpy\ndef f():\n    from pandas.core import frame"
    assert undeclared(planted(one=source)) == {"pandas": "one"}


@pytest.fixture(scope="module")
def trees():
    return modules()


def test_no_class_has_more_than_two_ancestors_of_ours(trees):
    assert staircases(trees) == {}


def test_a_public_name_has_one_meaning(trees):
    assert double_names(trees) == {}


def test_public_names_are_few(trees):
    names = {n for tree in trees.values() for n in set(public_names(tree)) & defined(tree)}
    assert len(names) <= PUBLIC_NAMES


def test_every_direct_import_is_declared(trees):
    assert undeclared(trees) == {}


def test_no_mock_in_the_package(trees):
    where = [m for m, tree in trees.items() if "unittest" in imported({m: tree})]
    text = [p for p in (ROOT / "vrshq_nb").rglob("*.py") if "unittest" in p.read_text("utf-8")]
    assert where == [] and text == []


def test_docstrings_say_something(trees):
    empty = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                if (ast.get_docstring(node) or "").startswith("..."):
                    empty.append(f"{module}.{node.name}")
    assert empty == []

"""The notebooks as files, one test id each. That they run is `nbdev_test`'s part of `make test`."""

import ast
import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parent.parent / "nbs"
NOTEBOOKS = sorted(
    p
    for p in NBS.rglob("*.ipynb")
    if not any(part.startswith((".", "_")) for part in p.relative_to(NBS).parts)
)
LAB = re.compile(r"5\d_lab_")
MODULE_FREE = re.compile(rf"index$|00_|24_|57_|{LAB.pattern}")  # these export nothing
SIZE_LIMIT = 600_000
EXPORT_LINES = 40
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w-]+)(:?)\s*(.*)$")
MACHINE_PATH = re.compile(
    r"(?<![\w.:/~-])/(?:work|root|tmp|home|Users|private|opt|mnt)/\w[^\s'\"]*"
)
BASE64 = re.compile(r"base64,[A-Za-z0-9+/=\\\n]+")


def text(value):
    return value if isinstance(value, str) else "".join(value or [])


def directives(cell):
    "The `#|` lines that open a code cell: {name: argument}."
    found = {}
    for line in text(cell["source"]).splitlines():
        match = DIRECTIVE.match(line)
        if match:
            found[match[1]] = match[3].strip()
        elif line.strip():
            break
    return found


def parsed(source):
    "The syntax tree, or None where the source is not plain Python."
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def exported(cell):
    return cell["cell_type"] == "code" and bool(
        {"export", "exports", "exporti"} & directives(cell).keys()
    )


def outputs(nb):
    for cell in nb["cells"]:
        yield from cell.get("outputs", [])


def texts(nb):
    "Every text of a notebook: sources and textual outputs, without embedded images."
    for cell in nb["cells"]:
        yield text(cell["source"])
    for out in outputs(nb):
        yield text(out.get("text", ""))
        for mime, value in out.get("data", {}).items():
            if mime.startswith("text/") or mime == "image/svg+xml":
                yield BASE64.sub("", text(value))


def imports(cells, nested=True):
    "(module, name or None) for each import from this package; `nested`: inside functions too."
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        source = text(cell["source"])
        tree = parsed(source) or parsed(re.sub(r"(?m)^\s*[%!].*$", "", source))
        if tree is None:  # a magic cell in another language
            continue
        for node in ast.walk(tree) if nested else tree.body:
            if isinstance(node, ast.Import):
                yield from (
                    (alias.name, None)
                    for alias in node.names
                    if alias.name.split(".")[0] == "vrshq_nb"
                )
            elif (
                isinstance(node, ast.ImportFrom)
                and not node.level
                and (node.module or "").split(".")[0] == "vrshq_nb"
            ):
                yield from ((node.module, alias.name) for alias in node.names)


def default_exp(nb):
    return [
        directives(c)["default_exp"]
        for c in nb["cells"]
        if c["cell_type"] == "code" and "default_exp" in directives(c)
    ]


def problems(path):
    "All that is wrong with a notebook, in words."
    if path.stat().st_size > SIZE_LIMIT:
        size = f"{path.stat().st_size // 1000} KB, over {SIZE_LIMIT // 1000}"
        yield f"{size}: frames as JPEG, fewer of them"
    nb = json.loads(path.read_text(encoding="utf-8"))
    cells = nb["cells"]
    first = text(cells[0]["source"])
    if cells[0]["cell_type"] != "markdown" or not first.startswith("# "):
        yield "the first cell is not a '# title'"
    ids = [c.get("id") for c in cells]
    if None in ids or len(set(ids)) != len(ids):
        yield "cells without an id, or with the same one"

    modules = default_exp(nb)
    exports = [c for c in cells if exported(c)]
    if MODULE_FREE.match(path.stem):
        if modules or exports:
            yield "exports, though it is meant to have no module"
    else:
        if len(modules) != 1:
            yield f"needs one '#| default_exp', has {len(modules)}"
        if not re.search(r"^> \S", first, re.M):
            yield "no '> sentence' under the title: the module would have no docstring"
        last = cells[-1]
        if "hide" not in directives(last) or "nbdev_export()" not in text(last["source"]):
            yield "the last cell is not '#| hide' with nbdev.nbdev_export()"
    for module in modules:
        source = importlib.util.find_spec(f"vrshq_nb.{module}")
        if source is None:
            yield f"its module vrshq_nb.{module} is not in the installed package"
        elif f"/{path.name}." not in Path(source.origin).read_text(encoding="utf-8"):
            yield f"vrshq_nb.{module} was exported from another notebook"
    for cell in exports:
        lines = [
            line
            for line in text(cell["source"]).splitlines()
            if line.strip() and not DIRECTIVE.match(line)
        ]
        if len(lines) > EXPORT_LINES:
            yield f"an exported cell of {len(lines)} lines, over {EXPORT_LINES}: {lines[0]!r}"
        if parsed(text(cell["source"])) is None:
            yield f"an exported cell is not plain Python (a magic?): {lines[0]!r}"
    for module, name in imports(cells):
        if importlib.util.find_spec(module) is None:
            yield f"imports {module}, which is not in the installed package"
        elif (
            name not in (None, "*")
            and importlib.util.find_spec(f"{module}.{name}" if module == "vrshq_nb" else module)
            is None
            and not hasattr(importlib.import_module(module), name)
        ):
            yield f"imports {name} from {module}, which does not have it"

    switched = re.findall(r"\bset_grad_enabled\((\w+)\)", "".join(text(c["source"]) for c in cells))
    if switched and switched[-1] != "True":
        yield "gradients are off at its end: nbdev_test may open the next page in the same process"

    for out in outputs(nb):
        if out.get("output_type") == "error":
            yield f"a stored error: {out.get('ename')}: {out.get('evalue')}"
        if any("jupyter.widget" in mime for mime in out.get("data", {})):
            yield "a widget in a stored output: show a static figure instead"
        if re.search(r"\d+%\|", text(out.get("text", ""))):
            yield "a progress bar in a stored output"
    for piece in texts(nb):
        for match in MACHINE_PATH.finditer(piece):
            yield f"a path of one machine: {match[0][:80]}"


def test_there_are_notebooks():
    assert NBS.joinpath("index.ipynb") in NOTEBOOKS and len(NOTEBOOKS) > 10


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    found = list(dict.fromkeys(problems(path)))
    assert not found, "\n- ".join([f"{path.name}:", *found])


def test_one_notebook_a_module():
    "Of two notebooks with one `default_exp` the later would overwrite the earlier, silently."
    modules = [m for p in NOTEBOOKS for m in default_exp(json.loads(p.read_text(encoding="utf-8")))]
    assert sorted(set(modules)) == sorted(modules)


def numbers():
    "{page: its number}, the index aside."
    return {p: p.stem.partition("_")[0] for p in NOTEBOOKS if p.stem != "index"}


def test_no_two_notebooks_share_a_number():
    found = sorted(numbers().values())
    assert all(n.isdecimal() for n in found) and len(set(found)) == len(found)


def test_a_page_is_not_too_long():
    "A page of the course has at most 90 cells, a lab 45, a page of the engine 150."
    most = {p: 150 if p.parent.name == "engine" else 90 for p in numbers()}
    most |= {p: 45 for p in most if LAB.match(p.stem)}
    cells = {p: len(json.loads(p.read_text(encoding="utf-8"))["cells"]) for p in most}
    assert {p.name: n for p, n in cells.items() if n > most[p]} == {}


def test_engine_pages_build_on_earlier_ones():
    "A number of the engine is its place: a module imports only engine modules of lower numbers."
    home = {}
    for path in NOTEBOOKS:
        for module in default_exp(json.loads(path.read_text(encoding="utf-8"))):
            if path.parent.name == "engine":
                home[module] = path.name
    later = []
    for module, name in home.items():
        tree = ast.parse(Path(importlib.util.find_spec(f"vrshq_nb.{module}").origin).read_text())
        for other in used_modules(tree, module) & home.keys():
            if home[other] >= name and other != module:
                later.append(f"{name} imports {other} of {home[other]}")
    assert later == []


def used_modules(tree, module):
    "Modules of the package that a module imports at its top, as dotted names without the package."
    found = set()
    inside = module.split(".")[:-1]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            above = inside[: len(inside) - node.level + 1]
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.add(base)
            found |= {f"{base}.{alias.name}".strip(".") for alias in node.names}
    return found


def links(nb):
    "Targets of Markdown links to pages and pictures."
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            yield from re.findall(r"\]\(([^)\s]+?)(?:#[^)]*)?\)", text(cell["source"]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_lead_somewhere(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    local = [link for link in links(nb) if "://" not in link and not link.startswith("#")]
    assert [link for link in local if not (path.parent / link).exists()] == []
    place = path.relative_to(NBS.parent).as_posix()
    badges = [link for link in links(nb) if "colab.research.google.com/github" in link]
    assert [b for b in badges if not b.endswith(place)] == []

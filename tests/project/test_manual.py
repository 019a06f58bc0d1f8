"""The manual as a whole: no page without a place, no public name or message that it gets wrong."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
#: Packages whose public names the page of the Python API has, each of them.
PUBLIC = ("tpack", "tpack.nn", "tpack.layerdef", "tpack.quantize", "tpack.codegen", "tpack.codec")


def test_every_page_is_in_the_index_once():
    links = re.findall(r"^- \[.*?\]\(([\w-]+)\.md\)", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert sorted(links) == sorted({page.stem for page in DOCS.glob("*.md")} - {"index"})


def resolve(path):
    """The object of a dotted path, such as ``tpack.nn.freeze``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_in_the_python_api(package):
    page = (DOCS / "api.md").read_text()
    documented = re.findall(
        r"^\.\. auto(?:function|class|exception|data):: ([\w.]+)", page, re.MULTILINE
    )
    found = {id(resolve(path)) for path in documented}
    module = importlib.import_module(package)
    names = set(module.__all__) - {"__version__"}
    assert not [name for name in sorted(names) if id(getattr(module, name)) not in found]


def slugs(page):
    """The anchors that a code host gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = page if not file else page.parent / file
        assert found.exists(), target
        assert not anchor or anchor in slugs(found), target


def texts():
    """Every string in the package, with … for what is filled in."""
    for file in [*(ROOT / "tpack").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_are_those_of_the_code():
    rows = re.findall(r"^\| (`.*?`) \|", (DOCS / "errors.md").read_text(), re.MULTILINE)
    quoted = [text for row in rows for text in re.findall(r"`(.*?)`", row)]
    assert len(quoted) > 15
    known = "\n".join(texts())
    assert not [text for text in quoted if text not in known]

"""How Sphinx builds the manual: ``make html`` writes build/html."""

import re
from importlib.metadata import version as installed

from sphinx.application import Sphinx

project = "tpack"
copyright = "the authors of tpack, Apache-2.0"  # noqa: A001  # Sphinx calls it so
version = release = installed("tpack-ternary")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
# every reference leads somewhere, but for those to other projects: no network is asked
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|numpy|os|pathlib|torch|transformers|types|typing)\..*"),
    # names that only type checkers import, and types that are no part of the interface
    (r"py:.*", r"(nn\.Module|DeviceMesh)"),
    (
        r"py:.*",
        r"tpack\.(nn\.training\.Module|container\.version\.Version|quantize\.statistics\.Statistics|quantize\.exact\.Found)",
    ),
]

# Markdown, with the anchors that a code host gives to headings
myst_heading_anchors = 3

# docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
default_role = "code"

# what a reader copies is what runs
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "tpack"
html_static_path = ["_static"]
html_css_files = ["tpack.css"]
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1f4e79",
        "color-brand-content": "#1f5fa8",
        "color-sidebar-link-text": "#3a3f45",
        "color-sidebar-link-text--top-level": "#3a3f45",
        "color-api-name": "#1f4e79",
        "color-api-pre-name": "#5f6770",
    },
    "dark_css_variables": {
        "color-brand-primary": "#9cc4ee",
        "color-brand-content": "#84b6ec",
        "color-sidebar-link-text": "#c6cbd1",
        "color-sidebar-link-text--top-level": "#c6cbd1",
        "color-api-name": "#9cc4ee",
        "color-api-pre-name": "#9aa3ad",
    },
}
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def read_page(_: Sphinx, page: str, source: list[str]) -> None:
    """Take pages as a code host shows them: plain Markdown, which names each page once.

    The navigation is made of the links that the index has under each heading. Markdown that
    lies outside of the manual, such as ../SECURITY.md, is linked as a file.
    """
    source[0] = re.sub(r"\]\((\.\./[\w./-]+\.md)(#[\w-]+)?\)", r"](path:\1)", source[0])
    if page != "index":
        return
    for section in source[0].split("\n## ")[1:]:
        caption, _, text = section.partition("\n")
        names = re.findall(r"^- \[.*?\]\(([\w-]+)\.md\)", text, re.MULTILINE)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n"
        source[0] += "\n".join(names) + "\n```\n"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read_page)

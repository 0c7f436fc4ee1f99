"""How Sphinx builds the site; ``build_site.py`` calls it, on the folder that ``staging.py`` has written."""

from pathlib import Path

from docutils import nodes
from long_words import parts_of
from reference.docstrings import with_code_marked
from reference.stubs import signature_of
from sphinx.application import Sphinx

from fastpipe import __version__

project = "fastpipe"
author = "the fastpipe contributors"
copyright = "the fastpipe contributors, Apache License 2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "index"

# The pages are written for GitHub: its anchors of headings, and nothing of MyST's own but on the home page.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "html_image"]
highlight_language = "none"
pygments_style = "friendly"
pygments_dark_style = "monokai"

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_class_signature = "mixed"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "fastpipe"
html_logo = "static/logo.svg"
html_favicon = "static/logo.svg"
html_static_path = ["static"]
html_css_files = ["custom.css"]
html_search_scorer = str(Path(__file__).parent / "static" / "scorer.js")
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    f"{scheme}_css_variables": dict.fromkeys(
        ("color-brand-primary", "color-brand-content", "color-api-name", "color-api-pre-name"), color
    )
    for scheme, color in (("light", "#0b6e6e"), ("dark", "#5cc8c0"))
}

copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
copybutton_exclude = ".linenos, .gp, .go"


def setup(app: Sphinx) -> None:
    """Have Sphinx call what is written here."""
    app.connect("autodoc-process-docstring", prepare, priority=400)  # napoleon's has 500
    app.connect("autodoc-process-signature", complete)
    app.connect("doctree-resolved", break_long_words)


def prepare(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Change a docstring, in place, to what napoleon expects."""
    lines[:] = with_code_marked(lines)
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # a comment: otherwise what stands before the first colon is taken for the type


def complete(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, result: str | None
) -> tuple[str, str] | None:
    """Return the signature of what is compiled; None: Sphinx has found it itself."""
    is_compiled = getattr(obj, "__module__", None) == "fastpipe._core"
    return signature_of(getattr(obj, "__qualname__", "")) if is_compiled else None


def break_long_words(app: Sphinx, document: nodes.document, page: str) -> None:
    """Tell browsers where they may break long words of code."""
    for literal in list(document.findall(nodes.literal)):
        first, *others = parts_of(literal.astext()) or [""]
        if others and all(isinstance(child, nodes.Text) for child in literal.children):
            literal.children = []
            literal += nodes.Text(first)
            for part in others:
                literal += [nodes.raw("", "<wbr>", format="html"), nodes.Text(part)]

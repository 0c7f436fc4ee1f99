"""Build the site: ``python docs/site/build_site.py [FOLDER]``, by default build/site, which is emptied first.

It needs fastpipe itself, installed, with its extra ``serve``, and what .ci/docs.txt lists. A warning is an error: a
dead link, a page that the navigation leaves out, a docstring that is no reStructuredText. Nothing is fetched, here or
by the pages.
"""

from __future__ import annotations

import fnmatch
import shutil
import sys
import tempfile
from pathlib import Path

from navigation import GENERATED, NAVIGATION, NESTED, TITLES
from reference import api, backends, command_line, configuration
from sphinx.cmd.build import main as sphinx_build
from sphinx.ext.autodoc.mock import mock
from staging import ROOT, DeadLink, page_names, stage

HERE = Path(__file__).parent
OPTIONAL = [
    *("cryptography", "cupy", "cv2", "onnx", "onnxruntime", "onnxscript", "openvino", "opentelemetry", "PIL"),
    *("prometheus_client", "ray", "simplejpeg", "tensorrt", "torch"),
]
"""Libraries that stand-ins take the place of, also where they are installed: the site is the same everywhere."""


def main(arguments: list[str]) -> int:
    """Build the site and return the exit status."""
    site = Path(arguments[0] if arguments else ROOT / "build" / "site")
    with mock(OPTIONAL):
        try:
            return build(site)
        except DeadLink as link:
            sys.stderr.write(f"{link}\n")
            return 1


def build(site: Path) -> int:
    """Write the site to a folder and return the exit status."""
    if unlisted := api.unlisted():
        sys.stderr.write(f"docs/site/reference/api.py has no place for {', '.join(unlisted)}\n")
        return 1
    shutil.rmtree(site, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="fastpipe-site-") as folder:
        source = Path(folder)
        stage(source)
        write_references(source / "reference")
        write_navigation(source)
        shutil.copytree(HERE / "static", source / "static")
        shutil.copyfile(HERE / "conf.py", source / "conf.py")
        options = ["--builder", "html", "--fail-on-warning", "--keep-going", "--quiet"]
        return sphinx_build([*options, "--doctree-dir", f"{folder}/doctrees", folder, str(site)])


def write_references(folder: Path) -> None:
    """Write the pages that are made from code into a new folder."""
    folder.mkdir()
    (folder / "configuration.md").write_text(configuration.page())
    (folder / "command-line.md").write_text(command_line.page())
    (folder / "backends.rst").write_text(backends.page())
    (folder / "api.rst").write_text(api.page())


def write_navigation(source: Path) -> None:
    """Write the navigation, as directives, to the end of the pages that have one."""
    there = [*page_names(), *(f"reference/{name}" for name in GENERATED)]

    def add(page: str, patterns: tuple[str, ...], option: str = "") -> None:
        pages = [name for pattern in patterns for name in fnmatch.filter(there, pattern)]
        lines = "\n".join(f"{TITLES[name]} </{name}>" if name in TITLES else f"/{name}" for name in pages)
        path = source / f"{page}.md"
        path.write_text(f"{path.read_text()}\n```{{toctree}}\n:hidden:\n{option}\n{lines}\n```\n")

    for caption, patterns in NAVIGATION.items():
        add("index", patterns, f":caption: {caption}\n")
    for page, patterns in NESTED.items():
        add(page, patterns)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

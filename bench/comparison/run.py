"""What do fastpipe and its peers do about each feature? Asks them, and writes the table of docs/comparison.md.

    python bench/comparison/run.py [--only PEER] [--feature KEY] [--venvs FOLDER]
    python bench/comparison/run.py --render

Every peer gets a virtual environment of its own with pinned versions, in a temporary folder or in ``--venvs``, where a
later run finds it again; together they are 1.9 GB. ``of_PEER.py`` has a peer's probes, ``features.py`` the rows. What a
run has found is put into ``results.json``, rows and peers that were not asked stay; the table is written from that
file. fastpipe is the one of this interpreter, with the extras ``cpu``, ``serve`` and ``metrics``. Fifteen minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from features import FEATURES, PEERS, Feature, Peer

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
PAGE = HERE.parents[1] / "docs" / "comparison.md"
MARKS = ("<!-- {}: begin -->", "<!-- {}: end -->")
ASKED_WITHIN_S = 1200.0
SIGNS = {"yes": "✓ ", "partly": "~ ", "no": "✗ ", "": "", "failed": "? "}
LINUX = (
    "manylinux_2_35",
    "manylinux_2_34",
    "manylinux_2_28",
    "manylinux_2_17",
    "manylinux2014",
)  # pip takes these only
PLATFORMS = {
    "Linux x86-64": tuple(f"{tag}_x86_64" for tag in LINUX),
    "Linux aarch64": tuple(f"{tag}_aarch64" for tag in LINUX),
    "macOS arm64": ("macosx_14_0_arm64",),
    "Windows x86-64": ("win_amd64",),
}

Results = dict[str, Any]
"""``date``, ``machine``, and by peer: ``versions`` and ``cells``, by feature."""


# ---- asking ------------------------------------------------------------------------------------------------------


def interpreter_of(peer: Peer, folder: Path) -> str:
    """Return the interpreter that has the peer's packages; make its environment if it is not there."""
    if peer.packages is None:
        return sys.executable
    python = folder / peer.key / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / peer.key)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages]
        subprocess.run(install, check=True)
    return str(python)


def asked(peer: Peer, python: str, keys: Sequence[str]) -> dict[str, Any]:
    """Run a peer's probes, and return its versions and cells."""
    ran = subprocess.run(
        [python, str(HERE / f"of_{peer.key}.py"), *keys],
        cwd=tempfile.gettempdir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=ASKED_WITHIN_S,
        check=False,
    )
    first, *lines = ran.stdout.splitlines() or [""]
    if not first:
        raise RuntimeError(f"{peer.key}: said nothing; run {python} {HERE}/of_{peer.key}.py")
    cells = {cell.pop("feature"): cell for cell in map(json.loads, lines)}
    return {"versions": json.loads(first)["versions"], "cells": cells}


def size_of(folder: Path) -> dict[str, str]:
    """Return how large an environment is, without pip and setuptools."""
    sizes = [
        path.stat().st_size
        for path in folder.glob("lib/python*/site-packages/**/*")
        if path.is_file() and not path.is_symlink() and not {"pip", "setuptools", "__pycache__"} & set(path.parts)
    ]
    distributions = [each for each in folder.glob("lib/python*/site-packages/*.dist-info") if not is_of_pip(each)]
    return {"mark": "", "text": f"{sum(sizes) / 1e6:.0f} MB, {len(distributions)} packages", "source": "ran"}


def own_size(folder: Path) -> dict[str, str]:
    """Return how large fastpipe is, alone and with the extras that the others have from the start."""
    sizes = []
    with tempfile.TemporaryDirectory() as wheels:
        pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([sys.executable, *pip, "wheel", "--no-deps", "-w", wheels, str(HERE.parents[1])], check=True)
        (wheel,) = Path(wheels).glob("*.whl")
        for name, extras in (("fastpipe", ""), ("fastpipe-serve", "[cpu,serve,metrics]")):
            python = folder / name / "bin" / "python"
            if not python.exists():
                subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
            subprocess.run([str(python), *pip, "install", f"{wheel}{extras}"], check=True)
            sizes.append(size_of(folder / name)["text"])
    text = f"{sizes[0]}; with the extras cpu, serve and metrics {sizes[1]}"
    return {"mark": "", "text": text, "source": "ran"}


def is_of_pip(path: Path) -> bool:
    """Whether that belongs to what every environment has."""
    return path.name.startswith(("pip-", "setuptools-"))


def platforms_of(package: str) -> dict[str, str]:
    """Ask pip for which systems the index has a wheel of a version."""
    found = []
    for name, tags in PLATFORMS.items():
        chosen = [part for tag in tags for part in ("--platform", tag)]
        with tempfile.TemporaryDirectory() as target:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--target", target]
            command += ["--only-binary", ":all:", "--python-version", "3.11", *chosen, package]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode == 0:
            found.append(name)
        elif "No matching distribution" not in ran.stderr:
            raise RuntimeError(f"pip could not say whether there is a wheel of {package} for {name}: {ran.stderr}")
    mark = "yes" if len(found) == len(PLATFORMS) else "partly" if found else "no"
    return {"mark": mark, "text": ", ".join(found) or "none", "source": "ran"}


def asked_all(peers: Sequence[Peer], keys: Sequence[str], folder: Path, results: Results) -> None:
    """Ask peers one after the other, and put into the results what they have shown."""
    for peer in peers:
        print(f"{peer.title} ...", flush=True)
        python = interpreter_of(peer, folder)
        found = asked(peer, python, keys)
        cells = results["peers"].setdefault(peer.key, {"cells": {}})["cells"]
        cells |= found["cells"]
        results["peers"][peer.key]["versions"] = found["versions"]
        if not keys or "size" in keys:
            cells["size"] = size_of(folder / peer.key) if peer.packages is not None else own_size(folder)
        if peer.packages is not None and (not keys or "platforms" in keys):
            cells["platforms"] = platforms_of(peer.packages[0].replace("[serve]", ""))
        for key, cell in found["cells"].items():
            print(f"  {key:14}{cell['mark']:7} {cell['text']}", flush=True)


# ---- the table ---------------------------------------------------------------------------------------------------


def cell_of(results: Results, peer: Peer, feature: Feature, notes: dict[str, int]) -> str:
    """Return a cell; what is from documentation has the number of a page, which is added to the notes."""
    cell = results["peers"].get(peer.key, {}).get("cells", {}).get(feature.key)
    if cell is None:
        return "not asked"
    text = SIGNS[cell["mark"]] + cell["text"].replace("|", "\\|")
    if cell["source"] == "ran":
        return text
    number = notes.setdefault(cell["source"], len(notes) + 1)
    return f"*{text}* [[{number}]]({cell['source']})"


def table(results: Results) -> str:
    """Return the tables, of four libraries each, and what they were made with."""
    notes: dict[str, int] = {}
    parts = []
    ours, others = PEERS[0], PEERS[1:]
    for chosen in ((ours, *others[:3]), (ours, *others[3:])):
        rows = [["", *(peer.title for peer in chosen)], ["---"] * (len(chosen) + 1)]
        rows += [[feature.title, *(cell_of(results, peer, feature, notes) for peer in chosen)] for feature in FEATURES]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join([*parts, made_with(results)])


def made_with(results: Results) -> str:
    """Return the sentence about date, machine and versions."""
    versions: dict[str, str] = {}
    for peer in PEERS:
        versions |= results["peers"].get(peer.key, {}).get("versions", {})
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"Asked on {results['date']}, {results['machine']}. Versions: {told}."


def asked_list() -> str:
    """Return the rows with what was done to find out."""
    return "\n".join(f"- **{feature.title}**: {feature.asked}" for feature in FEATURES)


def page_with(page: str, results: Results) -> str:
    """Return the page's text with the tables of the results, and what was asked.

    Raises:
        ValueError: the page has not all marks, once.
    """
    for name, text in (("table", table(results)), ("asked", asked_list())):
        begin, end = (mark.format(name) for mark in MARKS)
        before, rest = page.split(begin)
        _, after = rest.split(end)
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def main() -> None:
    """Ask, and write results and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[peer.key for peer in PEERS], help="this peer")
    parser.add_argument("--feature", action="append", default=[], choices=[each.key for each in FEATURES])
    parser.add_argument("--venvs", type=Path, help="where environments are kept; default: a temporary folder")
    parser.add_argument("--render", action="store_true", help="only write the table of results.json into the page")
    options = parser.parse_args()
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"peers": {}}
    if not options.render:
        results["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
        results["machine"] = f"CPython {platform.python_version()}, {platform.system()} {platform.machine()}"
        peers = [peer for peer in PEERS if not options.only or peer.key in options.only]
        with tempfile.TemporaryDirectory(prefix="fastpipe-comparison-") as folder:
            asked_all(peers, options.feature, (options.venvs or Path(folder)).absolute(), results)
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page_with(PAGE.read_text(), results))


if __name__ == "__main__":
    main()

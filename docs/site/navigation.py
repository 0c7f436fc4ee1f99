"""The pages of the site in the order of its navigation.

A page that is not there is left out, so that a page and its line here may come in either order. Nothing is hidden by
that: Sphinx refuses to build a site with a page that no line leads to.
"""

from __future__ import annotations

__all__ = ["GENERATED", "NAVIGATION", "NESTED", "TITLES"]

GENERATED = ("configuration", "backends", "api", "command-line")
"""Pages of ``reference/``, which are made while the site is built."""

NAVIGATION: dict[str, tuple[str, ...]] = {
    "Begin": ("docs/start", "docs/installing", "docs/concepts", "docs/recipes", "docs/recipes/*", "examples/README"),
    "Use": (
        "docs/calling",
        "docs/configuration",
        "docs/graphs",
        "docs/backends",
        "docs/writing-a-backend",
        "docs/advanced-backends",
        "docs/debugging",
        "docs/event-loops",
        "docs/swaps",
    ),
    "Run it": (
        "docs/command-line",
        "docs/observing",
        "docs/serving",
        "docs/scaling",
        "docs/tuning",
        "docs/troubleshooting",
        "docs/security",
        "docs/reliability",
    ),
    "Images and models": (
        "docs/images",
        "docs/models",
        "docs/lengths",
        "docs/state",
        "docs/onnx-runtime",
        "docs/onnx-tools",
        "docs/training",
    ),
    "NVIDIA GPUs": (
        "docs/gpu/kernels",
        "docs/gpu/decoding",
        "docs/gpu/streams",
        "docs/gpu/several-gpus",
        "docs/gpu/models",
        "docs/benchmarks-gpu",
    ),
    "Reference": tuple(f"reference/{name}" for name in GENERATED),
    "Background": ("docs/benchmarks", "docs/comparison", "docs/from-torchpipe", "docs/design"),
    "Project": (
        "README",
        "CHANGELOG",
        "CONTRIBUTING",
        "SECURITY",
        "CODE_OF_CONDUCT",
        "bench/README",
        "proofs/README",
        "findings/README",
    ),
}
"""Caption -> pages, without their suffix, as the repository has them; ``*`` stands for anything."""

NESTED = {"examples/README": ("examples/*/README",)}
"""Page -> the pages below it."""

TITLES = {
    "docs/start": "Start",
    "docs/concepts": "Concepts",
    "docs/swaps": "Swaps",
    "docs/backends": "Built-in backends",
    "docs/debugging": "Debugging",
    "docs/command-line": "Command line",
    "docs/observing": "Observing",
    "docs/security": "Security",
    "docs/reliability": "Reliability",
    "docs/images": "Images",
    "docs/models": "Models that do not fit",
    "docs/lengths": "Lengths",
    "docs/state": "State",
    "docs/onnx-tools": "ONNX tools",
    "docs/training": "Training",
    "docs/gpu/kernels": "Kernels",
    "docs/gpu/decoding": "Decoding",
    "docs/gpu/streams": "Streams",
    "docs/design": "Internals",
    "docs/from-torchpipe": "From torchpipe",
    "docs/comparison": "Comparison",
    "README": "README",
    "CHANGELOG": "Changelog",
    "SECURITY": "Reporting a vulnerability",
    "bench/README": "Scripts of the benchmarks",
    "proofs/README": "Proofs",
}
"""Page -> what the navigation calls it, where its own title is a sentence; it is looked for there by the usual word."""

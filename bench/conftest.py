"""What the benchmarks of this folder share: ``--quick``, and pipes that are closed in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fastpipe


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--quick``."""
    parser.addoption("--quick", action="store_true", help="few rounds: shows that the benchmarks run, and little more")


# Before pytest-benchmark's own, which reads the options.
@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Show the columns that noise does not bury, and set what pytest-benchmark does for ``--quick``."""
    if not any(argument.startswith("--benchmark-columns") for argument in config.invocation_params.args):
        config.option.benchmark_columns = ["min", "median", "iqr", "rounds"]
    if config.getoption("--quick"):
        config.option.benchmark_max_time = 0.05
        config.option.benchmark_min_rounds = 2
        config.option.benchmark_warmup_iterations = 1


@pytest.fixture
def open_pipe() -> Iterator[Callable[..., fastpipe.Pipe]]:
    """Return what makes pipes; they are closed when the benchmark ends."""
    pipes: list[fastpipe.Pipe] = []

    def make(*arguments: Any, **keywords: Any) -> fastpipe.Pipe:
        pipes.append(fastpipe.Pipe(*arguments, **keywords))
        return pipes[-1]

    yield make
    for pipe in pipes:
        pipe.close()

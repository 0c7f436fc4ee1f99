"""What does a step cost inside one node, against a node of its own, and against a plain call?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastpipe import Backend, Pipe, Sequential

Open = Callable[..., Pipe]
Kind = type[Backend]

STEPS = 5


def ask(pipe: Pipe) -> Any:
    """Send one request and return its result."""
    request = {"data": 1}
    pipe(request)
    return request["result"]


@pytest.mark.benchmark(group=f"{STEPS} steps, one request")
def test_steps_of_a_sequential(benchmark: Any, open_pipe: Open, echo: Kind) -> None:
    """One node that is a Sequential."""
    assert benchmark(ask, open_pipe(backend=Sequential(*[echo] * STEPS))) == 1


@pytest.mark.benchmark(group=f"{STEPS} steps, one request")
def test_steps_as_nodes(benchmark: Any, open_pipe: Open, echo: Kind) -> None:
    """A chain of nodes."""
    nodes: dict[str, dict[str, Any]] = {f"n{number}": {"backend": echo} for number in range(STEPS)}
    for number in range(STEPS - 1):
        nodes[f"n{number}"]["next"] = f"n{number + 1}"
    assert benchmark(ask, open_pipe(nodes)) == 1


@pytest.mark.benchmark(group=f"{STEPS} steps, one request")
def test_steps_as_plain_calls(benchmark: Any, echo: Kind) -> None:
    """The backends called one after the other, by hand."""
    backends = [echo() for _ in range(STEPS)]

    def call() -> Any:
        request: dict[str, Any] = {"data": 1}
        for number, backend in enumerate(backends):
            if number:
                request["data"] = request.pop("result")
            backend.forward([request])
        return request["result"]

    assert benchmark(call) == 1


@pytest.mark.benchmark(group=f"{STEPS} steps, 64 requests")
def test_steps_of_a_sequential_on_a_batch(benchmark: Any, open_pipe: Open, echo_of_many: Kind) -> None:
    """A batch goes through all steps together."""
    pipe = open_pipe(backend=Sequential(*[echo_of_many] * STEPS))

    def call() -> Any:
        requests = [{"data": number} for number in range(64)]
        pipe(requests)
        return requests[-1]["result"]

    assert benchmark(call) == 63

"""Torch models whose batch is on another axis, that share an input, or whose requests have many rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

from fastpipe.backends.model import torch_graphs  # noqa: E402
from fastpipe.backends.model.torch import TorchTensor  # noqa: E402
from fastpipe.errors import BackendError, ConfigError, ItemErrors  # noqa: E402


class Recurrent(torch.nn.Module):
    """x [batch, steps, 3] and a state [2, batch, 4]; the first is divided by a speed that all share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.hear = torch.nn.Linear(3, 4)

    def forward(self, x: Any, state: Any, speed: Any) -> Any:
        heard = self.hear(x / speed)
        new_state = torch.tanh(state + heard.sum(1))
        return {"y": heard + new_state.sum(0)[:, None], "state": new_state}


KEYS: dict[str, Any] = {"batch_axis": {"state": 1}, "shared": ["speed"], "device": ["cpu"]}


def recurrent_data(number: int, steps: int = 5, speed: float = 2.0) -> list[Any]:
    torch.manual_seed(number)
    return [torch.randn(1, steps, 3), torch.randn(2, 1, 4), torch.tensor(speed)]


def run(backend: Any, *data: Any) -> list[Any]:
    batch = [{"data": each} for each in data]
    backend.forward(batch)
    return [request["result"] for request in batch]


def assert_same(results: Any, expected: Any) -> None:
    for result, wanted in zip(results, expected, strict=True):
        assert result.shape == wanted.shape
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)


def alone(data: list[Any]) -> list[Any]:
    with torch.inference_mode():
        return [each.clone() for each in Recurrent().eval()(*data).values()]


def test_a_module_with_a_state_on_its_second_axis_is_batched() -> None:
    """In max the batch comes first everywhere; what all share is compared by value."""
    backend = TorchTensor(model=Recurrent(), max="4x5x3,4x2x4,4", **KEYS)
    seen: list[Any] = []
    backend._module._module = lambda *inputs: seen.append([tuple(each.shape) for each in inputs]) or model(*inputs)
    model = Recurrent().eval()
    data = [recurrent_data(number, speed=speed) for number, speed in enumerate((2, 3, 2, 2))]
    for results, each in zip(run(backend, *data), data, strict=True):
        assert_same(results, alone(each))
    assert seen == [[(3, 5, 3), (2, 3, 4), ()], [(1, 5, 3), (2, 1, 4), ()]]


@pytest.mark.parametrize("count", [1, 3])
def test_an_exported_program_says_by_its_symbols_where_the_batch_is(tmp_path: Path, count: int) -> None:
    """No key is needed: the state's axis and the outputs' have the batch's symbol, and a scalar is shared."""
    batch = torch.export.Dim("batch", min=1, max=16)
    shapes = {"x": {0: batch}, "state": {1: batch}, "speed": {}}
    given = tuple(torch.cat([each] * 2, axis) for each, axis in zip(recurrent_data(0)[:2], (0, 1), strict=True))
    program = torch.export.export(Recurrent().eval(), (*given, torch.tensor(2.0)), dynamic_shapes=shapes)
    torch.export.save(program, path := tmp_path / "recurrent.pt2")
    backend = TorchTensor(model=path, max=4, device=["cpu"], result_as="dict", outputs=["state", "y"])
    assert (backend._axes.inputs, dict(backend._axes.outputs)) == ((0, 1, None), {"state": 1})
    data = [recurrent_data(number) for number in range(count)]
    for result, each in zip(run(backend, *data), data, strict=True):
        assert list(result) == ["state", "y"]
        assert_same(result.values(), alone(each)[::-1])
    with pytest.raises(
        ItemErrors, match=r"input 'state': expected .*\(2, 4\), with or without a batch axis of 1 as axis 1"
    ):
        run(backend, [data[0][0], torch.zeros(2, 2, 4), data[0][2]])
    with pytest.raises(ConfigError, match="outputs: the model has no output 'states'; did you mean 'state'"):
        TorchTensor(model=path, device=["cpu"], outputs=["states"])
    alone_backend = TorchTensor(model=path, device=["cpu"])
    whole = [*given, torch.tensor(2.0)]
    assert_same(run(alone_backend, whole)[0], alone(whole))


def test_a_module_is_tried_with_the_example_of_what_is_shared() -> None:
    """A speed that it would not take otherwise."""

    class Picky(torch.nn.Module):
        def forward(self, x: Any, speed: Any) -> Any:
            if speed < 2:
                raise ValueError("too slow")
            return x / speed

    keys: Any = {"model": Picky(), "max": "3x2,3", "device": ["cpu"]}
    with pytest.raises(ConfigError, match="too slow"):
        TorchTensor(shared=["speed"], **keys)
    backend = TorchTensor(shared={"speed": 4.0}, **keys)
    data = [[torch.ones(2), speed] for speed in (torch.tensor(2.0), 2.0, 2)]
    assert [each.tolist() for each in run(backend, *data)] == [[[0.5, 0.5]]] * 3


def test_a_graph_gets_what_is_shared_once_and_rows_where_they_belong() -> None:
    """A stand-in for one on a GPU: its buffers have the requests in front."""
    inputs = [torch.ones(4, 3), torch.ones(2)]
    graph = torch_graphs.Graph(None, inputs, [], 4)
    rows = [torch.full((1, 3), 2.0), torch.full((2, 3), 3.0)]
    graph.fill([rows, [torch.tensor([5.0, 6.0])]], 3, torch_graphs.Staging(), frozenset([1]))
    assert inputs[0][:, 0].tolist() == [2, 3, 3, 0]
    assert inputs[1].tolist() == [5, 6]


def test_rows_of_several_requests_share_a_batch() -> None:
    """They count towards max, on whatever axis they are; each gets its own."""
    backend = TorchTensor(model=Recurrent(), max="6x5x3,6x2x4,6", many_rows=True, **KEYS)
    data = []
    for count in (1, 3, 0, 2):
        parts = [recurrent_data(count * 10 + number) for number in range(count)]
        if not parts:
            data.append([torch.zeros(0, 5, 3), torch.zeros(2, 0, 4), torch.tensor(2.0)])
            continue
        data.append([torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts], 1), parts[0][2]])
    assert [backend.weigh({"data": each}) for each in data] == [1, 3, 1, 2]
    results = run(backend, *data)
    for result, each in zip(results, data, strict=True):
        if len(each[0]):
            assert_same(result, alone(each))
    assert [tuple(each.shape) for each in results[2]] == [(0, 5, 4), (2, 0, 4)]


def test_a_number_that_the_type_cannot_hold_fails_its_request_of_several_rows_alone() -> None:
    """The others of the batch are answered."""
    backend = TorchTensor(model=torch.nn.Identity(), max="4x2", precision="fp16", many_rows=True, device=["cpu"])
    bad = torch.ones(2, 2)
    bad[1, 1] = 1e6
    batch = [{"data": torch.ones(1, 2)}, {"data": bad}]
    with pytest.raises(ItemErrors, match=r"got 1e\+06"):
        backend.forward(batch)
    assert batch[0]["result"].tolist() == [[1, 1]]


class Places(torch.nn.Module):
    """(picture, row, column) of each place above a half, for all together, and the pictures' means."""

    def forward(self, x: Any) -> Any:
        return (x > 0.5).nonzero(), x.mean((1, 2))


def test_rows_with_the_number_of_their_picture_are_given_back() -> None:
    """The outputs' names are their numbers."""
    backend = TorchTensor(model=Places(), max="3x4x4", split_by={"0": 0}, device=["cpu"])
    data = [(torch.rand(4, 4) > 0.5).float() for _ in range(2)] + [torch.zeros(4, 4)]
    for (places, mean), each in zip(run(backend, *data), data, strict=True):
        assert places.tolist() == each[None].gt(0.5).nonzero().tolist()
        assert mean.tolist() == [each.mean().item()]
    with pytest.raises(ConfigError, match="outputs: the model has no output '2'; it has "):
        TorchTensor(model=Places(), max="3x4x4", split_by={"2": 0}, device=["cpu"])
    chosen = TorchTensor(model=Places(), max="3x4x4", outputs=["1"], result_as="dict", device=["cpu"])
    assert list(run(chosen, data[0])[0]) == ["1"]


def test_names_that_a_module_does_not_have_are_told() -> None:
    """While it is built, if it can be run there, else by its first request."""
    with pytest.raises(ConfigError, match="outputs: the model has no output 'z'; it has "):
        TorchTensor(model=Recurrent(), max="4x5x3,4x2x4,4", outputs=["z"], **KEYS)
    backend = TorchTensor(model=Recurrent(), outputs=["z"], device=["cpu"])
    with pytest.raises(BackendError, match="outputs: the model has no output 'z'"):
        run(backend, recurrent_data(1))
    with pytest.raises(ConfigError, match=r"input 'state', batch_axis or shared: expected shapes in max, .* got max=4"):
        TorchTensor(model=Recurrent(), max=4, **KEYS)
    with pytest.raises(ConfigError, match="input 'state', batch_axis: expected an axis from 0 to 2, or 'none', got 3"):
        TorchTensor(model=Recurrent(), max="4x5x3,4x2x4,4", batch_axis={"state": 3}, device=["cpu"])


def test_a_module_that_mixes_the_rows_of_another_axis_is_refused() -> None:
    """The mean over the batch, on the second axis."""

    class Mean(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x - x.mean(1, keepdim=True)

    keys: Any = {"batch_axis": {"x": 1, "0": 1}, "device": ["cpu"]}
    with pytest.raises(ConfigError, match="is not what it is alone"):
        TorchTensor(model=Mean(), max="4x2x3", **keys)
    backend = TorchTensor(model=torch.nn.Identity(), max="4x2x3", batch_axis={"input": 1, "0": 1}, device=["cpu"])
    data = [torch.randn(2, 1, 3), torch.randn(2, 3)]
    assert [each.tolist() for each in run(backend, *data)] == [data[0].tolist(), data[1][:, None].tolist()]
    assert np.asarray(run(backend, data[0].numpy())[0]).shape == (2, 1, 3)

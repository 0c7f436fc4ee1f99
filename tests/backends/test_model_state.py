"""States of torch models and of engines: what a run leaves is the next run's input, as ``OnnxTensor`` has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the extra torch is not installed here")

from sequences import states  # noqa: E402

from fastpipe import ConfigError, ItemErrors, Pipe  # noqa: E402
from fastpipe.backends.model.torch import TorchTensor  # noqa: E402

WAIT_S = 20.0
LAYERS, WIDTH = 2, 3


class Recurrent(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two cells over what comes, (batch, 4), and a state (layers, batch, 3): what it answers, and the next state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = torch.nn.GRUCell(4, WIDTH), torch.nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.first(x, h[0])
        second = self.second(first, h[1])
        return second * 2, torch.stack([first, second])


def chunks(stream: int) -> list[Any]:
    return list(torch.randn(4, 4, generator=torch.Generator().manual_seed(stream)))


def loop(stream: int) -> list[Any]:
    """Return what a plain loop gives for the chunks of a stream."""
    model, h, answers = Recurrent().eval(), torch.zeros(LAYERS, 1, WIDTH), []
    with torch.inference_mode():
        for chunk in chunks(stream):
            y, h = model(chunk[None], h)
            answers.append(y)
    return answers


def program(tmp_path: Any) -> Any:
    batch = torch.export.Dim("batch", min=1, max=64)
    example = (torch.randn(2, 4), torch.zeros(LAYERS, 2, WIDTH))
    exported = torch.export.export(Recurrent().eval(), example, dynamic_shapes={"x": {0: batch}, "h": {1: batch}})
    torch.export.save(exported, tmp_path / "recurrent.pt2")
    return {"model": tmp_path / "recurrent.pt2", "trusted": True}


def script(tmp_path: Any) -> Any:
    torch.jit.save(torch.jit.script(Recurrent().eval()), tmp_path / "recurrent.pt")
    return {"model": tmp_path / "recurrent.pt", "trusted": True, "batch_axis": {"h": 1}}


def module(_tmp_path: Any) -> Any:
    return {"model": Recurrent(), "batch_axis": {"h": 1}}


@pytest.mark.parametrize("made", [module, script, program])
@pytest.mark.parametrize("most", [1, 8])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torch_models_answer_as_in_a_plain_loop(made: Any, most: int, tmp_path: Any) -> None:
    """Four streams interleaved, in batches where there are some; the state's axis is that of the input."""
    keys = {**made(tmp_path), "max": f"{most}x4,{most}x{LAYERS}x{WIDTH}", "device": ["cpu"], "state": {"h": "1"}}
    keys |= {"batching": "timeout", "batching_timeout": 100} if most > 1 else {}
    with Pipe(backend="TorchTensor", state_of="stream", **keys) as pipe:
        futures = [
            (stream, number, pipe.submit({"data": chunks(stream)[number], "stream": stream}))
            for number in range(4)
            for stream in range(4)
        ]
        for stream, number, future in futures:
            torch.testing.assert_close(future.result(WAIT_S)["result"], loop(stream)[number], rtol=1e-5, atol=1e-6)
        assert states(pipe) == {"kept": 4, "started": 4}
        if most > 1:
            assert pipe.stats()["nodes"]["main"]["mean_batch"] > 1


def test_a_state_of_a_torch_model_is_named_by_the_key_of_its_output() -> None:
    """The outputs that are handed on are chosen, and a state begins with what is given."""

    class Sum(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, total: Any) -> Any:
            return {"next": total + x, "sum": total + x, "x": x}

    keys: dict[str, Any] = {"model": Sum(), "max": "4x3,4x3", "device": ["cpu"], "state_of": "id"}
    state = {"total": {"output": "next", "initial": [10, 20, 30]}}
    with Pipe(backend="TorchTensor", state=state, **keys) as pipe:
        for number in (1, 2):
            total, x = pipe({"data": {"x": torch.ones(3)}, "id": "a"})["result"]
            assert total.tolist() == [[10 + number, 20 + number, 30 + number]]
            assert x.tolist() == [[1, 1, 1]]
    with Pipe(backend="TorchTensor", state=state, outputs=["sum"], result_as="dict", **keys) as pipe:
        assert list(pipe({"data": np.ones(3), "id": "a"})["result"]) == ["sum"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"state": {"g": "1"}}, r"state: the model has no input 'g'.*it has \['x', 'h'\]"),
        ({"state": {"h": "hn"}}, r"state: the model has no output 'hn'; it has \['0', '1'\]"),
        ({"state": {"h": "0"}}, r"state, input 'h', output '0': expected an output of shape|output 1: expected 8 rows"),
        ({"state": {"h": "1"}, "outputs": ["0", "1"]}, "outputs: '1' is a state"),
        ({"state": {"h": "1"}, "max": 8, "batch_axis": None}, "state: expected shapes in max"),
        ({"state": {"h": "1"}, "pad": "longest"}, "state and pad"),
        ({"state": {"h": "1"}, "many_rows": True}, "would need several states"),
        ({"state": {"h": "1"}, "state_of": None}, "name the key of a request"),
    ],
)
@pytest.mark.parametrize("most", [1, 8])
def test_a_state_that_a_torch_model_does_not_have_is_refused(keys: dict[str, Any], said: str, most: int) -> None:
    """When the pipe is built, also where one request runs alone."""
    given: dict[str, Any] = {"model": Recurrent(), "max": f"{most}x4,{most}x2x3", "batch_axis": {"h": 1}}
    given |= {"state_of": "id", "device": ["cpu"], **keys}
    with pytest.raises(ConfigError, match=said):
        Pipe(backend="TorchTensor", **{key: each for key, each in given.items() if each is not None})


def test_whom_a_postprocessor_refuses_changes_nobodys_state() -> None:
    """The others of the batch run again, with the states that they had."""

    class Sum(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, total: Any) -> Any:
            return total + x, total + x

    keys: dict[str, Any] = {"model": Sum(), "max": "4x3,4x3", "state": {"total": "1"}, "device": ["cpu"]}
    backend = TorchTensor(postprocessor={"name": "TopK", "k": 1, "activation": "none"}, **keys)
    good = {"data": torch.tensor([0.0, 2.0, 1.0]), "state": {"total": torch.ones(3)}}
    bad = {"data": torch.tensor([0.0, float("nan"), 1.0]), "state": {"total": torch.ones(3)}}
    with pytest.raises(ItemErrors, match="expected finite scores"):
        backend.forward([good, bad])
    assert good["scores"].tolist() == [3.0]
    assert good["state"]["total"].tolist() == [1.0, 3.0, 2.0]
    assert bad["state"]["total"].tolist() == [1.0, 1.0, 1.0]


def test_a_single_tensor_is_completed_by_the_state() -> None:
    """The quick way for one tensor is for models that have one input; a request that brings the state fails alone."""
    keys: dict[str, Any] = {"model": Recurrent(), "max": "4x4,4x2x3", "batch_axis": {"h": 1}, "device": ["cpu"]}
    with Pipe(backend="TorchTensor", state={"h": "1"}, state_of="id", **keys) as pipe:
        for wanted, chunk in zip(loop(0), chunks(0), strict=True):
            torch.testing.assert_close(pipe({"data": chunk, "id": 1})["result"], wanted, rtol=1e-5, atol=1e-6)
        with pytest.raises(Exception, match=r"expected data for the inputs \['x'\] \(h is what the pipe keeps\)"):
            pipe({"data": [chunks(0)[0], torch.zeros(2, 3)], "id": 2})

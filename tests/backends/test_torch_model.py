"""TorchTensor: what is loaded and what is refused, what a request may bring, and what a batch does to it."""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastpipe
from fastpipe.backends.gpu import devices
from fastpipe.config.reading import load
from fastpipe.errors import BackendError, ConfigError, ItemErrors, KernelError

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastpipe-engine[torch]'")

torch_model: Any = pytest.importorskip("fastpipe.backends.model.torch")
TorchTensor = torch_model.TorchTensor
Row: Any = pytest.importorskip("fastpipe.backends.gpu.handed_on").Row

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:The given buffer is not writable:UserWarning"
    ),  # torch.export.load of torch 2.11
]

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPE = (3, 6, 5)


class Scores(torch.nn.Module):
    """Two scores of an image, as different as its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = torch.nn.Linear(90, 2)
        torch.manual_seed(3)
        torch.nn.init.normal_(self.scores.weight)

    def forward(self, image: Any) -> Any:
        return self.scores(image.flatten(1))


class Sums(torch.nn.Module):
    """Two inputs, the second one whole numbers; two outputs."""

    def forward(self, values: Any, places: Any, scale: float = 2.0) -> Any:
        return {"sum": values.sum(1, keepdim=True) * scale, "taken": values.gather(1, places)}


def images(count: int, *shape: int) -> list[Any]:
    generator = torch.Generator().manual_seed(count)
    return [torch.rand((1, *(shape or SHAPE)), generator=generator) for _ in range(count)]


def run(backend: Any, *data: Any) -> list[Any]:
    batch = [{"data": each} for each in data]
    backend.forward(batch)
    return [request["result"] for request in batch]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_each_request_gets_its_own_row(device: str, count: int) -> None:
    """What the model gives for it alone, with a batch axis of 1; yours to change."""
    model = Scores()
    backend = TorchTensor(model=model, max="4x3x6x5", device=[device])
    data = images(count)
    results = run(backend, *data)
    for result, image in zip(results, data, strict=True):
        assert result.shape == (1, 2)
        assert result.device.type == device
        assert not result.requires_grad
        assert not result.is_inference()
        torch.testing.assert_close(result.cpu(), model(image), check_device=False, rtol=1e-4, atol=1e-4)
    kept = [result.clone() for result in results]
    run(backend, *images(4)[::-1])
    for result, before in zip(results, kept, strict=True):
        assert torch.equal(result, before)
        result += 1
    backend.close()


class InPlace(torch.nn.Module):
    """Writes over its input, and hands that out twice."""

    def forward(self, values: Any) -> Any:
        values.sub_(1)
        return values, values.view_as(values)


class Given:
    """An array of somebody else's, known by its DLPack alone."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


FORMS = {
    "numpy": np.asarray,
    "read-only": read_only,
    "broadcast": lambda array: np.broadcast_to(array[:1, :1], array.shape),
    "without a batch axis": lambda array: array[0],
    "wider": lambda array: array.astype(np.float64),
    "torch": torch.from_numpy,
    "with a gradient": lambda array: torch.from_numpy(array).requires_grad_(),
    "expanded": lambda array: torch.from_numpy(array)[:, :1].expand(1, 3),
    "dlpack": Given,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{"max": "1x3"}, {"max": "4x3"}, {"max": "2x3", "min": "2x3"}], ids=str)
def test_a_model_that_works_in_place_leaves_the_data_alone(device: str, form: str, options: Any) -> None:
    """Whatever it is, and however often it is sent; results share no memory with it, nor with each other."""
    array = np.ones((1, 3), np.float32)
    data = FORMS[form](array)
    backend = TorchTensor(model=InPlace(), device=[device], **options)
    answers = [run(backend, data)[0] for _ in range(3)]
    for first, second in answers:
        assert first.tolist() == second.tolist() == [[0, 0, 0]]
    assert array.tolist() == [[1, 1, 1]]
    answers[0][0] += 5
    assert answers[0][1].tolist() == answers[1][0].tolist() == [[0, 0, 0]]
    assert array.tolist() == [[1, 1, 1]]
    backend.close()


def test_a_tensor_that_several_requests_send_is_changed_for_none_of_them(device: str) -> None:
    """Also on the device where the model is, and as two inputs at once."""

    class Difference(torch.nn.Module):
        def forward(self, first: Any, second: Any) -> Any:
            return first.sub_(1) - second

    shared = torch.ones((1, 3), device=device)
    backend = TorchTensor(model=Difference(), device=[device], max="4x3,4x3")
    for count in (1, 2, 3):
        for result in run(backend, *[[shared, shared]] * count):
            assert result.tolist() == [[-1, -1, -1]]
    assert shared.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("model", [torch.nn.Identity(), torch.nn.Flatten()], ids=lambda model: type(model).__name__)
def test_a_model_that_hands_out_its_input_hands_out_a_copy(device: str, model: Any) -> None:
    """So that a caller who writes to a result changes nobody's data."""
    backend = TorchTensor(model=model, device=[device], max="4x3")
    data = [torch.full((1, 3), float(number), device=device) for number in range(4)]
    for count in (1, 4):
        results = run(backend, *data[:count])
        for result in results:
            result += 10
        assert [each.tolist() for each in data] == [[[number] * 3] for number in range(4)]
        assert [result.tolist() for result in results] == [[[number + 10] * 3] for number in range(count)]


def test_who_saves_a_result_saves_nobody_elses() -> None:
    """A tensor is saved with all of its memory: the rows of a batch must not be views of one."""
    backend = TorchTensor(model=torch.nn.ReLU(), device=["cpu"], max="4x3")
    results = run(backend, *[torch.full((1, 3), float(number)) for number in range(1, 5)])
    assert [result.untyped_storage().nbytes() for result in results] == [12] * 4
    assert [result.tolist() for result in results] == [[[number] * 3] for number in range(1, 5)]


def test_the_warm_up_is_on_zeros_every_time_also_of_a_model_that_works_in_place(device: str) -> None:
    """A model of places in a table, say, would be asked for places that there are not."""
    met: list[float] = []

    class Counting(torch.nn.Module):
        def forward(self, values: Any) -> Any:
            if not (values.is_cuda and torch.cuda.is_current_stream_capturing()):
                met.append(float(values.abs().sum()))
            return values.sub_(1)

    TorchTensor(model=Counting(), device=[device], max="4x3", rows="batch").close()  # no trials on other numbers
    assert len(met) > 2
    assert set(met) == {0.0}


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_batch_that_is_one_tensor_already_is_run_as_it_is(device: str, count: int) -> None:
    """As the step before hands it on."""
    model = Scores()
    backend = TorchTensor(model=model, max="4x3x6x5", device=[device])
    whole = torch.cat(images(count)).to(device)
    batch = [{"data": Row(whole, number)} for number in range(count)]
    assert len({backend.bucket(request) for request in batch}) == 1
    backend.forward(batch)
    for number, request in enumerate(batch):
        expected = model(whole[number : number + 1].cpu())
        torch.testing.assert_close(request["result"].cpu(), expected, check_device=False, rtol=1e-4, atol=1e-4)
    backend.close()


@pytest.mark.parametrize("picked", [[2, 0], [0], [0, 1, 3], [3, 2, 1, 0], [0, 1, 2, 3, "other"], ["other", 1]])
def test_rows_of_a_batch_that_fell_apart_are_run_as_tensors(device: str, picked: list[Any]) -> None:
    """Others are missing, in another order, or come from elsewhere."""
    model = Scores()
    backend = TorchTensor(model=model, max="8x3x6x5", device=[device])
    whole, (other,) = torch.cat(images(4)).to(device), images(1)
    batch = [{"data": other if number == "other" else Row(whole, number)} for number in picked]
    backend.forward(batch)
    for number, request in zip(picked, batch, strict=True):
        image = other if number == "other" else whole[number : number + 1].cpu()
        torch.testing.assert_close(request["result"].cpu(), model(image), check_device=False, rtol=1e-4, atol=1e-4)
    backend.close()


def test_rows_of_two_tensors_are_one_run(device: str) -> None:
    """Where their shapes are equal."""
    runs: list[int] = []

    class Counting(Scores):
        def forward(self, image: Any) -> Any:
            runs.append(len(image))
            return super().forward(image)

    backend = TorchTensor(model=Counting(), max="8x3x6x5", rows="batch", device=[device], warm_up=False)
    wholes = [torch.cat(images(2)).to(device), torch.cat(images(3)).to(device)]
    batch = [{"data": Row(whole, number)} for whole in wholes for number in range(len(whole))]
    assert len({backend.bucket(request) for request in batch}) == 1
    backend.forward(batch)
    assert runs == [5]
    backend.close()


def test_a_tensor_of_another_rank_is_run_row_by_row_as_it_would_be(device: str) -> None:
    """An axis of 1 may be missing in what is given, as for requests of their own."""
    backend = TorchTensor(model=torch.nn.Flatten(), max="8x1x2x2", device=[device])
    whole = torch.rand(3, 2, 2, device=device)
    alone = run(backend, *[whole[number : number + 1] for number in range(3)])
    batch = [{"data": Row(whole, number)} for number in range(3)]
    backend.forward(batch)
    for request, result in zip(batch, alone, strict=True):
        assert torch.equal(request["result"], result)
    backend.close()


def test_a_postprocessor_of_the_users_sees_no_rows() -> None:
    """It gets the requests themselves, whose data is what is documented."""
    assert TorchTensor(model=torch.nn.Identity(), max="4x3", device=["cpu"]).takes_forms == (Row,)
    own = TorchTensor(model=torch.nn.Identity(), max="4x3", device=["cpu"], postprocessor=lambda outputs, batch: None)
    assert own.takes_forms == ()


def test_a_module_is_copied_and_left_alone() -> None:
    """Whatever is done to the copy: its type, its mode."""
    model = Scores().train()
    backend = TorchTensor(model=model, precision="bf16")
    (result,) = run(backend, images(1)[0])
    assert result.dtype == torch.bfloat16
    assert model.training
    assert model.scores.weight.dtype == torch.float32


def test_requests_of_other_shapes_and_types_never_share_a_run(device: str) -> None:
    """Neither in the engine's batches nor in forward; with or without a batch axis they may."""
    backend = TorchTensor(model=torch.nn.Identity(), max="8x3x9x9", device=[device])
    small, large = images(2, 3, 4, 4), images(2, 3, 9, 9)
    results = run(backend, small[0], large[0], small[1][0], large[1].to(torch.float64), small[0].numpy())
    assert [tuple(result.shape[1:]) for result in results] == [(3, 4, 4), (3, 9, 9)] * 2 + [(3, 4, 4)]
    assert all(result.dtype == torch.float32 for result in results)
    assert torch.equal(results[2].cpu(), small[1])
    keys = [backend.bucket({"data": each}) for each in (small[0], small[1][0], large[0], small[0].double())]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert backend.bucket({"data": "text"}) == "misfit"


def test_numpy_read_only_memory_and_dlpack_come_in(device: str) -> None:
    backend = TorchTensor(model=torch.nn.Identity(), max="4x2x3", device=[device])
    array = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    frozen = array.copy()
    frozen.flags.writeable = False

    class Exported:
        def __dlpack__(self, **keywords: Any) -> Any:
            return array.__dlpack__()

        def __dlpack_device__(self) -> Any:
            return array.__dlpack_device__()

    given = [array, frozen, array[:, ::-1], Exported(), array.astype(np.uint8), torch.tensor(array, requires_grad=True)]
    for data, result in zip(given, run(backend, *given), strict=True):
        expected = array[:, ::-1] if data is given[2] else array
        np.testing.assert_array_equal(result.cpu().numpy(), expected)


def test_several_inputs_and_outputs_are_lists_in_the_models_order(device: str) -> None:
    """A mapping of inputs works too; one with a default need not be there; other integers stay what they are."""
    backend = TorchTensor(model=Sums(), max="4x3,4x1", dtypes=["float32", "int64"], device=[device])
    values, places = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[2]])
    given = [[values, places], {"values": values, "places": places}, (values[0], places[0])]
    for total, taken in run(backend, *given):
        assert total.tolist() == [[14.0]]
        assert taken.tolist() == [[4.0]]
    open_model = TorchTensor(model=Sums(), max=4, rows="batch", device=[device])
    assert [part.tolist() for part in run(open_model, [values, places])[0]] == [[[14.0]], [[4.0]]]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["module", "exported"])
def test_mean_and_std_are_part_of_the_model(device: str, channels_last: bool, kind: str, tmp_path: Path) -> None:
    """On the scale of the data; uint8 pixels may come as they are. In float32, whatever the model computes in."""
    model: Any = torch.nn.Conv2d(3, 2, 1)
    pixels = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    expected = model((pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1))
    given: Any = exported(model, tmp_path, torch.zeros(2, 3, 4, 4)) if kind == "exported" else model
    keywords: Any = {"mean": mean, "std": std, "device": [device], "channels_last": channels_last}
    backend = TorchTensor(model=given, max="2x3x4x4", **keywords)
    for result in run(backend, pixels, pixels.float(), pixels.numpy()):
        torch.testing.assert_close(result.cpu(), expected, rtol=5e-3, atol=5e-3)  # a GPU convolves in TF32
    if kind == "module":
        half = TorchTensor(model=given, max="2x3x4x4", precision="bf16", **keywords)
        torch.testing.assert_close(run(half, pixels)[0].float().cpu(), expected, rtol=0.05, atol=0.05)


def test_mean_alone_std_alone_and_one_number(device: str) -> None:
    ones = torch.ones(1, 2, 1, 1)
    for keywords, expected in (
        ({"mean": [0.5]}, 0.5),
        ({"std": [4.0]}, 0.25),
        ({"mean": [3.0], "std": [2.0, 2.0]}, -1),
    ):
        backend = TorchTensor(model=torch.nn.Identity(), device=[device], **keywords)
        assert run(backend, ones)[0].tolist() == [[[[expected]], [[expected]]]]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("cpu", lambda result: result.device.type == "cpu" and result.shape == (1, 2)),
        ("SoftmaxCpu", lambda result: abs(float(result.sum()) - 1) < 1e-5),
        ("SoftmaxMax", lambda result: result[0] in (0.0, 1.0) and 0.5 <= result[1] <= 1),
        ("SoftmaxArgMax", lambda result: result in (0, 1)),
        (lambda outputs, batch: [len(outputs[0])] * len(batch), lambda result: result == 3),
    ],
)
def test_postprocessors_are_those_of_the_other_models(device: str, name: Any, check: Any) -> None:
    backend = TorchTensor(model=Scores(), max="4x3x6x5", postprocessor=name, device=[device])
    assert all(check(result) for result in run(backend, *images(3)))


def test_a_request_that_does_not_fit_fails_alone() -> None:
    """With the model, the input, expected and got."""
    backend = TorchTensor(model=Scores(), max="4x3x6x5")
    batch = [{"data": each} for each in (images(1)[0], torch.zeros(1, 3, 7, 5), images(2)[1])]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [1]
    assert str(caught.value.errors[1]) == (
        "model Scores, input 'image': expected of shape (1..3, 1..6, 1..5), with or without a batch axis of 1 in "
        "front, got torch.float32 of shape (3, 7, 5)"
    )
    assert ["result" in request for request in batch] == [True, False, True]


@pytest.mark.parametrize(
    ("keywords", "data", "message"),
    [
        ({"max": "4x3x6x5"}, "text", "input 'image': .* got a str, which is no array"),
        ({"max": "4x3x6x5"}, np.array(["text"]), "got an array of <U4, a type that torch does not have"),
        ({"max": "4x3x6x5"}, torch.zeros(2, 3, 6, 5), r"got torch.float32 of shape \(2, 3, 6, 5\)"),
        (
            {"max": "4x3x6x5", "dtypes": ["float32"]},
            torch.zeros((3, 6, 5), dtype=torch.complex64),
            "got torch.complex64",
        ),
        ({"max": "4x3x6x5"}, [torch.zeros(3, 6, 5)] * 2, "expected 1 tensor, for image, got 2"),
        ({"max": "4x3x6x5"}, {"picture": torch.zeros(3, 6, 5)}, r"inputs \['image'\], got \['picture'\]"),
        ({"max": 2, "rows": "batch"}, torch.zeros(3, 6, 5), r"with a batch axis of 1 in front .*, got .* \(3, 6, 5\)"),
        ({"mean": [0.0, 0.0]}, torch.zeros(1, 3, 6, 5), "no input is an image of 2 channels for mean and std"),
        ({"model": Sums()}, torch.zeros(1, 3), "expected 2 to 3 tensors, for values, places, scale, got 1"),
        ({"model": torch.nn.Identity(), "max": "2x3", "dtypes": ["int64"]}, torch.zeros(3), "expected torch.int64 "),
        ({"model": torch.nn.Identity(), "max": "4x2;1x9", "min": "1x2;1x9"}, torch.zeros(4), r"\(2,\) or \(9,\)"),
    ],
)
def test_what_is_wrong_with_a_request_is_told(keywords: Any, data: Any, message: str) -> None:
    backend = TorchTensor(**{"model": Scores(), "device": ["cpu"], **keywords})
    with pytest.raises(ItemErrors) as caught:
        run(backend, data)
    assert isinstance(caught.value.errors[0], KernelError)
    with pytest.raises(KernelError, match=message):
        raise caught.value.errors[0]


def test_a_request_that_runs_alone_comes_as_it_is_and_a_failure_says_what_most_models_want() -> None:
    """A module of unknown shapes gets what the request has: one picture without a batch axis is no batch."""
    backend = TorchTensor(model=torch.nn.Flatten(0), device=["cpu"])
    assert run(backend, torch.ones(3, 2))[0].shape == (6,)
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        run(TorchTensor(model=Scores(), device=["cpu"]), torch.zeros(3, 6, 5))
    note = r"run with a request of shape \(3, 6, 5\), as it came; most models want a batch axis of 1 in front"
    assert any(re.search(note, each) for each in caught.value.__notes__)


def test_a_request_without_data_is_told() -> None:
    with pytest.raises(ItemErrors, match="the request has no 'data'"):
        TorchTensor(model=Scores()).forward([{}])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"model": Path("nowhere.pt2")}, "there is nothing at .*nowhere.pt2, not a file"),
        ({"model": Path(__file__).parent}, "there is a folder at"),
        ({"model": "nowhere_at_all:Model"}, "there is no such file, and as 'module:Name' it cannot be imported"),
        ({"model": "collections:OrderedDict"}, "expected a torch.nn.Module or what makes one, got a OrderedDict"),
        ({"model": Path("weights.pt2"), "weights": Path("weights.pt")}, "weights go into a model that is no file"),
        ({"weights": Path("nowhere.pt")}, "there is nothing at"),
        ({"weights": Path(__file__)}, "are no state dict of it"),
        ({"max": "4x3x6x5", "dtypes": ["int65"]}, "dtypes: torch has no type 'int65'"),
        ({"max": "4x3x6x5", "dtypes": ["int64"]}, "the warm-up with zeros of shape .*int64, failed: .*dtypes says"),
        ({"max": "4x3x6x5", "dtypes": ["float32"] * 2}, "there are 2 dtypes for 1 inputs"),
        ({"max": "4x3x6x5,4x1"}, "max or min has shapes of 2 inputs, but the model takes 1"),
        ({"model": Sums(), "max": "4x3"}, "max or min has shapes of 1 inputs, but the model takes 2 to 3"),
        ({"max": "4x90", "mean": [1.0]}, "mean and std with 1 channels fit no input"),
        ({"mean": [1.0, 2.0], "std": [1.0, 2.0, 3.0]}, "mean and std need one number"),
        ({"std": [1.0, 1e-60]}, "std must not have a zero in float32"),
        ({"mean": [float("inf")]}, "mean must have finite numbers of float32"),
        ({"std": [0.0]}, "std must not have a zero"),
        ({"max": "4x3x6x5", "buckets": [8]}, r"buckets: the largest batch is 4, got \[8\]"),
        ({"max": "4.5"}, "max must be a batch size like 4"),
        ({"postprocessor": "SoftMin"}, "no postprocessor is named 'SoftMin'"),
        ({"device": ["tpu"]}, "device: expected 'cpu', 'cuda', 'cuda:1', several of them, or 'all', got 'tpu'"),
        ({"device": ["cuda:1023"]}, "there is no GPU 1023; torch sees"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_told(keywords: Any, message: str) -> None:
    """When the pipe is built, with the model's name."""
    with pytest.raises(ConfigError, match=f"^model .*: .*{message}"):
        TorchTensor(**{"model": Scores(), "device": ["cpu"], **keywords})


def test_outputs_without_rows_are_told() -> None:
    """A model that cannot be batched can be run alone."""

    class Total(torch.nn.Module):
        def forward(self, image: Any) -> Any:
            return image.sum()

    with pytest.raises(ConfigError, match=r"output 0: expected 2 rows .* got shape \(\)"):
        TorchTensor(model=Total(), max="2x3x6x5", device=["cpu"])
    with pytest.raises(BackendError, match="a model that cannot be batched needs max=1"):
        run(TorchTensor(model=Total(), max=2, rows="batch", device=["cpu"]), images(1)[0])
    assert run(TorchTensor(model=Total(), max=1, device=["cpu"]), torch.ones(1, 3))[0].tolist() == 3

    class Text(torch.nn.Module):
        def forward(self, image: Any) -> Any:
            return "text"

    with pytest.raises(BackendError, match="output 0: expected a tensor, got a str"):
        run(TorchTensor(model=Text(), device=["cpu"]), images(1)[0])


def test_what_has_no_rows_is_handed_out_whole() -> None:
    """A detector that runs alone gives all of its boxes, none among them; beside them, what has a row as ever."""

    class Detector(torch.nn.Module):
        def forward(self, image: Any) -> Any:
            return image.nonzero(), image.sum(dim=(1, 2, 3)), torch.arange(3)

    backend = TorchTensor(model=Detector(), max=1, device=["cpu"])
    for expected in (6, 0, 1):
        image = torch.zeros(1, 3, 6, 5)
        image.view(-1)[:expected] = 1
        (result,) = run(backend, image)
        boxes, total, constant = result
        assert boxes.shape == (expected, 4)
        assert torch.equal(boxes, image.nonzero())
        assert total.tolist() == [expected]
        assert constant.tolist() == [0, 1, 2]


def test_what_the_model_raises_is_raised_with_its_name_and_shapes() -> None:
    backend = TorchTensor(model=Scores(), device=["cpu"])
    with pytest.raises(RuntimeError) as caught:
        run(backend, torch.zeros(1, 7))
    assert caught.value.__notes__ == ["model Scores, run with 1 requests of shape (7,)"]


def exported(model: Any, folder: Path, *examples: Any, batch: Any = "dynamic") -> Path:
    dimension = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: dimension} for _ in examples) if batch == "dynamic" else None
    path = folder / "model.pt2"
    torch.export.save(torch.export.export(model.eval(), examples, dynamic_shapes=shapes), path)
    return path


def test_an_exported_program_declares_its_inputs(device: str, tmp_path: Path) -> None:
    """Shapes and types; it is run where it is asked to, whatever it was exported on."""
    model = Scores()
    path = exported(model, tmp_path, torch.zeros(2, *SHAPE))
    backend = TorchTensor(model=path, max=4, device=[device])
    data = images(3)
    for result, image in zip(run(backend, *data), data, strict=True):
        torch.testing.assert_close(result.cpu(), model(image), rtol=1e-4, atol=1e-4)
    with pytest.raises(ItemErrors, match=r"expected torch.float32 of shape \(3, 6, 5\), with or without"):
        run(backend, torch.zeros(1, 3, 6, 4))
    TorchTensor(model=path, max=4, precision="fp32", device=[device])
    for keywords, message in (
        ({"precision": "fp16"}, "precision: an exported program computes as it was exported, in torch.float32"),
        ({"dtypes": ["int64"]}, "dtypes: an exported program takes what it was exported with, torch.float32"),
        ({"max": "4x3x6x6"}, "max is 6 in axis 3 of input 'image', the model has 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            TorchTensor(**{"model": path, "max": 4, "device": [device], **keywords})


def test_a_fixed_batch_is_filled_up(device: str, tmp_path: Path) -> None:
    """With zeros, which nobody sees."""
    path = exported(Scores(), tmp_path, torch.zeros(4, *SHAPE), batch="fixed")
    backend = TorchTensor(model=path, device=[device])
    assert backend.max_batch == 4
    data = images(3)
    expected = [run(backend, each)[0] for each in data]
    for result, alone in zip(run(backend, *data), expected, strict=True):
        torch.testing.assert_close(result, alone)
    with pytest.raises(ConfigError, match="the model's is fixed at 4"):
        TorchTensor(model=path, max=8, device=[device])


def test_torchscript_is_code_and_refused_unless_it_is_trusted(
    device: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And said to be deprecated."""
    model = Scores().eval()
    path = tmp_path / "model.pt"
    torch.jit.trace(model, torch.zeros(1, *SHAPE)).save(path)
    with pytest.raises(
        ConfigError, match=r"it is TorchScript, whose operators may read and write files, .* trusted=true"
    ):
        TorchTensor(model=path, max="4x3x6x5", device=[device])
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        backend = TorchTensor(model=path, max="4x3x6x5", device=[device], trusted=True)
    assert "is TorchScript, which torch has deprecated" in caplog.text
    data = images(3)
    for result, image in zip(run(backend, *data), data, strict=True):
        torch.testing.assert_close(result.cpu(), model(image), rtol=1e-4, atol=1e-4)
    assert run(backend, {"image": data[0]})[0].shape == (1, 2)


class Bomb:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_pickle_is_refused_unless_it_is_trusted(tmp_path: Path) -> None:
    """Before any of its code has run; a module that torch.save wrote as well as any other pickle."""
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(str(tmp_path / "ran"))))
    torch.save(Bomb(str(tmp_path / "ran")), tmp_path / "bomb.pt")
    torch.save(Bomb(str(tmp_path / "ran")), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(3, 2), tmp_path / "module.pt")
    for name in ("plain", "bomb", "legacy", "module"):
        with pytest.raises(ConfigError, match="it is a pickle, and loading that runs whatever code is in it"):
            TorchTensor(model=tmp_path / f"{name}.pt", device=["cpu"])
    assert not (tmp_path / "ran").exists()
    backend = TorchTensor(model=tmp_path / "module.pt", trusted=True, device=["cpu"])
    assert run(backend, torch.zeros(1, 3))[0].shape == (1, 2)
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="it holds a OrderedDict, no model; a state dict is given as weights"):
        TorchTensor(model=tmp_path / "weights.pt", trusted=True, device=["cpu"])
    with pytest.raises(ConfigError, match="torch cannot load it"):
        TorchTensor(model=Path(__file__), trusted=True, device=["cpu"])


def test_an_exported_program_with_code_in_it_is_refused(tmp_path: Path) -> None:
    """In whichever of its parts."""
    path = exported(Scores(), tmp_path, torch.zeros(2, *SHAPE))
    torch.save(Bomb(str(tmp_path / "ran")), tmp_path / "bomb.pt")
    bomb = (tmp_path / "bomb.pt").read_bytes()

    def changed(change: Any) -> Path:
        target = tmp_path / "changed.pt2"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
            for name in old.namelist():
                content = change(name.partition("/")[2], old.read(name))
                new.writestr(name, content)
        return target

    def with_bomb(name: str, content: bytes) -> bytes:
        return bomb if name == "data/sample_inputs/model.pt" else content

    def with_pickled_weight(name: str, content: bytes) -> bytes:
        if name == "data/weights/model_weights_config.json":
            return content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        return bomb if name == "data/weights/weight_0" else content

    for change in (with_bomb, with_pickled_weight):
        with pytest.raises(ConfigError, match="it has pickled parts, and loading that runs whatever code is in it"):
            TorchTensor(model=changed(change), device=["cpu"])
    twice = tmp_path / "twice.pt2"
    twice.write_bytes(path.read_bytes())
    with zipfile.ZipFile(twice, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/DATA/sample_inputs/model.pt", bomb)
    with pytest.raises(ConfigError, match="it has two parts of one name"):
        TorchTensor(model=twice, device=["cpu"])
    unknown = tmp_path / "unknown.pt2"
    unknown.write_bytes(path.read_bytes())
    with zipfile.ZipFile(unknown, "a") as archive:
        archive.writestr(f"{folder}/data/constants/opaque_0", bomb)
    with pytest.raises(ConfigError, match="it has a part 'data/constants/opaque_0' of an unknown kind"):
        TorchTensor(model=unknown, device=["cpu"])
    assert not (tmp_path / "ran").exists()
    assert TorchTensor(model=changed(lambda name, content: content), device=["cpu"]).max_batch == 1


def test_a_class_may_be_named_and_given_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file, relative to it; read without running code."""
    (tmp_path / "mymodels.py").write_text("import torch\n\ndef make():\n    return torch.nn.Linear(3, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    layer = torch.nn.Linear(3, 2)
    torch.save(layer.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "pipe.toml").write_text(
        '[model]\nbackend = "TorchTensor"\nmodel = "mymodels:make"\nweights = "weights.pt"\nmax = "4x3"\n'
        'device = "cpu"\ninstance_num = 2\n'
    )
    data = torch.rand(5, 1, 3)
    with fastpipe.Pipe(tmp_path / "pipe.toml") as pipe:
        results = pipe([{"data": each} for each in data])
    for result, each in zip(results, data, strict=True):
        torch.testing.assert_close(result["result"], layer(each))


def test_weights_with_code_in_them_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": Bomb(str(tmp_path / "ran"))}, tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="are no state dict of it"):
        TorchTensor(model=Scores, weights=tmp_path / "weights.pt", device=["cpu"])
    assert not (tmp_path / "ran").exists()


def test_batches_form_in_a_pipe_and_the_answers_are_right(device: str) -> None:
    """From many callers, with two instances."""
    model = Scores()
    data = images(60)
    with fastpipe.Pipe(backend="TorchTensor", model=model, max="8x3x6x5", device=device, instance_num=2) as pipe:
        answers = list(pipe.map({"data": each} for each in data))
    for answer, image in zip(answers, data, strict=True):
        torch.testing.assert_close(answer["result"].cpu(), model(image), rtol=1e-4, atol=1e-4)


def test_a_model_is_compiled_if_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole, with mean and std."""
    compiled = []

    def compile(function: Any) -> Any:
        compiled.append(function)
        return lambda *inputs: function(*inputs) + 1

    monkeypatch.setattr(torch, "compile", compile)
    backend = TorchTensor(model=torch.nn.Identity(), mean=[1.0], compile="inductor", device=["cpu"])
    assert run(backend, torch.full((1, 2, 1, 1), 5.0))[0].flatten().tolist() == [5, 5]
    assert len(compiled) == 1


def test_an_instance_that_could_not_be_built_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_instances", {})
    with pytest.raises(ConfigError):
        TorchTensor(model=Path("nowhere.pt2"), device=["cpu"])
    backend = TorchTensor(model=Scores(), device=["cpu"])
    backend.close()
    backend.close()
    assert devices._instances == {"cpu": 0}


def test_batch_sizes_are_powers_of_two_or_what_was_asked_for() -> None:
    sizes = pytest.importorskip("fastpipe.backends.model.torch_graphs").batch_sizes
    assert sizes(12, 1, None) == [12, 8, 4, 2, 1]
    assert sizes(8, 3, None) == [8, 4, 3]
    assert sizes(8, 1, [3]) == [8, 3]
    assert sizes(2, 4, None) == [4]


def test_torchpipes_quick_start() -> None:
    """With TorchTensor in TensorrtTensor's place: colors, mean and std, one synchronisation."""
    model: Any = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 4 * 3, 10))
    pixels = torch.randint(0, 256, (1, 3, 6, 5), dtype=torch.uint8)
    mean, std = "123.675, 116.28, 103.53", "58.395, 57.120, 57.375"
    with fastpipe.Pipe(
        {
            "model": {
                "backend": "Sequential[cvtColorTensor,TorchTensor,SyncTensor]",
                "max": "4x3x6x5",
                "model": model,
                "mean": mean,
                "std": std,
                "color": "rgb",
                "instance_num": "2",
                "batching_timeout": "5",
            }
        }
    ) as pipe:
        answers = [pipe({"data": pixels, "color": "bgr"}) for _ in range(3)]
    columns = [torch.tensor([float(x) for x in text.split(",")]).view(1, 3, 1, 1) for text in (mean, std)]
    expected = model((pixels.flip(1) - columns[0]) / columns[1])
    for answer in answers:
        torch.testing.assert_close(answer["result"].cpu(), expected, rtol=1e-3, atol=1e-3)
        assert answer["color"] == "rgb"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
class TestCudaGraphs:
    """What a GPU has more to show."""

    @pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
    def test_batches_are_replayed_and_filled_up_with_zeros(self, count: int) -> None:
        """Whatever was in the buffers before."""
        model = Scores()
        backend = TorchTensor(model=model, max="8x3x6x5", device=["cuda"])
        run(backend, *[torch.full((1, *SHAPE), float("nan"))] * 8)
        for place in ("cpu", "cuda"):
            data = [image.to(place) for image in images(count)]
            for result, image in zip(run(backend, *data), data, strict=True):
                torch.testing.assert_close(result.cpu(), model(image.cpu()), rtol=1e-4, atol=1e-4)
        graphs = dict(next(iter(backend._graphs._graphs.values())))
        assert sorted(graphs) == [1, 2, 4, 8]
        used = graphs[next(size for size in (1, 2, 4, 8) if size >= count)]
        assert not used.inputs[0][count:].any()
        backend.close()

    def test_what_cannot_be_captured_is_run_eagerly_and_said_once(self, caplog: pytest.LogCaptureFixture) -> None:
        class Choosy(torch.nn.Module):
            def forward(self, image: Any) -> Any:
                return image + 1 if image.sum().item() >= 0 else image

        with caplog.at_level(logging.WARNING):
            backend = TorchTensor(model=Choosy(), max="2x3", rows="batch", device=["cuda"])
            TorchTensor(model=Choosy(), max="2x3", rows="batch", device=["cuda"])
        said = [record.getMessage() for record in caplog.records]
        assert len([text for text in said if "it cannot be captured" in text]) == 1
        assert run(backend, torch.ones(3))[0].tolist() == [[2, 2, 2]]
        other = TorchTensor(model=Scores(), max="2x3x6x5", device=["cuda"])
        assert other._graphs is not None
        assert other._graphs.is_complete
        with caplog.at_level(logging.WARNING):
            two = [torch.ones(1, 3, 3, 10)] * 2
            flexible = TorchTensor(model=torch.nn.Flatten(), max="2x3x6x10", device=["cuda"])
            run(flexible, *two)
            run(flexible, *two)
        assert caplog.text.count("requests of shape (3, 3, 10) are run without a CUDA graph") == 1

    def test_two_instances_at_the_same_time_do_not_meet(self) -> None:
        model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(20)])
        data = [torch.rand(1, 256, device="cuda") for _ in range(400)]
        expected = [model.cuda()(each) for each in data]
        with fastpipe.Pipe(backend="TorchTensor", model=model, max="16x256", instance_num=3) as pipe:
            answers = list(pipe.map({"data": each} for each in data))
        for answer, each in zip(answers, expected, strict=True):
            torch.testing.assert_close(answer["result"], each, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["cpu.toml", "gpu.toml"])
def test_the_examples_configurations_are_right(
    repository_root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each key is taken by the backend that it is meant for; nothing is built, so that no GPU is needed."""
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra cpu)")
    folder = repository_root / "examples" / "resnet"
    monkeypatch.syspath_prepend(folder)
    nodes = {node.name: node for node in load(folder / name, {}).nodes}
    plan = nodes["model"].plan
    assert plan is not None
    plans = [plan, *plan.children, *(inner for child in plan.children for inner in child.children)]
    given = {each.name: each.parameters for each in plans}
    assert given["TorchTensor"]["postprocessor"] == "SoftmaxArgMax"
    if name == "gpu.toml":
        assert given["ResizeNormalizeTensor"]["dtype"] == "float16"
        assert nodes["model"].filter is None

"""How many requests of mixed lengths does an embedding model take, padded, where without it only equal shapes meet?

    python bench/lengths.py [--quick] [--hidden 128] [--layers 2] [--callers 64] [--device cuda] [--json FILE]

A transformer in ONNX, made here (random weights, attention with a mask, a mean over the tokens), answers callers in a
closed loop; each request has 8 to 512 tokens, evenly spread. The contestants take turns in each round:

    equal     no padding: only requests of equal length share a batch
    buckets   callers pad to the next power of two themselves, and bring the mask: fastpipe's way until now
    list      pad = the same powers of two, max_tokens = 4096
    longest   pad = "longest", max_tokens = 4096

Every answer is checked against the model's for that request alone. What is counted (share of padding, batch sizes,
runs) does not depend on the machine's load as times do. On CPUs, which callers, engine and model share, a large enough
model takes as long for four requests as for one four times over: there, company saves little but what padding costs.
With ``--device cuda`` the same model is torch's, on a GPU, where a run costs much in itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import Numbers, Spread, Window, WrongAnswer, closed_loop
from onnx import TensorProto, helper, numpy_helper

import fastpipe

SHORTEST, LONGEST = 8, 512
BUCKETS = [16, 32, 64, 128, 256, 512]
MAX_TOKENS = 4096
WORDS = 1000
# Requests are drawn from so many texts, whose right answers are computed before.
TEXTS = 512
HEAD = 32
TOLERANCE = 1e-3


def transformer(hidden: int, layers: int) -> bytes:
    """Return a model of ``input_ids`` and ``attention_mask``, (n, seq) int64, to ``embedding``, (n, hidden) float32."""
    chance = np.random.default_rng(1)
    heads = max(1, hidden // HEAD)
    constants: dict[str, Any] = {
        "words": chance.standard_normal((WORDS, hidden)).astype(np.float32),
        "split": np.array([0, 0, heads, hidden // heads]),
        "join": np.array([0, 0, hidden]),
        "scale": np.float32((hidden // heads) ** -0.5),
        "one": np.float32(1),
        "far": np.float32(-1e4),
        "axes": np.array([1, 2]),
        "at_1": np.array([1]),
        "at_2": np.array([2]),
        "gain": np.ones(hidden, np.float32),
    }
    nodes: list[Any] = []

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weights(name: str, rows: int, columns: int) -> str:
        constants[name] = (chance.standard_normal((rows, columns)) * rows**-0.5).astype(np.float32)
        return name

    add("Cast", ["attention_mask"], "counts", to=TensorProto.FLOAT)
    add("Sub", ["one", "counts"], "ignored")
    add("Mul", ["ignored", "far"], "distant")
    add("Unsqueeze", ["distant", "axes"], "bias")
    x = add("Gather", ["words", "input_ids"], "x")
    for layer in range(layers):
        parts = {}
        for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            flat = add("MatMul", [x, weights(f"w{part}{layer}", hidden, hidden)], f"{part}flat{layer}")
            apart = add("Reshape", [flat, "split"], f"{part}apart{layer}")
            parts[part] = add("Transpose", [apart], f"{part}{layer}", perm=order)
        raw = add("MatMul", [parts["q"], parts["k"]], f"raw{layer}")
        scaled = add("Mul", [raw, "scale"], f"scaled{layer}")
        scores = add("Add", [scaled, "bias"], f"scores{layer}")
        attention = add("Softmax", [scores], f"attention{layer}", axis=-1)
        mixed = add("MatMul", [attention, parts["v"]], f"mixed{layer}")
        turned = add("Transpose", [mixed], f"turned{layer}", perm=[0, 2, 1, 3])
        joined = add("Reshape", [turned, "join"], f"joined{layer}")
        out = add("MatMul", [joined, weights(f"wo{layer}", hidden, hidden)], f"out{layer}")
        x = add("LayerNormalization", [add("Add", [x, out], f"sum{layer}"), "gain"], f"normed{layer}", axis=-1)
        wide = add("MatMul", [x, weights(f"up{layer}", hidden, 4 * hidden)], f"wide{layer}")
        active = add("Relu", [wide], f"active{layer}")
        narrow = add("MatMul", [active, weights(f"down{layer}", 4 * hidden, hidden)], f"narrow{layer}")
        x = add("LayerNormalization", [add("Add", [x, narrow], f"more{layer}"), "gain"], f"x{layer}", axis=-1)
    add("Unsqueeze", ["counts", "at_2"], "weights")
    add("Mul", [x, "weights"], "weighted")
    add("ReduceSum", ["weighted", "at_1"], "total", keepdims=0)
    add("ReduceSum", ["counts", "at_1"], "count", keepdims=1)
    add("Div", ["total", "count"], "embedding")
    return _as_model(nodes, constants, hidden)


def _as_model(nodes: list[Any], constants: dict[str, Any], hidden: int) -> bytes:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "seq"]) for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", hidden])
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "transformer", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def torch_transformer(hidden: int, layers: int) -> Any:
    """Return a torch module that is the same kind of model; its weights are others."""
    import torch

    class Layer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = torch.nn.Linear(hidden, 3 * hidden), torch.nn.Linear(hidden, hidden)
            self.up, self.down = torch.nn.Linear(hidden, 4 * hidden), torch.nn.Linear(4 * hidden, hidden)
            self.first, self.second = torch.nn.LayerNorm(hidden), torch.nn.LayerNorm(hidden)

        def forward(self, x: Any, counts: Any) -> Any:
            apart = self.into(x).unflatten(2, (3, max(1, hidden // HEAD), -1)).permute(2, 0, 3, 1, 4)
            mixed = torch.nn.functional.scaled_dot_product_attention(*apart, attn_mask=counts[:, None, None])
            x = self.first(x + self.out(mixed.transpose(1, 2).flatten(2)))
            return self.second(x + self.down(torch.relu(self.up(x))))

    class Transformer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(WORDS, hidden)
            self.layers = torch.nn.ModuleList([Layer() for _ in range(layers)])

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            x, counts = self.words(input_ids), attention_mask.bool()
            for layer in self.layers:
                x = layer(x, counts)
            weights = attention_mask.unsqueeze(2).to(x.dtype)
            return (x * weights).sum(1) / weights.sum(1)

    torch.manual_seed(1)
    return Transformer().eval()


def whole(ids: Any) -> dict[str, Any]:
    """Return a request with its mask."""
    return {"input_ids": ids, "attention_mask": np.ones(len(ids), np.int64)}


def padded_by_hand(ids: Any) -> dict[str, Any]:
    """Return a request padded to the next bucket, with its mask."""
    bucket = next(size for size in BUCKETS if size >= len(ids))
    missing = (0, bucket - len(ids))
    return {"input_ids": np.pad(ids, missing), "attention_mask": np.pad(np.ones(len(ids), np.int64), missing)}


CONTESTANTS: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "equal": ({}, whole),
    "buckets": ({}, padded_by_hand),
    "list": ({"pad": BUCKETS, "max_tokens": MAX_TOKENS}, lambda ids: ids),
    "longest": ({"pad": "longest", "max_tokens": MAX_TOKENS}, lambda ids: ids),
}


class Clients:
    """Callers of one pipe, each with texts in an order of its own, who check what they get."""

    def __init__(self, pipe: fastpipe.Pipe, form: Callable[[Any], Any], texts: list[Any], answers: list[Any]) -> None:
        self._pipe, self._form, self._texts, self._answers = pipe, form, texts, answers
        self._round = 0
        self._lock = threading.Lock()

    def client(self, number: int) -> Callable[[], object]:
        """Return what a client calls in a loop."""
        with self._lock:
            self._round += 1
        order = np.random.default_rng((number, self._round))

        def call() -> None:
            index = int(order.integers(len(self._texts)))
            result = self._pipe({"data": self._form(self._texts[index])})["result"]
            if not np.allclose(result, self._answers[index], atol=TOLERANCE):
                raise WrongAnswer(f"a text of {len(self._texts[index])} tokens got another embedding than alone")

        return call


def share_of_padding(name: str, stats: Any) -> float:
    """Return the share of padding; of callers who pad themselves, what their bucket list gives on average."""
    if "padding" in stats:
        return float(stats["padding"]["share"])
    if name == "equal":
        return 0.0
    sizes = np.arange(SHORTEST, LONGEST + 1)
    padded = np.array([next(bucket for bucket in BUCKETS if bucket >= size) for size in sizes])
    return float(1 - sizes.sum() / padded.sum())


def node_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the node that runs the model, without padding."""
    shapes = f"{arguments.max}x{LONGEST}"
    node: dict[str, Any] = {"max": f"{shapes},{shapes}"}
    if arguments.device is None:
        return {**node, "backend": "OnnxTensor", "model": transformer(arguments.hidden, arguments.layers)}
    model = torch_transformer(arguments.hidden, arguments.layers)
    dtypes = ["int64", "int64"]
    return {
        **node,
        "backend": "TorchTensor",
        "model": model,
        "dtypes": dtypes,
        "device": [arguments.device],
        "postprocessor": "cpu",
    }


def measure(arguments: argparse.Namespace) -> dict[str, list[Numbers]]:
    """Return the numbers of each contestant's windows, round by round."""
    node = node_of(arguments)
    chance = np.random.default_rng(2)
    lengths = chance.integers(SHORTEST, LONGEST + 1, TEXTS)
    texts = [chance.integers(1, WORDS, length) for length in lengths]
    with fastpipe.Pipe(embed={**node, "max": node["max"].replace(f"{arguments.max}x", "1x")}) as pipe:
        answers = [np.asarray(pipe({"data": whole(ids)})["result"]) for ids in texts]
    window = Window(1.5, 3.0) if arguments.quick else Window(3.0, 8.0)
    found: dict[str, list[Numbers]] = {name: [] for name in CONTESTANTS}
    pipes = {}
    try:
        for name, (options, _) in CONTESTANTS.items():
            pipes[name] = fastpipe.Pipe(embed={**node, **options})
        for number in range(1 if arguments.quick else arguments.rounds):
            names = list(CONTESTANTS)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                pipe, form = pipes[name], CONTESTANTS[name][1]
                before = pipe.stats()
                numbers = closed_loop(Clients(pipe, form, texts, answers).client, arguments.callers, window)
                stats = pipe.stats(since=before)["nodes"]["embed"]
                numbers["padding"] = share_of_padding(name, stats)
                numbers["mean_batch"] = stats["mean_batch"]
                numbers["runs_per_request"] = stats["batches"] / max(stats["requests"], 1)
                found[name].append(numbers)
                if not arguments.json:
                    print(f"round {number + 1}, {name}: {numbers['requests_per_s']:.0f} requests/s", file=sys.stderr)
    finally:
        for pipe in pipes.values():
            pipe.close()
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of short windows: whether it works")
    parser.add_argument("--hidden", type=int, default=128, help="numbers of a token (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="of the transformer (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=64, help="threads that call (default: %(default)s)")
    parser.add_argument("--max", type=int, default=32, help="requests of a batch (default: %(default)s)")
    parser.add_argument("--device", help="run it by torch there: cuda, cpu (default: ONNX Runtime on the CPU)")
    parser.add_argument("--rounds", type=int, default=5, help="windows of each contestant (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the numbers of all windows to this file")
    arguments = parser.parse_args()
    found = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    print(f"{'':8} {'requests/s (least to greatest)':>32} {'padding':>8} {'batch':>6} {'runs/request':>13}  longest is")
    longest = [numbers["requests_per_s"] for numbers in found["longest"]]
    for name, windows in found.items():
        rates = [numbers["requests_per_s"] for numbers in windows]
        rate, ratio = Spread.of(rates), Spread.of_ratio(longest, rates)
        padding, batch, runs = (
            Spread.of([numbers[key] for numbers in windows]).median
            for key in ("padding", "mean_batch", "runs_per_request")
        )
        print(
            f"{name:8} {rate.median:14.0f} ({rate.least:.0f} to {rate.greatest:.0f}) {padding:8.1%} {batch:6.1f} "
            f"{runs:13.2f}  {ratio.median:.2f} times as fast ({ratio.least:.2f} to {ratio.greatest:.2f})"
        )


if __name__ == "__main__":
    main()

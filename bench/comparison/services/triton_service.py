"""Triton, as nvidia-pytriton brings it, with its Python backend: the model of the comparison.

    python triton_service.py HTTP-PORT GRPC-PORT METRICS-PORT [OPTION ...]

Writes a repository of models into a temporary folder and becomes the server, so that signals reach it as they are.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytriton
import served_model

HERE = str(Path(__file__).resolve().parents[1])
BACKEND = """
import json
import sys
import time
sys.path[:0] = PYTHON_PATH
import numpy as np
import triton_python_backend_utils as triton
import served_model

class TritonPythonModel:
    def initialize(self, args):
        self.name = json.loads(args["model_config"])["name"]
        self.sums = {}

    def execute(self, requests):
        return getattr(self, self.name)(requests)

    def numbers_of(self, requests):
        tensors = [triton.get_input_tensor_by_name(request, "number").as_numpy() for request in requests]
        return [int(tensor.reshape(-1)[0]) for tensor in tensors]

    def answer(self, values):
        return triton.InferenceResponse([triton.Tensor("answer", np.array([values], np.int64))])

    def refused(self):
        return triton.InferenceResponse(error=triton.TritonError("refused", triton.TritonError.INVALID_ARG))

    def model(self, requests):
        numbers = self.numbers_of(requests)
        answers = iter(served_model.run([number for number in numbers if number != served_model.REFUSED]))
        return [self.refused() if number == served_model.REFUSED else self.answer(next(answers)) for number in numbers]

    def sums_of(self, requests):
        answers = []
        for request, number in zip(requests, self.numbers_of(requests)):
            of = triton.get_input_tensor_by_name(request, "stream").as_numpy().reshape(-1)[0]
            self.sums[of] = self.sums.get(of, 0) + number
            answers.append(self.answer([self.sums[of], len(requests), 0]))
        time.sleep(0.05)
        return answers

    def increment(self, requests):
        return [self.answer([number + 1, len(requests), 0]) for number in self.numbers_of(requests)]

    def square(self, requests):
        return [self.answer([number**2, len(requests), 0]) for number in self.numbers_of(requests)]

    def parts(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for part in range(3):
                time.sleep(0.2)
                sender.send(self.answer([part, 1, 0]))
            sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: {size}
input [ {{ name: "number" data_type: TYPE_INT64 dims: [ 1 ] }} ]
output [ {{ name: "answer" data_type: TYPE_INT64 dims: [ 3 ] }} ]
instance_group [ {{ count: {count} kind: KIND_CPU }} ]
{more}
"""

SEQUENCES = """
sequence_batching {
  oldest { max_candidate_sequences: 4 max_queue_delay_microseconds: 100000 }
  control_input [ { name: "stream" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] } ]
}
"""

ENSEMBLE = """
name: "graph"
platform: "ensemble"
max_batch_size: 8
input [ { name: "number" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [ { name: "left" data_type: TYPE_INT64 dims: [ 3 ] }, { name: "right" data_type: TYPE_INT64 dims: [ 3 ] } ]
ensemble_scheduling { step [
  { model_name: "increment" model_version: -1
    input_map { key: "number" value: "number" } output_map { key: "answer" value: "left" } },
  { model_name: "square" model_version: -1
    input_map { key: "number" value: "number" } output_map { key: "answer" value: "right" } }
] }
"""


def batcher() -> str:
    """Return the part of the configuration that says how batches form."""
    policy = ""
    if served_model.TIMEOUT_MS:
        policy += f" default_timeout_microseconds: {served_model.TIMEOUT_MS * 1000} timeout_action: REJECT"
    if served_model.ROOM:
        policy += f" max_queue_size: {served_model.ROOM}"
    delay = served_model.WAIT_MS * 1000 if served_model.MAX_BATCH > 1 else 0
    queue = f"default_queue_policy {{ {policy} }}" if policy else ""
    levels = "priority_levels: 2 default_priority_level: 2"
    return f"dynamic_batching {{ max_queue_delay_microseconds: {delay} {levels} {queue} }}"


def write(repository: Path) -> None:
    """Write the repository."""
    kinds = {
        "model": (served_model.MAX_BATCH, served_model.INSTANCES, batcher() + os.environ.get("COMPARISON_MORE", "")),
        "sums_of": (8, 1, SEQUENCES),
        "increment": (8, 1, "dynamic_batching { max_queue_delay_microseconds: 100000 }"),
        "square": (8, 1, "dynamic_batching { max_queue_delay_microseconds: 100000 }"),
        "parts": (0, 1, "model_transaction_policy { decoupled: True }"),
    }
    for name, (size, count, more) in kinds.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(
            BACKEND.replace("PYTHON_PATH", repr([HERE, sysconfig.get_paths()["purelib"]]))
        )
        (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name, size=size, count=count, more=more))
    (repository / "graph" / "1").mkdir(parents=True)
    (repository / "graph" / "config.pbtxt").write_text(ENSEMBLE)


def main() -> None:
    """Become the server."""
    http_port, grpc_port, metrics_port, *options = sys.argv[1:]
    folder = Path(tempfile.mkdtemp(prefix="fastpipe-triton-"))
    home = Path(pytriton.__file__).parent / "tritonserver"
    write(folder / "models")
    shutil.copytree(home / "backends", folder / "backends")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(home / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "backends" / "python")
    libraries = home.parent.parent / "nvidia_pytriton.libs"
    environment = {
        **os.environ,
        # The stub has been copied away from its libraries, and loads the first libpython that it finds.
        "LD_LIBRARY_PATH": os.pathsep.join((str(libraries), str(sysconfig.get_config_var("LIBDIR")))),
    }
    ports = [f"--http-port={http_port}", f"--grpc-port={grpc_port}", f"--metrics-port={metrics_port}"]
    addresses = ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"]
    folders = [f"--model-repository={folder / 'models'}", f"--backend-directory={folder / 'backends'}"]
    server = str(home / "bin" / "tritonserver")
    os.execve(server, [server, *ports, *addresses, *folders, *options], environment)


if __name__ == "__main__":
    main()

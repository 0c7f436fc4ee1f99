"""The rows of the comparison: what is asked of every library, in the order of the table in docs/comparison.md."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FEATURES", "PEERS", "Feature", "Peer"]


@dataclass(frozen=True)
class Feature:
    """One row.

    Attributes:
        key: what a probe is registered under.
        title: the first cell of the row.
        asked: what was done to find out, for the reader of the page.
    """

    key: str
    title: str
    asked: str


@dataclass(frozen=True)
class Peer:
    """One column.

    Attributes:
        key: ``of_KEY.py`` has its probes.
        title: the head of the column.
        packages: what is installed for it, with versions. None: it runs where the runner runs.
    """

    key: str
    title: str
    packages: tuple[str, ...] | None


PEERS = (
    Peer("fastpipe", "fastpipe", None),
    Peer("omniback", "torchpipe's engine (omniback)", ("omniback==0.2.24",)),
    Peer("pytriton", "Triton (pytriton)", ("nvidia-pytriton==0.7.0", "numpy==1.26.4")),
    Peer("litserve", "LitServe", ("litserve==0.2.19",)),
    Peer("mosec", "Mosec", ("mosec==0.9.8",)),
    Peer("bentoml", "BentoML", ("bentoml==1.4.40",)),
    Peer("ray", "Ray Serve", ("ray[serve]==2.60.0",)),
    Peer("mediapipe", "MediaPipe", ("mediapipe==1.2.3",)),
)

FEATURES = (
    Feature("in_process", "Called in the process, without a server", "One call by a function of the library, no port."),
    Feature("batching", "Dynamic batching", "Eight requests at once to a model that takes eight; the largest batch."),
    Feature(
        "lone",
        "A lone request, where a wait of 300 ms is set",
        "LitServe, Ray Serve and Triton do not wait at all unless told to, and Mosec waits 10 ms; the row asks what a "
        "lone request to an idle model pays once a longest wait is set. Five requests, one after the other.",
    ),
    Feature(
        "isolation",
        "One bad request in a batch of four, refused by name",
        "The model's code refuses one item in the way that the library has for it; who fails?",
    ),
    Feature(
        "batch_raises",
        "The same, but the model raises",
        "One call for four items raises, because one of them is bad; who fails?",
    ),
    Feature(
        "instances",
        "Two instances of a model",
        "Two requests of 300 ms at once; do they overlap, and where? Ten tries, as chance deals them out in some.",
    ),
    Feature("cores", "Models in pure Python on several cores", "Not run: by documentation."),
    Feature(
        "crash",
        "A crash in a model's native code",
        "The model reads address 0; what does its request get, and is the next one served within 30 s?",
    ),
    Feature("machines", "Several machines, and replicas by load", "Not run: by documentation."),
    Feature("graph", "Graph: branches and a join", "1 -> (+1, squared) -> a pair, with batching at each step."),
    Feature("loop", "Graph: a loop", "A value is doubled until it is above 1000, in the library's own graph."),
    Feature("map_reduce", "Graph: map and reduce", "The elements of three callers' lists; do they share batches?"),
    Feature("cancellation", "The caller of a queued request leaves", "Does the model run it?"),
    Feature(
        "deadline",
        "Time limit of 300 ms, model of 1 s",
        "What do the request that runs and the one that waits behind it get, when, and does the model run the latter?",
    ),
    Feature("overload", "A burst of 12, with room for 4", "What do they get?"),
    Feature("priority", "Priorities", "Three wait, the last one is urgent; which runs first?"),
    Feature("streaming", "Answers in parts", "Three parts, 200 ms apart; when does the first one arrive?"),
    Feature("state", "State for each stream, in batches", "Two streams add up; what is kept where?"),
    Feature("swap", "Another model while it serves", "Requests without a pause during a change; how many fail?"),
    Feature("metrics", "Prometheus metrics", "The names of series at the address of metrics; is there a batch size?"),
    Feature("timeline", "A timeline of batches", "Is there a file for Perfetto or Chrome with the batches in it?"),
    Feature("gpu_decode", "JPEG decoding on the GPU", "Not run: by documentation."),
    Feature("misspelt", "A misspelt option", "An option of the model with a wrong letter; what happens?"),
    Feature("ctrl_c", "Ctrl-C with a request of 600 ms in flight", "Its answer, status and seconds to the end."),
    Feature("sigterm", "SIGTERM, likewise", "The same with what a container's runtime sends."),
    Feature("protocol", "Open Inference Protocol", "GET /v2/health/ready, and an inference by that protocol."),
    Feature(
        "openai",
        "OpenAI's protocol",
        "LitServe: a request to /v1/chat/completions. The others were not run: by documentation.",
    ),
    Feature("platforms", "Systems with a wheel of this version", "Asked of pip, for CPython 3.11."),
    Feature("licence", "Licence", "As the package says."),
    Feature("size", "Size of the installation", "Of a new virtual environment, without pip and compiled caches."),
)

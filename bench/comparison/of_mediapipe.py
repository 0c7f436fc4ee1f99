"""MediaPipe, asked.  python of_mediapipe.py [FEATURE ...]

Its wheel has ready tasks, which need models that no package brings, and no way to build a graph: that is done in C++.
So most of the column is from its documentation.
"""

from __future__ import annotations

from probes import NEUTRAL, NO, PARTLY, YES, Cell, documented, main, probe

DOCS = "https://ai.google.dev/edge/mediapipe/framework"


@probe("graph")
def graph() -> Cell:
    """What the wheel has of the framework."""
    import mediapipe

    has_graphs = hasattr(mediapipe, "CalculatorGraph") or hasattr(mediapipe, "calculators")
    return Cell(YES, "from Python") if has_graphs else Cell(PARTLY, "described, calculators in C++; none in the wheel")


@probe("in_process")
def in_process() -> Cell:
    """Its tasks are objects that are called."""
    from mediapipe.tasks.python import vision

    assert callable(vision.ImageClassifier.classify)
    return Cell(YES, "ready tasks")


documented(
    NO, "none between callers", f"{DOCS}/framework_concepts/graphs", "batching", "lone", "isolation", "batch_raises"
)
documented(PARTLY, "of a calculator: max_in_flight", f"{DOCS}/framework_concepts/graphs", "instances")
documented(YES, "described: back edges", f"{DOCS}/framework_concepts/graphs", "loop")
documented(PARTLY, "BeginLoop and EndLoop calculators", f"{DOCS}/framework_concepts/graphs", "map_reduce")
documented(NO, "a graph ends, not a packet", f"{DOCS}/framework_concepts/graphs", "cancellation", "deadline")
documented(YES, "flow limiter: frames are dropped", f"{DOCS}/framework_concepts/realtime_streams", "overload")
documented(PARTLY, "of nodes, not of packets", f"{DOCS}/framework_concepts/synchronization", "priority")
documented(YES, "streams of packets with timestamps", f"{DOCS}/framework_concepts/realtime_streams", "streaming")
documented(PARTLY, "in a calculator: a graph for each stream", f"{DOCS}/framework_concepts/calculators", "state")
documented(NO, "none", f"{DOCS}/framework_concepts/graphs", "swap", "metrics")
documented(YES, "tracer, with a visualiser", f"{DOCS}/tools/tracing_and_profiling", "timeline")
documented(PARTLY, "GPU buffers and shaders, no JPEG", f"{DOCS}/framework_concepts/gpu", "gpu_decode")
documented(NEUTRAL, "not tried", DOCS, "misspelt")
documented(NO, "in the caller's process", DOCS, "crash")
documented(NEUTRAL, "calculators are C++", f"{DOCS}/framework_concepts/calculators", "cores")
documented(NO, "none: for one device", DOCS, "machines")
documented(NEUTRAL, "no server", DOCS, "ctrl_c", "sigterm", "protocol", "openai")

if __name__ == "__main__":
    main("mediapipe")

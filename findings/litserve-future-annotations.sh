#!/usr/bin/env bash
# With `from __future__ import annotations` in its module, a LitServe API of a pydantic model answers 422 to every request.
#
# LitServe hands the annotation of decode_request to FastAPI as it stands, which is a text then, "Ask". FastAPI looks for
# that name in LitServe's module, does not find it, and takes the request for a parameter of the address. A `dict` is
# found, being a builtin; `dict[str, Any]` is not. The same module without that line answers 200.
# LitServe 0.2.19, FastAPI 0.165.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "litserve==0.2.19" "fastapi==0.165.0" httpx
cat > "$folder/plain.py" <<'PY'
import litserve
import pydantic


class Ask(pydantic.BaseModel):
    number: int


class Double(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: Ask) -> int:
        return request.number

    def predict(self, number):
        return 2 * number
PY
(echo "from __future__ import annotations"; cat "$folder/plain.py") > "$folder/future.py"
cat > "$folder/ask.py" <<'PY'
import importlib
import importlib.metadata
import sys

import litserve
from fastapi.testclient import TestClient
from litserve.utils import wrap_litserve_start

if __name__ == "__main__":
    api = importlib.import_module(sys.argv[1]).Double()
    server = litserve.LitServer(api, accelerator="cpu")
    with wrap_litserve_start(server), TestClient(server.app) as client:
        answer = client.post("/predict", json={"number": 4})
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("litserve", "fastapi"))
    print(f"{versions}, {sys.argv[1]:6}: {answer.status_code} {answer.text}")
    expected = {"plain": 200, "future": 422}[sys.argv[1]]
    assert answer.status_code == expected, "the behaviour has changed"
PY
cd "$folder"
venv/bin/python -W ignore ask.py plain
venv/bin/python -W ignore ask.py future

"""The JPEG classifier behind FastAPI, in a ``def`` endpoint.  python fastapi_jpeg.py MODEL PORT

That is what most write first: each request has a thread of the framework's 40, and no batch.
"""

import sys
from typing import Annotated

import fastapi
import uvicorn
from by_hand import Classify


def application(model: str) -> fastapi.FastAPI:
    """Return an application with the one endpoint."""
    app = fastapi.FastAPI()
    classify = Classify(model)

    @app.post("/infer")
    def infer(image: Annotated[bytes, fastapi.Body(media_type="image/jpeg")]) -> fastapi.Response:
        scores = classify.scores(classify.tensor(image))
        return fastapi.Response(scores.tobytes(), media_type="application/octet-stream")

    return app


if __name__ == "__main__":
    options = {"http": "httptools", "loop": "uvloop", "access_log": False, "log_level": "error"}
    uvicorn.run(application(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), **options)

"""BentoML: the model of the comparison, as ``bentoml serve bentoml_service:Model`` imports it."""

import time
from collections.abc import Generator

import bentoml
import served_model
from bentoml.exceptions import InvalidArgument

traffic = {"timeout": served_model.TIMEOUT_MS / 1e3 or 60}
if served_model.ROOM:
    traffic["max_concurrency"] = served_model.ROOM


@bentoml.service(
    threads=served_model.INSTANCES,
    workers=served_model.WORKERS,
    traffic=traffic,
    logging={"access": {"enabled": False}},
)
class Model:
    """Runs batches, or one request at a time."""

    @bentoml.api(batchable=True, max_batch_size=max(2, served_model.MAX_BATCH))
    def batched(self, numbers: list[int]) -> list[list[int]]:
        good = iter(served_model.run([number for number in numbers if number != served_model.REFUSED]))
        refused = InvalidArgument("refused")  # as an item, and not raised, it may be the answer of one request
        return [refused if number == served_model.REFUSED else next(good) for number in numbers]  # type: ignore[misc]

    @bentoml.api
    def single(self, number: int) -> list[int]:
        return served_model.run([number])[0]

    @bentoml.api
    def stream(self) -> Generator[str, None, None]:
        for part in range(3):
            time.sleep(0.2)
            yield str(part)

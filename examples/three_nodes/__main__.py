"""A graph of three nodes, and every way of calling it: ``python examples/three_nodes``."""

import asyncio

import fastpipe


@fastpipe.backend
def words(text: str) -> list[str]:
    """A function of one item is the short form of a backend."""
    return text.lower().split()


class Count(fastpipe.Backend):
    """Count the words that are in a vocabulary; up to eight requests at once."""

    max_batch = 8

    def __init__(self, *, vocabulary: list[str]) -> None:
        self.vocabulary = set(vocabulary)

    def forward(self, batch: list[fastpipe.Request]) -> None:
        for request in batch:
            request["result"] = sum(word in self.vocabulary for word in request["data"])


@fastpipe.backend
def verdict(count: int, *, enough: int = 2) -> str:
    """Its keyword-only parameters are the node's."""
    return "about pipes" if count >= enough else "about something else"


def build() -> fastpipe.Pipe:
    """Three nodes in a row; each has instances of its own, which work at the same time."""
    return fastpipe.Pipe(
        words={"backend": words, "next": "count"},
        count={"backend": Count, "vocabulary": "batch, node, pipe", "instance_num": 2, "next": "verdict"},
        verdict={"backend": verdict, "enough": 2},
    )


def main() -> None:
    """Call it as a function, with a list, with a future, from a task, and over an iterator."""
    texts = ["A pipe has a node", "The node takes a batch", "Good morning"]
    with build() as pipe:
        request = {"data": texts[0]}
        pipe(request)
        print("function:", request["result"])

        requests = [{"data": text} for text in texts]
        pipe(requests)
        print("list:    ", [request["result"] for request in requests])

        future = pipe.submit({"data": texts[1]})
        print("future:  ", future.result()["result"])

        async def ask(text: str) -> str:
            return (await pipe.acall({"data": text}))["result"]

        async def ask_all() -> list[str]:
            return await asyncio.gather(*(ask(text) for text in texts))

        print("asyncio: ", asyncio.run(ask_all()))
        print("map:     ", [done["result"] for done in pipe.map({"data": text} for text in texts)])

        try:
            pipe({"data": 5})
        except AttributeError as error:
            print("failure: ", error, "|", *error.__notes__)


if __name__ == "__main__":
    main()

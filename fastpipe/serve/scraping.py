"""``/metrics``: the pipes of all models for Prometheus, if ``prometheus-client`` is installed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastpipe.serve.repository import Repository

if TYPE_CHECKING:
    from fastpipe.observe.prometheus import PrometheusCollector
    from fastpipe.pipe import Pipe

__all__ = ["Scraping"]


class Scraping:
    """Writes what the pipes of a repository have counted.

    Args:
        repository: whose.
        directory: in which several processes of the service find each other; None: there is one.
        shows_process: also write what is in Prometheus's default registry, such as metrics that backends have made.
            Only where nobody else has put a collector of pipes there.
    """

    def __init__(self, repository: Repository, directory: str | None, *, shows_process: bool) -> None:
        self._repository = repository
        self._directory = directory
        self._shows_process = shows_process
        self._collector: PrometheusCollector | None = None
        self._registries: list[Any] = []
        self._pipes: dict[str, Pipe] = {}

    async def page(self) -> bytes:
        """Return the page.

        Raises:
            MissingExtra: prometheus-client is not installed.
        """
        self.look()
        if self._directory is None:
            return self._written()
        return await asyncio.to_thread(self._written)  # the other processes are asked, and may take a while

    def look(self) -> None:
        """Show what is loaded now; from the first time on, other processes find this one.

        Raises:
            MissingExtra: prometheus-client is not installed.
        """
        if self._collector is None:
            import prometheus_client

            from fastpipe.observe.metrics import PrometheusCollector

            self._collector = PrometheusCollector(directory=self._directory)
            own = prometheus_client.CollectorRegistry()
            own.register(self._collector)
            self._registries = [own, prometheus_client.REGISTRY] if self._shows_process else [own]
        loaded = {_label(model.name, model.version): model.pipe for model in self._repository.models()}
        for label, pipe in self._pipes.items():
            if loaded.get(label) is not pipe:
                self._collector.remove(label)
        for label, pipe in loaded.items():
            if self._pipes.get(label) is not pipe:
                self._collector.add(label, pipe)
        self._pipes = loaded

    def close(self) -> None:
        """Let go of the pipes."""
        if self._collector is not None:
            self._collector.close()
        self._collector, self._registries, self._pipes = None, [], {}

    def _written(self) -> bytes:
        from fastpipe.observe.metrics import generate_latest

        return b"".join(map(generate_latest, self._registries))


def _label(name: str, version: str) -> str:
    return name if version == "1" else f"{name}/{version}"

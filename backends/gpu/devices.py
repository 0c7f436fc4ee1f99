"""On which GPU an instance is, of those it may be on, and on which one the data of a request is.

    self._claim = claim_gpu("GpuTensor", ["all"])
    self.place = self._claim.place                      # "cuda:1"

All parts of an instance are on one GPU. Whichever is built first (in a Sequential that is the last step) takes, of
those it may be on, the GPU that has the fewest instances of this process; the others follow it, if they may.

Public: a backend of yours that claims its GPU here is counted with those of the box, and goes where they are.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastpipe.contract import Backend, Between, Request, Site, site
from fastpipe.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["Claim", "DeviceId", "Follower", "OnGpu", "claim_gpu", "gpus_of_torch", "place_of", "torch_gpu"]

DeviceId = Annotated[int, Between(0, 1023)] | None

# So many elements of a list are looked at for one that is on a GPU.
_MOST_LOOKED_AT = 16
# DLPack's numbers of CUDA's own memory, and of memory that it shares with the host.
_ON_CUDA = (2, 13)

# By device, "cuda:1" or "cpu": how many instances of this process have claimed it. Reentrant: a claim may be dropped by
# the garbage collector anywhere, in here as well.
_instances: dict[str, int] = {}
_lock = threading.RLock()
_counted: weakref.WeakSet[Site] = weakref.WeakSet()


class Claim:
    """The device of one part of an instance. Counts until it is released, or dropped, if no other part's does."""

    def __init__(self, device: str, *, counts: bool) -> None:
        self.device = device
        """As torch writes it: ``"cuda:1"``, or ``"cpu"``."""
        self._counts = counts

    @property
    def number(self) -> int:
        """Which GPU; 0 for the CPU."""
        return _number(self.device)

    @property
    def place(self) -> str | None:
        """What the backend's ``place`` is: the GPU, or None, as a CPU is everywhere."""
        return self.device if _is_gpu(self.device) else None

    def release(self) -> None:
        """Count no more. May be called again."""
        with _lock:
            if self._counts:
                self._counts = False
                _instances[self.device] -= 1

    def __del__(self) -> None:
        self.release()


def claim_gpu(
    backend: str, device: Sequence[str] | None, device_id: int | None = None, *, or_cpu: bool = False
) -> Claim:
    """Choose the device of a backend that is being built, and count it.

    Args:
        backend: its name, for errors.
        device: ``"cuda"`` or ``"gpu"``, the first one; ``"cuda:1"``; several of them; or ``"all"``.
        device_id: the number of the one GPU, as torchpipe writes it. Neither of the two: where the instance's other
            parts are, otherwise the first GPU.
        or_cpu: ``"cpu"`` is a device, too.

    Raises:
        ConfigError: if both are given, a name is none, or one of several GPUs is not there. (Of a single one it is left
            to whoever opens it.)
    """
    return _chosen(site(), _devices(backend, device, device_id, or_cpu=or_cpu))


class OnGpu(Backend):
    """Base of a backend that has one GPU, from its constructor, where it calls ``_claim_gpu``, until it is closed."""

    def _claim_gpu(self, device: Sequence[str] | None, device_id: int | None) -> int:
        """Choose the GPU, as ``claim_gpu`` does, and return its number; it is then the instance's place."""
        name = type(self).__name__
        self._claim = claim_gpu(name, device, device_id)
        self.place, self.place_of = self._claim.place, place_of
        self.device = torch_gpu(name, self._claim.number)
        return self._claim.number

    def close(self) -> None:
        """Hold no GPU any more."""
        self._claim.release()


class Follower:
    """The GPU of a part that is built before the others and goes where they are; for the arguments see claim_gpu."""

    def __init__(self, backend: str, device: Sequence[str] | None, device_id: int | None = None) -> None:
        self._site = site()
        # A part that only follows does not mind GPUs that are not there.
        self._devices = _devices(backend, device, device_id, or_cpu=True, may_miss=True)

    def number(self) -> int | None:
        """Return which GPU, once all parts are built; None: it is to be on the CPU."""
        place = str(self._site.place)
        if self._devices is None:
            return _number(place) if _is_gpu(place) else 0
        device = place if place in self._devices else self._devices[0]
        return _number(device) if _is_gpu(device) else None


def place_of(request: Request) -> str | None:
    """Return the GPU on which a request's data is, ``"cuda:1"``, or the first array in it that is on one; else None.

    Tensors of torch, and whatever tells its device by DLPack: CuPy's arrays, say. Raises nothing.
    """
    try:
        return _place_of(request.get("data"))
    except Exception:  # whatever pretends to be an array: forward() meets it again, and says what is wrong
        return None


def _place_of(data: Any) -> str | None:
    if isinstance(data, bytes):
        return None
    torch: Any = sys.modules.get("torch")  # who has a tensor has imported it
    if torch is not None and isinstance(data, torch.Tensor):
        return f"cuda:{data.get_device()}" if data.is_cuda else None
    if hasattr(data, "__dlpack_device__"):
        kind, number = data.__dlpack_device__()
        return f"cuda:{int(number)}" if int(kind) in _ON_CUDA else None
    if isinstance(data, Mapping):
        data = list(data.values())
    if isinstance(data, list | tuple):
        return next((place for part in data[:_MOST_LOOKED_AT] if (place := _place_of(part)) is not None), None)
    return None


def _chosen(where: Site, devices: Sequence[str] | None) -> Claim:
    with _lock:
        place = str(where.place)
        if _is_gpu(place) and (devices is None or place in devices):
            device = place
        else:
            device = min(devices or ["cuda:0"], key=lambda device: _instances.get(device, 0))
            if where.place is None and _is_gpu(device):
                where.place = device
        counts = device != where.place or where not in _counted
        if counts:
            _instances[device] = _instances.get(device, 0) + 1
        if device == where.place:
            _counted.add(where)
        return Claim(device, counts=counts)


def _devices(
    backend: str, device: Sequence[str] | None, device_id: int | None, *, or_cpu: bool, may_miss: bool = False
) -> list[str] | None:
    """Return the devices that were asked for, each as ``"cuda:1"`` or ``"cpu"``; None: nothing was."""
    if device is not None and device_id is not None:
        raise ConfigError(f"{backend}: device and device_id say the same: give one of them")
    if device_id is not None:
        return [f"cuda:{device_id}"]
    if not device or (may_miss and _is_all(device)):
        return None
    count = None if may_miss or (len(device) == 1 and not _is_all(device)) else gpus_of_torch()
    if _is_all(device):
        return [f"cuda:{number}" for number in range(count or 0)] or ["cuda:0"]
    devices = []
    for name in device:
        kind, _, number = name.strip().lower().replace("gpu", "cuda").partition(":")
        is_gpu = kind == "cuda" and (not number or number.isdecimal())
        if not is_gpu and not (or_cpu and (kind, number) == ("cpu", "")):
            known = ("'cpu', " if or_cpu else "") + "'cuda', 'cuda:1', several of them, or 'all'"
            raise ConfigError(f"{backend}: device: expected {known}, got {name!r}")
        if is_gpu and count is not None and int(number or 0) >= count:
            raise ConfigError(f"{backend}: there is no GPU {int(number or 0)}; torch sees {count}")
        devices.append(f"cuda:{int(number or 0)}" if is_gpu else "cpu")
    return devices


def _is_all(device: Sequence[str] | None) -> bool:
    return device is not None and [name.strip().lower() for name in device] == ["all"]


def _is_gpu(device: str) -> bool:
    return device.startswith("cuda:")


def _number(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def gpus_of_torch() -> int:
    """Return how many GPUs torch can use; it is imported for that."""
    import torch

    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def torch_gpu(backend: str, number: int) -> torch.device:
    """Return a GPU as torch's device; torch is imported for that.

    Args:
        backend: its name, for errors.
        number: of the GPU, as torch counts.

    Raises:
        ConfigError: if there is no such GPU.
    """
    import torch

    count = gpus_of_torch()
    if number >= count:
        raise ConfigError(f"{backend}: there is no GPU {number}; torch sees {count}")
    return torch.device("cuda", number)

"""A CUDA device for machines without one: computes on the CPU, and minds where every tensor is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

P = ParamSpec("P")
T = TypeVar("T")

_DEVICE = torch.device("cuda", 0)
# Kernels for which operands may be in two places, and those whose second argument, positions, may.
_COPYING = {"aten::copy_", "aten::_to_copy"}
_INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}


class _OnDevice(torch.Tensor):
    """A tensor that says it is on the device, and keeps its values in one of the host."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _OnDevice:
        strides = inner.stride() if inner.layout == torch.strided else torch.empty(inner.shape).stride()
        # torch would ask CUDA's driver for its own devices; "meta" needs none, and says "cuda" where asked.
        with torch.inference_mode(False):
            outline = torch.empty_strided(inner.shape, strides, dtype=inner.dtype, device="meta")
            made: _OnDevice = torch.Tensor._make_subclass(
                cls, outline, False, dispatch_device=True, device_for_backend_keys=_DEVICE
            )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor of a GPU has no numpy array before .cpu()")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.prim.device.default:
            return _DEVICE
        name = function._schema.name
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = "cpu"
        if name not in _COPYING:
            checked = (args[0], *args[2:]) if name in _INDEXING else args
            _check_devices(name, (checked, kwargs))
        result = function(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
        if target is not None and torch.device(target).type == "cpu":
            return result
        if name.endswith("_") and not name.endswith("__"):
            return args[0]  # written in place
        return tree_map(_wrap, result)


def _unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, _OnDevice) else value


def _wrap(value: Any) -> Any:
    return _OnDevice(value) if type(value) is torch.Tensor else value


def _check_devices(name: str, arguments: Any) -> None:
    for value in tree_leaves(arguments):
        # A number, which is a tensor without dimensions, may come from anywhere.
        if isinstance(value, torch.Tensor) and not isinstance(value, _OnDevice) and value.dim() > 0:
            raise RuntimeError(f"{name}: expected all tensors to be on one device, found cuda:0 and cpu")


def _is_device(value: Any) -> bool:
    return isinstance(value, str | torch.device) and str(value).partition(":")[0] == "cuda"


class _Requests(TorchFunctionMode):
    """What asks torch for the device gets the stand-in."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "pin_memory":
            return args[0]
        kwargs.pop("pin_memory", None)
        is_there = bool(args) and isinstance(args[0], _OnDevice)
        if name == "to" and len(args) > 1 and isinstance(args[1], torch.Tensor):
            args = (args[0], args[1].device, args[1].dtype)
        # These ask the driver themselves.
        if name in ("new_tensor", "one_hot"):
            return _wrap(function(*map(_unwrap, args), **kwargs))
        if function is torch.where:
            args = [torch.tensor(value) if isinstance(value, int | float) else value for value in args]
        if is_there and name == "as_tensor":
            return _move_within(args, kwargs)
        is_name_only = function is torch.device or name == "_parse_to"
        if is_name_only or not any(map(_is_device, (*args, *kwargs.values()))):
            return function(*args, **kwargs)
        if is_there and name == "to":
            return _move_within(args, kwargs)
        made = function(*map(_to_host, args), **{key: _to_host(value) for key, value in kwargs.items()})
        # Memory of a device is its own.
        return _OnDevice(made.clone()) if isinstance(made, torch.Tensor) else made


def _to_host(value: Any) -> Any:
    return "cpu" if _is_device(value) else value


def _move_within(args: Any, kwargs: dict[str, Any]) -> Any:
    """A request for the device by a tensor that is there: only its dtype may change."""
    dtypes = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
    return args[0].type(dtypes[0]) if dtypes else args[0]


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """While the block runs, this thread has a device "cuda"; others need `in_fake_cuda`.

    It finds what a GPU would not do with how tensors are handed about: kernels whose operands are in
    different places, and arrays of numpy made of tensors that are not on the host. It says nothing of speed,
    streams or rounding, and takes no gradients: torch's engine needs the driver for them.
    """
    # Where there is no driver, torch then leaves the current device alone. Its engine, for its part, starts a
    # thread for the device: from now on, processes that take gradients are to be spawned, not forked.
    torch._C._ensureCUDADeviceGuardSet()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch("torch.cuda.device_count", return_value=1),
            mock.patch("torch.autograd.backward"),
            _Requests(),
        ):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def in_fake_cuda(function: Callable[P, T]) -> Callable[P, T]:
    """The function, for another thread to call while a block of `fake_cuda` runs."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with _Requests():
            return function(*args, **kwargs)

    return call

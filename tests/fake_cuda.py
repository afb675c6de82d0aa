"""A fake CUDA device for machines without one: computes on the CPU and checks the device of every tensor."""

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
# Kernels whose operands may be on two devices, and kernels whose indices may be on another one.
_COPYING = {"aten::copy_", "aten::_to_copy"}
_INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}


class _OnDevice(torch.Tensor):
    """A tensor that reports the fake device and keeps its values in `inner`, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _OnDevice:
        strides = inner.stride() if inner.layout == torch.strided else torch.empty(inner.shape).stride()
        # A real CUDA outline would need the driver; a "meta" one does not, and reports "cuda" by dispatch.
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
        # Tensors without dimensions are numbers to torch, and may be on any device.
        if isinstance(value, torch.Tensor) and not isinstance(value, _OnDevice) and value.dim() > 0:
            raise RuntimeError(f"{name}: expected all tensors to be on one device, found cuda:0 and cpu")


def _is_device(value: Any) -> bool:
    return isinstance(value, str | torch.device) and str(value).partition(":")[0] == "cuda"


class _Requests(TorchFunctionMode):
    """Answers requests for the CUDA device with tensors of the fake one."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "pin_memory":
            return args[0]
        kwargs.pop("pin_memory", None)
        # These ask the driver themselves.
        if name in ("new_tensor", "one_hot"):
            return _wrap(function(*map(_unwrap, args), **kwargs))
        if function is torch.where:
            args = [torch.tensor(value) if isinstance(value, int | float) else value for value in args]
        is_name_only = function is torch.device or name == "_parse_to"
        if is_name_only or not any(map(_is_device, (*args, *kwargs.values()))):
            return function(*args, **kwargs)
        if name == "to" and isinstance(args[0], _OnDevice):
            # Already there: only the dtype may change.
            dtypes = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
            return args[0].type(dtypes[0]) if dtypes else args[0]
        made = function(*map(_to_host, args), **{key: _to_host(value) for key, value in kwargs.items()})
        # A device has its own memory.
        return _OnDevice(made.clone()) if isinstance(made, torch.Tensor) else made


def _to_host(value: Any) -> Any:
    return "cpu" if _is_device(value) else value


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """Give this thread a device "cuda" inside the block; other threads need `in_fake_cuda`.

    Two mistakes are found that a GPU would not forgive: kernels with operands on different devices, and numpy
    arrays made from tensors that are not on the CPU. Speed, streams and rounding are not those of a GPU, and
    there are no gradients, since torch's autograd engine needs the driver.
    """
    # Without a driver, torch then leaves the current device alone. Its autograd engine starts a thread for
    # the device: from now on, processes that compute gradients must be spawned, not forked.
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
    """Wrap a function for a call from another thread inside a block of `fake_cuda`."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with _Requests():
            return function(*args, **kwargs)

    return call

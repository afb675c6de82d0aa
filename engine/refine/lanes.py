"""SIMD vectors in compiled loops: one lane per mask.

The CRF reads and writes short rows (one float32 for each of 1, 8 or 16 masks) at scattered addresses. LLVM's
automatic vectoriser leaves loops this short scalar, which is several times slower, so the kernels use
explicit vector operations. A vector's width is the length of the tuple `lanes`, which is part of the tuple's
type and known at compile time; LLVM splits vectors that are wider than the registers.

Compiled kernels are cached by the modification time of their own source file: after a change here, touch the
files that use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")

Lanes = tuple[float, ...]

_CACHE_LINE_BYTES = 64


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile with numba, cached on disk, without the GIL, so that Python threads can share the work."""
    kernel: Callable[P, R] = njit(cache=True, nogil=True, error_model="numpy")(function)
    return kernel


def make_lanes(width: int) -> Lanes:
    """A tuple whose length is the kernels' vector width; its values are never read."""
    return (0.0,) * width


def empty_rows(num_rows: int, width: int) -> NDArray[np.float32]:
    """Uninitialised float32 (num_rows, width), aligned so that no row straddles two cache lines."""
    floats_per_line = _CACHE_LINE_BYTES // 4
    memory = np.empty(num_rows * width + floats_per_line, np.float32)
    offset = (-memory.ctypes.data // 4) % floats_per_line
    return memory[offset : offset + num_rows * width].reshape(num_rows, width)


class _VectorType(types.Type):  # type: ignore[misc]
    """A vector of `width` float32; exists only inside kernels."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Vector({width})")


def _llvm_type(width: int) -> ir.VectorType:
    return ir.VectorType(ir.FloatType(), width)


class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, data_models: Any, numba_type: _VectorType) -> None:
        super().__init__(data_models, numba_type, _llvm_type(numba_type.width))


register_model(_VectorType)(_VectorModel)


def _row_pointer(context: Any, builder: Any, signature: Any, args: Any, width: int) -> Any:
    """Pointer to row args[1] of the C-contiguous float32 array args[0], whose rows are `width` floats."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    row = context.cast(builder, args[1], signature.args[1], types.intp)
    start = builder.mul(row, ir.Constant(row.type, width))
    return builder.bitcast(builder.gep(array.data, [start]), _llvm_type(width).as_pointer())


def _broadcast(context: Any, builder: Any, value: Any, numba_type: Any, width: int) -> Any:
    scalar = context.cast(builder, value, numba_type, types.float32)
    undefined = ir.Constant(_llvm_type(width), ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    every_lane_0 = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
    return builder.shuffle_vector(single, undefined, every_lane_0)


def _type_load(typing: Any, array: Any, row: Any, lanes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_row_pointer(context, builder, signature, args, lanes.count), align=4)

    return _VectorType(lanes.count)(array, row, lanes), generate


def _type_store(typing: Any, array: Any, row: Any, vector: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _row_pointer(context, builder, signature, args, vector.width), align=4)
        return context.get_dummy_value()

    return types.void(array, row, vector), generate


def _type_prefetch(typing: Any, array: Any, row: Any, lanes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte_pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(_row_pointer(context, builder, signature, args, lanes.count), byte_pointer)
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
        # For reading, into all cache levels, data rather than instructions.
        builder.call(function, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, row, lanes), generate


def _type_fill(typing: Any, scalar: Any, lanes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _broadcast(context, builder, args[0], signature.args[0], lanes.count)

    return _VectorType(lanes.count)(scalar, lanes), generate


def _type_multiply_add(typing: Any, scalar: Any, vector: Any, addend: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector_type = _llvm_type(vector.width)
        factor = _broadcast(context, builder, args[0], signature.args[0], vector.width)
        function_type = ir.FunctionType(vector_type, [vector_type] * 3)
        name = f"llvm.fmuladd.v{vector.width}f32"
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        return builder.call(function, [factor, args[1], args[2]])

    return vector(scalar, vector, addend), generate


def _type_clamp(typing: Any, vector: Any, limit: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        high = _broadcast(context, builder, args[1], signature.args[1], vector.width)
        low = builder.fneg(high)
        capped = builder.select(builder.fcmp_ordered("<", args[0], high), args[0], high)
        return builder.select(builder.fcmp_ordered(">", capped, low), capped, low)

    return vector(vector, limit), generate


def _binary(operation: str) -> Any:
    def type_binary(typing: Any, first: Any, second: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, operation)(*args)

        return first(first, second), generate

    return intrinsic(type_binary)


load = intrinsic(_type_load)  # load(array, row, lanes): the vector array[row]
store = intrinsic(_type_store)  # store(array, row, vector): array[row] = vector
prefetch = intrinsic(_type_prefetch)  # prefetch(array, row, lanes): load array[row] into the caches
fill = intrinsic(_type_fill)  # fill(scalar, lanes): the scalar in every lane
multiply_add = intrinsic(_type_multiply_add)  # multiply_add(scalar, vector, addend): scalar * vector + addend
clamp = intrinsic(_type_clamp)  # clamp(vector, limit): every lane clipped to [-limit, limit]
add, multiply, divide = _binary("fadd"), _binary("fmul"), _binary("fdiv")

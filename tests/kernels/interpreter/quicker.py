"""Triton's interpreter in less than half its time, computing the same.

Each operation of a kernel makes types, shapes and checks anew in Python: those that were made before are kept
here, and what nobody reads is not computed. What is changed are Triton's own inner parts: with a version that
this was not tried with they are left as they are, and the tests take longer.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import triton
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

TRIED = "3.9."


def make_quicker() -> None:
    if not triton.__version__.startswith(TRIED):
        return
    _patch_languages_once_a_launch()
    _leave_out_overflow_checks()
    _keep_numpy_types()
    _keep_block_types()
    _compare_types_by_identity_first()
    _broadcast_what_differs()


def _patch_languages_once_a_launch() -> None:
    """It patches triton.language whenever one kernel function calls another; what a launch has patched stays
    so until it ends."""
    plain, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[Any] = set()

    def patch(fn: Any) -> Any:
        languages = {name for name in ("tl", "core") if name in fn.__globals__}
        if languages and languages <= patched:
            return None
        patched.update(languages)
        return plain(fn)

    def launched(*args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(*args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch, launched


def _leave_out_overflow_checks() -> None:
    """Of sums and products of integers: computed in 64 bits beside them, and asserted in debug mode alone."""
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _keep_numpy_types() -> None:
    plain, known = interpreter._get_np_dtype, {}

    def get(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in known:
            known[name] = plain(kind)
        return known[name]

    interpreter._get_np_dtype = get


def _keep_block_types() -> None:
    """Types of blocks and shapes of tensors, neither of which is ever changed."""
    init_type, types = core.block_type.__init__, {}
    init_tensor, shapes = core.tensor.__init__, {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *map(operator.index, shape))
        if key not in types:
            init_type(self, element_ty, shape)
            types[key] = dict(self.__dict__)
        self.__dict__.update(types[key])

    def tensor(self: Any, handle: Any, type: Any) -> None:
        if type.name not in shapes:
            init_tensor(self, handle, type)
            shapes[type.name] = {n: v for n, v in self.__dict__.items() if n not in ("handle", "type")}
        self.__dict__.update(shapes[type.name], handle=handle, type=type)

    core.block_type.__init__, core.tensor.__init__ = block_type, tensor


def _compare_types_by_identity_first() -> None:
    plain = core.dtype.__eq__
    core.dtype.__eq__ = lambda self, other: self is other or plain(self, other)


def _broadcast_what_differs() -> None:
    plain = TritonSemantic.broadcast_impl_value

    def broadcast(self: Any, one: Any, other: Any) -> tuple[Any, Any]:
        blocks = one.type.is_block() and other.type.is_block()
        if blocks and one.type.shape.values == other.type.shape.values:
            return one, other
        return plain(self, one, other)

    TritonSemantic.broadcast_impl_value = broadcast

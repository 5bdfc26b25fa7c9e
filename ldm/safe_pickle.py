"""Unpickle tensors and plain containers, and nothing else.

A pickle is a program that may call any function it can name. Here it can name only what a
checkpoint needs: tensors, plain containers, numbers. Every other name becomes a :class:`Stub`,
which remembers its name and accepts whatever the file does to it. Used through
:mod:`ldm.checkpoint`.
"""

import argparse
import math
import pickle
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import IO, Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

_STORAGE_DTYPES = {
    "Untyped": torch.uint8,
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    # Quantized tensors become stubs; their bytes have to be passed over all the same.
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
    "QUInt4x2": torch.uint8,
    "QUInt2x4": torch.uint8,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
}
_NUMPY_CODE = re.compile(r"[?biufcSU]\d{0,6}")


class Stub:
    """Stands for an object of a class that a checkpoint file may not name. It does nothing."""

    #: The dotted name in the file.
    path = "?"

    def __new__(cls, *_arguments: object, **_keywords: object) -> "Stub":
        """An inert object, whatever the file passes."""
        return super().__new__(cls)

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        pass

    def __call__(self, *_arguments: object, **_keywords: object) -> "Stub":
        """Calling a stub gives the stub."""
        return self

    def __setstate__(self, state: object) -> None:
        """Ignore the state that the file restores."""

    def __setitem__(self, key: object, value: object) -> None:
        """Ignore an item that the file stores."""

    def append(self, _item: object) -> None:
        """Ignore an item that the file appends."""

    extend = add = append

    def __repr__(self) -> str:
        return f"<not loaded: {self.path}>"


class Parameters(dict[str, Any]):
    """What a pickled ``torch.nn.ParameterDict`` held, as a plain mapping.

    torch 1.11 and older keep the values in ``_parameters`` alone; newer versions also list
    ``_keys``, and values that are not parameters lie beside.
    """

    def __setstate__(self, state: Any) -> None:
        """Take the values from the state of the pickled module."""
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a ParameterDict whose state is not a mapping")
        self.update(state.get("_parameters") or {})
        for key in state.get("_keys") or ():
            if key in state:
                self.setdefault(key, state[key])

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (), None, None, iter(self.items())


class _Ordered(OrderedDict[Any, Any]):
    """An ``OrderedDict`` whose methods a file cannot replace; saved again as an ordinary one."""

    def __setstate__(self, state: Any) -> None:
        """Ignore attributes (state dicts carry their version numbers here)."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), None, None, iter(self.items())


class _Namespace(argparse.Namespace):
    """Command-line arguments stored in a checkpoint: plain attributes."""

    def __setstate__(self, state: Any) -> None:
        """Take the attributes, except names that Python itself would use."""
        if isinstance(state, dict):
            names = (key for key in state if isinstance(key, str) and not key.startswith("__"))
            vars(self).update({key: state[key] for key in names})

    def __reduce__(self) -> tuple[Any, ...]:
        return argparse.Namespace, (), vars(self)


class _Array(np.ndarray[Any, Any]):
    """A numpy array of numbers or strings; one of another type becomes a stub."""

    def __setstate__(self, state: Any) -> None:
        """Fill the array from the state numpy pickles: version, shape, dtype, order, bytes."""
        _version, shape, dtype, fortran, raw = state
        if isinstance(dtype, Stub):
            # The pickle has this very object from now on, so it changes its class.
            self.__class__ = type("Stub", (_StubArray,), {"path": f"array of {dtype.path}"})
            return
        if not isinstance(dtype, _NumpyDtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("a numpy array without a type or data")
        super().__setstate__((1, tuple(shape), dtype.dtype, bool(fortran), raw))  # type: ignore[arg-type]

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()


class _StubArray(Stub, _Array):
    """Stands for a numpy array of objects, dates or records: empty and inert."""

    def __reduce__(self) -> NoReturn:
        raise pickle.PicklingError(f"{self!r} cannot be saved: it was not read")


class _NumpyDtype:
    """A numpy dtype of plain numbers or strings, named by its code such as ``f8``."""

    __slots__ = ("dtype",)

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Only the byte order of the state is used."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class Storage:
    """The memory of one or more tensors, and the type of its elements."""

    __slots__ = ("dtype", "memory")

    def __init__(self, memory: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.memory, self.dtype = memory, dtype

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a state for a storage")


class _StorageType:
    """A storage class named in the file, such as ``torch.FloatStorage``: says only the dtype."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a state for a storage type")


class _Function:
    """One function of ours that a file may call; nothing about it can be changed by the file."""

    __slots__ = ("call",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.call = function

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.call(*arguments, **keywords)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a state for a function")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_ignored: object) -> Tensor:
    """A tensor on `storage`; gradient flags, hooks and metadata of the file are left out."""
    return _tensor_of(storage, offset, size, stride, getattr(storage, "dtype", None))


def _tensor_v3(
    storage: Any,
    offset: int,
    size: Any,
    stride: Any,
    _grad: object,
    _hooks: object,
    dtype: Any,
    *_: object,
) -> Tensor:
    """A tensor whose dtype is not that of its storage."""
    return _tensor_of(storage, offset, size, stride, dtype)


def _tensor_of(storage: Any, offset: int, size: Any, stride: Any, dtype: Any) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError(f"a tensor made of {storage!r}")
    if len(size) != len(stride) or min((0, offset, *size, *stride)) < 0:
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)}, strides {tuple(stride)}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and (last + 1) * dtype.itemsize > storage.memory.nbytes():
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} beyond the stored data")
    empty = torch.empty((0,), dtype=dtype, device=storage.memory.device)
    return empty.set_(storage.memory, offset, tuple(size), tuple(stride))


def _parameter(data: Any, requires_grad: object = True, *_ignored: object) -> nn.Parameter | Stub:
    if isinstance(data, Stub):
        return data
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError(f"a parameter made of {data!r}")
    return nn.Parameter(data, requires_grad=bool(requires_grad) and data.is_floating_point())


def _subclassed(rebuild: Any, _kind: object, arguments: Any, _state: object) -> Tensor | Stub:
    """A tensor that had attributes or a class of its own: the plain tensor."""
    if isinstance(rebuild, type) and issubclass(rebuild, Stub):
        return rebuild()
    if not isinstance(rebuild, _Function) or rebuild.call not in (_tensor, _tensor_v3, _parameter):
        raise pickle.UnpicklingError(f"a tensor rebuilt by {rebuild!r}")
    result: Tensor = rebuild(*arguments)
    return result


def _empty_array(*_ignored: object) -> _Array:
    array: _Array = _Array((0,), dtype=np.int8)
    return array


def _scalar(dtype: Any, raw: Any) -> Any:
    if isinstance(dtype, Stub):
        return dtype
    if not isinstance(dtype, _NumpyDtype) or not isinstance(raw, bytes):
        raise pickle.UnpicklingError("a numpy scalar without a type or data")
    return np.frombuffer(raw, dtype.dtype, count=1)[0]


def _latin1(text: Any, encoding: object = "latin1") -> bytes:
    """Bytes, as protocol 2 writes them."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


def _allowed(unknown: set[str]) -> dict[tuple[str, str], Any]:
    """Everything that a file may name; made afresh, so that no file can affect the next."""

    def numpy_dtype(code: object, *_flags: object) -> _NumpyDtype | Stub:
        """A type of numpy's; those of objects, dates and records are stubs, added to `unknown`."""
        if isinstance(code, str) and _NUMPY_CODE.fullmatch(code):
            return _NumpyDtype(code)
        path = f"numpy.dtype({code!r})" if isinstance(code, str) else "numpy.dtype"
        unknown.add(path)
        stub: Stub = type("Stub", (Stub,), {"path": path})()
        return stub

    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): type("_Ordered", (_Ordered,), {}),
        ("collections", "defaultdict"): defaultdict,
        ("argparse", "Namespace"): type("_Namespace", (_Namespace,), {}),
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
        ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): _Function(_tensor_v3),
        ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
        ("torch._tensor", "_rebuild_from_type_v2"): _Function(_subclassed),
        ("torch.nn.modules.container", "ParameterDict"): type("Parameters", (Parameters,), {}),
        ("numpy", "dtype"): _Function(numpy_dtype),
        ("numpy", "ndarray"): _Array,
        ("_codecs", "encode"): _Function(_latin1),
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[module, "scalar"] = _Function(_scalar)
        names[module, "_reconstruct"] = _Function(_empty_array)
    plain = (
        dict,
        list,
        tuple,
        set,
        frozenset,
        bytes,
        bytearray,
        str,
        int,
        float,
        bool,
        complex,
        slice,
        range,
    )
    for kind in plain:
        for module in ("builtins", "__builtin__"):
            names[module, kind.__name__] = kind
    return names


class RestrictedUnpickler(pickle.Unpickler):
    """Reads one pickle; unknown names become stubs, listed in `unknown`."""

    def __init__(
        self, file: IO[bytes], load_storage: Callable[..., Any], unknown: set[str]
    ) -> None:
        super().__init__(file, encoding="utf-8")
        self._load_storage, self._unknown, self._names = load_storage, unknown, _allowed(unknown)

    def find_class(self, module: str, name: str) -> Any:
        """What the file gets for a name: an allowed object, or a stub class."""
        if module == "torch.tensor":  # the module's name before torch 1.8
            module = "torch._tensor"
        if (module, name) not in self._names:
            self._names[module, name] = self._make(module, name)
        return self._names[module, name]

    def _make(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if module in ("torch", "torch.storage", "torch.cuda") and name.endswith("Storage"):
            dtype = _STORAGE_DTYPES.get(name.removesuffix("Storage"))
            if dtype is not None:
                return _StorageType(dtype)
        self._unknown.add(f"{module}.{name}")
        return type("Stub", (Stub,), {"path": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        """The storage (in old files also the module class) that a reference stands for."""
        kind, *rest = pid
        if kind == "module" and rest:
            return rest[0]
        if kind != "storage" or len(rest) < 4 or not isinstance(rest[0], _StorageType):
            raise pickle.UnpicklingError(f"a reference to {kind!r}")
        return self._load_storage(rest[0].dtype, *rest[1:])

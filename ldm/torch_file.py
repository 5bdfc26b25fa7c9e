"""The two file formats of ``torch.save``, read with the restricted unpickler.

Used through :mod:`ldm.checkpoint`.
"""

import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ldm.safe_pickle import RestrictedUnpickler, Storage

#: The first pickled object of files written by torch before 1.6, and its first bytes.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
#: Larger files are mapped into memory instead of read.
MAP_FROM_BYTES = 64 * 2**20


def read_pickled(path: Path, device: torch.device) -> tuple[Any, set[str]]:
    """The content of a torch file (either format) on `device`, and the names that became stubs.

    Raises:
        ValueError: when the file is damaged, or is an archive of another kind.
    """
    unknown: set[str] = set()
    try:
        read = _read_zip if zipfile.is_zipfile(path) else _read_legacy
        return read(path, device, unknown), unknown
    except (
        pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, AttributeError,
        LookupError, RuntimeError, TypeError, OverflowError, ValueError, OSError, MemoryError,
        zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} cannot be read as a torch file: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "it ends too early (a download or a copy that was cut off?)"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    text = str(error)
    return f"it holds {text}" if isinstance(error, pickle.UnpicklingError) else text


def _bytes(memory: torch.UntypedStorage) -> Tensor:
    """The bytes of `memory` as a tensor that shares it."""
    return torch.empty(0, dtype=torch.uint8).set_(memory)


def _to(memory: torch.UntypedStorage, device: torch.device) -> torch.UntypedStorage:
    return _bytes(memory).to(device).untyped_storage()


def _file_memory(path: Path) -> torch.UntypedStorage:
    """The bytes of the file: mapped (and private, so never written back) when it is big."""
    size = path.stat().st_size
    if size >= MAP_FROM_BYTES:
        return torch.from_file(str(path), False, size, dtype=torch.uint8).untyped_storage()
    content = torch.empty(size, dtype=torch.uint8)
    with path.open("rb") as file:
        file.readinto(content.numpy().data)
    return content.untyped_storage()


def _read_zip(path: Path, device: torch.device, unknown: set[str]) -> Any:
    """The format of torch 1.6 and later: ``data.pkl`` and one uncompressed record a storage."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        main = _main_record(path, archive.namelist())
        root, content = main.removesuffix("data.pkl"), _file_memory(path)
        loaded: dict[str, torch.UntypedStorage] = {}

        def storage(
            dtype: torch.dtype, key: str, _location: object, count: int, *_: object
        ) -> Storage:
            if key not in loaded:
                record = archive.getinfo(f"{root}data/{key}")
                if record.file_size < count * dtype.itemsize:
                    raise pickle.UnpicklingError(f"too little data for storage {key!r}")
                loaded[key] = _to(_record_memory(archive, record, raw, content), device)
            return Storage(loaded[key], dtype)

        with archive.open(main) as file:
            return RestrictedUnpickler(file, storage, unknown).load()


def _main_record(path: Path, names: Iterable[str]) -> str:
    records = set(names)
    if any(name.endswith("constants.pkl") for name in records):
        raise ValueError(
            "it is a TorchScript archive, which holds a program; a state dict is needed"
        )
    main = [name for name in records if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(main) != 1:
        raise ValueError(f"a zip archive without one 'data.pkl', it has {sorted(records)[:5]}")
    order = main[0].removesuffix("data.pkl") + "byteorder"
    if order in records and zipfile.Path(path, order).read_text() == "big":
        raise ValueError("it was written on a big-endian machine, which is not supported")
    return main[0]


def _record_memory(
    archive: zipfile.ZipFile, record: zipfile.ZipInfo, raw: IO[bytes], content: torch.UntypedStorage
) -> torch.UntypedStorage:
    if not record.file_size:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    if record.compress_type != zipfile.ZIP_STORED:
        plain = bytearray(archive.read(record))
        return torch.frombuffer(plain, dtype=torch.uint8).untyped_storage()
    raw.seek(record.header_offset)
    signature, name, extra = struct.unpack("<4s22xHH", raw.read(30))
    start = record.header_offset + 30 + name + extra
    if signature != b"PK\x03\x04" or start + record.file_size > content.nbytes():
        raise pickle.UnpicklingError(f"a damaged record {record.filename!r}")
    memory: torch.UntypedStorage = content[start : start + record.file_size]
    if start % 64:  # torch aligns records, other zip tools do not
        return _bytes(memory).clone().untyped_storage()
    return memory


def _read_legacy(path: Path, device: torch.device, unknown: set[str]) -> Any:
    """The format before torch 1.6: five pickles, then the storages one after another."""
    storages: dict[str, torch.UntypedStorage] = {}
    dtypes: dict[str, torch.dtype] = {}

    def storage(
        dtype: torch.dtype, key: str, _location: object, count: int, view: Any = None
    ) -> Storage:
        if key not in storages:
            if not 0 <= count * dtype.itemsize <= path.stat().st_size:
                raise pickle.UnpicklingError(f"too little data for storage {key!r}")
            content = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
            storages[key], dtypes[key] = content.untyped_storage(), dtype
        memory = storages[key]
        if view is not None:
            start, stop = view[1] * dtype.itemsize, (view[1] + view[2]) * dtype.itemsize
            memory = memory[start:stop]
        return Storage(memory, dtype)

    def load(file: IO[bytes]) -> Any:
        return RestrictedUnpickler(file, storage, unknown).load()

    with path.open("rb") as file:
        magic, _protocol, _system = load(file), load(file), load(file)
        if magic != LEGACY_MAGIC:
            raise ValueError("it is an ordinary pickle, not one that torch.save wrote")
        start = file.tell()
        result = load(file)
        for key in load(file):
            _fill(storages[key], dtypes[key], file)
        if device.type == "cpu":
            return result
        # The data lie behind the pickle that refers to them: read it again, with data to move.
        storages.update({key: _to(memory, device) for key, memory in storages.items()})
        file.seek(start)
        return load(file)


def _fill(memory: torch.UntypedStorage, dtype: torch.dtype, file: IO[bytes]) -> None:
    (count,) = struct.unpack("<q", file.read(8))
    view = _bytes(memory)
    if count * dtype.itemsize != view.numel():
        raise pickle.UnpicklingError("a storage of another size than announced")
    if file.readinto(view.numpy().data) != view.numel():  # type: ignore[attr-defined]
        raise EOFError

"""Files that hold weights: recognise them, read them safely, write them atomically.

Used through :mod:`ldm.checkpoint`, which gives their content a meaning.
"""

import difflib
import logging
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.torch_file import LEGACY_START, read_pickled

logger = logging.getLogger(__name__)

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_DOWNLOAD = "the download failed or saved the wrong thing; fetch the file itself again"


def read_checkpoint(
    path: str | Path, map_location: str | torch.device | None = "cpu"
) -> dict[str, Any]:
    """Everything in a checkpoint file, without running any code that it may carry.

    Reads what ``torch.save`` writes (both formats) and ``.safetensors``, whatever the file is
    called. Tensors go to `map_location` wherever they were saved. Objects of classes other than
    tensors and plain containers become :class:`ldm.safe_pickle.Stub`.

    Raises:
        FileNotFoundError: when there is no such file; names similar ones in the folder.
        IsADirectoryError: when `path` is a folder.
        ValueError: when the file is something else (empty, cut off, text, a web page, ...).
    """
    path, device = find_file(path), torch.device(map_location or "cpu")
    kind = file_kind(path)
    if kind == "safetensors":
        return dict(_read_safetensors(path, device))
    content, unknown = read_pickled(path, device)
    if unknown:
        logger.info("%s: not loaded (unknown classes): %s", path.name, ", ".join(sorted(unknown)))
    if isinstance(content, Mapping):
        return dict(content)
    if isinstance(content, Tensor):
        raise ValueError(
            f"{path} holds one tensor of shape {tuple(content.shape)}; a mapping of names is needed"
        )
    raise ValueError(
        f"{path} holds {content!r}, not a mapping of names to tensors; save the state dict, "
        "torch.save(model.state_dict(), ...), where that object can be loaded"
    )


def find_file(path: str | Path) -> Path:
    """`path` if it is a file; otherwise an error that says what is there instead."""
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        have = (
            f"it has {', '.join(inside[:8])}" if inside else f"it has no {'/'.join(SUFFIXES)} file"
        )
        raise IsADirectoryError(f"{path} is a folder, a checkpoint file is needed; {have}")
    folder = path.parent
    if not folder.is_dir():
        known = next(parent for parent in folder.absolute().parents if parent.is_dir())
        raise FileNotFoundError(f"no file {path}: its folder does not exist (only {known} does)")
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    near = difflib.get_close_matches(path.name, names, n=5, cutoff=0.5)
    near += [name for name in names if Path(name).suffix in SUFFIXES and name not in near][
        : 5 - len(near)
    ]
    hint = f"that folder has {', '.join(near)}" if near else "that folder has no checkpoint at all"
    raise FileNotFoundError(f"no file {path.name} in {folder.absolute()}; {hint}")


def file_kind(path: Path) -> str:
    """``"zip"``, ``"legacy"`` or ``"safetensors"``, from the first bytes of the file.

    Raises:
        ValueError: for every other kind of file; says what it is and what to do.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(max(0, size - 65557))
        end = file.read()
    if not size:
        raise ValueError(f"{path} is empty (0 bytes): {_DOWNLOAD}")
    if start.startswith(b"PK\x03\x04"):
        if b"PK\x05\x06" not in end:
            raise ValueError(
                f"{path} is cut off after {size:,} bytes: fetch or copy it again, whole"
            )
        return "zip"
    if start.startswith(LEGACY_START):
        return "legacy"
    if start[8:9] == b"{":
        return _check_safetensors(path, size, start)
    raise ValueError(_other_kind(path, start))


def _check_safetensors(path: Path, size: int, start: bytes) -> str:
    (header,) = struct.unpack("<Q", start[:8])
    if header + 8 > size:
        if start[:8].isascii() and start[:8].decode().isprintable():
            raise ValueError(_other_kind(path, start))
        raise ValueError(f"{path} is cut off after {size:,} bytes: fetch or copy it again, whole")
    return "safetensors"


#: First bytes of files that people mistake for checkpoints -> what they are and what to do.
_NOT_CHECKPOINTS = {
    (b"<!doctype", b"<html", b"<?xml", b"<head"): "is a web page, not a checkpoint: "
    f"{_DOWNLOAD} (some pages want a login, or a licence to be accepted)",
    (b"version https://git-lfs",): "is a git-lfs pointer, not the file it points to: "
    "run 'git lfs pull' in its repository",
    (b"\x80",): "is an ordinary pickle, not one that torch.save wrote",
    (b"\x1f\x8b",): "is compressed with gzip: unpack it first",
}


def _other_kind(path: Path, start: bytes) -> str:
    """What a file that is not a checkpoint is, and what to do about it."""
    beginning = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for prefixes, meaning in _NOT_CHECKPOINTS.items():
        if beginning.startswith(prefixes):
            return f"{path} {meaning}"
    if start[257:262] == b"ustar":
        return (
            f"{path} is a tar archive, as torch before 0.2 wrote: load it with that version and "
            "save it again"
        )
    if _is_text(start):
        words = start[:60].decode("utf-8", "replace")
        return f"{path} is a text file, not a checkpoint; it begins with {words!r}"
    return (
        f"{path} is no checkpoint: neither a file of torch.save nor .safetensors "
        f"(its first bytes are {start[:8]!r})"
    )


def _is_text(start: bytes) -> bool:
    try:
        text = start[:-4].decode() if len(start) == 512 else start.decode()
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t" for character in text)


def _read_safetensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as .safetensors: {error}") from error
    return tensors


def safetensors_metadata(path: str | Path) -> dict[str, str]:
    """The free text fields in the header of a ``.safetensors`` file."""
    path = find_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as .safetensors: {error}") from error


@contextmanager
def write_atomic(path: str | Path) -> Iterator[Path]:
    """A temporary file in the folder of `path` that takes its place once it is whole.

    ``with write_atomic("a.pt") as temporary: torch.save(x, temporary)``. Readers see the old file
    or the new one, never a part; when the block raises, the old file stays and nothing is left
    behind. Missing folders are made. The temporary name ends in ``.tmp``, so give the format
    explicitly to writers that guess it from the name.
    """
    target = Path(
        os.path.realpath(Path(path).expanduser())
    )  # keep a link, replace what it points to
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder, a file name is needed")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        _flush(target.parent)


def _flush(path: Path) -> None:
    """Make sure that a file's content (or a folder's list of names) is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_torch(content: object, path: str | Path) -> None:
    """``torch.save`` to `path`, all or nothing. Equal content gives equal bytes."""
    with write_atomic(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def save_safetensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """`tensors` as ``.safetensors``, all or nothing, readable by whom the umask lets read.

    Raises:
        ValueError: when the metadata is not text to text, which is all the format can hold.
    """
    metadata = dict(metadata or {})
    wrong = [
        key
        for key, value in metadata.items()
        if not (isinstance(key, str) and isinstance(value, str))
    ]
    if wrong:
        raise ValueError(
            f"metadata of .safetensors is text to text; not text: {wrong}. "
            "Use str() or json.dumps()"
        )
    # Copies, because the format refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with write_atomic(path) as temporary:
        save_file(copies, temporary, metadata=metadata or None)
        # The format's own writer leaves its files to their owner alone.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)

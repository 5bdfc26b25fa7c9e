"""How checkpoints are written and read."""

from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO

from ldm.checkpoint import read_checkpoint, save_torch


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written all or nothing and read without running code.

    A file appears under its name only when all of it is on the disk, so a killed run never leaves
    half a checkpoint. Reading goes through :func:`ldm.checkpoint.read_checkpoint`: whoever wrote
    the file, it yields tensors and containers only.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to a temporary name beside `path` and rename it."""
        if storage_options is not None:
            raise TypeError("storage_options are for remote stores; this plugin writes local files")
        save_torch(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint's tensors and containers; `weights_only` is accepted and always holds."""
        return read_checkpoint(path, "cpu" if callable(map_location) else map_location)

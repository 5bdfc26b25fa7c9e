"""Lightning callbacks of a run: its folder, its pictures, its words, its progress bar.

``SetupCallback``, ``ImageLogger``, ``CUDACallback`` and ``ModeSwapCallback`` stand under the names
public configs use (``main.ImageLogger``, ...); ``EmbeddingCheckpoint``, ``WordWatch``,
``RunProgressBar``, ``LastCheckpoint``, ``WholeSteps`` and the checkpoint plugin
``AtomicCheckpointIO`` are what the default run adds.
"""

from ldm.callbacks.checkpoints import AtomicCheckpointIO, LastCheckpoint, WholeSteps
from ldm.callbacks.folders import SetupCallback
from ldm.callbacks.images import ImageLogger
from ldm.callbacks.phases import CUDACallback, ModeSwapCallback
from ldm.callbacks.progress import RunProgressBar
from ldm.callbacks.watch import WordWatch
from ldm.callbacks.words import EmbeddingCheckpoint

__all__ = [
    "AtomicCheckpointIO",
    "CUDACallback",
    "EmbeddingCheckpoint",
    "ImageLogger",
    "LastCheckpoint",
    "ModeSwapCallback",
    "RunProgressBar",
    "SetupCallback",
    "WholeSteps",
    "WordWatch",
]

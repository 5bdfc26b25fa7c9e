"""Train: ``python main.py --base configs/mcpl.yaml``.

The names below are the targets that public configuration files refer to as ``main.<name>``.
"""

import sys

from pytorch_lightning.callbacks import LearningRateMonitor

from ldm.callbacks import CUDACallback, ImageLogger, ModeSwapCallback, SetupCallback
from ldm.data.module import DataModuleFromConfig, WrappedDataset

__all__ = [
    "CUDACallback",
    "DataModuleFromConfig",
    "ImageLogger",
    "LearningRateMonitor",
    "ModeSwapCallback",
    "SetupCallback",
    "WrappedDataset",
]

if __name__ == "__main__":
    from ldm.training.main import main

    sys.exit(main())

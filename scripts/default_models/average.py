"""The mean of several checkpoints: steadier than the last of them (Wortsman et al. 2022, "Model soups").

Examples:
    python average.py work/mini6 work/mini7 --out work/mini
    python average.py MINILM work/embed1 --out work/embed
    python average.py work/tiny{2,3,4,5} --word-embeddings-of SPLADE --out work/tiny6
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="of one architecture, in float32")
    parser.add_argument(
        "--word-embeddings-of", type=Path, help="a folder whose word embeddings replace theirs"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    first = args.folders[0]
    weights = shutil.ignore_patterns("*.safetensors", "*.pt")
    shutil.copytree(first, args.out, ignore=weights, dirs_exist_ok=True)  # 1_Pooling/config.json, too
    for path in first.glob("*.safetensors"):  # of exits, too
        parts = [load_file(folder / path.name) for folder in args.folders]
        mean = {
            name: np.mean([part[name] for part in parts], axis=0) if tensor.dtype.kind == "f" else tensor
            for name, tensor in parts[0].items()  # positions, which some have, are integers
        }
        if args.word_embeddings_of and WORD_EMBEDDINGS in mean:
            mean[WORD_EMBEDDINGS] = load_file(args.word_embeddings_of / path.name)[WORD_EMBEDDINGS]
        save_file(mean, args.out / path.name, metadata={"format": "pt"})


if __name__ == "__main__":
    main()

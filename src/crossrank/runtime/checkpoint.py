"""A model folder: what its configs say, its weights, its tokenizer, its fingerprint.

Reads plain transformers folders and sentence-transformers ones (5 and 6, bi- and cross-encoders). Everything
comes from the files themselves; nothing is guessed from the folder's name, no code of the folder runs, and
nothing is unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from crossrank.errors import CheckpointError, CheckpointNotFoundError, UnsupportedArchitectureError
from crossrank.runtime.int8 import INT8_FILE, Dequantized
from crossrank.runtime.modules import Dense, Normalize, Pooling, read_json, read_modules
from crossrank.runtime.weights import open_tensors, weight_files

__all__ = ["Checkpoint", "file_digest"]

# model_type -> (what crossrank calls the computation, how its transformers classes begin). Custom code on the
# hub borrows known model types for other computations; the class name tells them apart.
_ARCHITECTURES = {
    "bert": ("bert", "Bert"),
    "electra": ("electra", "Electra"),
    "roberta": ("roberta", "Roberta"),
    "xlm-roberta": ("roberta", "XLMRoberta"),
    "camembert": ("roberta", "Camembert"),
    "distilbert": ("distilbert", "DistilBert"),
    "deberta-v2": ("deberta-v2", "DebertaV2"),
    "modernbert": ("modernbert", "ModernBert"),
}
_ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "softmax"}
_TRANSFORMER_CONFIGS = ("sentence_bert_config.json", "sentence_roberta_config.json")
_UNSET_LENGTH = 1_000_000  # transformers writes 1e30 for "no limit"


class Checkpoint:
    """An opened model folder; made with `Checkpoint.open`.

    Attributes:
        folder: the folder that was opened.
        transformer_folder: where config.json, weights and tokenizer lie: `folder`, or a folder inside it.
        config: config.json as it stands.
        architecture: "bert", "electra", "roberta" (XLM-RoBERTa and CamemBERT compute the same),
            "distilbert", "deberta-v2" or "modernbert"; where the folder has ONNX files it may be any other
            model type (or class, where custom code borrows a known model type).
        modules: what follows the transformer in a sentence-transformers folder, in order; [] elsewhere.
        tokenizer_file: tokenizer.json.
        tokenizer_config: tokenizer_config.json, {} where there is none.
        weight_files: the transformer's safetensors files; empty when there is only an ONNX file.
        int8_file: the transformer's quantised weights (int8.py); None where there are none.
        onnx_files: `onnx/*.onnx`, sorted by name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.transformer_folder, self.modules, self._module_files = read_modules(folder)
        place = self.transformer_folder
        self.config = self._read_config(place)
        self.onnx_files = tuple(sorted(folder.glob("onnx/*.onnx")))
        self.architecture = _architecture(place / "config.json", self.config, bool(self.onnx_files))
        self.tokenizer_file = place / "tokenizer.json"
        if not self.tokenizer_file.is_file():
            raise CheckpointError(
                f"{place} has no tokenizer.json; make one where transformers is installed with "
                f"AutoTokenizer.from_pretrained({str(place)!r}).save_pretrained({str(place)!r})"
            )
        self.tokenizer_config = _optional_json(place / "tokenizer_config.json")
        self._transformer_config: dict[str, Any] = next(
            (read_json(place / name) for name in _TRANSFORMER_CONFIGS if (place / name).is_file()), {}
        )
        self._model_config = _optional_json(folder / "config_sentence_transformers.json")
        self.weight_files = weight_files(place)
        self.int8_file = place / INT8_FILE if (place / INT8_FILE).is_file() else None
        if not self.weight_files and not self.int8_file and not self.onnx_files:
            raise CheckpointError(_no_weights(place))
        self._tensors = open_tensors(self.weight_files)
        self._int8_tensors = open_tensors((self.int8_file,) if self.int8_file else ())
        self._check_tokenizer()

    @classmethod
    def open(cls, folder: Path | str) -> Checkpoint:
        """Open a model folder.

        Args:
            folder: a local folder; models/hub.py turns hub names into one.

        Raises:
            CheckpointNotFoundError: there is no such folder.
            CheckpointError: a file is missing, cut short or damaged, or files do not belong together.
            UnsupportedArchitectureError: a model crossrank has no graph for.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointNotFoundError(f"there is no folder {folder}")
        return cls(folder)

    def tensors(self) -> Mapping[str, npt.NDArray[Any]]:
        """The weights by name, float32, memory-mapped; of a folder that has only int8 weights, those."""
        return self._tensors if self.weight_files else Dequantized(self._int8_tensors)

    def int8_tensors(self) -> Mapping[str, npt.NDArray[Any]]:
        """What `int8_file` has, as stored; empty where there is none."""
        return self._int8_tensors

    @property
    def has_weights(self) -> bool:
        """Whether there are weights to write a graph from."""
        return bool(self.weight_files or self.int8_file)

    # --- what the configs say -------------------------------------------------------------------------

    @property
    def num_labels(self) -> int:
        """How many scores a pair gets; transformers' default of 2 where the config is silent."""
        for module in reversed(self.modules):
            if isinstance(module, Dense) and module.gives_scores:
                return int(module.weight.shape[0])
        stated = self.config.get("num_labels")
        return int(stated) if stated is not None else len(self.config.get("id2label") or (0, 1))

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels' names, in the order of the scores."""
        named = {int(index): str(label) for index, label in (self.config.get("id2label") or {}).items()}
        return tuple(named.get(index, f"LABEL_{index}") for index in range(self.num_labels))

    @property
    def is_modular_cross_encoder(self) -> bool:
        """Whether scores come from sentence-transformers modules after the transformer, not its own head."""
        return any(isinstance(module, Dense) and module.gives_scores for module in self.modules)

    @property
    def activation(self) -> str | None:
        """What the config says is to be applied to logits: "identity", "sigmoid", "softmax"; None if nothing.

        Raises:
            CheckpointError: it states a function crossrank does not know.
        """
        nested = self.config.get("sentence_transformers")
        stated = (
            self._model_config.get("activation_fn")
            or (nested.get("activation_fn") if isinstance(nested, dict) else None)
            or self.config.get("sbert_ce_default_activation_function")
        )
        if stated is None:
            return None
        name = str(stated).rsplit(".", 1)[-1]
        if not str(stated).startswith("torch.") or name not in _ACTIVATIONS:
            raise CheckpointError(
                f"{self.folder} states the activation {stated!r}, which is not known here; "
                f"pass activation= one of {', '.join(sorted(_ACTIVATIONS.values()))}"
            )
        return _ACTIVATIONS[name]

    @property
    def max_length(self) -> int:
        """Most tokens of an input, special tokens included: the least of what the configs allow."""
        limits = [
            self.max_positions,
            self.tokenizer_config.get("model_max_length"),
            self._transformer_config.get("max_seq_length"),
        ]
        sane = [int(limit) for limit in limits if limit is not None and 0 < limit < _UNSET_LENGTH]
        return min(sane, default=512)

    @property
    def max_positions(self) -> int | None:
        """How many positions the weights have; None when the config does not say."""
        stated = self.config.get("max_position_embeddings")
        if stated is None:
            return None
        # RoBERTa's table begins with pad_token_id + 1 rows that no token uses.
        offset = self.config.get("pad_token_id", 1) + 1 if self.architecture == "roberta" else 0
        return int(stated) - int(offset)

    @property
    def uses_token_types(self) -> bool:
        """Whether the tokenizer tells the two texts of a pair apart; if it says no, all types are 0."""
        names = self.tokenizer_config.get("model_input_names")
        return names is None or "token_type_ids" in names

    @property
    def pooling(self) -> Pooling | None:
        """How token vectors become one; None when the folder does not say."""
        return next((module for module in self.modules if isinstance(module, Pooling)), None)

    @property
    def normalize(self) -> bool:
        """Whether embeddings are L2-normalised at the end."""
        return any(isinstance(module, Normalize) for module in self.modules)

    @property
    def prompts(self) -> dict[str, str]:
        """Prompts by name ("query", "document", ...), put before a text; empty ones left out."""
        stated = self._model_config.get("prompts") or {}
        return {str(name): str(text) for name, text in stated.items() if text}

    @property
    def default_prompt_name(self) -> str | None:
        """The prompt used when none is named."""
        return self._model_config.get("default_prompt_name")

    @property
    def similarity(self) -> str | None:
        """What embeddings are compared by: "cosine", "dot", "euclidean", "manhattan"; None if unsaid."""
        return self._model_config.get("similarity_fn_name")

    @property
    def lowercase(self) -> bool:
        """Whether texts are lower-cased before the tokenizer, whatever the tokenizer itself does."""
        return bool(self._transformer_config.get("do_lower_case", False))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over weights, tokenizer and configs: what decides a score, and nothing else."""
        place = self.transformer_folder
        names = ("config.json", "tokenizer.json", "tokenizer_config.json", *_TRANSFORMER_CONFIGS)
        files = [place / name for name in names] + [self.folder / "config_sentence_transformers.json"]
        weights = self.weight_files or ((self.int8_file,) if self.int8_file else self.onnx_files)
        files += [*self._module_files, *weights]
        digest = hashlib.sha256()
        for file in sorted({file for file in files if file.is_file()}):
            digest.update(f"{file.relative_to(self.folder).as_posix()} {file_digest(file)}\n".encode())
        return digest.hexdigest()

    # --- checks ---------------------------------------------------------------------------------------

    def _read_config(self, place: Path) -> dict[str, Any]:
        path = place / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{place} has no config.json, so it is not a model folder")
        config = read_json(path)
        if not isinstance(config, dict):
            raise CheckpointError(f"{path} is not a JSON object")
        return config

    def _check_tokenizer(self) -> None:
        rows = self.config.get("vocab_size")
        if not isinstance(rows, int):
            raise CheckpointError(f"{self.transformer_folder / 'config.json'}: vocab_size is {rows!r}")
        highest = _highest_token_id(self.tokenizer_file)
        if highest >= rows:
            raise CheckpointError(
                f"{self.tokenizer_file} has token ids up to {highest}, but the model has embeddings for "
                f"{rows} tokens only; tokenizer and weights do not belong together"
            )


def file_digest(file: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _architecture(path: Path, config: dict[str, Any], has_onnx: bool) -> str:
    model_type = config.get("model_type")
    classes = [str(name) for name in config.get("architectures") or []]
    if model_type is None:  # the oldest configs name only the class
        matches = [
            kind for kind, (_, prefix) in _ARCHITECTURES.items() if classes and classes[0].startswith(prefix)
        ]
        model_type = matches[0] if matches else None
    known = _ARCHITECTURES.get(str(model_type))
    if known is None or any(not name.startswith(known[1]) for name in classes):
        if has_onnx and model_type is not None:
            return classes[0] if known else str(model_type)  # the folder's own graph can run it
        found = ", ".join([f"model_type {model_type!r}", *classes])
        raise UnsupportedArchitectureError(
            f"{path}: {found} is not an architecture crossrank has a graph for; "
            f"supported model types: {', '.join(_ARCHITECTURES)}"
        )
    return known[0]


def _highest_token_id(path: Path) -> int:
    content = read_json(path)
    try:
        vocabulary = content["model"]["vocab"]
        # WordPiece, BPE and WordLevel map tokens to ids; Unigram lists its tokens in the order of ids.
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = (token["id"] for token in content.get("added_tokens") or [])
        return max(int(index) for index in [*ids, *added])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a tokenizer of the tokenizers library") from error


def _optional_json(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _no_weights(place: Path) -> str:
    pickled = sorted(place.glob("pytorch_model*.bin"))
    if pickled:
        return (
            f"{place} has only pickled weights ({pickled[0].name}), which can run code when opened and are "
            "not read. Convert them where torch and transformers are installed: import from transformers the "
            "class named in config.json's architectures, then CLASS.from_pretrained(folder)"
            ".save_pretrained(folder) writes model.safetensors"
        )
    return f"{place} has no weights: neither model.safetensors nor onnx/*.onnx; fetch the model again"

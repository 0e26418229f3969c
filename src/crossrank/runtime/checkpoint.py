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
from crossrank.runtime.exits import EXITS_FILE
from crossrank.runtime.int8 import INT8_FILE, Dequantized
from crossrank.runtime.modules import Dense, Normalize, Pooling, read_modules
from crossrank.runtime.settings import bad_setting, read_json, read_object, read_setting
from crossrank.runtime.weights import file_digest, open_tensors, weight_files

__all__ = ["Checkpoint"]

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
    "t5": ("t5", "T5"),
    "mt5": ("t5", "MT5"),
}
_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "num_layers")  # DistilBERT has the second, T5 the third
_STANFORD_COLBERT = "HF_ColBERT"  # the class that ColBERT's own code names, whatever the encoder
_ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "softmax"}
_TRANSFORMER_CONFIGS = ("sentence_bert_config.json", "sentence_roberta_config.json")
_UNSET_LENGTH = 1_000_000  # transformers writes 1e30 for "no limit"
_OWN_PROMPTS = ("query", "document")  # names that sentence-transformers knows without being told
# Rows of an embedding matrix that its tokenizer has no token for are padding, to a round number: mDeBERTa-v3
# has 898 in 251,000. Beyond these bounds the tokenizer is another model's.
_SPARE_ROWS, _SPARE_PART = 1024, 0.05


class Checkpoint:
    """An opened model folder; made with `Checkpoint.open`.

    Attributes:
        folder: the folder that was opened.
        transformer_folder: where config.json, weights and tokenizer lie: `folder`, or a folder inside it.
        config: config.json as it stands.
        architecture: "bert", "electra", "roberta" (XLM-RoBERTa and CamemBERT compute the same),
            "distilbert", "deberta-v2", "modernbert" or "t5" (mT5 computes the same); where the folder has
            ONNX files it may be any other model type (or class, where custom code borrows a known one).
        modules: what follows the transformer in a sentence-transformers folder, in order; [] elsewhere.
        tokenizer_file: tokenizer.json.
        tokenizer_config: tokenizer_config.json, {} where there is none.
        weight_files: the transformer's safetensors files; empty when there is only an ONNX file.
        int8_file: the transformer's quantised weights (int8.py); None where there are none.
        exits_file: heads at earlier layers (exits.py); None where there are none.
        onnx_files: `onnx/*.onnx`, sorted by name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.transformer_folder, self.modules, self._module_files = read_modules(folder)
        place = self.transformer_folder
        self._config_file = place / "config.json"
        if not self._config_file.is_file():
            raise CheckpointError(f"{place} has no config.json, so it is not a model folder")
        self.config = read_object(self._config_file)
        self.onnx_files = tuple(sorted(folder.glob("onnx/*.onnx")))
        self.architecture = _architecture(self._config_file, self.config, bool(self.onnx_files))
        self.tokenizer_file = place / "tokenizer.json"
        if not self.tokenizer_file.is_file():
            raise CheckpointError(
                f"{place} has no tokenizer.json; make one where transformers is installed with "
                f"AutoTokenizer.from_pretrained({str(place)!r}).save_pretrained({str(place)!r})"
            )
        self._tokenizer_config_file = place / "tokenizer_config.json"
        self.tokenizer_config = read_object(self._tokenizer_config_file)
        names = (name for name in _TRANSFORMER_CONFIGS if (place / name).is_file())
        self._transformer_config_file = place / next(names, _TRANSFORMER_CONFIGS[0])
        self._transformer_config = read_object(self._transformer_config_file)
        self._model_config_file = folder / "config_sentence_transformers.json"
        self._model_config = read_object(self._model_config_file)
        self._colbert_file = place / "artifact.metadata"
        self.weight_files = weight_files(place)
        self.int8_file = place / INT8_FILE if (place / INT8_FILE).is_file() else None
        if not self.weight_files and not self.int8_file and not self.onnx_files:
            raise CheckpointError(_no_weights(place))
        self.exits_file = place / EXITS_FILE if (place / EXITS_FILE).is_file() else None
        self._exit_tensors = open_tensors((self.exits_file,) if self.exits_file else ())
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

    def exit_tensors(self) -> Mapping[str, npt.NDArray[Any]]:
        """What `exits_file` has, float32; empty where there is none."""
        return self._exit_tensors

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
        stated = read_setting(self.config, "num_labels", int, None, source=self._config_file, least=1)
        return stated if stated is not None else len(self._label_names) or 2

    @property
    def num_layers(self) -> int | None:
        """How many layers the encoder has; None when the config does not say."""
        file = self._config_file
        stated = [read_setting(self.config, key, int, None, source=file, least=1) for key in _LAYER_COUNTS]
        return next((count for count in stated if count is not None), None)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels' names, in the order of the scores."""
        named = self._label_names
        return tuple(named.get(index, f"LABEL_{index}") for index in range(self.num_labels))

    @property
    def _label_names(self) -> dict[int, str]:
        stated = read_setting(self.config, "id2label", dict, None, source=self._config_file) or {}
        try:
            return {int(index): str(label) for index, label in stated.items()}
        except ValueError:
            raise bad_setting(self._config_file, "id2label", stated, "names by their number") from None

    @property
    def is_modular_cross_encoder(self) -> bool:
        """Whether scores come from sentence-transformers modules after the transformer, not its own head."""
        return any(isinstance(module, Dense) and module.gives_scores for module in self.modules)

    @property
    def is_stanford_colbert(self) -> bool:
        """Whether ColBERT's own code saved the folder: the projection is the weights' `linear.weight`."""
        stated = read_setting(self.config, "architectures", list, None, source=self._config_file)
        return _STANFORD_COLBERT in (stated or ())

    @property
    def is_multi_vector(self) -> bool:
        """Whether the folder is a late-interaction model's: ColBERT's, PyLate's or sentence-transformers'."""
        kind = self.model_setting("model_type", str)
        stated_by_pylate = "query_prefix" in self._model_config  # its first versions name no type
        return self.is_stanford_colbert or kind in ("ColBERT", "MultiVectorEncoder") or stated_by_pylate

    def model_setting(
        self, key: str, kind: type[Any], default: Any = None, least: float | None = None
    ) -> Any:
        """A setting of config_sentence_transformers.json; see `read_setting`."""
        file = self._model_config_file
        return read_setting(self._model_config, key, kind, default, source=file, least=least)

    def transformer_setting(self, key: str, kind: type[Any], least: float | None = None) -> Any:
        """A setting of the transformer module (sentence_bert_config.json), or None; see `read_setting`."""
        file = self._transformer_config_file
        return read_setting(self._transformer_config, key, kind, None, source=file, least=least)

    def colbert_setting(self, key: str, kind: type[Any], least: float | None = None) -> Any:
        """A setting of ColBERT's artifact.metadata, or None; see `read_setting`."""
        file = self._colbert_file
        return read_setting(read_object(file), key, kind, None, source=file, least=least)

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
        tokenizer_file, transformer_file = self._tokenizer_config_file, self._transformer_config_file
        limits = [
            self.max_positions,
            # Read as any number: "no limit" is written as 1e30.
            read_setting(self.tokenizer_config, "model_max_length", float, None, source=tokenizer_file),
            read_setting(self._transformer_config, "max_seq_length", float, None, source=transformer_file),
        ]
        sane = [int(limit) for limit in limits if limit is not None and 0 < limit < _UNSET_LENGTH]
        return min(sane, default=512)

    @property
    def max_positions(self) -> int | None:
        """How many positions the weights have; None when the config does not say."""
        file = self._config_file
        stated = read_setting(self.config, "max_position_embeddings", int, None, source=file, least=1)
        if stated is None or self.architecture != "roberta":
            return stated
        # RoBERTa's table begins with pad_token_id + 1 rows that no token uses.
        return stated - read_setting(self.config, "pad_token_id", int, 1, source=file, least=0) - 1

    @property
    def uses_token_types(self) -> bool:
        """Whether the tokenizer tells the two texts of a pair apart; if it says no, all types are 0."""
        file = self._tokenizer_config_file
        names = read_setting(self.tokenizer_config, "model_input_names", list, None, source=file)
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
        """Prompts by name ("query", "document", ...), put before a text; an empty one says to put nothing."""
        file = self._model_config_file
        stated = read_setting(self._model_config, "prompts", dict, None, source=file) or {}
        for name, text in stated.items():
            if text is not None and not isinstance(text, str):
                raise bad_setting(file, f"prompts[{name!r}]", text, "a string")
        return {name: text for name, text in stated.items() if text is not None}

    @property
    def default_prompt_name(self) -> str | None:
        """Name of the prompt used when none is named; None for no prompt."""
        file = self._model_config_file
        name = read_setting(self._model_config, "default_prompt_name", str, None, source=file)
        known = {*self.prompts, *_OWN_PROMPTS}
        if name is not None and name not in known:
            raise bad_setting(file, "default_prompt_name", name, f"one of {', '.join(sorted(known))}")
        return name

    @property
    def similarity(self) -> str | None:
        """What embeddings are compared by: "cosine", "dot", "euclidean", "manhattan"; None if unsaid."""
        file = self._model_config_file
        return read_setting(self._model_config, "similarity_fn_name", str, None, source=file)

    @property
    def lowercase(self) -> bool:
        """Whether texts are lower-cased before the tokenizer, whatever the tokenizer itself does."""
        file = self._transformer_config_file
        return read_setting(self._transformer_config, "do_lower_case", bool, False, source=file)

    @cached_property
    def int8_digest(self) -> str:
        """SHA-256 (hex) of `int8_file`, which must be there; computed when first asked for."""
        assert self.int8_file is not None  # those who ask have looked
        return file_digest(self.int8_file)

    @cached_property
    def exits_digest(self) -> str:
        """SHA-256 (hex) of `exits_file`; "" where there is none."""
        return file_digest(self.exits_file) if self.exits_file else ""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over weights, tokenizer and configs: what decides a score, and nothing else."""
        place = self.transformer_folder
        names = ("config.json", "tokenizer.json", "tokenizer_config.json", *_TRANSFORMER_CONFIGS)
        files = [place / name for name in names] + [self.folder / "config_sentence_transformers.json"]
        files.append(self._colbert_file)
        exported = (*self.onnx_files, *self.folder.glob("onnx/*.onnx_data"))
        weights = self.weight_files or ((self.int8_file,) if self.int8_file else exported)
        files += [*self._module_files, *weights, *([self.exits_file] if self.exits_file else [])]
        digest = hashlib.sha256()
        for file in sorted({file for file in files if file.is_file()}):
            content = self.int8_digest if file == self.int8_file else file_digest(file)
            digest.update(f"{file.relative_to(self.folder).as_posix()} {content}\n".encode())
        return digest.hexdigest()

    # --- checks ---------------------------------------------------------------------------------------

    def _check_tokenizer(self) -> None:
        rows = read_setting(self.config, "vocab_size", int, source=self._config_file, least=1)
        highest = _highest_token_id(self.tokenizer_file)
        if highest >= rows:
            raise CheckpointError(
                f"{self.tokenizer_file} has token ids up to {highest}, but the model has embeddings for "
                f"{rows} tokens only; tokenizer and weights do not belong together"
            )
        if rows - 1 - highest > max(_SPARE_ROWS, _SPARE_PART * rows):
            raise CheckpointError(
                f"{self.tokenizer_file} has token ids up to {highest} only, but the model has embeddings for "
                f"{rows} tokens; tokenizer and weights do not belong together"
            )


def _architecture(path: Path, config: dict[str, Any], has_onnx: bool) -> str:
    model_type = read_setting(config, "model_type", str, None, source=path)
    classes = [str(name) for name in read_setting(config, "architectures", list, None, source=path) or ()]
    if model_type is None:  # the oldest configs name only the class
        matches = [
            kind for kind, (_, prefix) in _ARCHITECTURES.items() if classes and classes[0].startswith(prefix)
        ]
        model_type = matches[0] if matches else None
    known = None if model_type is None else _ARCHITECTURES.get(model_type)
    if known is None or any(not name.startswith((known[1], _STANFORD_COLBERT)) for name in classes):
        if has_onnx and model_type is not None:
            return classes[0] if known else model_type  # the folder's own graph can run it
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

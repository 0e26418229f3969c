"""Kinds of models that can be trained: how a base is opened, measured, and written out.

`STUDENTS` is the registry: kind -> `Student`. A kind is one object with the methods of the protocol; what
it shares with others (trainers, data, checkpoints, guards, cards) asks the registry and knows no kind by
name. To add one, write a class with these methods and put an instance of it into `STUDENTS`.

The model in training is one of sentence-transformers' (`CrossEncoder`, `SentenceTransformer`,
`MultiVectorEncoder`, or one made of other modules: `CrossEncoder(modules=[...])`), since its trainers ask
for `preprocess`, a forward pass over features, `save_pretrained` and a model card.

Nothing here imports torch before a method is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError
from crossrank.models.hub import Kind
from crossrank.training.bi_encoder_student import BiEncoderStudent
from crossrank.training.cross_encoder_student import CrossEncoderStudent
from crossrank.training.late_interaction_student import LateInteractionStudent
from crossrank.training.losses.table import Family
from crossrank.training.recipes import Lengths, StudentChoice
from crossrank.training.t5_students import DuoT5Student, MonoT5Student, RankT5Student

__all__ = ["STUDENTS", "Student", "TextLengths", "student_of"]


class TextLengths(Protocol):
    """Counts tokens as the model in training reads texts; usually a `training.tokens.TokenizerLengths`.

    Attributes:
        max_length: tokens of an input, special ones included.
        num_special: special tokens (and those of a prompt) of an input: of query and document, or of a
            document where each is read alone.
        num_query_special: the same of a query that is read alone.
    """

    max_length: int
    num_special: int
    num_query_special: int

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, without special ones, uncut."""
        ...

    def cut(self, text: str, num_tokens: int) -> str:
        """Return the beginning of a text that has this many tokens at most."""
        ...


class Student(Protocol):
    """A kind of model in training.

    Attributes:
        kind: its name in recipes.
        family: what it computes, and so which losses are for it (`losses.table`): "scorer" takes pairs and
            gives `model(model.preprocess(pairs))["scores"]`, (n, 1) or (n, classes); "encoder" gives
            "sentence_embedding", "multi_vector" "token_embeddings"; "comparer" takes (query, document,
            document) and gives "scores".
        joins_texts: query and document share an input (and `max_length`); false where each is read alone.
        hub_kind: what a base is looked for as: `crossrank.models.hub.resolve`.
        hub_library: which has a class for what `export` writes; the card names it.
        options: what it may be told beside its base: "classes", "dimensions".
    """

    kind: str
    family: Family
    joins_texts: bool
    hub_kind: Kind
    hub_library: str
    options: tuple[str, ...]

    def open(self, choice: StudentChoice, folder: Path, lengths: Lengths) -> Any:
        """Return the base as a float32 model of sentence-transformers, on the CPU.

        New weights (a head that the base has not) are drawn from torch's global generator, which has been
        seeded with the recipe's seed.

        Args:
            choice: of the recipe.
            folder: the base, with float32 weights in files that transformers opens (a built-in model's are
                written out before).
            lengths: of the recipe; what is set goes into the model, and is saved with it.

        Raises:
            CheckpointError: the folder is none of this kind, or has no float32 weights.
        """
        ...

    def trainer(self) -> tuple[type[Any], type[Any]]:
        """Return the classes of sentence-transformers' trainer and of its arguments."""
        ...

    def text_lengths(self, model: Any) -> TextLengths:
        """Return what counts tokens as the model reads texts: for truncation, plans, and batches."""
        ...

    def preprocess_options(self) -> Mapping[str, Any]:
        """Return what `model.preprocess` is given beside the pairs (scorers only): how inputs are cut."""
        ...

    def score_lists(
        self, model: Any, queries: Sequence[str], documents: Sequence[Sequence[str]], token_budget: int
    ) -> list[npt.NDArray[np.float32]]:
        """Return the scores of each query's documents, without gradients: for held-out measures.

        Args:
            model: in training; its mode is restored.
            queries: n texts.
            documents: of each query, texts.
            token_budget: padded tokens of one forward pass.

        Returns:
            n float32 arrays: (documents,), or (documents, classes) for a classifier.
        """
        ...

    def export(self, model: Any, folder: Path) -> None:
        """Write the model to an empty folder that crossrank, sentence-transformers and transformers open.

        Adapters are merged already. All three must give the same scores (1e-5).
        """
        ...


_ALL: tuple[Student, ...] = (
    CrossEncoderStudent(),
    BiEncoderStudent(),
    LateInteractionStudent(),
    MonoT5Student(),
    RankT5Student(),
    DuoT5Student(),
)

STUDENTS: dict[str, Student] = {student.kind: student for student in _ALL}
"""Every kind by its name."""


def student_of(choice: StudentChoice) -> Student:
    """Return the kind of a recipe.

    Raises:
        InputError: there is no such kind, or it has not an option that the recipe gives.
    """
    if choice.kind not in STUDENTS:
        raise InputError(
            f"student.kind: there is no kind {choice.kind!r}; there are {', '.join(sorted(STUDENTS))}"
        )
    student = STUDENTS[choice.kind]
    for name in ("classes", "dimensions"):
        if getattr(choice, name) is not None and name not in student.options:
            has = [kind for kind, each in STUDENTS.items() if name in each.options]
            raise InputError(f"student.{name} is for the kind {' or '.join(has)}, not for {choice.kind}")
    return student

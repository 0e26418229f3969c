"""The special tokens a tokenizer puts around one text or two, read off the tokenizer itself.

Post-processors of many kinds exist (BERT's, RoBERTa's, templates). Rather than interpret each, a probe is
encoded and what is not the probe's own tokens is the template; two other probes check it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from crossrank.errors import CheckpointError

__all__ = ["Template", "derive_templates"]

Ids = npt.NDArray[np.int32]
Row = npt.NDArray[np.int64]

_PROBES = ("a", "1", "the", ".", "word", "一")


class Template(NamedTuple):
    """`fixed[0] A fixed[1]` for one text, `fixed[0] A fixed[1] B fixed[2]` for two.

    Attributes:
        fixed: special tokens, int64 ids each.
        fixed_types: their token types, int64, of the same lengths.
        text_types: the token type of each text.
    """

    fixed: tuple[Row, ...]
    fixed_types: tuple[Row, ...]
    text_types: tuple[int, ...]

    @property
    def num_special_tokens(self) -> int:
        """How many tokens it adds."""
        return sum(len(part) for part in self.fixed)

    def fill(self, texts: Sequence[Ids]) -> tuple[Row, Row]:
        """Put texts into the template: (input_ids, token_type_ids), int64 (length,) each."""
        input_ids, _, type_ids = self.fill_batch(
            [texts], sum(map(len, texts)) + self.num_special_tokens, pad_id=0
        )
        return input_ids[0], type_ids[0]

    def fill_batch(self, rows: Sequence[Sequence[Ids]], length: int, pad_id: int) -> tuple[Row, Row, Row]:
        """Put each row's texts into the template and pad on the right.

        Args:
            rows: for each row, the ids of its text or texts.
            length: what rows are padded to; at least the longest row's length.
            pad_id: fills the rest of a row.

        Returns:
            input_ids, attention_mask, token_type_ids: int64 (rows, length) each.
        """
        input_ids = np.full((len(rows), length), pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        type_ids = np.zeros((len(rows), length), dtype=np.int64)
        has_types = any(self.text_types) or any(types.any() for types in self.fixed_types)
        first = len(self.fixed[0])
        input_ids[:, :first] = self.fixed[0]
        type_ids[:, :first] = self.fixed_types[0]
        for row, texts in enumerate(rows):
            end = first
            for index, ids in enumerate(texts):
                start, end = end, end + len(ids)
                after = self.fixed[index + 1]
                input_ids[row, start:end] = ids
                input_ids[row, end : end + len(after)] = after
                if has_types:
                    type_ids[row, start:end] = self.text_types[index]
                    type_ids[row, end : end + len(after)] = self.fixed_types[index + 1]
                end += len(after)
            mask[row, :end] = 1
        return input_ids, mask, type_ids


def derive_templates(
    tokenizer: tokenizers.Tokenizer, *, has_types: bool, source: str
) -> tuple[Template, Template]:
    """Read the templates of one text and of a pair.

    Args:
        tokenizer: with truncation and padding off.
        has_types: whether the model has token types; False makes them all 0.
        source: the tokenizer's file, for messages.

    Raises:
        CheckpointError: there is no template for pairs, or it is not fixed tokens around its texts.
    """
    probe = next((text for text in _PROBES if len(_ids(tokenizer, text))), None)
    if probe is None:
        raise CheckpointError(f"{source} gives no tokens for any of {_PROBES}; fetch the model again")
    twice, thrice = f"{probe} {probe}", f"{probe} {probe} {probe}"
    single = _read(tokenizer, (twice,), has_types, source)
    pair = _read(tokenizer, (probe, twice), has_types, source)
    if not pair.num_special_tokens:
        raise CheckpointError(
            f"{source} states no template for pairs (no special tokens around two texts); "
            "save the tokenizer again with the library the model was trained with"
        )
    for template, texts in ((single, (probe,)), (pair, (thrice, probe)), (pair, (probe, ""))):
        expected = tokenizer.encode(texts[0], texts[1] if len(texts) > 1 else None)
        ids, types = template.fill([_ids(tokenizer, text) for text in texts])
        if ids.tolist() != expected.ids or (has_types and types.tolist() != expected.type_ids):
            raise CheckpointError(
                f"{source}: the template cannot be derived, it does not put fixed tokens around its texts "
                f"({len(texts)} texts gave {expected.ids}, not {ids.tolist()})"
            )
    return single, pair


def _read(tokenizer: tokenizers.Tokenizer, texts: tuple[str, ...], has_types: bool, source: str) -> Template:
    encoding = tokenizer.encode(texts[0], texts[1] if len(texts) > 1 else None)
    ids = np.array(encoding.ids, dtype=np.int64)
    types = np.array(encoding.type_ids, dtype=np.int64) * int(has_types)
    owner = np.array([-1 if index is None else index for index in encoding.sequence_ids])
    bounds = [0]
    for index, text in enumerate(texts):
        places = np.flatnonzero(owner == index)
        if ids[places].tolist() != _ids(tokenizer, text).tolist() or np.any(np.diff(places) != 1):
            raise CheckpointError(
                f"{source}: the template cannot be derived, its post-processor does not keep text "
                f"{index + 1} of {len(texts)} in one piece"
            )
        bounds += [int(places[0]), int(places[-1]) + 1]
    bounds.append(len(ids))
    gaps = [slice(start, end) for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
    return Template(
        tuple(ids[gap] for gap in gaps),
        tuple(types[gap] for gap in gaps),
        tuple(int(types[bounds[2 * index + 1]]) for index in range(len(texts))),
    )


def _ids(tokenizer: tokenizers.Tokenizer, text: str) -> Ids:
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

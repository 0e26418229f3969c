"""Lists to rows of a loss, and what was counted on the way: for `--dry-run`, guards, and the card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from crossrank.errors import InputError, TrainingStoppedError
from crossrank.training.examples import TrainingData, TrainingList
from crossrank.training.forms import Columns, columns_of
from crossrank.training.recipes import Recipe
from crossrank.training.students import TextLengths

__all__ = ["Prepared", "check_positives", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """Rows to train from, and counts.

    Attributes:
        columns: text columns, and "label" where there is one.
        num_rows: rows of the columns.
        num_lists: queries that were read.
        num_pairs: queries with each of their documents, after lists were cut to `list_size`.
        num_tokens: of these pairs as the model reads them, without padding: an epoch's.
        longest: tokens of the longest input.
        cut_queries: queries that were cut.
        cut_documents: pairs whose document is cut.
        num_positives: pairs of a query and a positive.
        cut_positives: those of them whose query or document is cut.
        left_out: queries that were left out since they are held out.
        unused: queries that give no row: without a positive or a negative, with fewer negatives than rows
            have, or with equal labels, as the form needs.
    """

    columns: Columns
    num_rows: int
    num_lists: int
    num_pairs: int
    num_tokens: int
    longest: int
    cut_queries: int
    cut_documents: int
    num_positives: int
    cut_positives: int
    left_out: int
    unused: int

    @property
    def cut_share(self) -> float:
        """Share of the positives that are not read whole."""
        return self.cut_positives / self.num_positives if self.num_positives else 0.0


def prepare(
    recipe: Recipe,
    data: TrainingData,
    form: str,
    lengths: TextLengths,
    *,
    joins_texts: bool,
    held_out: Sequence[str] = (),
) -> Prepared:
    """Return the rows that a loss is trained on.

    Queries longer than the recipe allows are cut here, since a model cuts the document alone. Queries that
    are held out are left out.

    Args:
        recipe: of the run.
        data: its data.
        form: a name in `forms.FORMS`.
        lengths: of the model.
        joins_texts: query and document share an input.
        held_out: texts of queries that must not be trained on.

    Raises:
        InputError: the data lacks what the form needs.
    """
    kept = {*held_out}
    lists = [each for each in data.lists if each.query not in kept]
    left_out = len(data.lists) - len(lists)
    if not lists:
        raise InputError("every query of the training data is held out, too")
    size, seed = recipe.schedule.list_size, recipe.seed
    lists = [each.cut(size, seed) for each in lists]
    room = lengths.max_length - lengths.num_special
    query_room = room if joins_texts else lengths.max_length - lengths.num_query_special
    if min(room, query_room) < 1:
        raise InputError(f"lengths.max_length {lengths.max_length} leaves no room beside the model's prompts")
    most = recipe.lengths.max_query_length or (room // 2 if joins_texts else query_room)
    if most > query_room:
        raise InputError(f"lengths.max_query_length is {most}, and an input has room for {query_room} tokens")
    tokens = _counted([text for each in lists for text in (each.query, *each.documents)], lengths)
    cut = {each.query for each in lists if tokens[each.query] > most}
    num_tokens = longest = cut_documents = num_positives = cut_positives = num_pairs = 0
    for each in lists:
        query_tokens = min(tokens[each.query], most)
        positives = {*each.positives}
        if not joins_texts:
            num_tokens += query_tokens + lengths.num_query_special
        for i, document in enumerate(each.documents):
            left = room - query_tokens if joins_texts else room
            read = min(tokens[document], left)
            whole = read + lengths.num_special + (query_tokens if joins_texts else 0)
            num_tokens += whole
            longest = max(longest, whole)
            num_pairs += 1
            is_cut = tokens[document] > left
            cut_documents += is_cut
            num_positives += i in positives
            cut_positives += i in positives and (is_cut or each.query in cut)
    lists = [_with_query(each, lengths, most) if each.query in cut else each for each in lists]
    columns = columns_of(form, lists, list_size=size, seed=seed, classes=recipe.student.classes)
    asked = next(iter(columns.values()))
    used = {*asked}
    return Prepared(
        columns=columns,
        num_rows=len(asked),
        num_lists=len(lists),
        num_pairs=num_pairs,
        num_tokens=num_tokens,
        longest=longest,
        cut_queries=sum(each.query in cut for each in data.lists),
        cut_documents=cut_documents,
        num_positives=num_positives,
        cut_positives=cut_positives,
        left_out=left_out,
        unused=sum(each.query not in used for each in lists),
    )


def check_positives(prepared: Prepared, most: float) -> None:
    """Refuse to train on positives of which too many are cut.

    Args:
        prepared: the rows.
        most: the share that may be.

    Raises:
        TrainingStoppedError: more are.
    """
    if prepared.cut_share > most:
        raise TrainingStoppedError(
            f"{prepared.cut_positives:,} of {prepared.num_positives:,} positives ({prepared.cut_share:.0%}) "
            f"are cut, and guards.truncated_positives allows {most:.0%}: what makes them relevant may not be "
            "read; raise lengths.max_length, split the documents into passages, or raise the guard"
        )


def _counted(texts: Sequence[str], lengths: TextLengths) -> dict[str, int]:
    unique = [*dict.fromkeys(texts)]
    return dict(zip(unique, lengths.count(unique), strict=True))


def _with_query(each: TrainingList, lengths: TextLengths, most: int) -> TrainingList:
    return replace(each, query=lengths.cut(each.query, most))

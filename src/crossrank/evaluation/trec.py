r"""TREC run files and qrels: read with the place of every fault, written so that they read back exactly.

A run file has six columns, `query Q0 document rank score tag`. Qrels come in two forms: TREC's four
columns, `query iteration document grade`, and BEIR's three, `query-id corpus-id score`, parted by
single tabs and below a header. Columns are parted by spaces or tabs, files are UTF-8, a name that
ends in .gz means gzip, and blank lines are passed over.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from crossrank.errors import FileFormatError, InputError
from crossrank.types import Hit, Qrels, Ranking, Run
from crossrank.whole_files import opened_whole

__all__ = [
    "HIGHEST_GRADE",
    "descending_scores",
    "numbered_lines",
    "read_qrels",
    "read_run",
    "run_lines",
    "write_qrels",
    "write_run",
]

# ASCII blanks only, as in trec_eval: a no-break space is part of an id.
_BLANKS = re.compile(r"[ \t\v\f]+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
# What an id may not hold: the blanks and line ends, NUL (ends a string in trec_eval), a byte order
# mark (dropped by readers at the start of a file) and lone surrogates (not UTF-8).
_UNWRITABLE = re.compile("[\0 \t\v\f\r\n\ufeff\ud800-\udfff]")
_UNWRITABLE_BEIR = re.compile("[\0\t\r\n\ufeff\ud800-\udfff]")
_FLOAT32_MAX = float(np.finfo(np.float32).max)
HIGHEST_GRADE = 1_000_000
"""trec_eval makes a table with a row for every grade up to the highest."""
_QUERY_HEADERS = frozenset({"query-id", "query_id", "qid", "query"})


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (1-based number, text without line end) of the lines of a UTF-8 file that are not blank.

    Args:
        path: a file, gzipped if its name ends in .gz; a byte order mark at its start is dropped.

    Raises:
        FileFormatError: no such file, not readable, not UTF-8, or a damaged gzip file.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb") as raw:
            # bytes are decoded line by line, so that a fault has its line
            for number, line in enumerate(raw, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip(" \t\v\f"):
                    yield number, text
    except UnicodeDecodeError as error:
        raise FileFormatError(f"not UTF-8 text: {error.reason}; convert the file", path, number) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FileFormatError(f"damaged gzip file: {error}", path, number + 1) from error
    except FileNotFoundError as error:
        raise FileFormatError("there is no such file", path) from error
    except OSError as error:
        raise FileFormatError(f"cannot be read: {error.strerror or error}", path) from error


def read_run(path: str | Path, queries: Mapping[str, str] | None = None) -> Run:
    """Read a TREC run file.

    Hits are ordered by score, the highest first, as trec_eval does, whatever the rank column says;
    equal scores go by the rank column, then by their place in the file. Ranks are numbered anew.
    Scores keep every digit as float64.

    Args:
        path: the file; gzipped if its name ends in .gz.
        queries: query id -> text, for the rankings' `query`; a query without one gets "".

    Returns:
        Rankings in the order in which their queries first come in the file. The run's tag, and the
        stage of its hits, is the first row's; trec_eval reads the others no more than this does.

    Raises:
        FileFormatError: a row without six columns, a rank or score that is no number, a score that
            is NaN, infinite or beyond float32, or a document that comes twice for a query.
    """
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    run_tag: str | None = None
    for line, text in numbered_lines(path):
        columns = _BLANKS.split(text.strip(" \t\v\f"))
        if len(columns) != 6:
            raise FileFormatError(
                f"a row of a run has 6 columns (query Q0 document rank score tag), this one {len(columns)}: "
                f"{_excerpt(text)}",
                path,
                line,
            )
        query_id, _, document_id, rank, score, tag = columns
        if not _WHOLE_NUMBER.fullmatch(rank):
            raise FileFormatError(f"the rank must be a whole number, not {_excerpt(rank)}", path, line)
        value = float(score) if _NUMBER.fullmatch(score) else math.nan
        if not abs(value) <= _FLOAT32_MAX:
            raise FileFormatError(
                f"the score must be a finite float32 number, not {_excerpt(score)}", path, line
            )
        hits = rows.setdefault(query_id, {})
        if document_id in hits:
            raise FileFormatError(
                f"document {document_id!r} comes a second time for query {query_id!r}", path, line
            )
        hits[document_id] = (value, int(rank))
        run_tag = tag if run_tag is None else run_tag
    texts = queries if queries is not None else {}
    rankings = {
        query_id: _ranking(query_id, hits, texts.get(query_id, ""), run_tag or "")
        for query_id, hits in rows.items()
    }
    return Run(rankings) if run_tag is None else Run(rankings, run_tag)


def _ranking(query_id: str, rows: Mapping[str, tuple[float, int]], query: str, stage: str) -> Ranking:
    ordered = sorted(rows.items(), key=lambda row: (-row[1][0], row[1][1]))
    hits = tuple(
        Hit(document_id, score, rank, stage)
        for rank, (document_id, (score, _)) in enumerate(ordered, start=1)
    )
    return Ranking(query, hits, query_id=query_id)


def run_lines(run: Mapping[str, Ranking], tag: str | None = None) -> Iterator[str]:
    """Yield the lines of a TREC run file, without line ends.

    Rows come in the order of the rankings, ranks count from 1, and scores are `descending_scores`,
    with as many digits as it takes to read the same float64 back. A query without hits has no row.

    Args:
        run: query id -> ranking.
        tag: the last column; None takes the run's own, or "crossrank".

    Raises:
        InputError: an id or tag that is empty or holds blanks, a score that is not finite, or a
            document twice in a ranking.
    """
    tag = tag if tag is not None else run.tag if isinstance(run, Run) else "crossrank"
    _check_writable(tag, "tag", _UNWRITABLE)
    for query_id, ranking in run.items():
        _check_writable(query_id, "query id", _UNWRITABLE)
        scores = descending_scores(ranking)
        for rank, (hit, score) in enumerate(zip(ranking, scores, strict=True), start=1):
            _check_writable(hit.document_id, "document id", _UNWRITABLE)
            yield f"{query_id} Q0 {hit.document_id} {rank} {score!r} {tag}"


def write_run(run: Mapping[str, Ranking], path: str | Path, tag: str | None = None) -> None:
    """Write a TREC run file: `run_lines`, gzipped if the name ends in .gz.

    The file appears whole or not at all, and equal runs give equal bytes.

    Raises:
        InputError: see `run_lines`.
    """
    _write(run_lines(run, tag), path)


def descending_scores(ranking: Ranking) -> list[float]:
    """Return scores that put the hits in the ranking's order where order goes by score alone.

    TREC tools sort by score and ignore ranks. A ranking that several stages made has scores of
    several scales (see `crossrank.pipeline`): where a score does not fall from one stage's last hit
    to the next stage's first, or rises, it is replaced by the next float32 below the one before.
    Other scores stay as they are, and equal ones of one stage stay equal: those are ties, which
    measures break by document id.

    Raises:
        InputError: a score that is NaN, infinite or beyond float32, or a document twice.
    """
    scores: list[float] = []
    seen: set[str] = set()
    last_single = np.float32(np.inf)
    last_stage: str | None = None
    for hit in ranking:
        score = float(hit.score)
        # trec_eval compares scores as float32, so what counts as falling is decided there.
        single = np.float32(score) if abs(score) <= _FLOAT32_MAX else np.float32(np.nan)
        if not np.isfinite(single):
            raise InputError(
                f"document {hit.document_id!r} of query {_name(ranking)} has score {score!r}; "
                "scores must be finite float32 numbers"
            )
        if hit.document_id in seen:
            raise InputError(f"document {hit.document_id!r} comes twice in the ranking of {_name(ranking)}")
        seen.add(hit.document_id)
        if single > last_single or (single == last_single and hit.stage != last_stage):
            single = np.nextafter(last_single, np.float32(-np.inf))
            score = float(single)
        scores.append(score)
        last_single, last_stage = single, hit.stage
    return scores


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read judgements in TREC's or BEIR's form, told apart by the first row.

    A first row of exactly three fields parted by tabs makes it BEIR's form; it is the header if it
    starts with "query-id" (or query_id, qid, query), and otherwise a judgement already. Everything
    else is TREC's. Ids in BEIR's form may hold spaces.

    Returns:
        Query id -> document id -> grade, in the order of the file.

    Raises:
        FileFormatError: a row with another number of columns, a grade that is no whole number or beyond
            ±1,000,000, or a document judged twice for a query.
    """
    qrels: dict[str, dict[str, int]] = {}
    beir: bool | None = None
    for line, text in numbered_lines(path):
        if beir is None:
            fields = text.split("\t")
            beir = len(fields) == 3
            if beir and fields[0].strip().lower() in _QUERY_HEADERS:
                continue
        columns = text.split("\t") if beir else _BLANKS.split(text.strip(" \t\v\f"))
        if len(columns) != (3 if beir else 4):
            form = (
                "3 columns parted by tabs (query-id corpus-id score)"
                if beir
                else "4 columns (query iteration document grade)"
            )
            raise FileFormatError(
                f"a row of these qrels has {form}, this one {len(columns)}: {_excerpt(text)}", path, line
            )
        query_id, document_id, grade = columns[0], columns[-2], columns[-1].strip()
        if not query_id or not document_id:
            raise FileFormatError(f"an empty id: {_excerpt(text)}", path, line)
        if not _WHOLE_NUMBER.fullmatch(grade) or abs(int(grade)) > HIGHEST_GRADE:
            raise FileFormatError(
                f"the grade must be a whole number of at most {HIGHEST_GRADE:,}, not {_excerpt(grade)}",
                path,
                line,
            )
        grades = qrels.setdefault(query_id, {})
        if document_id in grades:
            raise FileFormatError(
                f"document {document_id!r} is judged a second time for query {query_id!r}", path, line
            )
        grades[document_id] = int(grade)
    return qrels


def write_qrels(qrels: Qrels, path: str | Path, form: Literal["trec", "beir"] | None = None) -> None:
    """Write judgements, gzipped if the name ends in .gz; the file appears whole or not at all.

    Args:
        qrels: query id -> document id -> grade.
        path: the file.
        form: None takes BEIR's for a name that ends in .tsv or .tsv.gz and TREC's for any other.

    Raises:
        InputError: an unknown form, an id that is empty or that the form cannot hold (in TREC's one
            with spaces), or a grade that is no whole number.
    """
    if form is None:
        form = "beir" if str(path).removesuffix(".gz").endswith(".tsv") else "trec"
    if form not in ("trec", "beir"):
        raise InputError(f'form must be "trec" or "beir", not {form!r}')
    _write(_qrels_lines(qrels, form), path)


def _qrels_lines(qrels: Qrels, form: Literal["trec", "beir"]) -> Iterator[str]:
    pattern = _UNWRITABLE if form == "trec" else _UNWRITABLE_BEIR
    if form == "beir":
        yield "query-id\tcorpus-id\tscore"
    for query_id, grades in qrels.items():
        _check_writable(query_id, "query id", pattern)
        for document_id, grade in grades.items():
            _check_writable(document_id, "document id", pattern)
            if isinstance(grade, bool) or not isinstance(grade, (int, np.integer)):
                raise InputError(
                    f"the grade of document {document_id!r} for query {query_id!r} must be a whole number, "
                    f"not {grade!r}"
                )
            if form == "beir":
                yield f"{query_id}\t{document_id}\t{int(grade)}"
            else:
                yield f"{query_id} 0 {document_id} {int(grade)}"


def _write(lines: Iterable[str], path: str | Path) -> None:
    with contextlib.ExitStack() as stack:
        file: BinaryIO | gzip.GzipFile = stack.enter_context(opened_whole(path))
        if str(path).endswith(".gz"):
            # no name and no time in the gzip header: the same lines give the same bytes
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        for line in lines:
            file.write(f"{line}\n".encode())


def _check_writable(value: str, noun: str, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not value or pattern.search(value):
        raise InputError(
            f"the {noun} {value!r} cannot be written to this file: it must be a non-empty string without "
            "blanks, line ends and control characters; rename it"
        )


def _name(ranking: Ranking) -> str:
    return repr(ranking.query if ranking.query_id is None else ranking.query_id)


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")

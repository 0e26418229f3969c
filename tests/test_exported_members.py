"""The public names: none forgotten, none by chance. (Their order is the linter's business, RUF022.)"""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import version
from pathlib import Path

import pytest

import crossrank


def test_all_has_every_public_name_once() -> None:
    bound = {name for name in vars(crossrank) if name[0].isupper()} | set(crossrank._LAZY)
    assert sorted(crossrank.__all__) == sorted(bound - {"TYPE_CHECKING", "Any"})


def test_every_public_name_exists_and_says_what_it_is() -> None:
    for name in crossrank.__all__:
        assert inspect.getdoc(getattr(crossrank, name)), name


def test_names_for_type_checkers_are_the_names_loaded_at_run_time() -> None:
    tree = ast.parse(Path(crossrank.__file__).read_text(encoding="utf-8"))
    block = next(
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    declared = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == crossrank._LAZY


def test_dir_lists_names_not_yet_loaded() -> None:
    assert {*crossrank.__all__, "__version__"} <= set(dir(crossrank))


def test_the_version_is_the_installed_one() -> None:
    assert crossrank.__version__ == version("crossrank")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'CrossEncoderr'"):
        _ = crossrank.CrossEncoderr

"""No reranker of the package is left out of the suite."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import families

import crossrank

SOURCES = Path(crossrank.__file__).parent
PARTS = {"RankVerbs", "RoundsReranker", "PointwiseReranker"}
"""Classes that others are made of: `rank` of these alone has nothing to ask."""


def rerankers() -> set[str]:
    """Classes whose own body, or that of one they are made from, has `rank` and `rank_many`."""
    bodies: dict[str, set[str]] = {}
    parents: dict[str, list[str]] = {}
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                parents[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
                bodies[node.name] = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}

    def verbs(name: str) -> set[str]:
        return bodies.get(name, set()).union(*map(verbs, parents.get(name, [])))

    protocols = {name for name, bases in parents.items() if "Protocol" in bases}
    return {name for name in bodies if {"rank", "rank_many"} <= verbs(name)} - protocols - PARTS


def test_every_reranker_of_the_package_is_in_the_suite():
    source = inspect.getsource(families)
    named = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    found = rerankers()
    assert {"CrossEncoder", "MonoT5", "SetwiseLLM", "StoredLateInteraction"} <= found
    assert found - named == set()


def test_names_of_families_are_their_own():
    names = [family.name for family in families.FAMILIES]
    assert len(set(names)) == len(names)

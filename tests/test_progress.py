"""The bar appears only where and when it should, and never twice."""

import io
from contextlib import redirect_stderr

import pytest

from crossrank import progress
from crossrank.progress import track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def work(total=4, **options):
    with track(total, "Scoring", **options) as tracked:
        for _ in range(total):
            tracked.advance()
    return tracked.done


def shown(screen, **options):
    with redirect_stderr(screen):
        assert work(**options) == 4
    return screen.getvalue()


def test_short_calls_show_nothing():
    assert shown(Terminal()) == ""


def test_long_calls_show_a_bar_on_a_terminal_only(monkeypatch):
    monkeypatch.setattr(progress, "_DELAY_S", 0.0)
    assert "Scoring" in shown(Terminal())
    assert shown(io.StringIO()) == ""


def test_told_to_and_told_not_to(monkeypatch):
    assert "Scoring" in shown(Terminal(), progress=True)
    monkeypatch.setattr(progress, "_DELAY_S", 0.0)
    assert shown(Terminal(), progress=False) == ""


def test_a_length_that_nobody_knows():
    screen = Terminal()
    with redirect_stderr(screen), track(None, "Indexing", progress=True) as tracked:
        tracked.advance(1024)
    assert "1024/?" in screen.getvalue()


def test_one_bar_at_a_time_and_errors_take_it_away():
    def fails():
        with track(3, "Outer", progress=True) as outer:
            outer.advance()
            work(progress=True)
            raise RuntimeError("stop")

    screen = Terminal()
    with redirect_stderr(screen), pytest.raises(RuntimeError, match="stop"):
        fails()
    assert "Outer" in screen.getvalue()
    assert "Scoring" not in screen.getvalue()
    assert "Scoring" in shown(Terminal(), progress=True)  # the screen is free again

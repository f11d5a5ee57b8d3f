"""Bars on a terminal, lines in a log."""

import contextlib
import io

from rich.console import Console

from jax_mtlser.training.progress import Display


def test_a_bar_stands_under_the_one_that_waits_for_it_and_both_go():
    text = io.StringIO()
    display = Display(Console(file=text, force_terminal=True, width=80))
    for part in ("first", "second"):
        with display.steps(f"{part} training", 0, 2) as show, contextlib.suppress(KeyError):
            show(1, "loss 0.5")
            with display.counting(f"{part} validation") as count:
                count(2, 3)
                display.line(f"{part} line")
                raise KeyError
        shown = text.getvalue()
        after = shown[shown.index(f"{part} line") :].splitlines()
        assert ["training" in after[1], "validation" in after[2]] == [True, True]
    display.line("end")
    assert text.getvalue().endswith("end\n")


def test_a_log_has_lines_only():
    text = io.StringIO()
    display = Display(Console(file=text, width=80))
    with display.steps("training", 0, 2) as show, display.counting("validation") as count:
        show(1, "")
        count(2, 3)
        display.line("epoch 1")
    assert text.getvalue() == "epoch 1\n"

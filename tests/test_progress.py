import re

from tiebreak import progress


def test_plain_lines_tell_rate_and_time_left_and_only_when_due(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 20.0, 21.0, 40.0, 60.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("draw", 100, "completions") as advance:
        for count in (10, 10, 10, 10, 60):
            advance(count)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "draw: 20 of 100, 1.0 completions/s, 80 s left",  # 20 s in
        "draw: 40 of 100, 1.0 completions/s, 60 s left",  # 40 s in
    ]


def test_the_first_of_a_batch_is_not_a_rate(capsys, monkeypatch):
    clock = iter([0.0, 100.0, 100.1])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("draw", 600, "completions") as advance:
        advance(1)
        advance(159)
    assert re.fullmatch(r"draw: 160 of 600, 1\.6 completions/s, \d+ s left\n", capsys.readouterr().err)


def test_a_terminal_gets_a_bar_that_leaves_nothing_behind(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.progress("draw", 3, "steps") as advance:
        for _ in range(3):
            advance(1)
    assert capsys.readouterr().out == ""

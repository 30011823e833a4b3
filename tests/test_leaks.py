"""Nothing grows while a process trains and draws."""

import pytest
from leaks import draw, growth, measure


@pytest.mark.slow
def test_memory_files_threads_and_logs_do_not_grow(tmp_path):
    found = measure(tmp_path / "run")
    draw(found, tmp_path / "leaks.png")
    assert [row for row in growth(found) if row[3] - row[2] > row[4]] == []

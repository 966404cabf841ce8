"""A part of what `python tests/fuzz_options.py 300` tries."""

import fuzz_options
import pytest


@pytest.mark.long
def test_every_command_line_trains_or_is_refused_in_a_few_lines():
    found = fuzz_options.explore(30)
    assert sum(found.values()) == 30 and min(found["trained"], found["refused"]) >= 5, found

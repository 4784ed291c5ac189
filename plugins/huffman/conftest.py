"""Every test of the plugin runs with the check of tests/helpers_plain.py.

It stands here since mypy would take tests/conftest.py for the repository's own, which has the same name.
"""

from importlib import import_module

written_blobs_are_read_as_the_page_says = import_module(
    ".tests.helpers_plain", __package__
).written_blobs_are_read_as_the_page_says

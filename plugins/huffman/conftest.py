"""Runs the check of tests/helpers_plain.py in every test of this plugin.

It is not in tests/, because mypy would confuse a second tests/conftest.py with the one of the repository.
"""

from importlib import import_module

written_blobs_are_read_as_the_page_says = import_module(
    ".tests.helpers_plain", __package__
).written_blobs_are_read_as_the_page_says

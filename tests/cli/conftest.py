"""A command as a user types it."""

import pytest

from bedplate.cli.app import main


@pytest.fixture
def run(capsys):
    """words -> (exit code, stdout, stderr)."""

    def call(*words):
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call

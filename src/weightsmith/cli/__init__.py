"""The command line. Its modules load in milliseconds: what a command needs it imports when it runs."""

from __future__ import annotations

from weightsmith.cli.main import main as main

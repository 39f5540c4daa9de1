"""The command line. Its modules load in milliseconds: what a command needs it imports when it runs."""

from __future__ import annotations

import sys

try:
    from weightsmith.cli.main import main as main
except KeyboardInterrupt:
    print("weightsmith: interrupted.", file=sys.stderr)
    raise SystemExit(130) from None

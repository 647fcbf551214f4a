"""Runs command lines one after the other, as one of the processes of each: torchrun several.py FILE, of JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tiny import run_command, without_report

if __name__ == "__main__":
    lines = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with without_report():
        for line in lines:
            if status := run_command(line):
                print("failed:", line, file=sys.stderr)
                sys.exit(status)

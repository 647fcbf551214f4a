"""Flip one bit of a file that a begun run will read, type its command again, and see what comes of it.

    python scripts/flip_drill.py [--flips 20] [--seed 0] [OVERRIDES ...]

A run is killed on its way. Of each copy of its root one bit of one file, of its folder or of the cache, is flipped.
Then the run must say so (exit status 2 and one message, or a line of what is made anew), or end as the one that was
not interrupted does: the same hash of the weights, the same matrix. Exit status 0 only if every flip ends so.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from drill_runs import end_of, finish, place_of, start

#: What a run that goes on says of a file.
SAID = ("is damaged", "is not what it was", "it is made anew", "cannot be read", "cannot be used")

COMPARED = ("weights", "accuracy.csv")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the bits")
    given, overrides = parser.parse_known_args()
    drawn = random.Random(given.seed)
    counts = {"refused": 0, "made anew": 0, "without effect": 0, "NOT NOTICED": 0}
    with tempfile.TemporaryDirectory() as temporary:
        whole, begun = Path(temporary) / "whole", Path(temporary) / "begun"
        began = time.perf_counter()
        finish(start(whole, overrides))
        expected = end_of(whole)
        process = start(begun, overrides)
        time.sleep(0.8 * (time.perf_counter() - began))
        process.kill()
        process.communicate()
        print(f"killed at '{place_of(begun)}'", flush=True)
        for number in range(1, given.flips + 1):
            root = Path(temporary) / "flipped"
            shutil.copytree(begun, root)
            files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size]
            path = drawn.choice(files)
            content = bytearray(path.read_bytes())
            bit = drawn.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            process = start(root, overrides)
            shown, _ = process.communicate()
            said = any(text in shown for text in SAID)
            equal = process.returncode == 0 and all(end_of(root)[name] == expected[name] for name in COMPARED)
            if process.returncode == 2 and said and "Traceback" not in shown:
                end = "refused"
            elif equal:
                end = "made anew" if said else "without effect"
            else:
                end = "NOT NOTICED"
            counts[end] += 1
            print(f"flip {number}: bit {bit} of {path.relative_to(root)}: {end}", flush=True)
            shutil.rmtree(root)
    print(", ".join(f"{count} {end}" for end, count in counts.items()))
    return 0 if not counts["NOT NOTICED"] else 1


if __name__ == "__main__":
    sys.exit(main())

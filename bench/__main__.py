"""Every bench with --quick, one after another, and what came out in one table: ``python -m bench``."""

from __future__ import annotations

import json
import subprocess
import sys

from bench.harness import ROOT, parser, say

BENCHES = (
    "dataplane",
    "hotswap",
    "many_models",
    "heavy",
    "binary",
    "pipeline",
    "replica_memory",
    "upload",
    "fleet_files",
    "coldstart",
    "pack",
    "placement",
)
BENCHES = ("dataplane", "hotswap", "many_models", "heavy", "binary", "pipeline", "replica_memory", "upload", "raynodes")


def run(name: str, quick: bool) -> dict[str, object] | None:
    """A bench's JSON line; None when it could not measure."""
    command = [sys.executable, "-m", f"bench.{name}", *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return None
    found: dict[str, object] = json.loads(lines[-1])
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--full", action="store_true", help="full rounds: what docs/benchmarks.md reports")
    arguments.add_argument("benches", nargs="*", default=BENCHES, metavar="BENCH", help=", ".join(BENCHES))
    a = arguments.parse_args()
    failed = []
    for name in a.benches:
        say(f"== {name}")
        found = run(name, not a.full)
        if found is None:
            failed.append(name)
            continue
        print(f"\n{name}")
        figures, context = found["figures"], found["context"]
        assert isinstance(figures, dict)
        assert isinstance(context, dict)
        for figure, value in figures.items():
            bar = context["bars"].get(figure)
            sign = "" if bar is None else f">= {bar['at_least']:g}" if "at_least" in bar else f"<= {bar['at_most']:g}"
            verdict = "" if bar is None else "met" if bar["met"] else "NOT MET"
            print(f"  {figure:<28} {'-' if value is None else value:>12} {sign:>10} {verdict}")
        print(json.dumps(found), flush=True)
    if failed:
        raise SystemExit(f"bench: could not measure {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""Command line: ``python -m data_prep COMMAND ...`` makes a prepared dataset.

Each module of commands has ``add_commands(subparsers)``, which adds its sub-commands; a sub-command sets
``func(args) -> int``, the exit status.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import NoReturn, Sequence

from data_prep import brain, brain_phantom, cardiac, cardiac_phantom, regions, regions_phantom


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Ends with one sentence and status 2; the full usage is for --help."""
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command; returns the exit status: 0 done, 2 refused, 130 interrupted."""
    parser = _Parser(prog="python -m data_prep", description="Make a prepared dataset.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (brain, brain_phantom, cardiac, cardiac_phantom, regions, regions_phantom):
        module.add_commands(subparsers)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return args.func(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was left half-written\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""``python -m qpass``: parse, run one command, and turn every failure into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from qpass.cli import parser
from qpass.console import noticed_interrupts, quiet_libraries
from qpass.errors import QPassError

INTERNAL, INTERRUPTED, BROKEN_PIPE = 70, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    0 done; 2 wrong use or recipe; 3 the model cannot be captured or is not supported; 4 NaN or Inf; 5 a file cannot be
    written; 70 a defect of qpass; 130 Ctrl-C; 141 nobody reads the output. Errors are one line on stderr;
    ``--traceback`` shows where they came from.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with noticed_interrupts() as interrupts:
        try:
            quiet_libraries()
            args = parser().parse_args(words)
            args.run(args)
            sys.stdout.flush()
            return 0
        except SystemExit as error:  # argparse, after --help
            return int(error.code or 0)
        except BrokenPipeError:  # the reader of a pipe, such as head, has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except (Exception, KeyboardInterrupt) as error:
            if "--traceback" in words:
                traceback.print_exc()
            if interrupts.happened or isinstance(error, KeyboardInterrupt):
                return _fail("interrupted; no file was written", INTERRUPTED)
            if isinstance(error, QPassError):
                return _fail(f"error: {error}", error.exit_code)
            text = f"internal error: {type(error).__name__}: {error}. This is a defect of qpass"
            return _fail(f"{text}; please report it with what --traceback prints.", INTERNAL)


def _fail(text: str, code: int) -> int:
    print(f"qpass: {' '.join(text.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

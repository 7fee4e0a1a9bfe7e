"""From a command line to running processes: what every script's ``main`` does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from references.edgeailite.engine import distributed, run_folder
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.options import Kind, parse_options


def launch(
    kind: type[Kind],
    run: Callable[[Kind, Process], Any],
    script: Path,
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse the command line and run, in as many processes as ``--gpus`` asks for.

    A mistake of the user ends the process with one line that says what is wrong.

    Args:
        kind: The script's options.
        run: Does the work in each process.
        script: The script's file, to start further processes from.
        arguments: Without the program's name; default: those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parse_options(kind, arguments)
    try:
        distributed.check_gpus(options.gpus)
        if distributed.start_processes(options.gpus, script, arguments):
            return
        with distributed.process_group(options.gpus) as process:
            run(options, process)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    finally:
        run_folder.stop_log()

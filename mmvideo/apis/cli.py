"""What every tool does alike: its command line, its exit codes, its one-line errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmvideo.errors import InputError, UserError, nearest

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


class Parser(argparse.ArgumentParser):
    """A command line whose options are written in full, and whose mistakes are one line.

    argparse would take ``--se`` for ``--seed`` until a tool has a second option that begins so.

    Args:
        description: the tool's docstring.
        examples: shown below the options.
    """

    def __init__(self, description: str | None, examples: str) -> None:
        super().__init__(
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, after the options' names were checked: a wrong one names the nearest."""
        given = sys.argv[1:] if args is None else list(args)
        self._check_options(given)
        return super().parse_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage; leave with 2."""
        print(f'error: {message} (see --help)', file=sys.stderr)
        sys.exit(2)

    def _check_options(self, given: Sequence[str]) -> None:
        known = self._option_string_actions
        for text in given:
            if text == '--':
                return
            name = text.partition('=')[0]
            # What has a space is a text that begins with dashes, for argparse too.
            if name.startswith('--') and ' ' not in text and name not in known:
                longer = [option for option in known if option.startswith(name)]
                hint = f' Did you mean {longer[0]!r}?' if len(longer) == 1 else ''
                self.error(f'no option {name!r}.{hint or nearest(name, longer or known)}')

    def add_cfg_options(
        self, group: Any = None, example: str = 'model.scheduler.beta_end=0.02'
    ) -> None:
        """``--cfg-options KEY=VALUE ...``, for ``mmvideo.config.parse_cfg_options``."""
        (group or self).add_argument(
            '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
            help=f'override settings of the config, such as {example}',
        )  # fmt: skip

    def add_launcher(self) -> None:
        """``--launcher``."""
        self.add_argument(
            '--launcher', choices=LAUNCHERS, default='none',
            help='how the processes of a distributed job were started',
        )  # fmt: skip


def run_tool(
    run: Callable[[argparse.Namespace], None], args: argparse.Namespace, interrupted: str
) -> int:
    """Run a tool; its exit code: 0 when all is done, 2 for bad input, 130 when interrupted.

    Any other error is a defect and keeps its traceback.

    Args:
        run: what the tool does.
        args: its command line.
        interrupted: what is left behind by Ctrl-C, for the person who pressed it.
    """
    try:
        run(args)
    except UserError as error:
        print('error: ' + ' '.join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'interrupted: {interrupted}', file=sys.stderr)
        return 130
    return 0


def count(text: str) -> int:
    """A number of frames, steps, clips or pixels on a command line."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: expected an integer of at least 1')
    return value


def json_file(text: str | None) -> Path | None:
    """The path of ``--out`` where a JSON file can be written; None stays None.

    Raises:
        InputError: before the work whose result it is.
    """
    if text is None:
        return None
    out = Path(text).expanduser()
    if out.suffix != '.json':
        raise InputError(f'--out {text}: expected a name that ends in .json.')
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f'--out {text}: {out.parent} is no folder that can be written to.')
    return out

"""How scripts are called and how they end: the parser, types of flags, defaults from a YAML file, exit codes."""

import argparse
import difflib
import errno
import logging
import os
import reprlib
import shutil
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

import yaml

from wavtrain import InputError

Options = TypeVar("Options")
SHORTEST, LONGEST = 0.025, 100_000  # seconds: 400 samples are the least that makes a frame; samples are counted in 32 bits
LARGEST, LARGEST_CONFIG = 10**9, 1 << 20  # of rates and weights, far beyond what any run survives; in characters
OF_YAML = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, ValueError)  # of PyYAML, all of them
leave: Callable[[Any], NoReturn] = sys.exit  # the end of every script; another goes in its place where something hangs
OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENOTDIR)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and which flag may have been meant."""

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        unknown = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        if unknown and message.startswith("unrecognized"):  # without their values, one of which may be a token
            message = f"unrecognized arguments: {' '.join(unknown)}"
            for close in (difflib.get_close_matches(word, known, n=1) for word in unknown):
                message += f" (is {close[0]} meant?)" if close else ""
        raise InputError(f"{message}; --help lists the flags")


def new_parser(docstring: str, config: str | None = None) -> argparse.ArgumentParser:
    """A parser with --config; the script's docstring is its manual: text as wide as the terminal, commands as they are."""
    width = shutil.get_terminal_size().columns - 2
    manual = "\n\n".join(part if part.startswith("    ") else textwrap.fill(part, width) for part in docstring.split("\n\n"))
    parser = Parser(description=manual, usage="%(prog)s [--config FILE] --flag value ...", allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help=config or "YAML file of flags without dashes; flags here go before it")
    return parser


def _number(kind: Callable[[str], Any], is_good: Callable[[Any], bool], what: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not is_good(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value
    return convert


seconds = _number(float, lambda value: 0 <= value <= LONGEST, f"a number of seconds from 0 to {LONGEST:,}")
duration = _number(float, lambda value: SHORTEST <= value <= LONGEST, f"a number of seconds from {SHORTEST} to {LONGEST:,}")
percentage = _number(float, lambda value: 0 <= value < 100, "a percentage from 0 to below 100")
positive = _number(int, lambda value: 1 <= value < 2**31, "a whole number from 1 to below 2**31")
natural = _number(int, lambda value: 0 <= value < 2**31, "a whole number from 0 to below 2**31")
span = _number(int, lambda value: 1 <= value <= 2**16, "a whole number from 1 to 65536")
few = _number(int, lambda value: 0 <= value <= 2**16, "a whole number from 0 to 65536")
seed = _number(int, lambda value: 0 <= value < 2**63, "a whole number from 0 to below 2**63")
below_one = _number(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
share = _number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
amount = _number(float, lambda value: 0 <= value <= LARGEST, f"a number from 0 to {LARGEST:,}")
above_zero = _number(float, lambda value: 0 < value <= LARGEST, f"a number above 0, up to {LARGEST:,}")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags; those of the --config file first, so that the command line overrides them."""
    argv = list(sys.argv[1:] if argv is None else argv)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    args = parser.parse_args([*(_tokens_of_config(parser, path) if path else ()), *argv])
    for name, value in vars(args).items():
        if any("\0" in str(each) for each in (value if isinstance(value, list) else [value])):  # no file is called so
            raise InputError(f"--{name}: holds a NUL character: leave it out")
    _refuse_output_among_input(args)
    return args


def _refuse_output_among_input(args: argparse.Namespace) -> None:
    corpora = {os.path.realpath(os.path.expanduser(name)) for name in args.dataset_name}
    for flag in ("output_dir", "train_cache_file_name"):
        folder = getattr(args, flag, None)
        if folder and os.path.realpath(folder) in corpora:
            raise InputError(f"--{flag} {folder}: is what --dataset_name reads from: give another folder")


def read_yaml(path: str, flag: str = "--config") -> dict[Any, Any]:
    """The `key: value` lines of a file that a flag names; no key is there twice."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST_CONFIG + 1)
        if len(text) > LARGEST_CONFIG:
            raise InputError(f"{flag} {path}: is longer than {LARGEST_CONFIG:,} characters: is it a file of flags?")
        config = yaml.load(text, _StrictLoader)
    except (OSError, *OF_YAML) as error:
        raise InputError(f"{flag} {path}: cannot be read ({' '.join(str(error).split())[:300]})") from error
    if not isinstance(config or {}, dict):
        raise InputError(f"{flag} {path}: must hold `flag: value` lines")
    return config or {}


def _tokens_of_config(parser: argparse.ArgumentParser, path: str) -> list[str]:
    """The command line that a YAML file stands for, every key and value checked by the parser itself."""
    actions = {action.dest: action for action in parser._actions if action.dest not in ("config", "help")}
    tokens = []
    for key, value in read_yaml(path).items():
        if key not in actions:
            close = difflib.get_close_matches(str(key), actions, n=1)
            raise InputError(f"--config {path}: no flag is called {key!r}" + (f"; is {close[0]!r} meant?" if close else ""))
        _try(parser, of_key := _tokens_of_value(actions[key], value, path), path)
        tokens += of_key
    return tokens


def _tokens_of_value(action: argparse.Action, value: Any, path: str) -> list[str]:
    flag = action.option_strings[0]
    is_switch = action.nargs == 0
    if value is None or (is_switch and value is False):
        return []
    values = value if isinstance(value, list) and action.nargs == "+" else [value]
    if is_switch != isinstance(value, bool) or any(is_switch != isinstance(each, bool) or isinstance(each, (dict, list))
                                                   or each is None for each in values):  # no and null are no words in YAML
        many = "a list or one value" if action.nargs == "+" else "one value"
        shown = "not shown" if action.dest.endswith("token") else reprlib.repr(value)
        wanted = "true or false" if is_switch else f"{many}; words like no and null in quotes"
        raise InputError(f"--config {path}: {action.dest} is {shown}; it takes {wanted}")
    if is_switch:
        return [flag]
    return [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]


def _try(parser: argparse.ArgumentParser, tokens: list[str], path: str) -> None:
    required = [action for action in parser._actions if action.required]
    try:
        for action in required:
            action.required = False
        parser.parse_args(tokens)
    except InputError as error:
        raise InputError(f"--config {path}: {error}") from error
    finally:
        for action in required:
            action.required = True


class _StrictLoader(yaml.SafeLoader):
    """YAML that does not take the last of two equal keys in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        times = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = [key for key, count in times.items() if count > 1]
        if twice:
            raise yaml.YAMLError(f"{twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)


def options_of(kind: type[Options], args: argparse.Namespace) -> Options:
    """The dataclass whose fields are flags; lists become tuples."""
    values = {each.name: getattr(args, each.name) for each in fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def run_as_script(main: Callable[[], Any]) -> NoReturn:
    """Run main and end as users expect: faults of theirs in one line with code 2, a signal cleanly, bugs with a traceback."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("wavtrain").setLevel(logging.INFO)  # ours; libraries have their say from warnings on
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        main()
    except InputError as error:
        _end(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted; what is finished is kept, the same command goes on", 130)
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        place = f": {error.filename}" if error.filename else ""
        _end(f"error: {error.strerror}{place}; what is finished is kept, the same command goes on", 1)
    except SystemExit as left:
        leave(left.code)
    leave(0)


def _end(what: str, code: int) -> NoReturn:
    """Control characters of file names do not reach the terminal."""
    print(f"{os.path.basename(sys.argv[0])}:", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in what), file=sys.stderr)
    leave(code)

"""What every command shares: the command line made from a schema, one-line errors, exit codes.

stdout carries data only (the asked-for text, or JSON lines); words for people go to stderr. Exit codes:
0 done, 2 a mistake of the user (said in one line each), 130 and 143 stopped by Ctrl-C and by SIGTERM, 141 the
reader of stdout has gone.
Importing this module loads neither torch nor numpy, so that `--help` and `--print-config` answer at once.
"""

import argparse
import contextlib
import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from cli.out_of_memory import out_of_memory_message
from cli.progress import say, speaks
from config.io import load_config, to_json
from config.schemas import Config
from transformerlm.hparams import Section
from transformerlm.utils.errors import ConfigError, TransformerLMError

ConfigType = TypeVar("ConfigType", bound=Config)

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

_OUTSIDE_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT,
    errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EMFILE, errno.EFBIG,
}  # fmt: skip
"""Errors of the operating system that a user can mend; others keep their traceback."""


@dataclass(frozen=True)
class Invocation(Generic[ConfigType]):
    """A parsed command line: the configuration, and which settings were typed rather than read."""

    config: ConfigType
    config_path: Path | None
    overridden: frozenset[tuple[str, str]]


def run_command(
    schema: type[ConfigType],
    action: Callable[[Invocation[ConfigType]], int],
    *,
    prog: str,
    epilog: str = "",
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `argv`, run `action`, and return the exit code; a user's mistake becomes one line on stderr each."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        invocation, print_config = parse_command_line(schema, prog=prog, epilog=epilog, argv=argv)
        if print_config:
            print(to_json(invocation.config))
            return EXIT_OK
        code = action(invocation)
        sys.stdout.flush()  # here, where a reader that has gone is still handled
        return code
    except TransformerLMError as error:
        for line in str(error).splitlines():
            say(f"error: {line}")
        return EXIT_USER_ERROR
    except BrokenPipeError:
        # The reader of stdout has gone, as in `| head -1`: nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if (message := out_of_memory_message(error, prog)) is not None:
            say(f"error: {message}")
            return EXIT_USER_ERROR
        if error.errno not in _OUTSIDE_ERRORS:
            raise
        name = error.filename2 or error.filename or prog  # of a rename, where it was to go
        say(f"error: {name}: {error.strerror}")
        return EXIT_USER_ERROR
    except (MemoryError, RuntimeError, ImportError) as error:
        message = out_of_memory_message(error, prog)
        if message is None:
            raise
        say(f"error: {message}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    """Leave through every `finally`, so that temporary files and worker processes go too."""
    raise SystemExit(EXIT_TERMINATED)


def parse_command_line(
    schema: type[ConfigType], *, prog: str, epilog: str = "", argv: Sequence[str] | None = None
) -> tuple[Invocation[ConfigType], bool]:
    """Return the checked configuration, and whether it is only to be printed.

    Raises `ConfigError` listing every problem of the file and of the command line.
    """
    parser = make_parser(schema, prog=prog, epilog=epilog)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    arguments = [_with_dashes(argument, flags) for argument in (sys.argv[1:] if argv is None else argv)]
    known, unknown = parser.parse_known_args(arguments)
    values = vars(known)
    path, print_config = values.pop("config"), values.pop("print_config")
    overrides = {_split(name): value for name, value in values.items()}
    overrides |= _unknown_overrides(unknown, parser)
    config = load_config(schema, path, overrides)
    return Invocation(config, path, frozenset(overrides)), print_config


def make_parser(schema: type[Config], *, prog: str, epilog: str = "") -> argparse.ArgumentParser:
    """Return a parser with one option per setting of the schema."""
    parser = _Parser(
        prog=prog, usage=f"{prog} [--config X.toml] [--print-config] [--table.key VALUE ...]",
        description=schema.__doc__, epilog=epilog, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    parser.add_argument("--config", type=Path, default=None, metavar="X.toml", help="read the settings of this file")
    parser.add_argument(
        "--print-config", action="store_true", default=False, help="print the resolved settings as JSON and stop"
    )
    for table, table_field in schema.model_fields.items():
        section = table_field.annotation
        assert isinstance(section, type) and issubclass(section, Section)
        title = (section.__doc__ or "").split("\n\n")[0]
        group = parser.add_argument_group(f"[{table}]", title)
        defaults = None if table_field.is_required() else table_field.get_default(call_default_factory=True)
        for key, field in section.model_fields.items():
            default = _default_text(field, key, defaults)
            _add_option(group, f"{table}.{key}", field, default)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are those of any other setting: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message} (a value that begins with a dash needs =, as in --table.key=-1)")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """Turn Ctrl-C and SIGTERM into a request while the context is open.

    Yields a function that gives the exit code asked for, or None. A second Ctrl-C interrupts at once.
    """
    requested: list[int] = []

    def request(number: int, _frame: FrameType | None) -> None:
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested.append(number)
        if speaks():  # by os.write, since a handler may interrupt a print to the same stream
            os.write(2, b"\nstopping after this step (Ctrl-C again: at once, without saving)\n")

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: 128 + requested[0] if requested else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _add_option(group: Any, name: str, field: FieldInfo, default: str) -> None:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    flags = [str(extra["flag"])] if "flag" in extra else []
    flags.append("--" + name.replace("_", "-"))
    types = _leaf_types(field.annotation)
    help_text = f"{field.description} {default}".replace("%", "%%")
    convert = _converter(types)
    if tuple in types and len(flags) > 1:  # texts, one a flag: words that someone forgot to quote must not count
        group.add_argument(*flags, dest=name, action="append", type=convert, metavar="X", help=help_text)
    elif tuple in types:
        group.add_argument(*flags, dest=name, nargs="+", action="extend", type=convert, metavar="X", help=help_text)
    elif types == {bool}:
        group.add_argument(*flags, dest=name, nargs="?", const=True, type=convert, metavar="BOOL", help=help_text)
    else:
        metavar = "|".join(sorted(kind.__name__.upper() for kind in types if kind is not NoneType))
        group.add_argument(*flags, dest=name, type=convert, metavar=metavar, help=help_text)


def _leaf_types(annotation: Any) -> set[type]:
    """Return the plain types that a setting's annotation admits; a tuple stands with its elements."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _leaf_types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*(_leaf_types(part) for part in get_args(annotation)))
    if origin is tuple:
        return {tuple} | _leaf_types(get_args(annotation)[0])
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    return {annotation}


def _converter(types: set[type]) -> Callable[[str], Any]:
    """Return a function from a word of the command line to a value; what does not fit stays a word.

    The schema then reports it together with all other problems.
    """

    def convert(word: str) -> Any:
        if not word.isprintable() and any("\ud800" <= character <= "\udfff" for character in word):
            raise argparse.ArgumentTypeError("is not valid UTF-8")
        if NoneType in types and word.lower() in ("none", "null"):
            return None
        if bool in types and word.lower() in ("true", "false"):
            return word.lower() == "true"
        for number in (int, float):
            if number in types:
                try:
                    return number(word)
                except ValueError:
                    continue
        return word

    return convert


def _default_text(field: FieldInfo, key: str, defaults: Any) -> str:
    if defaults is not None and key in defaults.model_fields_set:
        value = getattr(defaults, key)
    elif field.is_required():
        return "(required)"
    elif field.default_factory is not None:
        return ""
    else:
        value = field.default
    if value in (None, (), ""):
        return ""
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"(default: {text.lower() if isinstance(value, bool) else text})"


def _with_dashes(argument: str, flags: Set[str]) -> str:
    """Accept `--training.batch_size` as well as `--training.batch-size`; leave other words alone."""
    name, equals, value = argument.partition("=")
    dashed = name.replace("_", "-")
    return dashed + equals + value if dashed in flags else argument


def _split(name: str) -> tuple[str, str]:
    table, _, key = name.partition(".")
    return table, key


def _unknown_overrides(words: list[str], parser: argparse.ArgumentParser) -> dict[tuple[str, str], Any]:
    """Pass `--table.key value` on, for the schema to name its neighbour; refuse anything else here."""
    overrides: dict[tuple[str, str], Any] = {}
    known = [flag for action in parser._actions for flag in action.option_strings]
    for position, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.startswith("--") and "." in name:
            following = words[position + 1] if position + 1 < len(words) else ""
            overrides[_split(name[2:].replace("-", "_"))] = value or following
        elif name.startswith("-") or position == 0:
            nearest = difflib.get_close_matches(name, known, n=1) if name.startswith("-") else []
            hint = f"; did you mean {nearest[0]}?" if nearest else "; see --help"
            raise ConfigError(f"command line: {name}: unknown option{hint}")
    return overrides

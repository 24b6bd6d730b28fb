"""Shared by all commands: command-line parsing from a schema, one-line errors, exit codes.

stdout carries data only (generated text or JSON lines); messages go to stderr. Exit codes:
0 success, 2 user error (one line per problem), 130 and 143 stopped by Ctrl-C and by SIGTERM, 141 stdout was
closed by its reader.
Importing this module loads neither torch nor numpy, so that `--help` and `--print-config` answer at once.
"""

import argparse
import contextlib
import difflib
import errno
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from cli.out_of_memory import out_of_memory_message
from cli.progress import say, speaks
from config.io import COMMAND_LINE, choices_of, load_config, section_of, settings_named, to_json
from config.schemas import Config
from transformerlm import __version__
from transformerlm.utils.errors import ConfigError, TransformerLMError, TransformerLMWarning

ConfigType = TypeVar("ConfigType", bound=Config)

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

_OUTSIDE_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT,
    errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EMFILE, errno.EFBIG,
}  # fmt: skip
"""Operating system errors that a user can fix; others keep their traceback."""


_LIST_IN_A_WORD = re.compile(r"""\[\s*["'].*["']\s*\]|\[.*,.*\]""")
"""A list as in JSON or Python, or with its quotes removed by the shell."""


@dataclass(frozen=True)
class Invocation(Generic[ConfigType]):
    """A parsed command line: the configuration, and which settings were given on the command line."""

    config: ConfigType
    config_path: Path | None
    overridden: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class CommandLine(Generic[ConfigType]):
    """A parsed command line whose values are not checked yet."""

    schema: type[ConfigType]
    config_path: Path | None
    overrides: dict[tuple[str, str], Any]
    print_config: bool

    def load(self) -> Invocation[ConfigType]:
        """Return the checked configuration; raise `ConfigError` listing all problems."""
        config = load_config(self.schema, self.config_path, self.overrides)
        return Invocation(config, self.config_path, frozenset(self.overrides))

    def print_settings(self) -> None:
        """Print the resolved settings as JSON. Without a file, settings without a default may be missing."""
        config = load_config(self.schema, self.config_path, self.overrides, incomplete=self.config_path is None)
        missing = [
            f"{table}.{key}"
            for table in self.schema.model_fields
            for key, field in type(getattr(config, table)).model_fields.items()
            if field.is_required() and not hasattr(getattr(config, table), key)
        ]
        if missing:
            say(f"without a default, null below: {', '.join(missing)}")
        print(to_json(config))


def run_command(
    schema: type[ConfigType],
    action: Callable[[Invocation[ConfigType]], int],
    *,
    prog: str,
    epilog: str = "",
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `argv`, run `action`, and return the exit code; user errors become one line each on stderr."""
    before = signal.signal(signal.SIGTERM, _terminate), warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        words = parse_command_line(schema, prog=prog, epilog=epilog, argv=argv)
        if words.print_config:
            words.print_settings()
            return EXIT_OK
        code = action(words.load())
        sys.stdout.flush()  # here, where a closed pipe is still handled
        return code
    except TransformerLMError as error:
        for line in str(error).splitlines():
            say(f"error: {line}")
        return EXIT_USER_ERROR
    except BrokenPipeError:
        # The reader of stdout has exited, as in `| head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if (message := out_of_memory_message(error, prog)) is not None:
            say(f"error: {message}")
            return EXIT_USER_ERROR
        if error.errno not in _OUTSIDE_ERRORS:
            raise
        name = error.filename2 or error.filename or prog  # for a rename, its target
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
        signal.signal(signal.SIGTERM, before[0])
        warnings.showwarning = before[1]


def _show_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Print the project's own warnings as one line, and others as Python does."""
    if issubclass(category, TransformerLMWarning):
        say(f"warning: {message}")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, *place[:2]))


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    """Exit by an exception, so every `finally` removes temporary files and worker processes."""
    raise SystemExit(EXIT_TERMINATED)


def parse_command_line(
    schema: type[ConfigType], *, prog: str, epilog: str = "", argv: Sequence[str] | None = None
) -> CommandLine[ConfigType]:
    """Parse a command line into values per setting; raise `ConfigError` if it cannot be parsed."""
    parser = make_parser(schema, prog=prog, epilog=epilog)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    arguments = [_with_dashes(argument, flags) for argument in (sys.argv[1:] if argv is None else argv)]
    known, unknown = parser.parse_known_args(arguments)
    values = vars(known)
    path, print_config = values.pop("config"), values.pop("print_config")
    overrides = {_split(name): value for name, value in values.items()}
    overrides |= _unknown_overrides(unknown, parser, schema)
    _check_lists(schema, overrides)
    return CommandLine(schema, path, overrides, print_config)


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
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    for table, table_field in schema.model_fields.items():
        section = section_of(schema, table)
        title = (section.__doc__ or "").split("\n\n")[0]
        group = parser.add_argument_group(f"[{table}]", title)
        defaults = None if table_field.is_required() else table_field.get_default(call_default_factory=True)
        for key, field in section.model_fields.items():
            default = _default_text(field, key, defaults)
            _add_option(group, f"{table}.{key}", field, default)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that raises `ConfigError` with one line, instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message} (a value that begins with a dash needs =, as in --table.key=-1)")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """Turn Ctrl-C and SIGTERM into a stop request while the context is open.

    Yields a function that returns the requested exit code, or None. A second Ctrl-C interrupts at once.
    """
    requested: list[int] = []

    def request(number: int, _frame: FrameType | None) -> None:
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested.append(number)
        if speaks():  # os.write, since the handler may interrupt a print to the same stream
            os.write(2, b"\nstopping after this step (Ctrl-C again: at once, without saving)\n")

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: 128 + requested[0] if requested else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _add_option(group: Any, name: str, field: FieldInfo, default: str) -> None:
    extra = _extra(field)
    flags = [str(extra["flag"])] if "flag" in extra else []
    flags.append("--" + name.replace("_", "-"))
    types, choices = _leaf_types(field.annotation), "|".join(choices_of(field.annotation))
    help_text = f"{field.description} {default}".replace("%", "%%")
    convert = _converter(types)
    if tuple in types and len(flags) > 1:  # one text per flag, so unquoted words are an error
        group.add_argument(*flags, dest=name, action="append", type=convert, metavar="X", help=help_text)
    elif tuple in types:
        metavar = choices or "X"
        group.add_argument(*flags, dest=name, nargs="+", action="extend", type=convert, metavar=metavar, help=help_text)
    elif types == {bool}:
        group.add_argument(*flags, dest=name, nargs="?", const=True, type=convert, metavar="BOOL", help=help_text)
    else:
        metavar = choices or "|".join(sorted(kind.__name__.upper() for kind in types if kind is not NoneType))
        group.add_argument(*flags, dest=name, type=convert, metavar=metavar, help=help_text)


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _leaf_types(annotation: Any) -> set[type]:
    """Return the plain types that a setting's annotation allows: for a tuple, `tuple` and its element types."""
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
    """Return a function that converts a command-line word to a value; a word that does not fit stays a string.

    The schema then reports it with all other problems.
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


def _check_lists(schema: type[Config], overrides: Mapping[tuple[str, str], Any]) -> None:
    """Raise `ConfigError` for lists given as one word, as in JSON or with commas."""
    problems = []
    for (table, key), value in overrides.items():
        option = f"--{table}.{key}".replace("_", "-")
        field = section_of(schema, table).model_fields[key] if isinstance(value, list) else None
        if field is None or "flag" in _extra(field):  # one text per flag, as it is
            continue
        takes_any_text = _leaf_types(field.annotation) & {str, Path} and not choices_of(field.annotation)
        for word in value:
            if isinstance(word, str) and (_LIST_IN_A_WORD.fullmatch(word) if takes_any_text else "," in word):
                items = " ".join(shlex.quote(item.strip(" \"'")) for item in word.strip("[] ").split(","))
                problems.append(
                    f"{COMMAND_LINE}: {table}.{key}: a list is typed as separate words, {option} {items} (got {word!r})"
                )
    if problems:
        raise ConfigError("\n".join(problems))


def _unknown_overrides(
    words: list[str], parser: argparse.ArgumentParser, schema: type[Config]
) -> dict[tuple[str, str], Any]:
    """Pass unknown `--table.key value` on to the schema, which suggests a setting; reject anything else."""
    overrides: dict[tuple[str, str], Any] = {}
    known = [flag for action in parser._actions for flag in action.option_strings]
    for position, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.startswith("--") and "." in name:
            following = words[position + 1] if position + 1 < len(words) else ""
            overrides[_split(name[2:].replace("-", "_"))] = value or following
        elif name.startswith("-") or position == 0:
            settings = settings_named(schema, name.lstrip("-").replace("-", "_")) if name.startswith("-") else []
            options = [f"--{setting}".replace("_", "-") for setting in settings]
            options = options or (difflib.get_close_matches(name, known, n=1) if name.startswith("-") else [])
            hint = f"; did you mean {' or '.join(options)}?" if options else "; see --help"
            raise ConfigError(f"command line: {name}: unknown option{hint}")
    return overrides

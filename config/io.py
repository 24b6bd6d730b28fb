"""Read a configuration, check all of it, write it back.

All problems are collected before any is reported: unknown keys and wrong types of every table, then conflicts
within a table and, if all tables are valid, conflicts between tables.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError

from config.schemas import Config
from transformerlm.hparams import Section
from transformerlm.hparams.section import describe_errors, describe_problem
from transformerlm.utils.errors import ConfigError

ConfigType = TypeVar("ConfigType", bound=Config)

COMMAND_LINE = "command line"

OTHER_NAMES = {
    "lr": "schedule.max_learning_rate",
    "learning_rate": "schedule.max_learning_rate",
    "min_lr": "schedule.min_learning_rate",
    "warmup_steps": "schedule.warmup_iters",
    "max_iters": "training.steps",
    "max_steps": "training.steps",
    "grad_clip": "training.max_grad_norm",
    "block_size": "model.context_length",
    "max_seq_len": "model.context_length",
    "hidden_size": "model.d_model",
    "n_embd": "model.d_model",
    "n_head": "model.num_heads",
    "n_layer": "model.num_layers",
    "max_tokens": "sampling.max_new_tokens",
}
"""Names that other projects use for some settings."""


def load_config(
    schema: type[ConfigType],
    path: Path | None,
    overrides: Mapping[tuple[str, str], Any] | None = None,
    *,
    incomplete: bool = False,
) -> ConfigType:
    """Return the configuration of `path` (all defaults if None) with `overrides` by (table, key).

    With `incomplete`, settings without a default may be missing; the result can only be printed (`to_json`).

    Raises `ConfigError` with one line per problem, `file: table.key: message (got …)`.
    """
    tables = read_toml(path) if path is not None else {}
    tables_of_file = set(tables)
    overrides = overrides or {}
    for (table, key), value in overrides.items():
        section = tables.setdefault(table, {})
        if isinstance(section, dict):
            section[key] = value

    def origin(table: str, key: str) -> str:
        setting = (table, key.partition(".")[0])  # in a list, the key is followed by the item's index
        typed = setting in overrides if key else table not in tables_of_file
        return COMMAND_LINE if path is None or typed else str(path)

    sections, problems = _check_tables(schema, tables, incomplete=incomplete)
    if incomplete and not problems:
        return schema.model_construct(None, **sections)
    if len(sections) == len(schema.model_fields):  # every table has been read, but may be invalid
        config = schema(**sections)
        for problem in config.problems():
            table, key = problem.key.split(".", 1)
            is_given = key in tables.get(table, {})
            problems.append((table, key, describe_problem(problem, is_given=is_given)))
        if not problems:
            return config
    raise ConfigError(
        "\n".join(f"{origin(table, key)}: {_dotted(table, key)}: {text}" for table, key, text in problems)
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file; `ConfigError` says why it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; the shipped ones are in config/resources") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None


def to_toml(config: BaseModel) -> str:
    """Return the configuration as TOML; unset settings (None) are left out."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def to_json(config: Config) -> str:
    """Return the configuration as indented JSON; missing and unset settings are null."""
    dumped = config.model_dump(mode="json", warnings=False)
    sections = {name: type(getattr(config, name)).model_fields for name in dumped}
    tables = {name: {key: dumped[name].get(key) for key in fields} for name, fields in sections.items()}
    return json.dumps(tables, indent=2, ensure_ascii=False, allow_nan=False)


def settings_named(schema: type[Config], key: str) -> list[str]:
    """Return the settings, as `table.key`, that are called `key` here or, if none is, in other projects."""
    tables = schema.model_fields
    named = [f"{table}.{key}" for table in tables if key in section_of(schema, table).model_fields]
    other = OTHER_NAMES.get(key, "")
    return named or [other] * (other.partition(".")[0] in tables)


_Problems = list[tuple[str, str, str]]


def section_of(schema: type[Config], table: str) -> type[Section]:
    """Return the type of a table's settings."""
    section = schema.model_fields[table].annotation
    assert isinstance(section, type) and issubclass(section, Section)
    return section


def _check_tables(
    schema: type[Config], tables: Mapping[str, Any], *, incomplete: bool
) -> tuple[dict[str, Section], _Problems]:
    """Validate each table by itself, so that one table's mistakes do not hide another's."""
    sections: dict[str, Section] = {}
    problems: _Problems = []
    for name in tables:
        if name not in schema.model_fields:
            problems.append((name, "", f"unknown table{_suggestion(schema, name, schema.model_fields)}"))
    completed_later = schema.completed_later(tables)
    for name, field in schema.model_fields.items():
        section_type = section_of(schema, name)
        if name not in tables and not field.is_required():
            sections[name] = field.get_default(call_default_factory=True)
            continue
        values = tables.get(name, {})
        if not isinstance(values, dict):
            problems.append((name, "", f"should be a table (got {values!r})"))
            continue
        values = _with_table_defaults(field, values)
        try:
            section = section_type.model_validate(values)
        except ValidationError as error:
            found = describe_errors(
                error,
                section_type,
                suggest=lambda key, known=section_type.model_fields: _suggestion(schema, key, known),
                allow_missing=incomplete,
            )
            described = [(name, *pair) for pair in found]
            problems.extend(described)
            if not described:
                sections[name] = section_type.model_construct(**values)
            continue
        sections[name] = section
        if name not in completed_later:
            problems.extend((name, p.key, describe_problem(p, is_given=p.key in values)) for p in section.problems())
    return sections, problems


def _with_table_defaults(field: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Add the values that a schema sets for a table beyond the section's own defaults."""
    if field.is_required():
        return values
    default = field.get_default(call_default_factory=True)
    return {**default.model_dump(exclude_unset=True), **values}


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the words that a `Literal` in an annotation allows, also inside a list; otherwise nothing."""
    if get_origin(annotation) is Literal:
        return tuple(str(value).lower() if isinstance(value, bool) else str(value) for value in get_args(annotation))
    return tuple(word for part in get_args(annotation) for word in choices_of(part))


def _suggestion(schema: type[Config], name: str, known: Mapping[str, Any]) -> str:
    likely = settings_named(schema, name) or difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {' or '.join(likely)}?" if likely else f"; known are {', '.join(known)}"


def _dotted(table: str, key: str) -> str:
    return f"{table}.{key}" if key else table


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value

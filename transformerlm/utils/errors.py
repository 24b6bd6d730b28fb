"""The errors a user can cause. A command prints any of them as one line and exits with code 2."""


class TransformerLMError(ValueError):
    """The root: something given from outside is wrong, and the message says what to do about it."""


class ConfigError(TransformerLMError):
    """A setting is unknown, has the wrong type, or does not fit the others."""


class DataError(TransformerLMError):
    """A text source, a token file or its sidecar is missing, damaged or does not fit."""


class TokenizerError(TransformerLMError):
    """A vocabulary or merges file is malformed, or a text or an id does not fit the vocabulary."""


class CheckpointError(TransformerLMError):
    """A checkpoint is missing, damaged or does not fit the model it is loaded into."""


class InteropError(TransformerLMError):
    """A file of another project's format is malformed, or holds what cannot be expressed on the other side."""


class WorkerError(TransformerLMError):
    """A worker process died before it finished its task."""


class PeerError(TransformerLMError):
    """Another of the processes that train together has failed."""


class MissingDependencyError(TransformerLMError):
    """An optional package is not installed; the message is the command that installs it."""


class TransformerLMWarning(UserWarning):
    """Something a user should know, though the work goes on. A command prints it as one line."""


def require_list(name: str, value: object) -> None:
    """Raise `TypeError` for a single text where a list is wanted; Python would take its characters for the items."""
    if isinstance(value, str | bytes):
        raise TypeError(f"{name} is one text, {value!r:.60}; give a list")


def shown(value: object) -> str:
    """Return what a file says, in a form that is safe to print and not too long; a plain name stays as it is."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"

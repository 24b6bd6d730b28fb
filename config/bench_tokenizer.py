"""The configuration of `transformerlm-bench-tokenizer`."""

from pydantic import Field

from config.schemas import BUILTIN_STORIES, Config
from transformerlm.hparams import PathSetting, Section, Strings


class BenchTokenizerSection(Section):
    """The measurement."""

    sources: Strings = Field(
        default=(BUILTIN_STORIES,),
        min_length=1,
        description=f"Text files, globs or folders; '{BUILTIN_STORIES}' is the built-in corpus.",
    )
    megabytes: float = Field(
        default=4.0, gt=0, description="Text measured, in MB (10^6 bytes): the first of the sources."
    )
    tokenizer: PathSetting | None = Field(
        default=None, description="Folder of the tokenizer to measure (unset: the one that the training run makes)."
    )
    vocab_size: int = Field(default=4096, ge=257, description="Entries of the tokenizer that is trained.")
    workers: int = Field(default=0, ge=0, description="Processes in training (0: one a core).")
    warmup: int = Field(default=1, ge=0, description="Runs before the measurement.")
    repeats: int = Field(default=3, gt=0, description="Measured runs.")


class BenchTokenizerConfig(Config):
    """Measure tokenizer training, encoding and decoding."""

    benchmark: BenchTokenizerSection = Field(default_factory=BenchTokenizerSection)

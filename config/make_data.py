"""The configuration of `transformerlm-make-data`."""

from collections.abc import Iterator

from config.schemas import Config, DatasetInputSection, DatasetOutputSection
from transformerlm.hparams import Problem


class MakeDataConfig(Config):
    """Turn text into token files."""

    input: DatasetInputSection
    output: DatasetOutputSection

    def problems(self) -> Iterator[Problem]:
        splits = bool(self.input.valid_sources) or self.input.valid_fraction > 0
        if self.output.valid is None and self.input.valid_sources:
            yield Problem("output.valid", "must be given, since input.valid_sources is", None)
        if self.output.valid is not None and not splits:
            yield Problem(
                "input.valid_fraction", "must be above 0, since output.valid is given", self.input.valid_fraction
            )

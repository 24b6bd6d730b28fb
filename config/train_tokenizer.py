"""The configuration of `transformerlm-train-tokenizer`."""

from config.schemas import Config, InputSection, TokenizerTrainingSection


class TrainTokenizerConfig(Config):
    """Train a byte-level BPE tokenizer on text."""

    input: InputSection
    tokenizer: TokenizerTrainingSection

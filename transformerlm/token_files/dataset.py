"""A token file as a run or an evaluation uses it: its ids, memory-mapped, and its index."""

from dataclasses import dataclass
from pathlib import Path

from transformerlm.token_files.index import TokenFileInfo, read_info, verify_data
from transformerlm.token_files.stream import TokenStream
from transformerlm.utils.errors import DataError


@dataclass(frozen=True)
class TokenDataset:
    """A token file of one or many shards, memory-mapped, with its sidecar."""

    path: Path
    tokens: TokenStream
    info: TokenFileInfo

    @classmethod
    def open(cls, path: Path, *, context_length: int, verify: bool = True) -> "TokenDataset":
        """Open `path`; raise `DataError` if it is damaged or holds not even one window."""
        info = read_info(path)
        if verify:
            verify_data(path, info)
        if info.num_tokens < context_length + 1:
            raise DataError(
                f"{path}: has {info.num_tokens} tokens, fewer than one window of context_length + 1 = "
                f"{context_length + 1}; use more text or a smaller model.context_length"
            )
        return cls(path, TokenStream.open(path, info), info)

    def bytes_per_token(self) -> float:
        """Return how many bytes of text a token stands for, on average."""
        return self.info.num_text_bytes / self.info.num_tokens

"""From text files to token files: an external sort of documents by the hash of their text.

`dataset_builder` has the picture of its two phases; `build` runs them.
"""

from databuilder.dataset_builder import BuildReport, build_dataset, count_total_tokens
from databuilder.sources import resolve_sources

__all__ = ["BuildReport", "build_dataset", "count_total_tokens", "resolve_sources"]

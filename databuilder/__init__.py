"""From text files to token files: find the sources, cut them into documents, encode, describe."""

from databuilder.dataset_builder import BuildReport, build_dataset, count_total_tokens
from databuilder.sources import resolve_sources

__all__ = ["BuildReport", "build_dataset", "count_total_tokens", "resolve_sources"]

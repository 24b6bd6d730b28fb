"""A seeded generator of simple children's stories: the corpus that the quick start trains on.

Every story is written by a small grammar out of plots, paraphrases and themed word lists that were made for this
project. It is an honest stand-in for a real corpus: enough to show a small model learning grammar, dialogue and
keeping to a topic, with no download. How to add a plot: see `plots.py`; how to add words: see `lexicon.py`.
"""

from databuilder.stories.generate import generate_stories, generator_version, write_corpus, write_story
from databuilder.stories.overlap import ngram_overlap

__all__ = ["generate_stories", "generator_version", "ngram_overlap", "write_corpus", "write_story"]

"""The one place that wraps a model: precision, attention kernel, activation checkpointing, compilation.

A model is plain mathematics. It is made fast on a device here, from outside and in place, so that the names in its
state dict do not change.
"""

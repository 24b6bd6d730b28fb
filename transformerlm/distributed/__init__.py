"""The one place that wraps a model: precision, attention kernel, activation checkpointing, compilation.

A model is plain mathematics. What makes it fast on a device is done to it here, from outside and in place, so that
the names in its state dict stay those of the plain model.
"""

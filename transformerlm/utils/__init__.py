"""Errors, atomic files, token files, dtypes and devices: what every other part stands on."""

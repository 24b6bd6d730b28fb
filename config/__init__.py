"""Configurations: one frozen schema a command, read from TOML and the command line, checked as a whole.

`schemas` holds the tables that only the application knows, `train`, `infer` … the configuration of one
command each, `io` reads and writes them, `resources/` has the TOML files that ship.
"""

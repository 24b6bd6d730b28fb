"""The commands: each parses its configuration once, builds the parts, and owns stdout, stderr and the exit code."""

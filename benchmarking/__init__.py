"""Measurements kept as code: every claim of speed is a command here, with its peer timed in the same run.

`bench_infer_latency` times prefill and decoding, `bench_tokenizer` times tokenizer training, encoding and
decoding. Each prints a table for people on stderr and exactly one line of JSON on stdout. `RESULTS.md` holds
what they gave, on which machine. Importing these modules imports neither torch nor numpy.
"""

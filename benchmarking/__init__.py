"""Measurements kept as code: every claim of speed is a command here, with its peer timed in the same run.

`bench_infer_latency` times prefill and decoding, `bench_tokenizer` times tokenizer training, encoding and
decoding. `bench_make_data` and `bench_train` time the data builder
and the training step. Each prints a table on stderr and exactly one line of JSON on stdout. `RESULTS.md` holds the
results and names the machines. Importing these modules imports neither torch nor numpy.
"""

"""How good a model is: held-out loss and bits per byte, multiple choice, lm-evaluation-harness."""

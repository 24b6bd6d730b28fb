"""A Transformer language model from scratch: tokenizer, model, training and inference.

Importing the package is cheap: it loads neither torch nor numpy. The parts are imported by name,
`from transformerlm.models import TransformerLM`.
"""

__version__ = "0.1.0"

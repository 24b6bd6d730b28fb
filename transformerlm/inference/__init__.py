"""From a model and a prompt of token ids to new tokens.

`sampling` turns logits into a token, `generate` is the plain loop without a cache, and `engine` the fast one with it,
for many requests at once, whose tokens `batch_sampling` draws. These know ids only; `predictor`, `text` and
`stopping` deal with text.
"""

from transformerlm.inference.engine import Engine, NewToken, Request
from transformerlm.inference.generate import generate
from transformerlm.inference.logprobs import TokenLogprobs
from transformerlm.inference.sampling import sample_token, softmax, top_k_filter, top_p_filter

__all__ = [
    "softmax",
    "top_p_filter",
    "top_k_filter",
    "sample_token",
    "generate",
    "Engine",
    "Request",
    "NewToken",
    "TokenLogprobs",
]

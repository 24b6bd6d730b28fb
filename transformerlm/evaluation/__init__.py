"""Evaluate models: held-out loss and bits per byte, multiple choice, lm-evaluation-harness.

    evaluator = Evaluator.from_checkpoint("runs/stories")
    print(evaluator.token_file("data/stories/valid.dat").bits_per_byte)

`harness` is not imported here: it needs the extra `eval`.
"""

from transformerlm.evaluation.choices import MultipleChoice, Question, read_questions
from transformerlm.evaluation.evaluator import Evaluator
from transformerlm.evaluation.held_out import HeldOut

__all__ = ["Evaluator", "HeldOut", "MultipleChoice", "Question", "read_questions"]

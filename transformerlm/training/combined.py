"""Several optimizers as one."""

from typing import Any

from torch.optim.optimizer import Optimizer


class CombinedOptimizer(Optimizer):
    """Optimizers of separate parameters that step, save and load as one.

        param_groups   [hidden, embeddings, vectors]      one list: a learning rate set in it reaches the part
        parts          Muon ─┘       └── AdamW ──┘        do the work on their groups
        state          {parameter: …}                     one dictionary, which the parts share

    The parts keep their own rules for settings and state; `state_dict()` has the format of any optimizer.
    """

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, **options: Any) -> None:  # type: ignore[override]
        """Take a step of every part, with the same `options`."""
        for part in self.parts:
            part.step(**options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict()`, bit for bit; raise `ValueError`, and load nothing, if it does not fit."""
        groups = state_dict["param_groups"]
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"the state has {len(groups)} groups of parameters, the optimizer {len(self.param_groups)}"
            )
        try:
            for part in self.parts:
                own, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
                names = {name for group in own for name in group["params"]}
                state = {name: saved for name, saved in state_dict["state"].items() if name in names}
                part.load_state_dict({"state": state, "param_groups": own})
            self.param_groups = [group for part in self.parts for group in part.param_groups]
            self.state.clear()
            for part in self.parts:
                self.state.update(part.state)
        finally:
            self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]

"""Adam for the training of heads, without the seconds that `torch.optim.Adam` takes to be made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch.optim.adam import adam

BETAS, EPS = (0.9, 0.999), 1e-8  # of torch.optim.Adam


class Adam:
    """The steps of `torch.optim.Adam` with its defaults, to the same bits, by PyTorch's function for one step.

    The class of PyTorch loads torch's compiler (torch._dynamo) when it is made: 3 s before the first step of a head.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, lr: float) -> None:
        """parameters: what `step` changes. lr: the learning rate."""
        self.lr = lr
        self._parameters = list(parameters)
        self._moments: dict[int, dict[str, torch.Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients; one without a gradient stays as it is."""
        numbers = [number for number, parameter in enumerate(self._parameters) if parameter.grad is not None]
        parameters: list[torch.Tensor] = [self._parameters[number] for number in numbers]
        for number, parameter in zip(numbers, parameters, strict=True):
            if number not in self._moments:
                self._moments[number] = {
                    "step": torch.tensor(0.0, dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
        moments = [self._moments[number] for number in numbers]
        adam(
            parameters, [parameter.grad for parameter in parameters if parameter.grad is not None],
            [one["exp_avg"] for one in moments], [one["exp_avg_sq"] for one in moments], [],
            [one["step"] for one in moments],
            amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=self.lr, weight_decay=0.0, eps=EPS, maximize=False,
        )  # fmt: skip

    def moments(self) -> dict[int, dict[str, torch.Tensor]]:
        """Return `step`, `exp_avg` and `exp_avg_sq` of each parameter that took a step, by its number."""
        return self._moments

    def load_moments(self, moments: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
        """Go on from saved moments. Raises ValueError when they are not those of these parameters."""
        loaded = {}
        for number, values in moments.items():
            if number >= len(self._parameters) or set(values) != {"step", "exp_avg", "exp_avg_sq"}:
                raise ValueError(f"no parameter has the moments {number}: {', '.join(sorted(values))}")
            parameter = self._parameters[number]
            if any(values[name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq")):
                raise ValueError(f"moments {number} are not of the shape {tuple(parameter.shape)} of their parameter")
            loaded[number] = {"step": values["step"].to("cpu", torch.float32)} | {
                name: values[name].to(parameter.device, parameter.dtype) for name in ("exp_avg", "exp_avg_sq")
            }
        self._moments = loaded

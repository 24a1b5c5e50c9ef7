"""Training weights that are held in bf16 alone: no fp32 masters, hardly any optimizer state, and gradients that never
exist all at once.

- An update adds to a weight less than bf16 can tell apart from it, so the sum is rounded up or down at random, in
  proportion: right on average (Zamirai et al., "Revisiting BFloat16 Training", https://arxiv.org/abs/2010.06192).
- Second moments are kept as their means over rows and over columns (Adafactor, https://arxiv.org/abs/1804.04235), and
  there are no first ones.
- A parameter is updated as soon as backward has its gradient, which is then dropped (LOMO, https://arxiv.org/abs/2306.09782).
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from cpu_grpo.engine.kernels import native

TINY = 1e-30  # added to squared gradients, Adafactor's first epsilon
SOME = 2**20  # numbers of a parameter that are widened to fp32 at a time


class Lean(torch.optim.Optimizer):
    """Adafactor without momentum for parameters in bf16 (or fp32), its updates bounded to a root mean square of 1.

    As any optimizer it updates the parameters that have a gradient when `step` is called. While `within_backward` is
    set, it updates each as soon as its gradient is complete, and drops that: set it for an update's last backward only,
    and clip no gradients.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.within_backward = False
        self._sound = True  # whether all gradients of the update at hand were finite so far
        self._squared_norm = torch.zeros(())
        self._random = torch.Generator().manual_seed(seed)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(self._completed(group))

    def _completed(self, group: dict[str, Any]) -> Callable[[torch.Tensor], None]:
        def update(parameter: torch.Tensor) -> None:
            if self.within_backward:
                self._update(parameter, group)

        return update

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: nothing computes a loss again
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        self._sound = True  # of the next update's gradients

    def state_dict(self) -> dict[str, Any]:
        """As any optimizer's, with the state of the generator that rounds."""
        return super().state_dict() | {"random": self._random.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "random" in state_dict:
            self._random.set_state(state_dict["random"].cpu())
        # torch rounds loaded state to the parameters' dtype; the means stay in fp32.
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            self.state[parameter] |= copy.deepcopy(state_dict["state"].get(number, {}))

    def gradient_norm(self) -> float:
        """Of all gradients since this was last asked; NaN if one of the update at hand was not finite.

        Such a gradient is not used, nor is any that comes after it in its update, which `step` ends.
        """
        norm = float(self._squared_norm.sqrt()) if self._sound else math.nan
        self._squared_norm.zero_()
        return norm

    @torch.no_grad()
    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None, "a parameter is updated once it has its gradient"
        if not self._sound:
            return
        # A vector is a matrix of one row, whose columns' means are its squares.
        weight, gradient = (t.view(-1, t.size(-1)) for t in (parameter.data, gradient.contiguous()))  # (out, in)
        rows, columns = mean_squares(gradient)
        self._sound = bool(rows.isfinite().all())
        if not self._sound:
            return
        state = self.state[parameter]
        if not state:
            state["updates"] = 0
            state["rows"], state["columns"] = torch.zeros(weight.size(0)), torch.zeros(weight.size(1))
        state["updates"] += 1
        old = 1 - state["updates"] ** -0.8  # Adafactor, section 7.2
        self._squared_norm += rows.sum() * weight.size(1)
        state["rows"].lerp_(rows + TINY, 1 - old)
        state["columns"].lerp_(columns + TINY, 1 - old)
        by_row = (state["rows"] / state["rows"].mean()).rsqrt()  # (out,)
        by_column = state["columns"].rsqrt()  # (in,)
        rate = group["lr"] / max(1.0, root_mean_square(gradient, by_row, by_column))
        descend(weight, gradient, by_row * rate, by_column, 1 - group["lr"] * group["weight_decay"], self._random)


def mean_squares(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, in) -> the means of its squares over rows (out,) and over columns (in,), in fp32."""
    rows, columns = torch.zeros(gradient.size(0)), torch.zeros(gradient.size(1))
    if kernels := native(gradient.dtype):
        kernels.squares(gradient, rows, columns, *gradient.shape)
    else:
        for part in _parts(gradient):
            squares = gradient[part].float().square()
            rows[part] = squares.sum(dim=1)
            columns += squares.sum(dim=0)
    return rows / gradient.size(1), columns / gradient.size(0)


def root_mean_square(gradient: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor) -> float:
    """Of (out, in) times (out,) times (in,)."""
    rows, weights = torch.zeros(gradient.size(0)), by_column.square()
    if kernels := native(gradient.dtype):
        kernels.weighted_squares(gradient, weights, rows, *gradient.shape)
    else:
        for part in _parts(gradient):
            rows[part] = gradient[part].float().square().mv(weights)
    return float((rows.dot(by_row.square()) / gradient.numel()).sqrt())


def descend(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    by_row: torch.Tensor,
    by_column: torch.Tensor,
    kept: float,
    random: torch.Generator,
) -> None:
    """weight * kept - gradient * by_row * by_column, all (out, in), in place; bf16 is rounded at random."""
    if weight.dtype == gradient.dtype and (kernels := native(weight.dtype)):
        seed = int(torch.randint(2**63 - 1, (), generator=random))
        kernels.descend(weight, gradient, by_row, by_column, kept, seed, *weight.shape)
        return
    for part in _parts(weight):
        step = (gradient[part].float() * by_column).mul_(by_row[part, None])
        weight[part] = rounded((weight[part].float() * kept).sub_(step), weight.dtype, random)


def rounded(wide: torch.Tensor, dtype: torch.dtype, random: torch.Generator) -> torch.Tensor:
    """fp32 numbers in `dtype`; in bf16 one of the two nearest, with chances such that the mean is the number itself."""
    if dtype != torch.bfloat16:
        return wide.to(dtype)
    # bf16 is the upper half of fp32: adding anything below its last place carries over as often as the rest says.
    noise = torch.empty(wide.shape, dtype=torch.int32).random_(0, 2**16, generator=random)
    return (wide.view(torch.int32) + noise).bitwise_and_(-(2**16)).view(torch.float32).to(dtype)


def _parts(matrix: torch.Tensor) -> Iterator[slice]:
    """Rows of about SOME numbers together."""
    rows = max(1, SOME // matrix.size(1))
    return (slice(first, first + rows) for first in range(0, matrix.size(0), rows))

"""Training of the reference models in PyTorch, one seed after the other."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from deq_init.data import Split
from deq_init.torch.models import DEQFCN
from deq_init.training import Outcome, Settings


def train_fcn(
    settings: Settings, family: str, gain: float, data: Split, orders: np.ndarray, seeds: np.ndarray
) -> Outcome:
    """Train one model for each seed, on PyTorch's default device.

    Parameters
    ----------
    settings : deq_init.training.Settings
        How; ``method`` is "plain" or "anderson".
    family, gain
        Of W.
    data : deq_init.data.Split
        Samples.
    orders : array, shape (seeds, steps, batch), integer
        Which training samples each step of each seed sees.
    seeds : array, shape (seeds,), integer
        Seeds of the parameters.

    Raises
    ------
    SolverError
        For ``method="batch"``, which JAX alone has.

    See Also
    --------
    deq_init.training : settings and outcome.
    """
    outcomes = [
        _train(settings, family, gain, data, order, int(seed))
        for order, seed in zip(orders, seeds, strict=True)
    ]
    return Outcome(*map(np.array, zip(*outcomes, strict=True)))


def _train(
    settings: Settings, family: str, gain: float, data: Split, order: np.ndarray, seed: int
) -> tuple[float, float, float, float]:
    model = DEQFCN(
        data.x_train.shape[1],
        settings.width,
        data.classes,
        family=family,
        gain=gain,
        input_gain=settings.input_gain,
        method=settings.method,
        rtol=settings.rtol,
        max_steps=settings.max_steps,
        seed=seed,
    )
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), settings.learning_rate, settings.momentum)
        if settings.optimizer == "sgd"
        else torch.optim.Adam(model.parameters(), settings.learning_rate)
    )
    device = model.W.device
    x_train, x_test = (torch.from_numpy(x).to(device) for x in (data.x_train, data.x_test))
    y_train, y_test = (torch.from_numpy(y).long().to(device) for y in (data.y_train, data.y_test))
    steps, lost, loss = [], [], torch.nan
    for samples in torch.from_numpy(np.asarray(order, np.int64)).to(device):
        optimizer.zero_grad()
        logits, solution = model(x_train[samples])
        value = functional.cross_entropy(logits, y_train[samples])
        cast(Any, value).backward()
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        steps.append(solution.steps.float().mean().item())
        lost.append((~solution.converged).float().mean().item())
        loss = value.item()
    with torch.no_grad():
        logits, _ = model(x_test)
        accuracy = (logits.argmax(1) == y_test).float().mean().item()
    return accuracy, loss, float(np.mean(steps)), float(np.mean(lost))

"""Training of the DEQ-transformer in PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deq_init import language as core
from deq_init.fixed_point import Solution
from deq_init.language import Outcome, Settings
from deq_init.torch.models import DEQTransformer
from deq_init.training import ADAM


def train(
    settings: Settings,
    family: str,
    gain: float,
    text: np.ndarray,
    validation: np.ndarray,
    vocabulary: int,
    seeds: np.ndarray,
) -> Outcome:
    """Train one model for each seed, one after another; see :func:`deq_init.jax.language.train`."""
    held_out = torch.from_numpy(core.sequences(validation, settings).astype(np.int64))
    words = torch.from_numpy(text.astype(np.int64))
    runs = [
        _train_one(settings, family, gain, words, held_out, vocabulary, int(seed)) for seed in seeds
    ]
    return Outcome(*np.array(runs, np.float32).T)


def _train_one(
    settings: Settings,
    family: str,
    gain: float,
    text: Tensor,
    held_out: Tensor,
    vocabulary: int,
    seed: int,
) -> tuple[float, float, float, float]:
    model = DEQTransformer(
        vocabulary,
        settings.width,
        settings.heads,
        settings.expansion,
        family=family,
        gain=gain,
        norm=settings.norm,
        method=settings.method,
        rtol=settings.rtol,
        max_steps=settings.max_steps,
        seed=seed,
    )
    text, held_out = (words.to(model.embedding.device) for words in (text, held_out))
    first, second, epsilon = ADAM
    optimizer = torch.optim.Adam(
        model.parameters(), settings.learning_rate, (first, second), epsilon
    )
    steps, stopped, value = [], [], torch.nan
    window = torch.arange(settings.length + 1, device=text.device)
    for begin in torch.from_numpy(core.starts(len(text), settings, seed)).to(text.device):
        loss, solution = _loss(model, text[begin[:, None] + window])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        value = loss.item()
        steps.append(solution.steps.float().mean().item())
        stopped.append((~solution.converged).float().mean().item())
    size = min(settings.batch, len(held_out))
    with torch.no_grad():
        kept = held_out[: len(held_out) // size * size]
        parts = kept.reshape(-1, size, held_out.shape[1])
        likelihoods = torch.stack([_loss(model, part)[0] for part in parts])
    perplexity = likelihoods.mean().exp().item()
    return perplexity, value, float(np.mean(steps)), float(np.mean(stopped))


def _loss(model: DEQTransformer, sequences: Tensor) -> tuple[Tensor, Solution]:
    logits, solution = model(sequences[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten()), solution

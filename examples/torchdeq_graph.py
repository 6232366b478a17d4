"""An implicit graph neural network in torchdeq that diverges as PyTorch initializes it.

Each node of a 6 x 6 grid adds up what its eight neighbours and itself send: W's gain of 0.58
counts up to nine times. Run: pip install torchdeq, then python examples/torchdeq_graph.py
"""

import torch
import torchdeq

import deq_init.torch

SIDE, FEATURES, BATCH = 6, 32, 16


class Cell(torch.nn.Module):
    """z -> relu(A z Wᵀ) + x for states of shape (batch, nodes, features)."""

    def __init__(self, adjacency):
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.linear = torch.nn.Linear(FEATURES, FEATURES, bias=False)

    def forward(self, z, x):
        return torch.relu(self.adjacency @ self.linear(z)) + x


def grid(side):
    nodes = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    return ((nodes[:, None] - nodes[None]).abs().amax(-1) <= 1).float()


def solved(f, z0):
    """How many samples torchdeq brings to a relative residual of 1e-3."""
    deq = torchdeq.get_deq(f_solver="fixed_point_iter", f_tol=1e-3, f_max_iter=200)
    with torch.no_grad():
        _, info = deq(f, z0)
    return int((info["rel_lowest"] <= 1e-3).sum())


def main():
    torch.manual_seed(0)
    cell = Cell(grid(SIDE))
    x = torch.randn(BATCH, SIDE**2, FEATURES)
    z0 = torch.zeros_like(x)

    def f(z):
        return cell(z, x)

    weights = cell.linear.weight
    report = deq_init.torch.check(f, z0, weights=weights)
    print(report)
    print(f"before: {solved(f, z0)} of {BATCH} samples solved")
    deq_init.torch.multiply_(weights, report.suggested_factor)
    print(f"after: {solved(f, z0)} of {BATCH} samples solved")


if __name__ == "__main__":
    main()

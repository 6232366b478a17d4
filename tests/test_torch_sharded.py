"""PyTorch's sharded tensors: what tests/sharded.py checks, on several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("sharded.py")
CHECKS = (
    "seeds",
    "without_seed",
    "without_communication",
    "rescaling",
    "refusals",
    "fsdp",
    "tensor_parallel",
)


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this PyTorch has no gloo",
)
@pytest.mark.parametrize("world", [2, 3, 4])  # uneven and empty shards; meshes of two axes
def test_shards_are_parts_of_the_whole(world, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(world), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(world)
    ]
    outputs = []
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, output
        checked = [line.split()[1] for line in output.splitlines() if line.startswith("checked ")]
        assert tuple(checked) == CHECKS, output
        # The summary is printed once, by the first rank.
        assert output.count("6 weights set, 9 left alone") == (rank == 0)

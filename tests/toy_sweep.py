"""A sweep of trivial cells, also as a process to kill: python toy_sweep.py FOLDER [SECONDS]."""

import os
import resource
import sys
import time
from pathlib import Path

from deq_init.experiments import sweep


def cells(count=8, seeds=2, seconds=0.0, log=None):
    kind = {"experiment": "toy", "seeds": seeds, "seconds": seconds, "log": log}
    return [{**kind, "gain": gain} for gain in range(count)]


def measure(cell):
    if cell["log"]:
        with Path(cell["log"]).open("a") as file:
            file.write(f"{cell['gain']} {os.getpid()}\n")
    time.sleep(cell["seconds"])
    return [{"seed": seed, "value": cell["gain"] + seed / 10} for seed in range(cell["seeds"])]


if __name__ == "__main__":
    folder, seconds, jobs, log, most = sys.argv[1:]
    if most != "-":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most),) * 2)
    options = sweep.Options(folder, jobs=int(jobs), quiet=True)
    own = cells(seconds=float(seconds), log=None if log == "-" else log)
    sweep.run("toy", own, measure, options)

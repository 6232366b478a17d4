"""Cells of an experiment, run in parallel, each written down as soon as it is finished.

A cell is a configuration: a dictionary of JSON's types that says all there is to know about what is
computed. A function of this package maps it to rows, one for each seed. The same cells given again
go on where a run was interrupted; several processes may share one folder, on one machine or on
a network file system with POSIX locks.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deq_init.errors import EngineError, OutputError, require
from deq_init.experiments import report
from deq_init.experiments.results import RESULTS, Results, Row, key_of, load

Engine = Literal["loky", "dask", "ray"]
ENGINES: tuple[Engine, ...] = ("loky", "dask", "ray")

_POLL = 0.5


@dataclass(frozen=True)
class Options:
    """How, not what, a sweep runs: nothing here changes a result.

    Attributes
    ----------
    output : path, optional
        The results folder. By default one below ``deq-init-results`` in the working directory: the
        unfinished one of the same cells, or a new one.
    engine : {"loky", "dask", "ray"}
        Processes on this machine, or the workers of a Dask or Ray cluster, which need this
        package and the data.
    scheduler : str, optional
        Address of a Dask scheduler or Ray head. By default Dask's current client, or what its
        configuration or ``DASK_SCHEDULER_ADDRESS`` names, or a cluster on this machine; Ray's
        ``RAY_ADDRESS``, or this machine.
    jobs : int, optional
        Cells at a time; by default the cores of the machine, or all of the cluster.
    quiet : bool
        No progress bar and no table on standard output.
    """

    output: str | Path | None = None
    engine: Engine = "loky"
    scheduler: str | None = None
    jobs: int | None = None
    quiet: bool = False


def run(
    name: str, cells: Sequence[Row], measure: Callable[[Row], list[Row]], options: Options
) -> Path:
    """Run the cells that the results folder lacks, and return the folder.

    Parameters
    ----------
    name : str
        The experiment.
    cells : sequence of dict
        Configurations, all different.
    measure : callable
        Maps a configuration to its rows; a module's own function, so that workers can import it.
        The configuration, the versions and the seconds are added to each row.
    options : Options
        How.

    Raises
    ------
    OutputError
        If the folder cannot be written to, or holds results of other cells.
    EngineError
        If a cluster cannot be reached.
    MissingFrameworkError
        If what the sweep or the report needs is not installed: found out before the work.
    """
    for module in ("matplotlib.figure", "tqdm", "joblib"):
        require(module, "experiments")
    by_key = {key_of(cell): cell for cell in cells}
    folder = results_folder(name, options.output, by_key)
    results = Results(folder, by_key)
    bar = require("tqdm", "experiments").tqdm(
        total=len(by_key), initial=len(results.rows), desc=name, disable=options.quiet, unit="cell"
    )
    with contextlib.closing(results), bar:
        if len(results.rows) < len(by_key):
            with _engine(options) as parallel:
                _finish(by_key, measure, results, parallel, bar)
    return folder


def results_folder(name: str, output: str | Path | None, keys: dict[str, Row]) -> Path:
    """Return the folder: the given one, or an unfinished one of these cells, or a new one."""
    if output is not None:
        return Path(output)
    base = Path("deq-init-results") / name
    number = 1
    while True:
        folder = base.with_name(f"{name}-{number}") if number > 1 else base
        if not (folder / RESULTS).exists() or _is_unfinished(folder, keys):
            return folder
        number += 1


def _is_unfinished(folder: Path, keys: dict[str, Row]) -> bool:
    try:
        cells = load(folder)
    except OutputError:
        return False
    finished = len(cells.rows) == len(keys) and (folder / report.TABLE).exists()
    return cells.keys <= keys.keys() and not finished


def _finish(
    by_key: dict[str, Row],
    measure: Callable[[Row], list[Row]],
    results: Results,
    parallel: Any,
    bar: Any,
) -> None:
    """Run what is left; wait for cells that other processes run, and run those that they lose."""
    delayed = require("joblib", "experiments").delayed(_measured)
    parent = os.getpid()

    def claimed() -> Iterator[Any]:
        for key, cell in by_key.items():
            if key not in results.rows and results.claim(key):
                yield delayed(measure, key, cell, parent)

    while len(results.rows) < len(by_key):
        before = len(results.rows)
        for key, rows in parallel(claimed()):
            results.append(key, rows)
            bar.update(len(results.rows) - bar.n)
        results.refresh()
        bar.update(len(results.rows) - bar.n)
        if len(results.rows) == before:
            time.sleep(_POLL)


def _measured(
    measure: Callable[[Row], list[Row]], key: str, cell: Row, parent: int
) -> tuple[str, list[Row]]:
    """Return the finished rows of a cell; this runs in a worker."""
    if os.getppid() == parent:
        _end_with(parent)
    _few_threads()
    begun = time.perf_counter()
    rows = measure(cell)
    seconds = round(time.perf_counter() - begun, 3)
    about = {"cell_seconds": seconds, "environment": report.environment(cell.get("backend"))}
    return key, [{**cell, **row, **about} for row in rows]


@functools.cache
def _end_with(parent: int) -> None:
    """End this process when its parent does, which may be killed before it can say so."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _few_threads() -> None:
    """Keep JAX, if it is not loaded yet, to one thread a process, and off most of a GPU's memory.

    Threads of its own slow down what is as small as here; several processes share a GPU.
    """
    if "jax" not in sys.modules:
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_cpu_multi_thread_eigen" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@contextlib.contextmanager
def _engine(options: Options) -> Iterator[Any]:
    """Yield joblib's parallel loop on the engine, whose results come as they are finished."""
    joblib = require("joblib", "experiments")
    with contextlib.ExitStack() as stack:
        extra: dict[str, Any] = {}
        if options.engine == "dask":
            stack.enter_context(_dask(options))
        elif options.engine == "ray":
            _ray(options)
        else:
            extra["inner_max_num_threads"] = 1
        jobs = options.jobs or -1
        stack.enter_context(joblib.parallel_config(options.engine, n_jobs=jobs, **extra))
        yield joblib.Parallel(
            return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs", max_nbytes=None
        )


@contextlib.contextmanager
def _dask(options: Options) -> Iterator[None]:
    """Make a Dask client current: the one that is, or a new one."""
    distributed = require("distributed", "dask")
    if options.scheduler is None and distributed.client._get_global_client() is not None:
        yield
        return
    try:
        client = distributed.Client(options.scheduler, timeout=10, **_local(options))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"expected a Dask scheduler at {options.scheduler}, received {error}. Start one with: "
            "dask scheduler, and workers with: dask worker ADDRESS --nthreads 1."
        ) from error
    with client:
        yield


def _local(options: Options) -> dict[str, Any]:
    """Return what a Dask cluster on this machine is made of, if there is no other."""
    dask = require("dask", "dask")
    if options.scheduler is not None or dask.config.get("scheduler-address", None):
        return {}
    workers = options.jobs or require("joblib", "experiments").cpu_count()
    return {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}


def _ray(options: Options) -> None:
    register = require("ray.util.joblib", "ray").register_ray
    ray = require("ray", "ray")
    if not ray.is_initialized():
        try:
            ray.init(options.scheduler, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise EngineError(
                f"expected a Ray cluster at {options.scheduler}, received {error}. Start one "
                "with: ray start --head."
            ) from error
    register()

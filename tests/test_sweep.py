"""Sweeps: each cell once whatever happens, in any number of processes, on each engine."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from deq_init.errors import EngineError, MissingFrameworkError, OutputError
from deq_init.experiments import report, results, sweep

import toy_sweep

SCRIPT = Path(toy_sweep.__file__)


def rows(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def run(folder, **options):
    given = {name: options.pop(name) for name in ("count", "seeds") if name in options}
    how = {"jobs": 1, "quiet": True, **options}
    return sweep.run(
        "toy", toy_sweep.cells(**given), toy_sweep.measure, sweep.Options(folder, **how)
    )


def start(folder, seconds=0.0, jobs=1, log="-", most="-"):
    arguments = [str(a) for a in (folder, seconds, jobs, log, most)]
    return subprocess.Popen([sys.executable, SCRIPT, *arguments], stderr=subprocess.PIPE, text=True)


def assert_each_once(folder, count=8, seeds=2):
    assert sorted((row["gain"], row["seed"]) for row in rows(folder)) == [
        (gain, seed) for gain in range(count) for seed in range(seeds)
    ]


def wait_for(folder, lines):
    deadline = time.monotonic() + 300
    path = folder / "results.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_rows_carry_configuration_versions_seed_and_time(tmp_path):
    run(tmp_path)
    assert_each_once(tmp_path)
    for row in rows(tmp_path):
        assert row["value"] == pytest.approx(row["gain"] + row["seed"] / 10)
        assert row["experiment"] == "toy"
        assert row["of"] == 2
        assert row["cell_seconds"] >= 0
        assert row["environment"]["numpy"] == np.__version__
    assert len({row["cell"] for row in rows(tmp_path)}) == 8


def test_keys_depend_on_each_entry_and_on_no_order():
    cell = {"a": 1, "b": [1.5, None], "c": {"d": "x"}}
    assert results.key_of(cell) == results.key_of(dict(reversed(cell.items())))
    changed = [{**cell, "a": 2}, {**cell, "b": [1.5]}, {**cell, "c": {}}, {"a": 1}]
    assert len({results.key_of(other) for other in [cell, *changed]}) == 5


def test_a_finished_folder_runs_nothing(tmp_path):
    run(tmp_path)
    before = (tmp_path / "results.jsonl").read_bytes()

    def fail(cell):
        raise AssertionError

    sweep.run("toy", toy_sweep.cells(), fail, sweep.Options(tmp_path, jobs=1, quiet=True))
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_more_cells_are_added_to_those_that_are_there(tmp_path):
    run(tmp_path, count=3)
    before = (tmp_path / "results.jsonl").read_bytes()
    run(tmp_path)
    assert_each_once(tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize("jobs", [1, 2])
def test_kill_9_and_run_again(tmp_path, jobs):
    process = start(tmp_path, seconds=0.3, jobs=jobs)
    wait_for(tmp_path, 4)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = (tmp_path / "results.jsonl").read_bytes()
    assert 2 <= kept.count(b"\n") // 2 < 8
    again = start(tmp_path, seconds=0.3, jobs=jobs)
    assert again.wait(300) == 0, again.stderr.read()
    again.stderr.close()
    assert_each_once(tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes().startswith(kept)


@pytest.mark.parametrize("kept", [1, 40, 0])
def test_what_a_crash_cut_off_is_run_again(tmp_path, capsys, kept):
    """A torn line, and a cell of which a line is missing, at the end of the file: moved away."""
    run(tmp_path)
    path = tmp_path / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[-2] + lines[-1][:kept]
    path.write_bytes(b"".join(lines[:-2]) + torn)
    assert len(results.read(tmp_path, quiet=True)) == 14
    run(tmp_path)
    assert_each_once(tmp_path)
    assert (tmp_path / "results.jsonl.bak").read_bytes().rstrip(b"\n") == torn.rstrip(b"\n")
    printed = capsys.readouterr().err
    assert f"ended in {len(torn)} bytes (1 whole rows) of a cell that was not finished" in printed


def test_a_last_line_without_its_end_is_whole(tmp_path, capsys):
    """As some tools write them; what is added goes to a line of its own."""
    run(tmp_path, count=7)
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert len(results.read(tmp_path)) == 14
    run(tmp_path)
    assert_each_once(tmp_path)
    assert capsys.readouterr().err == ""


def whole(folder):
    """The values of the whole cells of a folder, from its file alone."""
    return {(row["gain"], row["seed"]): row["value"] for row in rows(folder)}


@pytest.mark.parametrize("order", ["by seed", "reversed", "shuffled", "spaced"])
def test_rows_in_any_order_are_kept(tmp_path, capsys, order):
    run(tmp_path)
    path = tmp_path / "results.jsonl"
    expected = results.read(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    if order == "by seed":
        lines.sort(key=lambda line: json.loads(line)["seed"])
    elif order == "reversed":
        lines.reverse()
    elif order == "shuffled":
        np.random.default_rng(0).shuffle(lines)
    else:
        lines = [b"\xef\xbb\xbf", *(line + b" \r\n\n" for line in lines)]
    path.write_bytes(b"".join(lines))
    before = path.read_bytes()
    run(tmp_path)
    assert path.read_bytes() == before
    assert sorted(results.read(tmp_path), key=str) == sorted(expected, key=str)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "results.jsonl.bak").exists()


def test_a_row_that_is_missing_in_the_middle(tmp_path, capsys):
    """Its cell is run again, and what is left of it is ignored."""
    run(tmp_path)
    path = tmp_path / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    run(tmp_path)
    assert "1 row of cells that are not whole are ignored" in capsys.readouterr().err
    assert path.read_bytes().count(b"\n") == 17
    assert whole(tmp_path).keys() == {(gain, seed) for gain in range(8) for seed in range(2)}
    assert len(results.read(tmp_path)) == 16
    message = "1 row beside the first whole copy of their cells are ignored"
    assert message in capsys.readouterr().err
    before = path.read_bytes()
    run(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("ends", [0, 1, 30])
def test_files_of_two_machines_are_concatenated(tmp_path, capsys, ends):
    """The first whole copy of each cell counts, also where the rows of copies are mixed.

    ``ends`` bytes are missing at the end of the first file: its line end, or a part of a row, too.
    """
    a, b, both = (tmp_path / name for name in ("a", "b", "both"))
    run(a, count=5)
    run(b)
    text = (b / "results.jsonl").read_text().replace('"value":', '"value":100')
    (b / "results.jsonl").write_text(text.replace('"cell_seconds":', '"cell_seconds":1'))
    first = (a / "results.jsonl").read_bytes()
    first = first[: len(first) - ends]
    both.mkdir()
    (both / "results.jsonl").write_bytes(first + (b / "results.jsonl").read_bytes())
    run(both)
    found = {(row["gain"], row["seed"]): row["value"] for row in results.read(both)}
    cut = 4 if ends == 30 else None
    assert found.keys() == {(gain, seed) for gain in range(8) for seed in range(2)}
    for (gain, seed), value in found.items():
        mine = gain + seed / 10
        assert value == (mine if gain < (cut or 5) else float(f"100{mine}"))
    message = "9 rows beside" if cut else "10 rows beside"
    assert message in capsys.readouterr().err
    lines = (both / "results.jsonl").read_bytes().replace(b'}{"cell"', b'}\n{"cell"').splitlines()
    mixed = sorted((line for line in lines if line.endswith(b"}")), key=lambda line: line[-30:])
    (both / "results.jsonl").write_bytes(b"\n".join(mixed[::-1]))
    values = [row["value"] for row in results.read(both)]
    by_cell = list(zip(values[::2], values[1::2], strict=True))
    assert len(by_cell) == 8
    # Both rows of a cell are of one machine.
    assert all((first >= 100) == (second >= 100) for first, second in by_cell)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"[" * 100000 + b"\n", r"b'\[+'\.\.\."),
        (b'{"cell":' * 20000 + b"\n", "b'"),
        (bytes(100) + b"\n", "100 NUL bytes"),
        (b"\xff\xfe\n", "b'"),
        (b'{"cell":"a","of":"2"}\n', "b'"),
        (b'{"cell":"a","of":true}\n', "b'"),
        (b'{"cell":["a"],"of":1}\n', "b'"),
        (b'{"cell":"a","of":1,"seed":[0]}\n', "b'"),
        (b'{"cell":"a","of":0}\n', "b'"),
        (b"mine", "b'mine'"),
    ],
)
def test_a_line_that_is_no_row(tmp_path, content, shown):
    run(tmp_path, count=1)
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes() + b"\n" + content)
    before = path.read_bytes()
    for call in (run, results.read):
        with pytest.raises(OutputError, match=rf"received {shown}.* as line 4\. Delete"):
            call(tmp_path)
    assert path.read_bytes() == before


def test_rows_are_on_the_disk_before_the_cell_is_given_up(tmp_path, monkeypatch):
    """A power failure after append loses nothing: the file's bytes are flushed at that time."""
    flushed = []

    def fsync(descriptor):
        flushed.append(os.fstat(descriptor).st_size)

    here = results.Results(tmp_path, ["0a"])
    monkeypatch.setattr(os, "fsync", fsync)
    release = here._locks.release
    monkeypatch.setattr(here._locks, "release", lambda key: flushed.append(key) or release(key))
    here.append("0a", [{"seed": 1}, {"seed": 2}])
    here.close()
    assert flushed == [(tmp_path / "results.jsonl").stat().st_size, "0a"]


def test_a_write_that_a_signal_ends_early(tmp_path, monkeypatch):
    """Some file systems then write a part."""
    write = os.write
    here = results.Results(tmp_path, ["0a"])
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    here.append("0a", [{"seed": 1}, {"seed": 2}])
    here.close()
    assert [row["seed"] for row in results.read(tmp_path)] == [1, 2]


def test_a_file_that_is_replaced_while_it_is_open(tmp_path):
    here = results.Results(tmp_path, ["0a", "0b"])
    here.append("0a", [{"seed": 1}])
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"")  # cut by someone else: what is there counts
    here.append("0b", [{"seed": 2}])
    assert list(here.rows) == ["0b"]
    path.rename(tmp_path / "other")
    with pytest.raises(OutputError, match="it was deleted or replaced since"):
        here.append("0a", [{"seed": 1}])
    here.close()


@pytest.mark.parametrize("given", [[], [{"seed": 1}, {"seed": 1}]])
def test_rows_that_make_no_cell(tmp_path, given):
    here = results.Results(tmp_path, ["0a"])
    with pytest.raises(OutputError, match="each with a seed of its own"):
        here.append("0a", given)
    here.close()
    assert (tmp_path / "results.jsonl").read_bytes() == b""


def test_two_processes_share_a_folder(tmp_path):
    folder, log = tmp_path / "results", tmp_path / "log"
    both = [start(folder, seconds=0.1, log=log) for _ in range(2)]
    for process in both:
        assert process.wait(300) == 0, process.stderr.read()
        process.stderr.close()
    assert_each_once(folder)
    ran = [line.split() for line in log.read_text().splitlines()]
    assert sorted(gain for gain, _ in ran) == [str(gain) for gain in range(8)]


HOLD = """
import sys, time
from pathlib import Path
from deq_init.experiments.locks import Locks
assert Locks(Path(sys.argv[1]) / "results.jsonl.lock").claim(sys.argv[2])
print("held", flush=True)
time.sleep(100)
"""


def test_a_cell_of_a_killed_process_is_taken_over(tmp_path):
    key = results.key_of(toy_sweep.cells()[3])
    command = [sys.executable, "-c", HOLD, str(tmp_path), key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        other = start(tmp_path)
        wait_for(tmp_path, 14)
        time.sleep(1)
        assert key not in {row["cell"] for row in rows(tmp_path)}
        assert other.poll() is None
        holder.kill()
    assert other.wait(300) == 0, other.stderr.read()
    other.stderr.close()
    assert_each_once(tmp_path)


def test_a_full_disk(tmp_path):
    run(tmp_path, count=1)
    size = (tmp_path / "results.jsonl").stat().st_size
    (tmp_path / "results.jsonl").unlink()
    process = start(tmp_path, most=int(3.5 * size))
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "OutputError: expected to write to" in error
    assert "What was written before is kept" in error
    assert len(rows(tmp_path)) == 6
    again = start(tmp_path)
    assert again.communicate(timeout=300)[1] == ""
    assert_each_once(tmp_path)


@contextlib.contextmanager
def as_nobody():
    """Root may write everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
def test_a_read_only_folder():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, count=2)
        folder.chmod(0o555)
        for path in folder.iterdir():
            path.chmod(0o444)
        before = (folder / "results.jsonl").read_bytes()
        with as_nobody():
            with pytest.raises(OutputError, match="expected a folder that can be written to"):
                run(folder)
            with pytest.raises(OutputError, match=r"expected to write to .*table\.md"):
                report.write_table(folder, "")
            assert len(results.read(folder)) == 4
        assert (folder / "results.jsonl").read_bytes() == before
        folder.chmod(0o755)


def test_results_of_other_cells_are_refused(tmp_path):
    run(tmp_path, seeds=3, count=1)
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(OutputError, match=r"of another: experiment toy, gain 0, seeds 3"):
        run(tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", ["mine\n", "[1]\n", '{"a": 1}\n'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(OutputError, match=r"expected .* to hold a result in each line"):
        run(tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == content


def test_default_folders_resume_or_are_new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run(None, count=3)
    assert first.name == "toy"
    # Unfinished, as it has no table yet: gone on with.
    assert run(None, count=4) == first
    report.write_table(first, "finished")
    assert run(None, count=4).name == "toy-2"
    # Another configuration.
    assert run(None, seeds=1).name == "toy-3"


def test_numbers_that_are_not_finite(tmp_path):
    found = results.Results(tmp_path, ["a1"])
    found.append("a1", [{"a": np.nan, "b": np.float32("inf"), "c": np.int64(3), "d": [np.inf]}])
    found.close()
    assert rows(tmp_path) == [{"cell": "a1", "of": 1, "a": None, "b": None, "c": 3, "d": [None]}]


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as made:
        yield made


def test_dask_by_address(tmp_path, cluster):
    log = tmp_path / "log"
    options = sweep.Options(
        tmp_path, engine="dask", scheduler=cluster.scheduler_address, quiet=True
    )
    sweep.run("toy", toy_sweep.cells(log=str(log)), toy_sweep.measure, options)
    assert_each_once(tmp_path)
    pids = {line.split()[1] for line in log.read_text().splitlines()}
    assert str(os.getpid()) not in pids


def test_dask_by_the_current_client(tmp_path, cluster):
    with cluster.get_client():
        run(tmp_path, engine="dask", jobs=None)
    assert_each_once(tmp_path)


def test_dask_that_is_not_there(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def refuse(*arguments, **options):
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(
        EngineError, match=r"expected a Dask scheduler at tcp://x:1.*dask scheduler,"
    ):
        run(tmp_path, engine="dask", scheduler="tcp://x:1")


def test_ray_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingFrameworkError, match=r"pip install 'deq-init\[ray\]'"):
        run(tmp_path, engine="ray")


def test_a_cell_cut_off_while_another_process_runs_is_cut_away(tmp_path):
    """A process that dies after one row of two, and one in the middle of a line."""
    keys = ["0a", "0b"]
    here = results.Results(tmp_path, keys)
    path = tmp_path / "results.jsonl"
    for torn in (b'{"cell":"0a","of":2,"seed":1}\n', b'{"cell":"0a","of":2,"seed"'):
        path.write_bytes(path.read_bytes() + torn)
        here.refresh()
        assert here.rows == {}
        assert path.read_bytes() == b""
    here.append("0a", [{"seed": 1}, {"seed": 2}])
    here.close()
    assert [row["seed"] for row in results.read(tmp_path)] == [1, 2]


def test_threads_of_one_process_share_a_results_file(tmp_path):
    """As joblib's do: one asks for cells while another writes."""
    keys = [f"{i:04x}" for i in range(200)]
    shared = results.Results(tmp_path, keys)
    asked = threading.Thread(target=lambda: [shared.claim(key) for key in keys])
    asked.start()
    for key in keys:
        shared.append(key, [{"seed": 1}, {"seed": 2}])
    asked.join()
    shared.close()
    assert {key: len(rows) for key, rows in shared.rows.items()} == dict.fromkeys(keys, 2)
    assert len(results.read(tmp_path)) == 400

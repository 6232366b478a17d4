"""Sharded arrays: ``on_eight_devices.py``, in a process that has eight (forced host) devices."""

import os
import subprocess
import sys


def test_on_eight_devices():
    here = os.path.dirname(__file__)
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"),
            os.path.join(here, "on_eight_devices.py"),
        ],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=840,
        cwd=os.path.dirname(here),
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    passed = int(result.stdout.rsplit(" passed", 1)[0].rsplit(maxsplit=1)[-1])
    assert passed > 50
    assert "skipped" not in result.stdout

"""Arrays spread over the devices of two processes: values, gradients and shardings are those of one process."""

from pathlib import Path

import pytest
from processes import free_port, start_python

WORKER = Path(__file__).with_name("worker.py")


@pytest.mark.exhaustive
def test_two_processes_of_four_devices():
    port = free_port()
    both = [start_python("-W", "error", str(WORKER), str(port), "2", str(process)) for process in range(2)]
    try:
        printed = [one.communicate(timeout=300)[0] for one in both]
    finally:
        for one in both:
            one.kill()
    assert [one.returncode for one in both] == [0, 0], "\n".join(printed)
    assert all("equal" in text for text in printed)

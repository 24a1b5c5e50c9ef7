import mmap
import time

from cpu_grpo.hardware import ResourceMonitor, usable_cores


def test_the_monitor_sees_memory_and_work():
    with ResourceMonitor() as monitor:
        before = monitor.rss()
        block = mmap.mmap(-1, 120_000_000)  # its own pages: torch may hand out memory that it kept from earlier tests
        block.write(bytes(1) * len(block))
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        held = monitor.rss()
    assert held - before > 100e6
    assert monitor.peak_rss >= held
    assert 0.3 / (monitor.wall_seconds * usable_cores()) <= monitor.cpu_use <= 1.5


def test_the_monitor_sees_what_is_held_for_a_moment():
    with ResourceMonitor() as monitor:
        before = monitor.rss()
        block = mmap.mmap(-1, 120_000_000)
        block.write(bytes(1) * len(block))
        block.close()
    if monitor._exact:
        assert monitor.peak_rss - before > 100e6
    with ResourceMonitor() as later:
        pass
    assert later.peak_rss < monitor.peak_rss - 50e6 or not monitor._exact

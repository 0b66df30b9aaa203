"""What every test has in common: few threads, always as many, and no network."""

from __future__ import annotations

import os

# Before torch is imported, and for the processes that tests start: one thread for each process of
# the tests, of which there are as many as cores (pytest-xdist, see pyproject.toml). Sums that are
# split over threads round differently.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MKL_NUM_THREADS', os.environ['OMP_NUM_THREADS'])
# What is not here is an error at once.
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import importlib.util
from pathlib import Path

import pytest
import torch

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))

# A worker holds torch, diffusers, transformers and the models of a test at once.
GIBIBYTES_A_WORKER = 3
MOST_WORKERS = 8


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core that this one may use, fewer where the memory is small.

    Tests of files that are named, and not of whole folders, run in this process: starting others
    takes longer.
    """
    if all(argument.split('::')[0].endswith('.py') for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    try:
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    except (AttributeError, ValueError):  # not a POSIX system
        memory = MOST_WORKERS * GIBIBYTES_A_WORKER
    return max(1, min(cores or 1, int(memory / GIBIBYTES_A_WORKER), MOST_WORKERS))


@pytest.fixture(scope='session')
def live_bytes() -> type:
    """``LiveBytes``, a count of the tensors that are alive."""
    path = Path(__file__).with_name('live_bytes.py')
    spec = importlib.util.spec_from_file_location('live_bytes', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LiveBytes

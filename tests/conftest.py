"""What every test has in common: few threads, always as many, and no network."""

from __future__ import annotations

import os

# Before torch is imported. Sums that are split over threads round differently.
os.environ.setdefault('OMP_NUM_THREADS', '2')
os.environ.setdefault('MKL_NUM_THREADS', os.environ['OMP_NUM_THREADS'])
# Also for the processes that tests start: what is not here is an error at once.
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import torch

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))

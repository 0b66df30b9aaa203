"""Scripts for diffusers run with ours when their import changes, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diffusers
from pairs_of_pipelines import image_folder, parts, seeded
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / 'models' / 'adapters'))

import small_loras as lora


def hub(make: Callable, folder: Path) -> None:
    """Models below relative paths that look like ids of the hub."""
    from PIL import Image

    image_folder(make, folder / 'maker' / 'image-model')
    for family, name in (('v2', 'motion'), ('pia', 'pia-adapter')):
        source = make(family).folder.parent / 'parts' / 'motion_adapter'
        diffusers.MotionAdapter.from_pretrained(source).save_pretrained(folder / 'maker' / name)
    layers = lora.layers_of(make('v2').theirs.unet, lora.is_motion)
    for seed, name in enumerate(('zoom', 'pan')):
        target = folder / 'maker' / name / 'pytorch_lora_weights.safetensors'
        target.parent.mkdir(parents=True)
        save_file(lora.peft(layers, 'unet.', seed=seed), target)
    values = parts.eight_bit(parts.picture())[0].permute(1, 2, 0).mul(255).round()
    Image.fromarray(values.byte().numpy()).save(folder / 'picture.png')


def test_scripts_of_diffusers(make: Callable, tmp_path: Path) -> None:
    hub(make, tmp_path)
    script = Path(__file__).with_name('scripts_to_compare.py')
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count('agrees') == 7
    assert "['animation.gif', 'lightning.gif', 'picture.gif']" in done.stdout


def test_offloading_changes_nothing(make: Callable) -> None:
    ours = make('v2').ours
    call = dict(prompt='a red fish', num_frames=2, num_inference_steps=1, output_type='latent')
    plain = ours(**call, generator=seeded(1)).frames
    for switch in (
        ours.enable_model_cpu_offload,
        ours.enable_sequential_cpu_offload,
        ours.enable_group_offload,
    ):
        switch()
        assert (ours(**call, generator=seeded(1)).frames == plain).all()
    ours.remove_all_hooks()
    assert (ours(**call, generator=seeded(1)).frames == plain).all()

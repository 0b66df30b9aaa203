"""Runs scripts as people write them for diffusers, with its import and with ours.

Each script stands in a folder whose relative paths look like hub ids, and leaves ``output``. The
frames of both must agree within a step of 8 bit; one line a script says so.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np

ANIMATEDIFF = """
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter
from diffusers.utils import export_to_gif

adapter = MotionAdapter.from_pretrained("maker/motion", torch_dtype=torch.float32)
model = "maker/image-model"
pipe = AnimateDiffPipeline.from_pretrained(model, motion_adapter=adapter, torch_dtype=torch.float32)
scheduler = DDIMScheduler.from_pretrained(
    model, subfolder="scheduler", clip_sample=False, timestep_spacing="linspace",
    beta_schedule="linear", steps_offset=1,
)
pipe.scheduler = scheduler
pipe.set_progress_bar_config(disable=True)
pipe.vae.enable_slicing()
output = pipe(
    prompt="a red fish moving left",
    negative_prompt="blurry",
    num_frames=4,
    guidance_scale=7.5,
    num_inference_steps=2,
    generator=torch.Generator("cpu").manual_seed(42),
)
frames = output.frames[0]
export_to_gif(frames, "animation.gif")
"""

MOTION_LORAS = """
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter

adapter = MotionAdapter.from_pretrained("maker/motion")
pipe = AnimateDiffPipeline.from_pretrained("maker/image-model", motion_adapter=adapter)
pipe.load_lora_weights("maker/zoom", adapter_name="zoom")
pipe.load_lora_weights("maker/pan", adapter_name="pan")
pipe.set_adapters(["zoom", "pan"], adapter_weights=[1.0, 0.7])
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, beta_schedule="linear")
pipe.set_progress_bar_config(disable=True)
pipe.enable_free_init(method="butterworth", num_iters=2, use_fast_sampling=True)
output = pipe("a blue car in the city", num_frames=4, num_inference_steps=2,
              generator=torch.manual_seed(3))
"""

LCM = """
import torch
from diffusers import AnimateDiffPipeline, LCMScheduler, MotionAdapter

adapter = MotionAdapter.from_pretrained("maker/motion")
pipe = AnimateDiffPipeline.from_pretrained("maker/image-model", motion_adapter=adapter)
pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, beta_schedule="linear")
pipe.load_lora_weights("maker", weight_name="zoom/pytorch_lora_weights.safetensors",
                       adapter_name="lcm-lora")
pipe.set_adapters(["lcm-lora"], [0.8])
pipe.set_progress_bar_config(disable=True)
output = pipe(prompt="a red fish", num_frames=4, guidance_scale=1.5, num_inference_steps=3,
              generator=torch.Generator("cpu").manual_seed(0))
"""

PICTURE = """
import torch
from diffusers import EulerDiscreteScheduler, MotionAdapter, PIAPipeline
from diffusers.utils import export_to_gif, load_image

adapter = MotionAdapter.from_pretrained("maker/pia-adapter")
pipe = PIAPipeline.from_pretrained("maker/image-model", motion_adapter=adapter)
pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
image = load_image("picture.png")
image = image.resize((32, 32))
generator = torch.Generator("cpu").manual_seed(0)
output = pipe(image=image, prompt="a blue car moving left", num_frames=4,
              negative_prompt="blurry", num_inference_steps=2, generator=generator)
export_to_gif(output.frames[0], "picture.gif")
"""

RESTYLE = """
import torch
from diffusers import AnimateDiffVideoToVideoPipeline, DDIMScheduler, MotionAdapter
from PIL import Image

adapter = MotionAdapter.from_pretrained("maker/motion")
pipe = AnimateDiffVideoToVideoPipeline.from_pretrained("maker/image-model", motion_adapter=adapter)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
pipe.set_progress_bar_config(disable=True)
with Image.open("picture.png") as picture:
    video = [picture.convert("RGB").rotate(4 * i).resize((32, 32)) for i in range(4)]
output = pipe(video=video, prompt="a red fish in the city", guidance_scale=7.5,
              num_inference_steps=4, strength=0.5, generator=torch.Generator("cpu").manual_seed(4))
"""

LIGHTNING = """
import torch
from diffusers import AnimateDiffPipeline, EulerDiscreteScheduler, MotionAdapter
from diffusers.utils import export_to_gif
from safetensors.torch import load_file

device, dtype = "cpu", torch.float32
file = "maker/motion/diffusion_pytorch_model.safetensors"
adapter = MotionAdapter(
    block_out_channels=(8, 16), motion_norm_num_groups=4, motion_num_attention_heads=2,
).to(device, dtype)
adapter.load_state_dict(load_file(file, device=device))
pipe = AnimateDiffPipeline.from_pretrained(
    "maker/image-model", motion_adapter=adapter, torch_dtype=dtype, local_files_only=True,
    cache_dir="cache", token=None, force_download=False,
).to(device)
pipe.scheduler = EulerDiscreteScheduler.from_config(
    pipe.scheduler.config, timestep_spacing="trailing", beta_schedule="linear"
)
pipe.set_progress_bar_config(disable=True)
output = pipe(prompt="a red fish", guidance_scale=1.0, num_inference_steps=4, num_frames=4,
              generator=torch.manual_seed(1))
export_to_gif(output.frames[0], "lightning.gif")
"""

BARS = """
import torch
from diffusers import AnimateDiffPipeline, AnimateDiffVideoToVideoPipeline, MotionAdapter

adapter = MotionAdapter.from_pretrained("maker/motion", local_files_only=True)
pipe = AnimateDiffPipeline.from_pretrained("maker/image-model", motion_adapter=adapter)
pipe.set_progress_bar_config(desc="clips", leave=False)
pipe.load_lora_weights("maker/zoom", adapter_name="zoom")
outputs = []
with pipe.progress_bar(total=2) as bar:
    for seed in range(2):
        outputs.append(pipe("a blue car", num_frames=4, num_inference_steps=2,
                            generator=torch.manual_seed(seed)))
        bar.update()
assert bar.n == 2 and bar.desc.startswith("clips")
assert [i for i in pipe.progress_bar(range(3))] == [0, 1, 2]
restyle = AnimateDiffVideoToVideoPipeline(**pipe.components)
assert restyle.get_active_adapters() == ["zoom"]
clips = [output.frames[0] for output in outputs]
output = restyle(video=clips, prompt=["a blue car", "a red fish"], num_inference_steps=4,
                 strength=0.5, generator=torch.manual_seed(5))
"""

SCRIPTS = dict(animatediff=ANIMATEDIFF, loras=MOTION_LORAS, lcm=LCM, picture=PICTURE,
               restyle=RESTYLE, lightning=LIGHTNING, bars=BARS)  # fmt: skip


def changed(script: str) -> str:
    """The script with its import lines changed, and nothing else."""
    lines = script.splitlines()
    return '\n'.join(
        line.replace('from diffusers.utils import', 'from mmvideo.pipelines import').replace(
            'from diffusers import', 'from mmvideo.pipelines import'
        )
        for line in lines
    )


def run(script: str) -> np.ndarray:
    """Frames [T, H, W, 3] that a script leaves."""
    path = Path('script.py')
    path.write_text(script, encoding='utf-8')
    scope = runpy.run_path(str(path))
    return np.stack([np.asarray(frame, dtype=np.int32) for frame in scope['output'].frames[0]])


def main() -> int:
    """Run all scripts; the number of those that differ."""
    wrong = 0
    for name, script in SCRIPTS.items():
        theirs, ours = run(script), run(changed(script))
        worst = int(np.abs(theirs - ours).max()) if theirs.shape == ours.shape else 999
        moves = int(np.abs(np.diff(theirs, axis=0)).max())
        good = worst <= 1 and moves > 1
        wrong += not good
        print(name, 'agrees' if good else 'DIFFERS', worst, moves, theirs.shape, flush=True)
    print('files', sorted(path.name for path in Path().glob('*.gif')))
    return wrong


if __name__ == '__main__':
    sys.exit(main())

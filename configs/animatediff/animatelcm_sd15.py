# AnimateLCM on Stable Diffusion 1.5: motion modules distilled for few steps (Wang et al. 2024).
_base_ = 'animatediff-lcm_sd15.py'

model = dict(
    motion_module=dict(from_pretrained='catalog://animatelcm'),
    # Its own image LoRA, at the strength that its authors use.
    adapters=[dict(type='LoRA', from_pretrained='catalog://animatelcm-lora', scale=0.8)],
)
infer = dict(num_inference_steps=6, guidance_scale=2.0)

# AnimateDiff v2 in 6 steps: the image layers' LCM-LoRA (Luo et al. 2023) and its sampler.
_base_ = 'animatediff-v2_sd15.py'

model = dict(
    scheduler=dict(
        _delete_=True,
        type='LCMScheduler',
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule='linear',
    ),
    adapters=[dict(type='LoRA', from_pretrained='catalog://lcm-lora-sd15')],
)
# At a guidance of 1 the cost is half, and the negative prompt has no effect.
infer = dict(num_inference_steps=6, guidance_scale=1.5)

# AnimateDiff v2 in 8 steps: the image layers' Hyper-SD LoRA (Ren et al. 2024).
_base_ = 'animatediff-v2_sd15.py'

model = dict(
    # The first step must be the last timestep of training, as in the distillation.
    scheduler=dict(timestep_spacing='trailing', set_alpha_to_one=False),
    adapters=[
        dict(
            type='LoRA',
            from_pretrained='ByteDance/Hyper-SD/Hyper-SD15-8steps-lora.safetensors',
        )
    ],
)
# As many steps as the file was distilled for, without guidance.
infer = dict(num_inference_steps=8, guidance_scale=1.0)

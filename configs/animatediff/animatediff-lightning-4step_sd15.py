# AnimateDiff-Lightning: v2's motion modules distilled for 4 steps (Lin and Yang 2024).
_base_ = 'animatediff-v2_sd15.py'

model = dict(
    scheduler=dict(
        _delete_=True,
        type='EulerDiscreteScheduler',
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule='linear',
        # The first step must be the last timestep of training, as in the distillation.
        timestep_spacing='trailing',
    ),
    motion_module=dict(from_pretrained='catalog://animatediff-lightning-4step'),
)
# As many steps as the file was distilled for, without guidance.
infer = dict(num_inference_steps=4, guidance_scale=1.0)

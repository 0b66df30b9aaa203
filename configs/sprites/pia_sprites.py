# PIA on the sprite world: a picture and a prompt become an animation.
_base_ = '../_base_/sprites.py'

model = dict(
    type='PIA',
    unet=dict(resnet_norm_scope='frame'),
    motion_module=dict(
        type='MotionModule',
        from_pretrained='package://sprites',
        subfolder='pia',
        norm_scope='frame',
    ),
    condition_module=dict(type='PIACondition', latent_channels=4),
    # With a schedule that does not end in noise alone, training always saw through the noise where
    # the sprite is; sampling began without that, and the sprite went on somewhere else.
    scheduler=dict(rescale_betas_zero_snr=True, timestep_spacing='trailing'),
    first_channels='pia',
    predict=dict(
        num_inference_steps=25,
        guidance_scale=2.0,
        # Motion is decided early; guidance in the later steps only takes it away from the picture.
        guidance_interval=(0.0, 0.6),
        motion_scale=2,
    ),
)
infer = dict(
    prompt='a red fish moving left on the sea',
    image='package://sprites/examples/fish.png',
    height=64,
    width=64,
    video_length=16,
    motion_scale=2,
    num_inference_steps=25,
    guidance_scale=2.0,
    guidance_interval=(0.0, 0.6),
    seed=0,
    fps=8,
    formats=['mp4', 'gif'],
)
# tools/test.py: captions of combinations that training never saw. All of them ask for motion, as
# motion_scale does: together with it, a caption of a sprite that stands still says two things.
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(
        type='SpriteWorld',
        split='held_out',
        length=200,
        num_frames=16,
        paces=('slow', 'steady', 'fast'),
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='SpriteMetric', style='flat', layout='CTHW')

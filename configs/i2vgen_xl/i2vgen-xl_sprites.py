# A small I2VGen-XL on the sprite world: a picture and a caption become 16 frames.
_base_ = '../_base_/sprites.py'

weights = 'package://sprites'
model = dict(
    type='I2VGenXL',
    # Learnt along with the small Stable Video Diffusion.
    image_encoder=dict(
        type='CLIPVisionModelWithProjection', from_pretrained=weights, subfolder='image_encoder'
    ),
    feature_extractor=dict(type='CLIPImageProcessor', image_size=64),
    scheduler=dict(
        _delete_=True,
        type='DDIMScheduler',
        beta_schedule='squaredcos_cap_v2',
        prediction_type='v_prediction',
        rescale_betas_zero_snr=True,
        set_alpha_to_one=False,
        clip_sample=False,
        steps_offset=1,
        timestep_spacing='leading',
    ),
    unet=dict(subfolder='unet_i2vgen-xl'),
    predict=dict(
        num_inference_steps=25,
        guidance_scale=3.0,
        # Motion is decided early; guidance in the later steps only takes it away from the picture.
        guidance_interval=(0.0, 0.4),
        target_fps=8,
        clip_skip=0,
    ),
)
infer = dict(
    prompt='a red fish moving left on the sea',
    image='package://sprites/examples/fish.png',
    height=64,
    width=64,
    video_length=16,
    target_fps=8,
    num_inference_steps=25,
    guidance_scale=3.0,
    guidance_interval=(0.0, 0.4),
    clip_skip=0,
    decode_chunk_size=16,
    seed=0,
    fps=8,
    formats=['mp4', 'gif'],
)
# tools/test.py: captions and first frames of combinations that training never saw.
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='SpriteWorld', split='held_out', length=200, num_frames=16),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='SpriteMetric', style='flat', layout='CTHW')

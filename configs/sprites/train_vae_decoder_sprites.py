# The decoder goes on alone, and learns to forgive the small errors that a denoiser leaves
# in its latents. The encoder stays, so every model that was trained on its latents fits as before.
_base_ = 'train_vae_sprites.py'

model = dict(
    vae=dict(
        _delete_=True,
        type='AutoencoderKL',
        from_pretrained='package://sprites',
        subfolder='vae',
    ),
    latent_noise=0.25,
    trainable=[r'^vae\.decoder', r'^vae\.post_quant_conv'],
)
train_cfg = dict(max_iters=3000)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, T_max=2900, eta_min=1e-5),
]

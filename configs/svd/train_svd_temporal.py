# Only what is temporal is trained; the image layers stay as they are.
_base_ = 'train_svd.py'

model = dict(trainable=[r'^unet\..*(temporal_|time_pos_embed|time_mixer)'])
optim_wrapper = dict(optimizer=dict(lr=1e-4))

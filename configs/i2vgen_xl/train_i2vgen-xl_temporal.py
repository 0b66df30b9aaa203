# Only what is temporal is trained; the image layers stay as they are.
_base_ = 'train_i2vgen-xl.py'

model = dict(trainable=[r'^unet\..*(temp_convs|temp_attentions|transformer_in|temporal_encoder)'])
optim_wrapper = dict(optimizer=dict(lr=1e-4))

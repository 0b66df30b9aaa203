"""The mathematics of diffusion, apart from any model."""

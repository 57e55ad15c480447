"""Latent diffusion models in the CompVis layout: config, checkpoint, first stage, UNet and conditioning."""

"""The U-Net, the autoencoder's blocks, and the noise schedule."""

"""Weights of other libraries, in and out, with a receipt: google, timm, torchvision, transformers."""

"""Variational autoencoders for medical images: the models, losses and metrics of the book."""

__version__ = "0.1.0"

"""Raw data or a phantom in, a prepared dataset out: the only code here that knows file formats."""

from data_prep.phantoms import phantom

__all__ = ["phantom"]

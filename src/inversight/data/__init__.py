"""Image sets: readers, splits and checks."""

from inversight.data.checks import (
    SIZES,
    check_holdout_classes,
    check_overlap,
    check_size,
    working_size,
)
from inversight.data.digits import Digits, load_digits
from inversight.data.folder import load_folder
from inversight.data.images import ImageSet, image_set, pixel_hash, to_pil, write_images
from inversight.data.splits import split

__all__ = [
    "SIZES", "Digits", "ImageSet", "check_holdout_classes", "check_overlap", "check_size", "image_set",
    "load_digits", "load_folder", "pixel_hash", "split", "to_pil",
    "working_size", "write_images",
]  # fmt: skip

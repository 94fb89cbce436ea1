"""Image sets: readers, splits and checks."""

from inversight.data.checks import (
    SIZES,
    check_holdout_classes,
    check_overlap,
    check_size,
    working_size,
)
from inversight.data.digits import Digits, load_digits
from inversight.data.groups import (
    absolute_group_by,
    column_rule,
    groups_fingerprint,
    read_group_rule,
    with_groups,
)
from inversight.data.images import (
    ImageSet,
    image_set,
    join_images,
    pixel_hash,
    to_pil,
    write_images,
)
from inversight.data.source import load_images, read_splits, split_path
from inversight.data.splits import split

__all__ = [
    "SIZES", "Digits", "ImageSet", "absolute_group_by", "check_holdout_classes", "check_overlap",
    "check_size", "column_rule", "groups_fingerprint", "image_set", "join_images", "load_digits",
    "load_images", "pixel_hash", "read_group_rule", "read_splits", "split", "split_path", "to_pil",
    "with_groups", "working_size", "write_images",
]  # fmt: skip

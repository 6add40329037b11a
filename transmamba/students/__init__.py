"""One file a kind of student. Importing this package registers the students' models in timm."""

from . import ssd_vit, vim  # noqa: F401

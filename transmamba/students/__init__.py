"""One file a kind of student. Importing this package registers the students' models in timm: all of them but
those that fail to import, which are named in a line."""

from ..config.registry import STUDENTS

STUDENTS.import_files()

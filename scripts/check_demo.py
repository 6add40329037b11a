"""Check what `make demo` promises: a teacher of at least 97 %, and a student within 3 points of it.

    python scripts/check_demo.py runs/digits_vit_to_vim

Prints one line; exits with 1 when the promise is broken, with 2 when there is no finished run.
"""

import argparse
import json
import sys
from pathlib import Path

TEACHER_FLOOR = 97.0  # percent; below that a teacher teaches nothing
LARGEST_GAP = 3.0  # percentage points


def main() -> int:
    parser = argparse.ArgumentParser(description="Check what `make demo` promises.")
    parser.add_argument("run_folder", type=Path)
    path = parser.parse_args().run_folder / "results.json"
    try:
        results = json.loads(path.read_text())
        teacher, student = results["teacher"]["top1"], results["student"]["top1"]
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {path}: no finished distillation ({error}); run `make demo`", file=sys.stderr)
        return 2
    broken = []
    if teacher < TEACHER_FLOOR:
        broken.append(f"the teacher has {teacher:.2f} %, less than {TEACHER_FLOOR:g} %")
    if teacher - student > LARGEST_GAP:
        broken.append(
            f"the student has {student:.2f} %, more than {LARGEST_GAP:g} points below {teacher:.2f} %"
        )
    if broken:
        print(f"demo check failed: {'; '.join(broken)}", file=sys.stderr)
        return 1
    print(f"demo check passed: teacher {teacher:.2f} %, student {student:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())

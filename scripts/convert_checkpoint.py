"""Convert a Transformer checkpoint into an untrained Mamba student.

    python scripts/convert_checkpoint.py deit_small_patch16_224 OUT --student vim_small_patch16_224

The same as `transmamba convert`.
"""

import sys

from transmamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))

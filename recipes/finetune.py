"""Train or fine-tune a classifier with labels alone: teachers, their heads, from-scratch baselines.

    accelerate launch --quiet recipes/finetune.py --config recipes/configs/digits_vit.yaml
    accelerate launch --quiet recipes/finetune.py --config recipes/configs/cifar10_vit.yaml \
        task.data.root=/data/cifar10

The same trainer as distillation, with a recipe that names no teacher; RUN/student holds the trained model.
"""

import sys

from transmamba.launch import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__.splitlines()[0]))

"""Turn a Transformer into a Mamba student.

    accelerate launch --quiet recipes/distill.py --config recipes/configs/digits_vit_to_vim.yaml
    accelerate launch --quiet --config_file recipes/accelerate/ddp.yaml recipes/distill.py \
        --config recipes/configs/imagenet_deit_s_to_vim_s.yaml task.data.root=/data/imagenet

Every key of the recipe can be overridden: `stages.0.lr=1e-3 trainer.global_batch=128`. Started again, the
same command continues a run that was stopped or killed; `--overwrite` starts it anew.
"""

import sys

from transmamba.cli.launch import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__.splitlines()[0]))

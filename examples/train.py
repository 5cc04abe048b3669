"""Training by configuration file, under accelerate's launcher or by itself.

    accelerate launch examples/train.py
    accelerate launch examples/train.py --config examples/configs/distill.yaml --data GSV-Cities
    accelerate launch examples/train.py --help

Without --config it draws small towns and runs the whole way in minutes: a tiny teacher, a student that follows it
(stage 1), and fine-tuning on places (stage 2). `d2vpr train` is the same thing.
"""

import sys

from d2vpr_hf.cli.main import main

# Worker processes import this file too, and must not train.
if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

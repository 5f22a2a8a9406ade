"""`python -m spoco_zoo` is `spoco-zoo`, for `torchrun -m spoco_zoo`."""

from spoco_zoo.cli import main

if __name__ == "__main__":
    main()

"""`python -m upscale.cli COMMAND`: for launchers that start modules, such as torchrun and deepspeed."""

from upscale.cli import main

if __name__ == "__main__":
    main()
